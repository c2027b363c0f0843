//! The pull request and its answers, in JetStream's words. Pure.

use std::time::Duration;

use serde_json::json;

use crate::nats::watchdog::Order;

/// Most messages per request: what one wake-up can handle without starving others.
const PULL_BATCH: usize = 256;

/// Makes requests on one inbox, each with a reply subject of its own, so that answers to an old one can be told.
pub(super) struct PullRequest {
    subject: String,
    inbox: String,
    number: u64,
    ignore_bytes: bool,
    /// What is left of the bytes that the latest request offered.
    bytes_left: usize,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullEnd {
    /// It was filled, it expired, or the server forgot it: ask again.
    Over,
    /// Nothing was heard for too long: ask again.
    Quiet,
    /// The next message does not fit into the bytes that are free.
    Oversize,
    /// The watchdog wants something built anew.
    Told(Order),
    /// The source is to stop.
    Stop,
}

impl PullRequest {
    pub(super) fn new(stream: &str, durable: &str, inbox: &str) -> Self {
        Self {
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"),
            inbox: inbox.to_owned(),
            number: 0,
            ignore_bytes: false,
            bytes_left: 0,
        }
    }

    /// Most messages that the next request may ask for.
    pub(super) fn most_messages(&self) -> usize {
        if self.ignore_bytes { 1 } else { PULL_BATCH }
    }

    /// A message of this size arrived.
    pub(super) fn delivered(&mut self, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }

    /// Bytes into which the next message did not fit, when the request ended with [`PullEnd::Oversize`].
    pub(super) fn bytes_left(&self) -> usize {
        self.bytes_left
    }

    /// The next request is for one message of any size: nothing is held, and yet it did not fit. It must ask for no
    /// more than [`PullRequest::most_messages`], or its end is waited for in vain: the server is silent about a
    /// request that it has filled.
    pub(super) fn ignore_bytes_once(&mut self) {
        self.ignore_bytes = true;
    }

    /// Subject, reply subject and body of the next request.
    pub(super) fn next(
        &mut self,
        messages: usize,
        bytes: usize,
        expires: Duration,
        heartbeat: Duration,
    ) -> (String, String, String) {
        self.number += 1;
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mut body = json!({
            "batch": messages,
            "expires": nanos(expires),
            "idle_heartbeat": nanos(heartbeat),
        });
        self.bytes_left = bytes;
        if !std::mem::take(&mut self.ignore_bytes) {
            body["max_bytes"] = json!(bytes);
        }
        (self.subject.clone(), self.reply(), body.to_string())
    }

    /// Whether a status message answers the latest request.
    pub(super) fn is_current(&self, subject: &str) -> bool {
        subject == self.reply()
    }

    fn reply(&self) -> String {
        format!("{}.{}", self.inbox, self.number)
    }
}

/// What a status message means for the request: nothing, its end, or that the consumer must be rebuilt.
pub(super) fn pull_end(status: u16, description: &str) -> Result<Option<PullEnd>, String> {
    match status {
        100 => Ok(None),
        404 | 408 => Ok(Some(PullEnd::Over)),
        409 if description.contains("MaxBytes") => Ok(Some(PullEnd::Oversize)),
        409 if ["Leadership Change", "Batch Completed", "Server Shutdown"]
            .iter()
            .any(|d| description.contains(d)) =>
        {
            Ok(Some(PullEnd::Over))
        }
        status => Err(format!("the server ended the pull: {status} {description}")),
    }
}

/// When the stream stored the message, in milliseconds since the Unix epoch; from the reply subject of a delivery.
pub(super) fn published_at_ms(reply: &str) -> Option<u64> {
    let nanoseconds: u64 = numbers_of(reply)?.nth(3)?.parse().ok()?;
    Some(nanoseconds / 1_000_000)
}

/// How often the message was delivered, and its stream sequence; from the same reply subject.
pub(super) fn count_and_position_of(reply: &str) -> Option<(u64, u64)> {
    let mut numbers = numbers_of(reply)?;
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What the reply subject of a delivery says of it: deliveries, sequence in the stream, sequence of the consumer,
/// nanoseconds since the Unix epoch, pending messages. Servers write 9 tokens, newer ones 12 with a domain.
fn numbers_of(reply: &str) -> Option<impl Iterator<Item = &str>> {
    let names = match reply.split('.').count() {
        9 => 4,
        11.. => 6,
        _ => return None,
    };
    Some(reply.split('.').skip(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_and_sequence_are_found_in_both_forms_of_the_reply_subject() {
        assert_eq!(
            count_and_position_of("$JS.ACK.caf-stream.caf-workers.3.42.7.1700000000000000000.0"),
            Some((3, 42))
        );
        assert_eq!(
            count_and_position_of(
                "$JS.ACK.hub.account.caf-stream.caf-workers.3.42.7.1700000000000000000.0.token"
            ),
            Some((3, 42))
        );
        assert_eq!(count_and_position_of("_INBOX.x"), None);
    }

    #[test]
    fn the_time_of_publication_is_found_in_both_forms_of_the_reply_subject() {
        let short = "$JS.ACK.caf-stream.caf-workers.3.42.7.1700000000123456789.0";
        let long = "$JS.ACK.hub.account.caf-stream.caf-workers.3.42.7.1700000000123456789.0.token";
        for reply in [short, long] {
            assert_eq!(published_at_ms(reply), Some(1_700_000_000_123));
        }
        for other in ["_INBOX.x", "$JS.ACK.caf-stream.caf-workers.3.42.7.soon.0"] {
            assert_eq!(published_at_ms(other), None);
        }
    }

    #[test]
    fn only_answers_to_the_latest_request_are_current() {
        let mut request = PullRequest::new("s", "d", "_INBOX.x");
        let limits = (Duration::from_secs(1), Duration::from_secs(1));
        let (subject, first, _) = request.next(3, 100, limits.0, limits.1);
        assert_eq!(subject, "$JS.API.CONSUMER.MSG.NEXT.s.d");
        assert!(request.is_current(&first));
        let (_, second, body) = request.next(3, 100, limits.0, limits.1);
        assert!(request.is_current(&second) && !request.is_current(&first));
        assert!(body.contains("\"max_bytes\":100"));
        request.delivered(30);
        assert_eq!((request.bytes_left(), request.most_messages()), (70, PULL_BATCH));
        request.ignore_bytes_once();
        assert_eq!(request.most_messages(), 1);
        let (_, _, body) = request.next(1, 100, limits.0, limits.1);
        assert!(!body.contains("max_bytes") && body.contains("\"batch\":1"));
        assert_eq!(request.most_messages(), PULL_BATCH);
    }

    #[test]
    fn status_messages_end_the_pull_or_ask_for_a_new_consumer() {
        assert_eq!(pull_end(100, "Idle Heartbeat"), Ok(None));
        assert_eq!(pull_end(408, "Request Timeout"), Ok(Some(PullEnd::Over)));
        assert_eq!(
            pull_end(409, "Message Size Exceeds MaxBytes"),
            Ok(Some(PullEnd::Oversize))
        );
        assert_eq!(pull_end(409, "Leadership Change"), Ok(Some(PullEnd::Over)));
        assert!(pull_end(409, "Consumer Deleted").is_err());
        assert!(pull_end(503, "").is_err());
    }
}
