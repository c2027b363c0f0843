//! Writes a conclusion down as the messages that are sent.
//!
//! Neighbours: the publisher's futures call [`Writer::write`] before anything is kept or sent; `answers` has the forms,
//! [`crate::spill`] keeps elsewhere what does not fit. Sends nothing.

use std::sync::Arc;

use caf_protocol::dead_letter::{Attempt, Cause};
use caf_protocol::outcome::{Failure, Status};

use super::sending::Written;
use super::{Answer, Conclusion};
use crate::answers::{Answers, wire_bytes};
use crate::claims::Claim;
use crate::clock;
use crate::events::{self, Log};
use crate::job::Holdings;
use crate::sink::Sink;
use crate::spill::Spiller;

/// Writes in the name of one worker; what is being written shares it.
pub(super) struct Writer {
    pub(super) answers: Answers,
    pub(super) spiller: Spiller,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) log: Log,
}

impl Writer {
    /// The acknowledgement still to be confirmed, and the messages in the order they go. Waits only while large outputs
    /// cannot be kept elsewhere.
    pub(super) async fn write(&self, conclusion: Conclusion, holdings: &Holdings) -> Written {
        match conclusion {
            Conclusion::Bury { arrival, failure } => {
                let (limit, now_ms) = (self.sink.max_message_bytes(), clock::epoch_ms());
                let cause = Cause {
                    failure: &failure,
                    reason: "unreadable",
                    retries_used: 0,
                    attempts: &[self.answers.own_attempt(None)],
                };
                let letter = self
                    .answers
                    .dead_letter(None, &cause, &arrival.original(), limit, now_ms);
                self.tell_letter(&failure);
                Written::repeated(vec![Arc::new(letter)])
            }
            Conclusion::Repeat(result) => Written::repeated(vec![result]),
            Conclusion::Answer(answer) => self.write_answer(*answer, holdings).await,
        }
    }

    async fn write_answer(&self, answer: Answer, holdings: &Holdings) -> Written {
        let Answer {
            ack,
            mut step,
            dead_letter,
            rejected,
            row,
            ran: _,
            load,
            arrival,
            identity,
        } = answer;
        let (limit, now_ms) = (self.sink.max_message_bytes(), clock::epoch_ms());
        let written = self
            .spiller
            .result(&self.answers, (&identity, &mut step), load, limit, now_ms)
            .await;
        if let (Some(bytes), None) = (written.too_large_bytes, &written.output_ref) {
            self.log.emit(events::result_too_large(&identity, bytes, limit));
        }
        let row = written.too_large_bytes.map_or(row, |_| "15");
        self.log.measure(|| events::delivery::left_by(row));
        // What had to be left out of a success makes it an error (row 15).
        let is_cut = written.too_large_bytes.is_some() && written.output_ref.is_none();
        let status = match step.outcome.status() {
            Status::Success if is_cut => Status::Error,
            status => status,
        };
        let kept_elsewhere = written.output_ref.as_ref().map_or(0, |kept| kept.size);
        holdings
            .share
            .charge_out(wire_bytes(&written.message) as u64 + kept_elsewhere);
        let result = Arc::new(written.message);
        if let Some(claim) = &holdings.claim {
            claim.record_result(&result);
        }
        let attempts = self
            .attempts(holdings, (!rejected).then_some(arrival.received_at_ms))
            .await;
        let letter = step.outcome.failure().zip(dead_letter).map(|(failure, reason)| {
            let cause = Cause {
                failure,
                reason,
                retries_used: step.retries_used,
                attempts: &attempts,
            };
            self.tell_letter(failure);
            self.answers
                .dead_letter(Some(&identity), &cause, &arrival.original(), limit, now_ms)
        });
        Written {
            ack: Some(ack),
            messages: std::iter::once(result).chain(letter.map(Arc::new)).collect(),
            identity: Some(identity),
            position: arrival.position,
            published_at_ms: arrival.published_at_ms,
            status: Some(status),
        }
    }

    fn tell_letter(&self, failure: &Failure) {
        self.log
            .measure(|| events::delivery::dead_letter(failure.code.as_str()));
    }

    /// Who tried, oldest first: what the claim remembers, and this worker.
    async fn attempts(&self, holdings: &Holdings, started_at_ms: Option<u64>) -> Vec<Attempt> {
        let own = self.answers.own_attempt(started_at_ms);
        let Some(claim) = holdings.claim.as_ref().and_then(Claim::fleet) else {
            return vec![own];
        };
        let record = claim.record().await;
        let earlier = record.history.iter().map(|past| Attempt {
            worker_id: past.worker_id.clone(),
            attempt: past.attempt,
            started_at: None,
        });
        let attempt = record.attempt;
        earlier.chain([Attempt { attempt, ..own }]).collect()
    }
}
