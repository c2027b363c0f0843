//! `POST /v1/approvals/<id>/decision`: decides for a program.
//!
//! Neighbours: the admin port reads the request's bytes; [`caf_actors::approvals`] decides, once.

use caf_actors::approvals::WhyNot;
use caf_protocol::approval::{Answer, Approval, ApprovalId, Decision, Way};
use serde::Deserialize;

use super::Admin;

/// What a program sends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    decision: Answer,
    approver: String,
    #[serde(default)]
    comment: Option<String>,
}

/// Why nothing was decided.
#[derive(Debug, Clone, PartialEq)]
pub enum NotDecided {
    /// Questions are not kept here.
    Off,
    /// It is no decision.
    Bad(String),
    /// It does not count.
    WhyNot(WhyNot),
}

impl Admin {
    /// Decides.
    ///
    /// # Errors
    /// [`NotDecided`].
    pub async fn decide(&self, id: &str, body: &[u8], now_ms: u64) -> Result<Approval, NotDecided> {
        let approvals = self.0.health.approvals().ok_or(NotDecided::Off)?.clone();
        let said: Said = serde_json::from_slice(body).map_err(|error| NotDecided::Bad(error.to_string()))?;
        let id = ApprovalId::parse(id).ok_or(NotDecided::WhyNot(WhyNot::Unknown))?;
        let decision = Decision {
            decision: said.decision,
            by: said.approver,
            comment: said.comment,
            at: now_ms,
            via: Way::Api,
        };
        let decided = approvals.decide(&id, decision).await;
        decided.map_err(NotDecided::WhyNot)
    }
}
