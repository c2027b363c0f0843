//! Lines about people and approvals: who decided or tried to, and who handed out a link.
//!
//! Neighbours: `src/approvals.rs` emits them, always at info: each is a deed of a person. Never tells what is asked, a
//! comment, or a link.

use caf_protocol::approval::{Answer, ApprovalId, Way};

use super::{Event, Level};

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It counts.
    Counts,
    /// It was settled before.
    Settled,
    /// The name may not decide it.
    NotAnApprover,
    /// There is no such approval.
    Unknown,
    /// A field broke a rule.
    Invalid,
    /// The store did not answer.
    Unavailable,
}

impl Outcome {
    /// Word in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Settled => "settled_before",
            Self::NotAnApprover => "not_an_approver",
            Self::Unknown => "unknown_approval",
            Self::Invalid => "invalid",
            Self::Unavailable => "store_unavailable",
        }
    }
}

/// A decision that somebody has sent.
#[derive(Debug, Clone)]
pub struct Attempted<'a> {
    /// Which approval.
    pub approval_id: &'a ApprovalId,
    /// What was decided.
    pub decision: Answer,
    /// What became of it.
    pub outcome: Outcome,
    /// In whose name.
    pub name: &'a str,
    /// By which way.
    pub via: Way,
    /// How the name is known.
    pub named_by: &'static str,
    /// Address of the other side.
    pub peer: &'a str,
    /// Which link, if it was one.
    pub link: Option<&'a str>,
}

/// A link that was made.
#[derive(Debug, Clone)]
pub struct Made<'a> {
    /// To which approval.
    pub approval_id: &'a ApprovalId,
    /// Which link: tells links apart and opens none.
    pub link: &'a str,
    /// In whose name it decides.
    pub approver: &'a str,
    /// Until when, in milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
    /// Who made it, as far as that is known.
    pub by: &'a str,
    /// How that name is known.
    pub named_by: &'static str,
    /// Address of the other side.
    pub peer: &'a str,
}

/// Somebody has decided, or tried to.
pub fn attempted(attempt: &Attempted<'_>) -> Event {
    let message = match attempt.outcome {
        Outcome::Counts => "Approval decided by a person",
        _ => "Approval decision refused",
    };
    let event = Event::new(Level::Info, message)
        .with("approval_id", attempt.approval_id.as_str())
        .with("decision", attempt.decision.as_str())
        .with("outcome", attempt.outcome.as_str())
        .with("approver", attempt.name)
        .with("via", attempt.via.as_str())
        .with("named_by", attempt.named_by)
        .with("peer", attempt.peer);
    match attempt.link {
        None => event,
        Some(link) => event.with("link", link),
    }
}

/// Somebody has tried a link that nobody made. Made up by a stranger: nothing of it is told.
pub fn forged(peer: &str) -> Event {
    Event::new(Level::Info, "Approval link refused").with("peer", peer)
}

/// Somebody has made a link.
pub fn made(made: &Made<'_>) -> Event {
    Event::new(Level::Info, "Approval link made")
        .with("approval_id", made.approval_id.as_str())
        .with("link", made.link)
        .with("approver", made.approver)
        .with("expires_at_ms", made.expires_at_ms)
        .with("made_by", made.by)
        .with("named_by", made.named_by)
        .with("peer", made.peer)
}
