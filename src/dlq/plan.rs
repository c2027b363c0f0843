//! What a replay of a dead letter would send, or why it is refused. Pure.
//!
//! Neighbours: [`super`] sends it. A replay is the assignment byte for byte under its own headers; the header
//! `Caf-Replay` makes it another assignment for the workers, so that it really runs again.

use bytes::Bytes;
use caf_actors::sink::Outgoing;
use caf_protocol::dead_letter::kept::{KeptLetter, NoOriginal};
use caf_protocol::headers::{Headers, MESSAGE_ID, REPLAY};

/// Where replays go, and how often.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Subject that the workers listen to.
    pub assign: String,
    /// Stream of dead letters, for the message id.
    pub dlq_stream: String,
    /// Most replays of one assignment.
    pub max_replays: u32,
}

/// A replay that may be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// The assignment.
    pub assignment_id: String,
    /// Which replay of it: 1 is the first.
    pub number: u32,
    /// What is sent.
    pub message: Outgoing,
}

/// Why a letter is not replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The stream has no such letter.
    #[error("there is no dead letter with this sequence")]
    Absent,
    /// Row 1: it would only come back.
    #[error("it was unreadable: it names no assignment or tenant that could be answered")]
    Unreadable,
    /// The bytes are not there.
    #[error(transparent)]
    NoOriginal(#[from] NoOriginal),
    /// The workers of these settings would not see it.
    #[error("it came on {0}, which is not nats.subjects.assign of these settings")]
    OtherSubject(String),
    /// Enough is enough.
    #[error("it was replayed {replays} times, as often as --max-replays allows")]
    TooOften {
        /// So often.
        replays: u32,
    },
    /// The server does not take it.
    #[error("it is larger than the largest message that the server takes")]
    TooLarge,
}

/// What the letter with this sequence becomes.
///
/// # Errors
/// [`Refused`].
pub fn plan(sequence: u64, letter: &KeptLetter, rules: &Rules) -> Result<Replay, Refused> {
    let (Some(assignment_id), Some(_)) = (letter.text("assignment_id"), letter.text("tenant_id")) else {
        return Err(Refused::Unreadable);
    };
    let payload = letter.original_payload()?;
    let subject = letter.text("original_subject").unwrap_or_default();
    if subject != rules.assign {
        return Err(Refused::OtherSubject(subject.to_owned()));
    }
    let replays = letter.replay();
    if replays >= rules.max_replays {
        return Err(Refused::TooOften { replays });
    }
    let number = replays + 1;
    Ok(Replay {
        assignment_id: assignment_id.to_owned(),
        number,
        message: Outgoing {
            subject: rules.assign.clone(),
            headers: headers(letter, sequence, number, rules),
            payload: Bytes::from(payload),
        },
    })
}

/// The original headers without those that told the server what to do with the first copy: its message id, what it
/// expected of the stream, how long it was to stay.
fn headers(letter: &KeptLetter, sequence: u64, number: u32, rules: &Rules) -> Headers {
    let mut headers = Headers::default();
    for (name, value) in letter.original_headers().iter() {
        let for_the_server = name
            .get(..5)
            .is_some_and(|start| start.eq_ignore_ascii_case("Nats-"));
        if !for_the_server && !name.eq_ignore_ascii_case(REPLAY) {
            headers.push(name, value);
        }
    }
    headers.push(REPLAY, number.to_string());
    // The same replay sent twice within the stream's duplicate window is one.
    headers.push(
        MESSAGE_ID,
        format!("{}.{sequence}.replay.{number}", rules.dlq_stream),
    );
    headers
}

#[cfg(test)]
mod tests {
    use caf_protocol::ids::sha256_hex;
    use serde_json::{Value, json};

    use super::*;

    fn rules() -> Rules {
        Rules {
            assign: "caf.exec.assign.v1".to_owned(),
            dlq_stream: "caf-dlq".to_owned(),
            max_replays: 3,
        }
    }

    fn planned(change: impl FnOnce(&mut Value)) -> Result<Replay, Refused> {
        let mut letter = json!({
            "assignment_id": "a-1", "tenant_id": "acme", "original_subject": "caf.exec.assign.v1",
            "original_payload": "{\"x\": 1}", "original_payload_hash": sha256_hex(b"{\"x\": 1}"),
            "original_headers": {"traceparent": "t", "Nats-Msg-Id": "m", "nats-expected-stream": "s", "CAF-replay": "1"},
        });
        change(&mut letter);
        plan(9, &KeptLetter::read(letter.to_string().as_bytes()), &rules())
    }

    #[test]
    fn a_replay_has_the_bytes_and_headers_of_the_assignment_and_counts_up() {
        let replay = planned(|_| {}).expect("may be sent");
        assert_eq!((replay.assignment_id.as_str(), replay.number), ("a-1", 2));
        assert_eq!(replay.message.subject, "caf.exec.assign.v1");
        assert_eq!(&replay.message.payload[..], b"{\"x\": 1}");
        let headers: Vec<_> = replay.message.headers.iter().collect();
        assert_eq!(
            headers,
            [
                ("traceparent", "t"),
                ("Caf-Replay", "2"),
                ("Nats-Msg-Id", "caf-dlq.9.replay.2")
            ]
        );
        let first = planned(|letter| letter["original_headers"] = json!({})).expect("may be sent");
        assert_eq!(first.number, 1);
    }

    #[test]
    fn what_cannot_or_must_not_be_replayed_is_refused_and_the_reason_is_told() {
        let refused = |change: fn(&mut Value)| planned(change).expect_err("is refused");
        assert_eq!(refused(|v| v["assignment_id"] = json!(null)), Refused::Unreadable);
        assert_eq!(refused(|v| v["tenant_id"] = json!(7)), Refused::Unreadable);
        assert_eq!(refused(|v| *v = json!([])), Refused::Unreadable);
        assert_eq!(
            refused(|v| v["original_payload"] = json!(null)),
            Refused::NoOriginal(NoOriginal::Missing)
        );
        assert_eq!(
            refused(|v| v["original_payload"] = json!("{}")),
            Refused::NoOriginal(NoOriginal::HashDiffers)
        );
        assert_eq!(
            refused(|v| v["original_headers"]["CAF-replay"] = json!("3")),
            Refused::TooOften { replays: 3 }
        );
        assert_eq!(
            refused(|v| v["original_subject"] = json!("orders.delete")),
            Refused::OtherSubject("orders.delete".to_owned())
        );
    }
}
