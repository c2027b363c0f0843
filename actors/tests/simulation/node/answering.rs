//! As `publisher.rs` and `publisher/sending.rs`.

use std::sync::Arc;

use caf_actors::claims::Claim;
use caf_actors::claims::fleet::Proof;
use caf_actors::job::{Holdings, PoolLoad, SentAck};
use caf_actors::outbox::NewEntry;
use caf_actors::publisher::plan::{Ended, Progress, Step, next_step};
use caf_actors::publisher::{AckState, outcome_of, retry_delay};
use caf_actors::sink::{Published, Verdict};
use caf_protocol::assignment::Identity;
use caf_protocol::ids::AssignmentKey;
use caf_protocol::outcome::StepResult;

use super::{MAX_MESSAGE_BYTES, Message, Node};
use crate::kernel::MS;
use crate::world::MAIN;

/// Pause before the claims are asked again.
const CLAIMS_RETRY: u64 = 100 * MS;

/// A conclusion as written.
pub(crate) struct Written {
    spec: usize,
    ack: Option<AckState>,
    messages: Vec<Message>,
    key: Option<AssignmentKey>,
}

impl Written {
    pub(crate) fn repeated(spec: usize, messages: Vec<Message>) -> Self {
        Self {
            spec,
            ack: None,
            messages,
            key: None,
        }
    }
}

/// One conclusion on its way out.
struct Leaving {
    written: Written,
    kept_as: Option<u64>,
    tries: u32,
    result: Published,
    progress: Progress,
}

impl Node {
    #[expect(clippy::too_many_arguments, reason = "what an answer is made of")]
    pub(super) fn write_answer(
        &self,
        row: &'static str,
        (spec, sequence): (usize, u64),
        identity: &Identity,
        ack: AckState,
        step: &StepResult,
        load: Option<PoolLoad>,
        dead_letter: Option<&'static str>,
        holdings: &Holdings,
    ) -> Written {
        self.row(row, spec);
        let written = self.answers.result(
            identity,
            &mut step.clone(),
            load,
            MAX_MESSAGE_BYTES,
            self.epoch_ms(),
        );
        let result = Arc::new(written.message);
        self.sim
            .with(|world| world.result_written(self.id, spec, &result, row));
        if let Some(claim) = &holdings.claim {
            claim.record_result(&result);
        }
        let failure = step.outcome.failure().zip(dead_letter);
        let letter =
            failure.map(|(failure, reason)| self.letter(spec, sequence, Some(identity), failure, reason));
        Written {
            spec,
            ack: Some(ack),
            messages: std::iter::once(result).chain(letter).collect(),
            key: Some(identity.key()),
        }
    }

    /// Tries once, and waits when it was not confirmed.
    pub(super) async fn try_to_send(&self, message: &Message, attempt: u32) -> Option<Published> {
        let limit = self.scenario.request_limit;
        if self.sim.limit(limit, self.sim.until_up()).await.is_some() {
            let (id, message) = (self.id, Arc::clone(message));
            let sent = self
                .sim
                .request(id, MAIN, limit, move |_, world| world.publish(id, message));
            if let Some(published) = sent.await {
                return Some(published);
            }
        }
        self.sim.sleep_for(retry_delay(attempt)).await;
        None
    }

    pub(super) async fn send_until_confirmed(&self, message: &Message) -> Published {
        let mut attempt = 1;
        loop {
            if let Some(published) = self.try_to_send(message, attempt).await {
                return published;
            }
            attempt += 1;
        }
    }

    pub(super) async fn conclude(self: Arc<Self>, written: Written, mut holdings: Holdings) {
        self.sim.moment().await;
        let is_news = written.ack.is_some();
        let mut leaving = Leaving {
            progress: Progress::new(is_news, true, written.messages.len(), holdings.lease.is_some()),
            written,
            kept_as: None,
            tries: 0,
            result: Published::default(),
        };
        loop {
            let now = self.now();
            leaving.progress.lapsed = holdings.has_lapsed_at(now);
            let step = next_step(&leaving.progress);
            let ended = match step {
                Step::Keep => self.keep(&mut leaving, &holdings).await,
                Step::Prove => {
                    self.row("row 13", leaving.written.spec);
                    match holdings.prove_at(now).await {
                        Proof::Ours => Ended::Done,
                        Proof::Lost => {
                            self.suppress(&leaving, &mut holdings);
                            break;
                        }
                        Proof::Unknown(_) => {
                            self.sim.sleep(CLAIMS_RETRY).await;
                            Ended::Failed
                        }
                    }
                }
                Step::Acknowledge => self.acknowledge(&mut leaving).await,
                Step::Publish(number) => self.publish(&mut leaving, number, &holdings).await,
                Step::Record => self.record(&leaving, &holdings).await,
                Step::Forget => {
                    self.sim.moment().await;
                    if let Some(id) = leaving.kept_as.take() {
                        self.sim.with(|world| world.disk(self.id).outbox.remove(&id));
                    }
                    Ended::Done
                }
                Step::Settle => self.tell_broker(&holdings, Verdict::Ack),
                Step::Done => break,
            };
            leaving.progress.note(step, ended);
        }
        let spec = leaving.written.spec;
        self.sim.with(|world| world.answered_or_suppressed(self.id, spec));
    }

    async fn keep(&self, leaving: &mut Leaving, holdings: &Holdings) -> Ended {
        let Some(key) = &leaving.written.key else {
            return Ended::Failed;
        };
        let ack = leaving.written.ack.as_mut().and_then(AckState::to_keep);
        let claim = holdings.claim.as_ref().and_then(Claim::fleet);
        let entry = NewEntry {
            key: key.clone(),
            owner: claim.map(|claim| claim.owner().to_owned()).unwrap_or_default(),
            position: None,
            messages: ack
                .into_iter()
                .chain(leaving.written.messages.iter().cloned())
                .collect(),
            stored_at_ms: self.epoch_ms(),
        };
        self.sim.moment().await;
        let one_in = self.scenario.unkept_one_in;
        leaving.kept_as = self.sim.with(|world| {
            if one_in > 0 && world.kernel.dice.one_in(one_in) {
                world.audit.count("fault: not kept on disk");
                return None;
            }
            let disk = world.disk(self.id);
            disk.next += 1;
            disk.outbox.insert(disk.next, entry);
            Some(disk.next)
        });
        self.sim.moment().await;
        if leaving.kept_as.is_some() {
            Ended::Done
        } else {
            Ended::Failed
        }
    }

    async fn acknowledge(&self, leaving: &mut Leaving) -> Ended {
        let message = match leaving.written.ack.take() {
            None | Some(AckState::Known) => None,
            Some(AckState::Unsent(message)) => Some(message),
            Some(AckState::Sent(SentAck { message, confirmed })) => {
                confirmed.await.is_err().then_some(message)
            }
        };
        let Some(message) = message else {
            return Ended::Done;
        };
        leaving.tries += 1;
        if self.try_to_send(&message, leaving.tries).await.is_some() {
            leaving.tries = 0;
            return Ended::Done;
        }
        leaving.written.ack = Some(AckState::Unsent(message));
        Ended::Failed
    }

    async fn publish(&self, leaving: &mut Leaving, number: usize, holdings: &Holdings) -> Ended {
        let message = Arc::clone(&leaving.written.messages[number]);
        let sequence = holdings.lease.as_ref().map(|lease| lease.sequence);
        self.decide_to_publish(sequence, &message);
        leaving.tries += 1;
        let Some(published) = self.try_to_send(&message, leaving.tries).await else {
            return Ended::Failed;
        };
        if number == 0 {
            leaving.result = published;
        }
        leaving.tries = 0;
        Ended::Done
    }

    pub(super) fn decide_to_publish(&self, sequence: Option<u64>, message: &Message) {
        if *message.subject == *self.subjects.result {
            self.sim
                .with(|world| world.check_decided(self.id, sequence, message));
        }
    }

    async fn record(&self, leaving: &Leaving, holdings: &Holdings) -> Ended {
        let claim = holdings.claim.as_ref().and_then(Claim::fleet);
        if let (Some(claim), Some(result)) = (claim, leaving.written.messages.first()) {
            let outcome = outcome_of(result, leaving.result.clone());
            if let Proof::Unknown(_) = claim.finish(outcome).await {
                self.sim.sleep(CLAIMS_RETRY).await;
                return Ended::Failed;
            }
        }
        Ended::Done
    }

    fn suppress(&self, leaving: &Leaving, holdings: &mut Holdings) {
        self.row("suppressed before it was sent", leaving.written.spec);
        if let Some(id) = leaving.kept_as {
            self.sim.with(|world| world.disk(self.id).outbox.remove(&id));
        }
        if let Some(claim) = holdings.claim.take() {
            claim.forget();
        }
    }

    /// A verdict without words. What is given back is free for others first.
    pub(super) async fn settle(&self, holdings: Holdings, verdict: Verdict) {
        self.sim.moment().await;
        let claim = holdings.claim.as_ref().filter(|_| verdict.frees_claim());
        if let Some(claim) = claim.and_then(Claim::fleet) {
            let _ = claim.give_back().await;
        }
        self.tell_broker(&holdings, verdict);
    }

    fn tell_broker(&self, holdings: &Holdings, verdict: Verdict) -> Ended {
        let now = self.now();
        if let Some(token) = holdings.lease.as_ref().and_then(|lease| lease.token(now)) {
            self.say(&token, verdict);
        }
        Ended::Done
    }
}
