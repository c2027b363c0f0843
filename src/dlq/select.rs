//! Which dead letters are meant: what a list shows of one, the filter, and the choice of those to replay. Pure.
//!
//! Neighbours: [`super`] reads letters into [`Row`]s; [`mod@super::plan`] makes a replay of what was chosen.

use std::collections::HashMap;
use std::time::SystemTime;

use caf_actors::nats::dead_letters::StoredLetter;
use caf_actors::nats::replays::Marker;
use caf_protocol::dead_letter::kept::KeptLetter;
use caf_protocol::timestamp::iso_micros;
use serde::Serialize;

use super::plan::{Refused, replays, sent_at};

/// A letter in a list: what it can be found and told apart by. Fields that it does not have are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Sequence in the stream of dead letters.
    pub sequence: u64,
    /// When it was stored, UTC.
    pub time: String,
    /// Whose assignment it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// The assignment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assignment_id: Option<String>,
    /// The job's type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_type: Option<String>,
    /// Which rule of the worker sent it here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Code of the root cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// How often the assignment had been replayed when it failed, or was by this letter since.
    pub replays: u32,
    /// When the letter was last replayed, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed_at: Option<String>,
    /// The replay of this letter that was begun and never confirmed: the next one repeats it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unconfirmed_replay: Option<u32>,
    /// Who worked on it.
    pub workers: Vec<String>,
    /// When it was stored.
    #[serde(skip)]
    pub stored_at: SystemTime,
}

impl Row {
    /// What a list shows of a letter.
    pub fn of(stored: &StoredLetter, marker: Option<&Marker>) -> Self {
        Self::read(stored, &KeptLetter::read(&stored.payload), marker)
    }

    /// As [`Self::of`], of a letter that was parsed.
    pub fn read(stored: &StoredLetter, letter: &KeptLetter, marker: Option<&Marker>) -> Self {
        let text = |field: &str| letter.text(field).map(str::to_owned);
        Self {
            sequence: stored.sequence,
            time: iso_micros(stored.stored_at),
            tenant_id: text("tenant_id"),
            assignment_id: text("assignment_id"),
            job_type: letter.job_type().map(str::to_owned),
            reason: text("reason"),
            error_code: text("error_code"),
            replays: replays(letter, marker),
            replayed_at: marker.filter(|marker| marker.confirmed).map(sent_at),
            unconfirmed_replay: marker
                .filter(|marker| !marker.confirmed)
                .map(|marker| marker.replay),
            workers: letter.workers().into_iter().map(str::to_owned).collect(),
            stored_at: stored.stored_at,
        }
    }
}

/// What a letter must be; what is absent does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// This tenant.
    pub tenant: Option<String>,
    /// This assignment.
    pub assignment: Option<String>,
    /// This reason.
    pub reason: Option<String>,
    /// This error code.
    pub error_code: Option<String>,
    /// This job type.
    pub job_type: Option<String>,
    /// This worker worked on it.
    pub worker: Option<String>,
    /// Stored at this time or later.
    pub since: Option<SystemTime>,
    /// Stored before this time.
    pub until: Option<SystemTime>,
    /// After this sequence in the stream of dead letters.
    pub after: Option<u64>,
}

impl Filter {
    /// Whether a letter is meant.
    pub fn matches(&self, row: &Row) -> bool {
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        is(&self.tenant, &row.tenant_id)
            && is(&self.assignment, &row.assignment_id)
            && is(&self.reason, &row.reason)
            && is(&self.error_code, &row.error_code)
            && is(&self.job_type, &row.job_type)
            && self
                .worker
                .as_ref()
                .is_none_or(|worker| row.workers.contains(worker))
            && self.since.is_none_or(|since| row.stored_at >= since)
            && self.until.is_none_or(|until| row.stored_at < until)
            && self.after.is_none_or(|after| row.sequence > after)
    }
}

/// A letter that may be chosen.
#[derive(Debug)]
pub struct Candidate {
    /// What a filter sees of it.
    pub row: Row,
    /// Why it would not be replayed.
    pub refused: Option<Refused>,
}

/// Letters that a filter means and that are not replayed, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Replayed before, or by another run at this moment.
    pub replayed: usize,
    /// Replayed as often as is allowed.
    pub too_often: usize,
    /// Unreadable, without bytes, of another subject.
    pub never: usize,
}

impl Skipped {
    /// Counts one more.
    pub fn note(&mut self, why: &Refused) {
        *match why {
            Refused::Replayed { .. } | Refused::Outrun => &mut self.replayed,
            Refused::TooOften { .. } => &mut self.too_often,
            _ => &mut self.never,
        } += 1;
    }
}

/// What is to be replayed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Sequences, oldest first.
    pub chosen: Vec<u64>,
    /// Letters that match and have a successor: the assignment was replayed since and failed again.
    pub superseded: usize,
    /// Letters that match and would be refused.
    pub skipped: Skipped,
}

/// Chooses those of the letters that the filter means. `candidates` are all letters of the stream, oldest first: an
/// assignment that was replayed and failed again has more than one, and only the last of them is sent again.
pub fn choose(candidates: &[Candidate], filter: &Filter) -> Choice {
    let mut latest = HashMap::new();
    for Candidate { row, .. } in candidates {
        if let Some(assignment) = &row.assignment_id {
            latest.insert((&row.tenant_id, assignment), row.sequence);
        }
    }
    let mut choice = Choice::default();
    for Candidate { row, refused } in candidates {
        if !filter.matches(row) {
            continue;
        }
        let assignment = row.assignment_id.as_ref();
        let last = assignment.and_then(|assignment| latest.get(&(&row.tenant_id, assignment)));
        if last.is_some_and(|last| *last != row.sequence) {
            choice.superseded += 1;
        } else if let Some(why) = refused {
            choice.skipped.note(why);
        } else {
            choice.chosen.push(row.sequence);
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn row(sequence: u64, tenant: &str, assignment: Option<&str>) -> Row {
        let body = serde_json::json!({
            "tenant_id": tenant, "assignment_id": assignment, "job": {"type": "echo"}, "reason": "execution_failed",
            "error_code": "HTTP_ERROR", "worker_id": "w-2", "attempts": [{"worker_id": "w-1", "attempt": 1}],
            "original_headers": {"caf-replay": "2"},
        });
        let stored = StoredLetter {
            sequence,
            stored_at: UNIX_EPOCH + Duration::from_secs(sequence),
            payload: body.to_string().into(),
        };
        Row::of(&stored, None)
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn every_part_of_a_filter_counts() {
        let row = row(7, "acme", Some("a-1"));
        assert_eq!(
            (row.replays, row.time.as_str()),
            (2, "1970-01-01T00:00:07.000000Z")
        );
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        let none = Filter::default;
        for (matching, other) in [
            (
                Filter {
                    tenant: some("acme"),
                    ..none()
                },
                Filter {
                    tenant: some("x"),
                    ..none()
                },
            ),
            (
                Filter {
                    assignment: some("a-1"),
                    ..none()
                },
                Filter {
                    assignment: some("a"),
                    ..none()
                },
            ),
            (
                Filter {
                    reason: some("execution_failed"),
                    ..none()
                },
                Filter {
                    reason: some("x"),
                    ..none()
                },
            ),
            (
                Filter {
                    error_code: some("HTTP_ERROR"),
                    ..none()
                },
                Filter {
                    error_code: some("x"),
                    ..none()
                },
            ),
            (
                Filter {
                    job_type: some("echo"),
                    ..none()
                },
                Filter {
                    job_type: some("x"),
                    ..none()
                },
            ),
            (
                Filter {
                    worker: some("w-1"),
                    ..none()
                },
                Filter {
                    worker: some("w-3"),
                    ..none()
                },
            ),
            (
                Filter {
                    since: at(7),
                    ..none()
                },
                Filter {
                    since: at(8),
                    ..none()
                },
            ),
            (
                Filter {
                    until: at(8),
                    ..none()
                },
                Filter {
                    until: at(7),
                    ..none()
                },
            ),
            (
                Filter {
                    after: Some(6),
                    ..none()
                },
                Filter {
                    after: Some(7),
                    ..none()
                },
            ),
        ] {
            assert!(matching.matches(&row), "{matching:?}");
            assert!(!other.matches(&row), "{other:?}");
        }
        assert!(none().matches(&row));
    }

    #[test]
    fn what_is_no_letter_matches_no_filter_but_is_listed() {
        let stored = StoredLetter {
            sequence: 1,
            stored_at: UNIX_EPOCH,
            payload: "noise".into(),
        };
        let row = Row::of(&stored, None);
        assert!(Filter::default().matches(&row));
        assert!(
            !Filter {
                tenant: some(""),
                ..Filter::default()
            }
            .matches(&row)
        );
    }

    #[test]
    fn a_row_tells_of_the_replays_of_the_letter_itself() {
        let stored = StoredLetter {
            sequence: 1,
            stored_at: UNIX_EPOCH,
            payload: "{\"original_headers\":{\"Caf-Replay\":\"1\"}}".into(),
        };
        let told = |marker: Option<Marker>| {
            let row = Row::of(&stored, marker.as_ref());
            (row.replays, row.replayed_at.is_some(), row.unconfirmed_replay)
        };
        assert_eq!(told(None), (1, false, None));
        assert_eq!(told(Some(Marker::new(2, 0, true))), (2, true, None));
        assert_eq!(told(Some(Marker::new(2, 0, false))), (1, false, Some(2)));
    }

    #[test]
    fn only_the_last_letter_of_an_assignment_is_chosen_and_none_that_would_be_refused() {
        let mut candidates: Vec<_> = [
            row(1, "t", Some("a")),
            row(2, "t", Some("b")),
            row(3, "u", Some("a")),
            row(4, "t", Some("a")),
            row(5, "t", None),
            row(6, "t", Some("c")),
            row(7, "t", Some("d")),
        ]
        .into_iter()
        .map(|row| Candidate { row, refused: None })
        .collect();
        candidates[4].refused = Some(Refused::Unreadable);
        candidates[5].refused = Some(Refused::TooOften { replays: 3 });
        candidates[6].refused = Some(Refused::Outrun);
        let choice = choose(&candidates, &Filter::default());
        assert_eq!((choice.chosen, choice.superseded), (vec![2, 3, 4], 1));
        let skipped = Skipped {
            replayed: 1,
            too_often: 1,
            never: 1,
        };
        assert_eq!(choice.skipped, skipped);
        // The last letter counts even when the filter does not mean it.
        let early = Filter {
            until: Some(candidates[3].row.stored_at),
            ..Filter::default()
        };
        assert_eq!(choose(&candidates, &early).chosen, [2, 3]);
    }
}
