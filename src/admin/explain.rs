//! `GET /explain/{assignment_id}`: what became of an assignment, or where to look for it.
//!
//! Neighbours: the journal knows what happened here, this process's claims what it holds, the fleet's claims who else has
//! it; [`super::wording`] puts it into words. One question to the fleet per answer, and not for ever.

use std::time::Duration;

use caf_actors::cancellation::Asker;
use caf_actors::claims::Standing;
use caf_actors::clock;
use caf_actors::journal::Phase;
use caf_protocol::ids::{AssignmentKey, MAX_ID_BYTES, MAX_TENANT_BYTES, is_usable};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::wording::{Beside, ClaimView, explain, length};
use super::{Admin, Parts, iso};

/// Most assignments with one id that are explained: the newest. `?tenant=` narrows.
const MAX_MATCHES: usize = 20;
/// How long the fleet's claims may take to answer.
const FLEET_LIMIT: Duration = Duration::from_secs(2);

/// An explanation, and whether there was something to explain.
#[derive(Debug)]
pub struct Explained {
    /// Whether this worker, or the fleet, knows it.
    pub found: bool,
    /// The answer.
    pub body: Value,
}

/// What the fleet says.
enum Fleet {
    /// It was not asked: there is none, or the tenant is not known.
    NotAsked(&'static str),
    Silent(String),
    Knows(Box<ClaimView>),
    KnowsNothing,
}

impl Admin {
    /// What became of this assignment of this tenant, or of any.
    pub async fn explain(&self, assignment_id: &str, tenant_id: Option<&str>) -> Explained {
        let parts = &self.0;
        let now_ms = clock::epoch_ms();
        let found = parts.journal.find(assignment_id, tenant_id, MAX_MATCHES);
        if found.is_empty() {
            return parts.explain_unknown(assignment_id, tenant_id, now_ms).await;
        }
        let mut matches = Vec::new();
        let mut asked = false;
        let trouble = parts.broker_trouble();
        for found in found {
            let key = AssignmentKey::of_replay(&found.tenant_id, assignment_id, found.replay);
            // Only the first that is elsewhere: the answer is to come at once.
            let wants_claim = found.entry.phase == Phase::Elsewhere && !std::mem::replace(&mut asked, true);
            let claim = match wants_claim {
                true => parts.ask_fleet(&key).await,
                false => Fleet::NotAsked("it is known here"),
            };
            let claim = match claim {
                Fleet::Knows(claim) => Some(*claim),
                _ => None,
            };
            let pool = found.entry.pool.as_deref();
            let line = match pool.filter(|_| found.entry.phase == Phase::Waiting) {
                Some(pool) => {
                    parts
                        .health
                        .find_in_line(pool, key.clone(), &found.tenant_id)
                        .await
                }
                None => None,
            };
            let beside = Beside {
                held: parts.health.claims().map(|claims| claims.is_held(&key)),
                line,
                claim,
                slots_key: pool.and_then(|pool| parts.slots_keys.get(pool).map(String::as_str)),
                trouble: trouble.as_deref(),
            };
            matches.push(explain(&found, beside, now_ms));
        }
        Explained {
            found: true,
            body: json!({
                "assignment_id": assignment_id,
                "known": true,
                "worker_id": parts.health.worker_id(),
                "time": iso(now_ms),
                "matches": matches,
            }),
        }
    }
}

impl Parts {
    async fn ask_fleet(&self, key: &AssignmentKey) -> Fleet {
        let Some(claims) = self.health.claims() else {
            return Fleet::NotAsked("this worker is still starting");
        };
        let Some(fleet) = claims.fleet() else {
            return Fleet::NotAsked("claims are not shared with other workers here");
        };
        match timeout(FLEET_LIMIT, fleet.look(key)).await {
            Ok(Ok(Some(record))) => {
                let own = (self.health.worker_id(), claims.is_held(key));
                Fleet::Knows(Box::new(ClaimView::of(&record, own, self.ack_wait_ms)))
            }
            Ok(Ok(None)) => Fleet::KnowsNothing,
            Ok(Err(error)) => Fleet::Silent(error.to_string()),
            Err(_) => Fleet::Silent("no answer in time".to_owned()),
        }
    }

    /// This worker's journal does not have it.
    async fn explain_unknown(&self, assignment_id: &str, tenant_id: Option<&str>, now_ms: u64) -> Explained {
        let usable = is_usable(assignment_id, MAX_ID_BYTES)
            && tenant_id.is_none_or(|tenant| is_usable(tenant, MAX_TENANT_BYTES));
        let key = tenant_id
            .filter(|_| usable)
            .map(|tenant| AssignmentKey::new(tenant, assignment_id));
        let fleet = match &key {
            Some(key) => self.ask_fleet(key).await,
            None if usable => {
                Fleet::NotAsked("name the tenant (?tenant=, --tenant) to ask the fleet's claims")
            }
            None => {
                Fleet::NotAsked("no assignment can have this id: 1 to 128 bytes without control characters")
            }
        };
        let remembered = key
            .as_ref()
            .zip(self.health.claims())
            .is_some_and(|(key, claims)| matches!(claims.look(key, Instant::now()), Standing::Finished(_)));
        let memory = self.journal.memory();
        let begun_ms = now_ms.saturating_sub(self.journal.started_ms());
        let mut sentences = vec![match remembered {
            true => "This worker has answered it; what happened in detail is not kept any more.".to_owned(),
            false if memory.forgotten > 0 => format!(
                "This worker does not know it. It remembers the last {} assignments; {} older ones are forgotten.",
                memory.assignments, memory.forgotten
            ),
            false => format!(
                "This worker has not seen it since its start {} ago.",
                length(begun_ms)
            ),
        }];
        let (claim, fleet_words) = match fleet {
            Fleet::Knows(claim) => {
                let words = format!("By the fleet's claim, {}.", claim.words);
                (Some(claim), words)
            }
            Fleet::KnowsNothing => (
                None,
                "The fleet has no claim on it: no worker has taken it on, or that was too long ago."
                    .to_owned(),
            ),
            Fleet::Silent(why) => (None, format!("The fleet's claims do not answer: {why}.")),
            Fleet::NotAsked(why) => (None, format!("The fleet was not asked: {why}.")),
        };
        sentences.push(fleet_words);
        let to_cancel = tenant_id.and_then(|tenant| {
            self.cancellations
                .look(tenant, assignment_id, Instant::now())
                .filter(|_| !remembered)
        });
        if let Some((by, left)) = to_cancel {
            sentences.push(format!(
                "It is to be cancelled, by a request {}: when it arrives here within {} more, it is answered as cancelled and not run.",
                match by {
                    Asker::Subject => "on the broker",
                    Asker::Admin => "on the admin port",
                },
                length(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            ));
        }
        let found = remembered || claim.is_some() || to_cancel.is_some();
        if !found {
            sentences.push(self.where_to_look());
        }
        Explained {
            found,
            body: json!({
                "assignment_id": assignment_id,
                "known": found,
                "worker_id": self.health.worker_id(),
                "time": iso(now_ms),
                "matches": [],
                "summary": sentences.join(" "),
                "claim": claim,
                "cancellation": to_cancel.map(|(by, left)| json!({
                    "requested_by": by.as_str(),
                    "left_s": left.as_secs(),
                })),
                "journal": memory,
            }),
        }
    }

    /// What keeps this worker from the broker, as a sentence.
    fn broker_trouble(&self) -> Option<String> {
        let node = self.health.node();
        let waits = !node.has_tried_to_connect();
        match node.obstacle() {
            _ if node.is_connected() => None,
            Some(obstacle) if waits => Some(format!(
                "This worker has not tried to reach the broker yet: it cannot use its state directory ({obstacle})."
            )),
            _ if waits => {
                Some("This worker is starting and has not tried to reach the broker yet.".to_owned())
            }
            _ => Some("This worker is not connected to the broker.".to_owned()),
        }
    }

    /// Why an assignment that nobody knows may not be here.
    fn where_to_look(&self) -> String {
        let node = self.health.node();
        let held = node.held();
        let here = match self.broker_trouble() {
            Some(trouble) => trouble,
            None if node.is_draining() => "This worker shuts down and takes nothing on.".to_owned(),
            None if !node.is_consuming() => match node.obstacle() {
                Some(obstacle) => format!("This worker is not consuming: {obstacle}."),
                None => "This worker is not consuming.".to_owned(),
            },
            None if held.is_full() => format!(
                "This worker has no room (holds {} of {} jobs), so it pulls nothing.",
                held.held_jobs(),
                self.limits.max_held
            ),
            None => "This worker pulls and has room.".to_owned(),
        };
        format!(
            "{here} It may wait in the stream {} still, be with another worker, have been refused by the router, or be a dead letter (caf-worker dlq list).",
            self.stream
        )
    }
}
