//! A question to people: what is asked, who may answer, what was answered (contract 5.4 and 6.7).
//!
//! Neighbours: the block `human.approval` reads a [`Question`] from inputs, the pipeline keeps it as an
//! [`ApprovalRequest`] until somebody has decided, pages and notifiers show it. What is in it was written by callers:
//! whoever shows it must treat it as hostile text. Every length is bounded. No I/O, no clock.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::block::Outputs;
use crate::error_code::ErrorCode;
use crate::ids::{AssignmentKey, is_usable};
use crate::outcome::Failure;

/// Where notifiers hear what is asked.
pub const REQUESTED_SUBJECT: &str = "caf.approval.requested.v1";
/// Where they hear how it ended.
pub const DECIDED_SUBJECT: &str = "caf.approval.decided.v1";

/// Longest description in bytes: what somebody reads before deciding, and what fits in a notification.
pub const MAX_DESCRIPTION_BYTES: usize = 8 * 1024;
/// Longest type of an approval in bytes.
pub const MAX_TYPE_BYTES: usize = 128;
/// Most approvers of one request: beyond that it is a role, not a list.
pub const MAX_APPROVERS: usize = 64;
/// Longest name of an approver, or of who decides, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest comment in bytes.
pub const MAX_COMMENT_BYTES: usize = 4 * 1024;

/// Names one approval: 64 lower-case hexadecimal digits, those of the key of its assignment. So an assignment that comes
/// twice asks once. It is no secret, and gives nobody a right.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ApprovalId(AssignmentKey);

impl ApprovalId {
    /// The approval that an assignment asks for.
    pub fn of(key: AssignmentKey) -> Self {
        Self(key)
    }

    /// The id with these digits; nothing when they are not those of one.
    pub fn parse(digits: &str) -> Option<Self> {
        AssignmentKey::from_hex(digits).map(Self)
    }

    /// The 64 digits.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The assignment that asks.
    pub fn key(&self) -> &AssignmentKey {
        &self.0
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TryFrom<String> for ApprovalId {
    type Error = &'static str;

    fn try_from(digits: String) -> Result<Self, Self::Error> {
        Self::parse(&digits).ok_or("an approval id is 64 lower-case hexadecimal digits")
    }
}

impl From<ApprovalId> for String {
    fn from(id: ApprovalId) -> Self {
        id.as_str().to_owned()
    }
}

/// What a job asks people, as its inputs say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What kind of approval; absent in the shape with `prompt`.
    pub approval_type: Option<String>,
    /// What is to be decided, for people: 1..[`MAX_DESCRIPTION_BYTES`] bytes.
    pub description: String,
    /// Who may decide, by name; empty: whoever is let in.
    pub approvers: Vec<String>,
    /// How long it waits for an answer, before a setting caps it.
    pub timeout: Duration,
}

/// A question that waits for an answer, or did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalRequest {
    /// Its name.
    pub approval_id: ApprovalId,
    /// Whose job asks.
    pub tenant_id: String,
    /// Which assignment.
    pub assignment_id: String,
    /// The request behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The run that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The flow that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_id: Option<String>,
    /// The step that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    /// The trace that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// What kind of approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_type: Option<String>,
    /// What is to be decided. Written by the caller: hostile text.
    pub description: String,
    /// Who may decide, by name; empty: whoever is let in.
    #[serde(default)]
    pub approvers: Vec<String>,
    /// When it was asked, in milliseconds since the Unix epoch.
    pub requested_at: u64,
    /// Until when it can be answered, in milliseconds since the Unix epoch: at that moment not any more.
    pub expires_at: u64,
}

impl ApprovalRequest {
    /// Whether this name may decide. Names are compared byte for byte.
    pub fn lets(&self, name: &str) -> bool {
        self.approvers.is_empty() || self.approvers.iter().any(|approver| approver == name)
    }
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Go ahead.
    Approved,
    /// Do not.
    Rejected,
}

impl Answer {
    /// Lower-case word, as in outputs, labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }
}

/// By which way a decision came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// A call of the admin port.
    Api,
    /// The page of the admin port.
    Page,
    /// A link that was handed out.
    Link,
}

impl Way {
    /// Lower-case word, as in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Page => "page",
            Self::Link => "link",
        }
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// What was decided.
    pub decision: Answer,
    /// Who decided: 1..[`MAX_NAME_BYTES`] bytes without control characters.
    pub by: String,
    /// Why, for people: at most [`MAX_COMMENT_BYTES`] bytes. Hostile text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
    /// By which way.
    pub via: Way,
}

impl Decision {
    /// Which field breaks which rule, if one does.
    ///
    /// # Errors
    /// INVALID_INPUT that names field and rule.
    pub fn check(&self) -> Result<(), Failure> {
        if !is_usable(&self.by, MAX_NAME_BYTES) {
            let rule = format!("must be 1 to {MAX_NAME_BYTES} bytes without control characters");
            return Err(Failure::of_field(ErrorCode::InvalidInput, "by", &rule));
        }
        if self
            .comment
            .as_ref()
            .is_some_and(|text| text.len() > MAX_COMMENT_BYTES)
        {
            let rule = format!("must be at most {MAX_COMMENT_BYTES} bytes");
            return Err(Failure::of_field(ErrorCode::InvalidInput, "comment", &rule));
        }
        let is_text = |text: &String| {
            !text
                .chars()
                .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
        };
        if !self.comment.as_ref().is_none_or(is_text) {
            let rule = "must hold no control characters but line breaks and tabs";
            return Err(Failure::of_field(ErrorCode::InvalidInput, "comment", rule));
        }
        Ok(())
    }

    /// What the caller gets: the names of both documents (contract 6.7).
    pub fn outputs(&self, id: &ApprovalId) -> Outputs {
        let mut outputs = Outputs::new();
        let comment = self.comment.clone().unwrap_or_default();
        for (name, value) in [
            ("approval_id", json!(id.as_str())),
            ("approved", json!(self.decision == Answer::Approved)),
            ("approved_at", json!(self.at)),
            ("approved_by", json!(self.by)),
            ("approver", json!(self.by)),
            ("comment", json!(comment)),
            ("decision", json!(self.decision.as_str())),
            ("reason", json!(comment)),
        ] {
            outputs.insert(name.to_owned(), value);
        }
        outputs
    }
}

/// How far an approval is. It leaves `pending` once, and never comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Standing {
    /// Nobody has decided.
    Pending,
    /// Somebody has.
    Decided(Decision),
    /// Nobody had when its time was over.
    Expired {
        /// When that was noted, in milliseconds since the Unix epoch.
        at: u64,
    },
    /// Its job was cancelled.
    Cancelled {
        /// When, in milliseconds since the Unix epoch.
        at: u64,
        /// By which way the request to cancel came.
        by: String,
    },
}

impl Standing {
    /// Lower-case word, as in answers, labels and logs: what was decided, where somebody decided.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Decided(decision) => decision.decision.as_str(),
            Self::Expired { .. } => "expired",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// When it left `pending`, in milliseconds since the Unix epoch.
    pub const fn settled_at(&self) -> Option<u64> {
        match self {
            Self::Pending => None,
            Self::Decided(decision) => Some(decision.at),
            Self::Expired { at } | Self::Cancelled { at, .. } => Some(*at),
        }
    }
}

/// An approval as people may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Approval {
    /// What is asked.
    #[serde(flatten)]
    pub request: ApprovalRequest,
    /// How far it is.
    pub standing: Standing,
    /// When its job's result was published, in milliseconds since the Unix epoch; absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<u64>,
}

/// What notifiers hear when a question is asked. Published on [`REQUESTED_SUBJECT`], at least once; nothing stores it unless
/// an operator has a stream for it, and then the message id keeps one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RequestedEvent {
    /// Always `"1"`.
    #[schemars(extend("const" = "1"))]
    pub version: &'static str,
    /// What is asked.
    #[serde(flatten)]
    pub request: ApprovalRequest,
    /// Always `pending`.
    #[schemars(extend("const" = "pending"))]
    pub status: &'static str,
}

impl RequestedEvent {
    /// That this is asked.
    pub fn new(request: &ApprovalRequest) -> Self {
        Self {
            version: crate::VERSION,
            request: request.clone(),
            status: Standing::Pending.word(),
        }
    }
}

/// What notifiers hear when a question is settled, on [`DECIDED_SUBJECT`], under the same terms. What was asked and what was
/// said to it is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DecidedEvent {
    /// Always `"1"`.
    #[schemars(extend("const" = "1"))]
    pub version: &'static str,
    /// Which question.
    pub approval_id: ApprovalId,
    /// Whose job asked.
    pub tenant_id: String,
    /// Which assignment.
    pub assignment_id: String,
    /// The run that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The flow that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_id: Option<String>,
    /// The step that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    /// The trace that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// How it ended.
    #[schemars(extend("enum" = ["approved", "rejected", "expired", "cancelled"]))]
    pub status: &'static str,
    /// Who decided, where somebody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// When it was settled, in milliseconds since the Unix epoch.
    pub decided_at: u64,
}

impl DecidedEvent {
    /// That this is settled; nothing while it is not.
    pub fn new(request: &ApprovalRequest, standing: &Standing) -> Option<Self> {
        let decided_by = match standing {
            Standing::Decided(decision) => Some(decision.by.clone()),
            _ => None,
        };
        Some(Self {
            version: crate::VERSION,
            approval_id: request.approval_id.clone(),
            tenant_id: request.tenant_id.clone(),
            assignment_id: request.assignment_id.clone(),
            run_id: request.run_id.clone(),
            flow_id: request.flow_id.clone(),
            step_id: request.step_id.clone(),
            trace_id: request.trace_id.clone(),
            status: standing.word(),
            decided_by,
            decided_at: standing.settled_at()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision() -> Decision {
        Decision {
            decision: Answer::Rejected,
            by: "ann".to_owned(),
            comment: Some("too early".to_owned()),
            at: 7,
            via: Way::Page,
        }
    }

    #[test]
    fn a_decision_yields_the_names_of_both_documents() {
        let id = ApprovalId::of(AssignmentKey::new("t", "a"));
        let outputs = decision().outputs(&id);
        assert_eq!(outputs["approved"], false);
        assert_eq!(outputs["decision"], "rejected");
        assert_eq!(
            (&outputs["approver"], &outputs["approved_by"]),
            (&json!("ann"), &json!("ann"))
        );
        assert_eq!(
            (&outputs["comment"], &outputs["reason"]),
            (&json!("too early"), &json!("too early"))
        );
        assert_eq!(outputs["approved_at"], 7);
        assert_eq!(outputs["approval_id"], id.as_str());
    }

    #[test]
    fn a_decision_without_a_name_or_with_a_novel_is_refused() {
        let nameless = Decision {
            by: String::new(),
            ..decision()
        };
        assert!(
            nameless
                .check()
                .is_err_and(|failure| failure.message.starts_with("by: "))
        );
        let broken = Decision {
            by: "a\nb".to_owned(),
            ..decision()
        };
        assert!(broken.check().is_err());
        let comment = Some("x".repeat(MAX_COMMENT_BYTES + 1));
        let novel = Decision {
            comment,
            ..decision()
        };
        assert!(
            novel
                .check()
                .is_err_and(|failure| failure.message.starts_with("comment: "))
        );
        for (comment, holds) in [("a\r\n\tb", true), ("a\0b", false), ("a\u{1b}[31m", false)] {
            let said = Decision {
                comment: Some(comment.to_owned()),
                ..decision()
            };
            assert_eq!(said.check().is_ok(), holds, "{comment:?}");
        }
        assert!(decision().check().is_ok());
    }

    #[test]
    fn an_approval_is_written_flat_and_read_back() {
        let approval = Approval {
            request: ApprovalRequest {
                approval_id: ApprovalId::of(AssignmentKey::new("t", "a")),
                tenant_id: "t".to_owned(),
                assignment_id: "a".to_owned(),
                request_id: None,
                run_id: None,
                flow_id: None,
                step_id: None,
                trace_id: None,
                approval_type: None,
                description: "<b>".to_owned(),
                approvers: vec!["ann".to_owned()],
                requested_at: 1,
                expires_at: 2,
            },
            standing: Standing::Decided(decision()),
            answered_at: None,
        };
        let written = serde_json::to_value(&approval).unwrap();
        assert_eq!(written["standing"]["state"], "decided");
        assert_eq!(written["standing"]["decision"], "rejected");
        assert_eq!(serde_json::from_value::<Approval>(written).unwrap(), approval);
        assert!(approval.request.lets("ann") && !approval.request.lets("Ann"));
        assert!(ApprovalId::parse("xyz").is_none());
    }
}
