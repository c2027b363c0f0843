//! `cancel`: asks a node to cancel jobs, and says what was done.
//!
//! Neighbours: [`caf_protocol::cancel`] has the form of the request; the admin port carries it out.

use caf_protocol::cancel::CancelRequest;
use serde_json::Value;

use super::text::clean;
use super::{Node, Said, Silence};

/// Asks.
///
/// # Errors
/// [`Silence`].
pub async fn ask(node: &Node, request: &CancelRequest) -> Result<Said, Silence> {
    node.tell("/v1/cancel", request.write()).await
}

/// The answer as text.
pub fn render(request: &CancelRequest, body: &Value) -> String {
    let worker = clean(body["worker_id"].as_str().unwrap_or("?"));
    let (what, id) = (
        request.target.field().trim_end_matches("_id"),
        clean(request.target.id()),
    );
    let count = body["cancelled"].as_u64().unwrap_or_default();
    let done = match body["outcome"].as_str() {
        Some("cancelled") if count == 1 => "1 job is told to stop".to_owned(),
        Some("cancelled") => format!("{count} jobs are told to stop"),
        Some("finished") => "it has ended before, and stays as it ended".to_owned(),
        _ => "it is not here".to_owned(),
    };
    let later = match body["tombstone_s"].as_u64() {
        Some(seconds) => format!("; what arrives within {seconds} s is cancelled too"),
        None => String::new(),
    };
    let others = match body["passed_on"].as_bool() {
        Some(true) => "All workers were told.",
        _ => "OTHER WORKERS WERE NOT TOLD: the broker did not take the request.",
    };
    format!("{what} {id} on worker {worker}: {done}{later}. {others}")
}

#[cfg(test)]
mod tests {
    use caf_protocol::cancel::Target;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_answer_is_said_in_words_and_harmless() {
        let request = CancelRequest {
            tenant_id: "acme".to_owned(),
            target: Target::Run("r\u{202e}1".to_owned()),
            reason: None,
        };
        let said = |body: Value| render(&request, &body);
        assert_eq!(
            said(
                json!({"worker_id": "w", "outcome": "cancelled", "cancelled": 2, "tombstone_s": 60, "passed_on": true})
            ),
            format!(
                "run {} on worker w: 2 jobs are told to stop; what arrives within 60 s is cancelled too. All workers were told.",
                clean("r\u{202e}1")
            )
        );
        let finished = said(json!({"worker_id": "w", "outcome": "finished", "passed_on": false}));
        assert!(
            finished.contains("stays as it ended. OTHER WORKERS WERE NOT TOLD"),
            "{finished}"
        );
        assert!(!finished.contains('\u{202e}'));
    }
}
