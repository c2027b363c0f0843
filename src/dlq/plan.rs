//! What a replay of a dead letter would send, or why it is refused. Pure.
//!
//! Neighbours: [`super`] sends it. A replay is the assignment byte for byte under its own headers; the header
//! `Caf-Replay` makes it another assignment for the workers, so that it really runs again. What was replayed before is told
//! by the letter, when the replay of an earlier one wrote it, and by the marker of the letter itself.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use caf_actors::nats::replays::Marker;
use caf_actors::sink::Outgoing;
use caf_protocol::dead_letter::kept::{KeptLetter, NoOriginal};
use caf_protocol::headers::{Headers, MESSAGE_ID, REPLAY};
use caf_protocol::timestamp::iso_micros;

/// Where replays go, and how often.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Subject that the workers listen to.
    pub assign: String,
    /// Stream of dead letters, for the message id.
    pub dlq_stream: String,
    /// Most replays of one assignment.
    pub max_replays: u32,
    /// Also letters that were replayed already.
    pub again: bool,
    /// A replay that was begun after this and is not confirmed may still be under way, in milliseconds since the Unix
    /// epoch.
    pub settled_before_ms: u64,
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
    /// Its job would run twice.
    #[error("it was replayed as replay {replay} at {at}; --again sends it once more as replay {next}")]
    Replayed {
        /// As this replay.
        replay: u32,
        /// When, UTC.
        at: String,
        /// What the next would be.
        next: u32,
    },
    /// Another operator.
    #[error(
        "another run is replaying it, or ended just now before that was confirmed; try again in some seconds"
    )]
    Outrun,
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

/// How often the assignment of a letter was surely replayed.
pub fn replays(letter: &KeptLetter, marker: Option<&Marker>) -> u32 {
    letter.replay().max(marker.map_or(0, Marker::sent))
}

/// When the replay of this marker was sent, UTC.
pub fn sent_at(marker: &Marker) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(marker.sent_at_ms));
    iso_micros(at.unwrap_or(UNIX_EPOCH))
}

/// What the letter with this sequence and marker becomes. A replay that was not confirmed keeps its number.
///
/// # Errors
/// [`Refused`].
pub fn plan(
    sequence: u64,
    letter: &KeptLetter,
    marker: Option<&Marker>,
    rules: &Rules,
) -> Result<Replay, Refused> {
    let (Some(assignment_id), Some(_)) = (letter.text("assignment_id"), letter.text("tenant_id")) else {
        return Err(Refused::Unreadable);
    };
    let payload = letter.original_payload()?;
    let subject = letter.text("original_subject").unwrap_or_default();
    if subject != rules.assign {
        return Err(Refused::OtherSubject(subject.to_owned()));
    }
    let replays = replays(letter, marker);
    if replays >= rules.max_replays {
        return Err(Refused::TooOften { replays });
    }
    let number = replays + 1;
    if marker.is_some_and(|marker| !marker.confirmed && marker.sent_at_ms > rules.settled_before_ms) {
        return Err(Refused::Outrun);
    }
    if let Some(marker) = marker.filter(|marker| marker.confirmed && !rules.again) {
        return Err(Refused::Replayed {
            replay: marker.replay,
            at: sent_at(marker),
            next: number,
        });
    }
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
            again: false,
            settled_before_ms: 1_000,
        }
    }

    fn planned(change: impl FnOnce(&mut Value)) -> Result<Replay, Refused> {
        planned_after(None, &rules(), change)
    }

    fn planned_after(
        marker: Option<Marker>,
        rules: &Rules,
        change: impl FnOnce(&mut Value),
    ) -> Result<Replay, Refused> {
        let mut letter = json!({
            "assignment_id": "a-1", "tenant_id": "acme", "original_subject": "caf.exec.assign.v1",
            "original_payload": "{\"x\": 1}", "original_payload_hash": sha256_hex(b"{\"x\": 1}"),
            "original_headers": {"traceparent": "t", "Nats-Msg-Id": "m", "nats-expected-stream": "s", "CAF-replay": "1"},
        });
        change(&mut letter);
        plan(
            9,
            &KeptLetter::read(letter.to_string().as_bytes()),
            marker.as_ref(),
            rules,
        )
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

    #[test]
    fn what_was_replayed_is_sent_again_only_when_asked_and_what_was_not_confirmed_under_its_number() {
        let after = |replay, confirmed, again| {
            let marker = Marker::new(replay, 1_000, confirmed);
            let rules = Rules { again, ..rules() };
            planned_after(Some(marker), &rules, |_| {}).map(|replay| replay.number)
        };
        let replayed = Refused::Replayed {
            replay: 2,
            at: "1970-01-01T00:00:01.000000Z".to_owned(),
            next: 3,
        };
        assert_eq!(after(2, true, false), Err(replayed));
        assert_eq!(after(2, true, true), Ok(3));
        assert_eq!(after(2, false, false), Ok(2));
        assert_eq!(after(3, false, false), Ok(3));
        assert_eq!(after(3, true, true), Err(Refused::TooOften { replays: 3 }));
        let under_way = Some(Marker::new(1, 1_001, false));
        assert_eq!(planned_after(under_way, &rules(), |_| {}), Err(Refused::Outrun));
    }
}
