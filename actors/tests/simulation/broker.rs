//! The broker, as it was measured: a work queue whose verdicts hit whoever holds the message now, a store with
//! compare-and-set per key, and streams that drop a second message with the same id. Its plain subscribers see both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caf_actors::approvals::record::Entry;
use caf_actors::approvals::store::StoreError as ApprovalError;
use caf_actors::claims::fleet::{Found, Revision, StoreError};
use caf_actors::claims::record::{ClaimRecord, OutcomeRef};
use caf_actors::sink::{Outgoing, Published, Verdict};
use caf_protocol::headers::MESSAGE_ID;
use caf_protocol::ids::sha256_hex;
use tokio::sync::{oneshot, watch};

use super::kernel::{MS, Micros};
use super::world::World;

pub(crate) const STREAM: &str = "assignments";
pub(crate) const ANSWERS: &str = "answers";

pub(crate) struct Broker {
    pub up: bool,
    /// Counts restarts: no connection survives one.
    pub generation: u64,
    pub up_watch: watch::Sender<bool>,
    pub was_away_at: Option<Micros>,
    pub messages: BTreeMap<u64, Message>,
    pub next_sequence: u64,
    pulls: Vec<Pull>,
    pub claims: BTreeMap<String, (Revision, ClaimRecord)>,
    /// Questions to people, by the key of their assignment.
    pub approvals: BTreeMap<String, (Revision, Entry)>,
    revision: Revision,
    /// Answers by message id: position in `stored`.
    ids: BTreeMap<String, usize>,
    stored: Vec<Arc<Outgoing>>,
    /// Messages that a verdict of an earlier holder has hit: whoever has one now cannot know.
    pub disturbed: BTreeSet<u64>,
    /// Messages that reached a process long after they were sent to it.
    pub late: BTreeSet<u64>,
}

/// A message in the work queue.
pub(crate) struct Message {
    /// Which assignment, as a number in the scenario.
    pub spec: usize,
    pub state: Delivery,
    pub deliveries: u64,
}

pub(crate) enum Delivery {
    Waiting { until: Micros },
    Delivered { token: Arc<str>, until: Micros },
}

struct Pull {
    process: usize,
    until: Micros,
    hand_over: oneshot::Sender<Delivered>,
}

/// What a pull gets.
pub(crate) struct Delivered {
    pub spec: usize,
    pub sequence: u64,
    pub token: Arc<str>,
    pub deliveries: u64,
    pub sent_at: Micros,
}

impl Broker {
    pub(crate) fn new() -> Self {
        Self {
            up: true,
            generation: 0,
            up_watch: watch::Sender::new(true),
            was_away_at: None,
            messages: BTreeMap::new(),
            next_sequence: 1,
            pulls: Vec::new(),
            claims: BTreeMap::new(),
            approvals: BTreeMap::new(),
            revision: 0,
            ids: BTreeMap::new(),
            stored: Vec::new(),
            disturbed: BTreeSet::new(),
            late: BTreeSet::new(),
        }
    }

    pub(crate) fn read(&self, key: &str) -> Found {
        self.claims
            .get(key)
            .map_or_else(Found::default, |(revision, record)| Found {
                record: Some(record.clone()),
                revision: *revision,
            })
    }

    pub(crate) fn result(&self, outcome: &OutcomeRef) -> Option<Outgoing> {
        let (_, sequence) = outcome.position.as_ref()?;
        let found = self.stored.get(usize::try_from(*sequence).ok()? - 1)?;
        sha256_hex(&found.payload)
            .starts_with(&outcome.hash)
            .then(|| Outgoing::clone(found))
    }

    pub(crate) fn stored(&self, id: &str) -> Option<&Arc<Outgoing>> {
        self.ids.get(id).map(|at| &self.stored[*at])
    }

    pub(crate) fn drop_pulls_of(&mut self, process: usize) {
        self.pulls.retain(|pull| pull.process != process);
    }

    pub(crate) fn drop_all_pulls(&mut self) {
        self.pulls.clear();
    }
}

impl World {
    /// The router sends an assignment.
    pub(crate) fn submit(&mut self, spec: usize) {
        if !self.broker.up {
            // The router tries again.
            self.kernel
                .after(500 * MS, Box::new(move |_, world| world.submit(spec)));
            return;
        }
        let sequence = self.broker.next_sequence;
        self.broker.next_sequence += 1;
        let until = self.kernel.now;
        let message = Message {
            spec,
            state: Delivery::Waiting { until },
            deliveries: 0,
        };
        self.broker.messages.insert(sequence, message);
        self.audit.to_submit -= 1;
        self.note(|| format!("assignment {spec} arrives as message {sequence}"));
        self.pump();
    }

    pub(crate) fn pull(&mut self, process: usize, until: Micros, hand_over: oneshot::Sender<Delivered>) {
        self.broker.pulls.push(Pull {
            process,
            until,
            hand_over,
        });
        self.pump();
    }

    /// Gives messages that wait to pulls that wait.
    pub(crate) fn pump(&mut self) {
        let now = self.kernel.now;
        while self.broker.up {
            self.broker.pulls.retain(|pull| pull.until > now);
            let is_free =
                |message: &Message| matches!(message.state, Delivery::Waiting { until } if until <= now);
            let free = self
                .broker
                .messages
                .iter()
                .filter(|(_, message)| is_free(message));
            let free: Vec<u64> = free.map(|(sequence, _)| *sequence).collect();
            if free.is_empty() || self.broker.pulls.is_empty() {
                return;
            }
            let sequence = free[self.kernel.dice.index(free.len())];
            let chosen = self.kernel.dice.index(self.broker.pulls.len());
            let Pull {
                process, hand_over, ..
            } = self.broker.pulls.swap_remove(chosen);
            let until = now + self.scenario.ack_wait;
            let message = self.broker.messages.get_mut(&sequence).expect("listed above");
            message.deliveries += 1;
            let token: Arc<str> = format!("{sequence}.{}", message.deliveries).into();
            message.state = Delivery::Delivered {
                token: Arc::clone(&token),
                until,
            };
            let delivered = Delivered {
                spec: message.spec,
                sequence,
                token,
                deliveries: message.deliveries,
                sent_at: now,
            };
            if message.deliveries > 1 {
                self.audit.count("delivered again");
            }
            self.note(|| format!("message {} goes to process {process}", delivered.token));
            self.expire_at(sequence, until);
            self.deliver(
                process,
                Box::new(move |_, _| {
                    let _ = hand_over.send(delivered);
                }),
            );
        }
    }

    /// Looks again when the time of a delivery may be over.
    fn expire_at(&mut self, sequence: u64, at: Micros) {
        self.kernel.at(
            at,
            Box::new(move |_, world| {
                let now = world.kernel.now;
                let Some(message) = world.broker.messages.get_mut(&sequence) else {
                    return;
                };
                let Delivery::Delivered { until, .. } = message.state else {
                    return;
                };
                if until <= now {
                    message.state = Delivery::Waiting { until: now };
                    world.note(|| format!("message {sequence} was not answered in time"));
                    world.pump();
                } else if until > at {
                    world.expire_at(sequence, until);
                }
            }),
        );
    }

    /// A verdict arrives. It hits the message, whoever has it now.
    pub(crate) fn verdict(&mut self, token: &str, verdict: Verdict) {
        let now = self.kernel.now;
        let sequence: u64 = token
            .split('.')
            .next()
            .and_then(|number| number.parse().ok())
            .expect("a token of ours");
        let ack_wait = self.scenario.ack_wait;
        let Some(message) = self.broker.messages.get_mut(&sequence) else {
            return;
        };
        let is_current =
            matches!(&message.state, Delivery::Delivered { token: current, .. } if **current == *token);
        if !is_current {
            self.broker.disturbed.insert(sequence);
        }
        match verdict {
            Verdict::Ack => {
                let spec = message.spec;
                self.broker.messages.remove(&sequence);
                self.note(|| format!("message {sequence} is acknowledged"));
                self.check_not_lost(spec);
            }
            Verdict::Nak { delay_ms } => {
                let until = now + delay_ms * MS;
                message.state = Delivery::Waiting { until };
                self.note(|| format!("message {sequence} is given back for {delay_ms} ms"));
                self.kernel.at(until, Box::new(|_, world| world.pump()));
            }
            Verdict::InProgress => {
                if let Delivery::Delivered { until, .. } = &mut message.state {
                    *until = now + ack_wait;
                }
            }
        }
    }

    /// Compare-and-set.
    pub(crate) fn write_claim(
        &mut self,
        from: usize,
        key: &str,
        record: &[u8],
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        let record: ClaimRecord = serde_json::from_slice(record).expect("what is written can be read");
        let before = self.broker.read(key);
        if before.revision != expected {
            return Err(StoreError::Conflict);
        }
        self.broker.revision += 1;
        let revision = self.broker.revision;
        self.note(|| {
            format!(
                "process {from} writes claim {}: {:?} by {}, attempt {}, deaths {}",
                &key[..6],
                record.state,
                record.owner,
                record.attempt,
                record.deaths
            )
        });
        self.check_claim(from, key, before.record.as_ref(), &record);
        self.broker.claims.insert(key.to_owned(), (revision, record));
        Ok(revision)
    }

    /// Compare-and-set of a question.
    pub(crate) fn write_approval(
        &mut self,
        from: usize,
        entry: Entry,
        expected: Revision,
    ) -> Result<Revision, ApprovalError> {
        let key = entry.request.approval_id.as_str().to_owned();
        let before = self.broker.approvals.get(&key).cloned();
        if before.as_ref().map_or(0, |(revision, _)| *revision) != expected {
            return Err(ApprovalError::Conflict);
        }
        self.broker.revision += 1;
        let revision = self.broker.revision;
        self.note(|| {
            format!(
                "process {from} writes approval {}: {}, answered {}",
                &key[..6],
                entry.standing.word(),
                entry.answered.is_some()
            )
        });
        self.check_approval(&key, before.map(|(_, before)| before).as_ref(), &entry);
        self.broker.approvals.insert(key, (revision, entry));
        Ok(revision)
    }

    /// An answer or a dead letter arrives.
    pub(crate) fn publish(&mut self, from: usize, message: Arc<Outgoing>) -> Published {
        let id = message
            .headers
            .get(MESSAGE_ID)
            .expect("everything has an id")
            .to_owned();
        self.note_stopped(from, &id);
        self.check_published(&id, &message);
        if let Some(at) = self.broker.ids.get(&id) {
            return Published {
                position: Some((ANSWERS.into(), *at as u64 + 1)),
                known_before: true,
            };
        }
        self.note(|| format!("{id} of process {from} is stored"));
        self.broker.stored.push(message);
        self.broker.ids.insert(id, self.broker.stored.len() - 1);
        Published {
            position: Some((ANSWERS.into(), self.broker.stored.len() as u64)),
            known_before: false,
        }
    }
}
