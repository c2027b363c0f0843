//! `caf-worker dlq`: lists and shows dead letters, and sends their assignments again.
//!
//! Neighbours: speaks through `nats::dead_letters`; shares nothing with the nodes that wrote the letters. In reading
//! order: [`select`] finds letters, [`mod@plan`] makes replays of them, [`output`] prints. Deletes no letter: one that was
//! replayed stays until its stream forgets it. That it was replayed is kept beside it (`nats::replays`) before anything is
//! sent; where it cannot be kept, nothing is sent.

pub mod output;
pub mod plan;
pub mod select;

use std::collections::{HashMap, VecDeque};

use caf_actors::clock::epoch_ms;
use caf_actors::events::Log;
use caf_actors::nats::connection::ConnectError;
use caf_actors::nats::dead_letters::{DeadLetters, DeadLettersError, ReadFrom, StoredLetter};
use caf_actors::nats::replays::{Replays, Seen};
use caf_actors::settings::NatsSettings;
use caf_actors::sink::Published;
use caf_protocol::dead_letter::kept::KeptLetter;

use self::output::{Fate, Left, Report};
use self::plan::{Refused, Replay, Rules, plan};
use self::select::{Candidate, Choice, Filter, Row, choose};
use crate::exit::Exit;
use crate::settings::Settings;
use crate::submit::Show;

/// Longest wait for the broker when `nats.connect_deadline_ms` sets none: a person is waiting.
const CONNECT_DEADLINE_MS: u64 = 5_000;

/// What is asked about dead letters.
#[derive(Debug, Clone)]
pub enum Task {
    /// A list of those that the filter means, at most the last so many.
    List(Filter, usize),
    /// All of one letter.
    Show(u64),
    /// Send assignments again.
    Replay(ReplayTask),
}

/// Which assignments are sent again, and how.
#[derive(Debug, Clone)]
pub struct ReplayTask {
    /// Which letters.
    pub which: Which,
    /// Only say what would be sent.
    pub dry_run: bool,
    /// Also letters that were replayed already.
    pub again: bool,
    /// Most replays in this run.
    pub max: usize,
    /// Most replays of one assignment.
    pub max_replays: u32,
}

/// Which letters are replayed.
#[derive(Debug, Clone)]
pub enum Which {
    /// These sequences.
    Sequences(Vec<u64>),
    /// Those that the filter means, of each assignment the last.
    Matching(Filter),
}

/// Does what is asked.
///
/// # Errors
/// Never: what goes wrong is printed and is in the exit code.
pub async fn run(settings: &Settings, task: Task, show: Show, log: &Log) -> anyhow::Result<Exit> {
    let mut nats = settings.nats.clone();
    if nats.connect_deadline_ms == 0 {
        nats.connect_deadline_ms = CONNECT_DEADLINE_MS;
    }
    let done = match DeadLetters::connect(&nats, log).await {
        Ok(letters) => {
            let desk = Desk {
                letters,
                nats: &nats,
                show,
            };
            desk.answer(task).await
        }
        Err(error) => Err(error),
    };
    Ok(done.unwrap_or_else(|error| {
        output::complain(&error);
        match error {
            DeadLettersError::Connect(ConnectError::Settings(_)) => Exit::Config,
            _ => Exit::Unavailable,
        }
    }))
}

/// One connected run of the command.
struct Desk<'a> {
    letters: DeadLetters,
    nats: &'a NatsSettings,
    show: Show,
}

impl Desk<'_> {
    async fn answer(&self, task: Task) -> Result<Exit, DeadLettersError> {
        match task {
            Task::List(filter, limit) => self.list(&filter, limit).await,
            Task::Show(sequence) => self.show_letter(sequence).await,
            Task::Replay(task) => self.replay(&task).await,
        }
    }

    /// The newest are of interest; they are printed oldest first.
    async fn list(&self, filter: &Filter, limit: usize) -> Result<Exit, DeadLettersError> {
        // A list is worth reading without what the bucket knows.
        let markers = async { Ok(self.letters.replays(false).await?.all().await?) };
        let markers = markers.await.unwrap_or_else(|error: DeadLettersError| {
            output::complain(&format!("which letters were replayed is not known: {error}"));
            HashMap::new()
        });
        let mut rows = VecDeque::new();
        let mut found = 0;
        let mut note = |stored: &StoredLetter| {
            let row = Row::of(stored, markers.get(&stored.sequence));
            if filter.matches(&row) {
                found += 1;
                rows.push_back(row);
                if rows.len() > limit {
                    rows.pop_front();
                }
            }
        };
        let from = match (filter.after, filter.since) {
            (None, Some(since)) => ReadFrom::Since(since),
            (after, _) => ReadFrom::After(after.unwrap_or(0)),
        };
        self.letters.read(from, |stored| note(&stored)).await?;
        output::rows(rows.make_contiguous(), self.show);
        if found > rows.len() {
            let shown = rows.len();
            output::complain(&format!("the last {shown} of {found}; --limit shows more"));
        }
        Ok(Exit::Ok)
    }

    async fn show_letter(&self, sequence: u64) -> Result<Exit, DeadLettersError> {
        let Some(stored) = self.letters.get(sequence).await? else {
            output::complain(&format!("{sequence}: {}", Refused::Absent));
            return Ok(Exit::SomeFailed);
        };
        let seen = async { Ok(self.letters.replays(false).await?.get(sequence).await?) };
        let seen = seen.await.unwrap_or_else(|error: DeadLettersError| {
            output::complain(&format!("whether it was replayed is not known: {error}"));
            Seen::default()
        });
        output::letter(&stored, seen.marker.as_ref(), self.show);
        Ok(Exit::Ok)
    }

    async fn replay(&self, task: &ReplayTask) -> Result<Exit, DeadLettersError> {
        let desk = ReplayDesk {
            letters: &self.letters,
            replays: self.letters.replays(!task.dry_run).await?,
            stored: self.letters.assignments_are_stored().await?,
            rules: Rules {
                assign: self.nats.subjects.assign.clone(),
                dlq_stream: self.letters.stream().to_owned(),
                max_replays: task.max_replays,
                again: task.again,
                // Sending and confirming take one request each.
                settled_before_ms: epoch_ms().saturating_sub(2 * self.nats.request_timeout_ms),
            },
            show: self.show,
        };
        if !task.dry_run
            && let Err(error) = desk.replays.prune(self.letters.first_sequence()).await
        {
            output::complain(&format!("what is kept of letters that are gone stays: {error}"));
        }
        desk.replay(task).await
    }
}

/// One run that replays.
struct ReplayDesk<'a> {
    letters: &'a DeadLetters,
    replays: Replays,
    /// Whether a stream keeps assignments.
    stored: bool,
    rules: Rules,
    show: Show,
}

impl ReplayDesk<'_> {
    async fn replay(&self, task: &ReplayTask) -> Result<Exit, DeadLettersError> {
        let Choice {
            chosen,
            superseded,
            mut skipped,
        } = self.choose(task).await?;
        if !self.stored {
            output::complain(&format!(
                "no stream stores {}: replays reach only workers that listen now, nothing confirms that one does, and \
                 a second copy is not dropped",
                self.rules.assign
            ));
        }
        let is_named = matches!(task.which, Which::Sequences(_));
        let (mut sent, mut refused, mut left) = (0, 0, None);
        for (looked_at, &sequence) in chosen.iter().enumerate() {
            if sent == task.max {
                left = Some(Left {
                    count: chosen.len() - looked_at,
                    after: chosen[looked_at - 1],
                    max: task.max,
                });
                break;
            }
            match self.replay_letter(sequence, task.dry_run).await? {
                // Another run was faster, or the letter is gone; what is too large is known only now.
                Fate::Refused(why) if !is_named && why != Refused::TooLarge => skipped.note(&why),
                Fate::Refused(_) => refused += 1,
                Fate::Sent(_) | Fate::Would(_) => sent += 1,
                Fate::SentBefore(_) | Fate::Unconfirmed(_) => {}
            }
        }
        output::remainder(superseded, skipped, left);
        Ok(if refused == 0 { Exit::Ok } else { Exit::SomeFailed })
    }

    /// Chosen before anything is sent: a replay that fails at once writes a letter that this run must not replay.
    async fn choose(&self, task: &ReplayTask) -> Result<Choice, DeadLettersError> {
        let filter = match &task.which {
            Which::Sequences(sequences) => {
                return Ok(Choice {
                    chosen: sequences.clone(),
                    ..Choice::default()
                });
            }
            Which::Matching(filter) => filter,
        };
        let markers = self.replays.all().await?;
        let mut candidates = Vec::new();
        let note = |stored: StoredLetter| {
            let letter = KeptLetter::read(&stored.payload);
            let marker = markers.get(&stored.sequence);
            candidates.push(Candidate {
                row: Row::read(&stored, &letter, marker),
                refused: plan(stored.sequence, &letter, marker, &self.rules).err(),
            });
        };
        self.letters.read(ReadFrom::After(0), note).await?;
        Ok(choose(&candidates, filter))
    }

    /// Replays one letter, or not, and prints what became of it.
    async fn replay_letter(&self, sequence: u64, dry_run: bool) -> Result<Fate, DeadLettersError> {
        let letter = self.letters.get(sequence).await?;
        let letter = letter.map(|stored| KeptLetter::read(&stored.payload));
        let seen = self.replays.get(sequence).await?;
        let planned = match &letter {
            Some(letter) => plan(sequence, letter, seen.marker.as_ref(), &self.rules),
            None => Err(Refused::Absent),
        };
        let (fate, error) = match planned {
            Err(why) => (Fate::Refused(why), None),
            Ok(replay) if dry_run => (Fate::Would(replay), None),
            Ok(replay) => self.send(sequence, replay, &seen).await?,
        };
        let report = Report {
            sequence,
            assignment_id: letter.as_ref().and_then(|letter| letter.text("assignment_id")),
            fate: &fate,
        };
        report.print(self.show);
        error.map_or(Ok(fate), Err)
    }

    /// Remembered first, then sent, then confirmed. An error beside a fate ends the run once the fate is told.
    async fn send(
        &self,
        sequence: u64,
        replay: Replay,
        seen: &Seen,
    ) -> Result<(Fate, Option<DeadLettersError>), DeadLettersError> {
        let number = replay.number;
        if !self.replays.begin(sequence, number, epoch_ms(), seen).await? {
            return Ok((Fate::Refused(Refused::Outrun), None));
        }
        let sent = if self.stored {
            self.letters.send_stored(&replay.message).await
        } else {
            let sent = self.letters.send_plain(&replay.message).await;
            sent.map(|()| Published::default())
        };
        let known_before = match sent {
            Ok(published) => published.known_before,
            Err(DeadLettersError::TooLarge) => return Ok((Fate::Refused(Refused::TooLarge), None)),
            Err(error) => return Ok((Fate::Unconfirmed(replay), Some(error))),
        };
        let fate = if known_before {
            Fate::SentBefore(replay)
        } else {
            Fate::Sent(replay)
        };
        let confirmed = self.replays.confirm(sequence, number, epoch_ms()).await;
        Ok((fate, confirmed.err().map(DeadLettersError::from)))
    }
}
