//! `caf-worker dlq`: lists and shows dead letters, and sends their assignments again.
//!
//! Neighbours: speaks through `nats::dead_letters`; shares nothing with the nodes that wrote the letters. In reading
//! order: [`select`] finds letters, [`mod@plan`] makes replays of them, [`output`] prints. Deletes nothing: a letter that
//! was replayed stays until its stream forgets it.

pub mod output;
pub mod plan;
pub mod select;

use std::collections::VecDeque;

use caf_actors::events::Log;
use caf_actors::nats::connection::ConnectError;
use caf_actors::nats::dead_letters::{DeadLetters, DeadLettersError, ReadFrom, StoredLetter};
use caf_actors::settings::NatsSettings;
use caf_actors::sink::Published;
use caf_protocol::dead_letter::kept::KeptLetter;

use self::output::{Fate, Report};
use self::plan::{Refused, Replay, Rules, plan};
use self::select::{Choice, Filter, Row, choose};
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
        let mut rows = VecDeque::new();
        let mut found = 0;
        let mut note = |stored: &StoredLetter| {
            let row = Row::of(stored);
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
        output::letter(&stored, self.show);
        Ok(Exit::Ok)
    }

    async fn replay(&self, task: &ReplayTask) -> Result<Exit, DeadLettersError> {
        let rules = Rules {
            assign: self.nats.subjects.assign.clone(),
            dlq_stream: self.letters.stream().to_owned(),
            max_replays: task.max_replays,
        };
        let choice = self.choose(task).await?;
        let stored = self.letters.assignments_are_stored().await?;
        if !stored {
            output::complain(&format!(
                "no stream stores {}: replays reach only workers that listen now, nothing confirms that one does, and \
                 a second copy is not dropped",
                rules.assign
            ));
        }
        let mut refused = 0;
        for sequence in &choice.chosen {
            let letter = self.letters.get(*sequence).await?;
            let letter = letter.map(|stored| KeptLetter::read(&stored.payload));
            let planned = match &letter {
                Some(letter) => plan(*sequence, letter, &rules),
                None => Err(Refused::Absent),
            };
            let fate = match planned {
                Err(why) => Fate::Refused(why),
                Ok(replay) if task.dry_run => Fate::Would(replay),
                Ok(replay) => self.send(replay, stored).await?,
            };
            refused += usize::from(matches!(fate, Fate::Refused(_)));
            let report = Report {
                sequence: *sequence,
                assignment_id: letter.as_ref().and_then(|letter| letter.text("assignment_id")),
                fate: &fate,
            };
            report.print(self.show);
        }
        output::remainder(&choice, task.max);
        Ok(if refused == 0 { Exit::Ok } else { Exit::SomeFailed })
    }

    /// Chosen before anything is sent: a replay that fails at once writes a letter that this run must not replay.
    async fn choose(&self, task: &ReplayTask) -> Result<Choice, DeadLettersError> {
        match &task.which {
            Which::Sequences(sequences) => Ok(Choice {
                chosen: sequences.clone(),
                ..Choice::default()
            }),
            Which::Matching(filter) => {
                let mut rows = Vec::new();
                let all = ReadFrom::After(0);
                self.letters
                    .read(all, |stored| rows.push(Row::of(&stored)))
                    .await?;
                Ok(choose(&rows, filter, task.max))
            }
        }
    }

    async fn send(&self, replay: Replay, stored: bool) -> Result<Fate, DeadLettersError> {
        let sent = if stored {
            self.letters.send_stored(&replay.message).await
        } else {
            let sent = self.letters.send_plain(&replay.message).await;
            sent.map(|()| Published::default())
        };
        match sent {
            Ok(Published {
                known_before: false, ..
            }) => Ok(Fate::Sent(replay)),
            Ok(Published {
                known_before: true, ..
            }) => Ok(Fate::SentBefore(replay)),
            Err(DeadLettersError::TooLarge) => Ok(Fate::Refused(Refused::TooLarge)),
            Err(error) => Err(error),
        }
    }
}
