//! Assignments as the router builds them (contract 2.1), made quickly.
//!
//! Neighbours: the generator sends them; [`crate::tally`] knows their ids by number. Everything but the ids is rendered
//! once, so that making an assignment costs the generator two copies.

use bytes::Bytes;
use serde_json::{Value, json};

/// Stands where an id belongs while the rest is rendered.
const MARK: &str = "@@@@";

/// Characters of an id.
const ID_LEN: usize = 36;

/// The kinds of jobs that a load is mixed of.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// Returns its inputs: `bytes` of text.
    Echo {
        /// Bytes of the text.
        bytes: usize,
    },
    /// Does nothing for a while.
    Sleep {
        /// How long, in milliseconds.
        ms: u64,
    },
    /// POST of `bytes` to `url`; GET when there are none.
    Http {
        /// Address.
        url: String,
        /// Bytes of the request's body.
        bytes: usize,
    },
    /// http.request whose payload is fetched from `uri`.
    Referred {
        /// `job.payload_ref`.
        uri: String,
    },
    /// Writes a file of `bytes` of its own in the root `data`.
    Put {
        /// Bytes of the file.
        bytes: usize,
    },
}

impl Job {
    /// `job` of the assignment.
    pub fn body(&self) -> Value {
        match self {
            Self::Echo { bytes } => json!({"type": "echo", "payload": {"text": text(*bytes)}}),
            Self::Sleep { ms } => json!({"type": "sleep", "payload": {"duration_ms": ms}}),
            Self::Http { url, bytes: 0 } => {
                json!({"type": "http.request", "payload": {"url": url, "method": "GET"}})
            }
            Self::Http { url, bytes } => json!({
                "type": "http.request",
                "payload": {"url": url, "method": "POST", "body": text(*bytes)},
            }),
            Self::Referred { uri } => json!({"type": "http.request", "payload_ref": uri}),
            Self::Put { bytes } => json!({
                "type": "fs.blob_put",
                "payload": {"path": format!("data/load/{MARK}.txt"), "content": text(*bytes), "overwrite": true},
            }),
        }
    }
}

/// So much text that looks like text.
fn text(bytes: usize) -> String {
    const WORDS: &str = "the quick brown fox jumps over the lazy dog and 0123456789 more; ";
    WORDS.chars().cycle().take(bytes).collect()
}

/// What all assignments of a load share.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Their tenant.
    pub tenant: String,
    /// Relative deadline, in milliseconds.
    pub deadline_ms: u64,
    /// Total calls of a job.
    pub max_attempts: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            tenant: "acme".to_owned(),
            deadline_ms: 30_000,
            max_attempts: 2,
        }
    }
}

/// Renders the assignments of one kind of job.
#[derive(Debug)]
pub struct Template {
    parts: Vec<Vec<u8>>,
    run: u32,
}

impl Template {
    /// `run` tells the ids of one run from those of others.
    pub fn new(job: &Job, shape: &Shape, run: u32) -> Self {
        let whole = json!({
            "version": "1",
            "assignment_id": MARK,
            "request_id": MARK,
            "tenant_id": shape.tenant,
            "executor": {"provider_id": "prov-a", "channel": "nats"},
            "job": job.body(),
            "options": {
                "priority": 50,
                "deadline_ms": shape.deadline_ms,
                "retry": {"max_attempts": shape.max_attempts, "backoff_ms": 200},
            },
            "correlation": {"trace_id": "9f3c1a7be24d40c88a61d2f05b7e934c"},
            "decision": {
                "provider_id": "prov-a",
                "priority": 50,
                "expected_latency_ms": 0,
                "expected_cost": 0.0,
                "reason": "weighted",
                "metadata": {"tenant_id": shape.tenant},
            },
            "metadata": {},
        });
        let parts = whole
            .to_string()
            .split(MARK)
            .map(|part| part.as_bytes().to_vec())
            .collect();
        Self { parts, run }
    }

    /// The assignment with this number.
    pub fn render(&self, number: usize) -> Bytes {
        let id = id_of(self.run, number);
        let size = self.parts.iter().map(|part| part.len() + ID_LEN).sum();
        let mut bytes = Vec::with_capacity(size);
        for (place, part) in self.parts.iter().enumerate() {
            if place > 0 {
                bytes.extend_from_slice(id.as_bytes());
            }
            bytes.extend_from_slice(part);
        }
        bytes.into()
    }
}

/// The id of assignment `number` of this run; shaped as a UUID and never a valid one, as the router's are.
pub fn id_of(run: u32, number: usize) -> String {
    format!("{run:08x}-0000-0000-0000-{number:012x}")
}

/// The number in an id of this run; none when it is of another.
pub fn number_of(run: u32, id: &str) -> Option<usize> {
    let (head, tail) = (id.get(..8)?, id.get(24..)?);
    let of_this_run = id.len() == ID_LEN && u32::from_str_radix(head, 16) == Ok(run);
    of_this_run.then(|| usize::from_str_radix(tail, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_has_its_number_in_its_ids_and_the_bytes_that_were_asked_for() {
        let template = Template::new(&Job::Echo { bytes: 1024 }, &Shape::default(), 7);
        let sent: Value = serde_json::from_slice(&template.render(4711)).expect("is JSON");
        let id = sent["assignment_id"].as_str().expect("has one");
        assert_eq!((number_of(7, id), number_of(8, id)), (Some(4711), None));
        assert_eq!(sent["job"]["payload"]["text"].as_str().map(str::len), Some(1024));
        assert_eq!(number_of(7, "short"), None);
    }

    #[test]
    fn files_of_two_jobs_are_not_the_same() {
        let template = Template::new(&Job::Put { bytes: 10 }, &Shape::default(), 7);
        let path = |number| {
            let sent: Value = serde_json::from_slice(&template.render(number)).expect("is JSON");
            sent["job"]["payload"]["path"].clone()
        };
        assert_ne!(path(1), path(2));
    }
}
