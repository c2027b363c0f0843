//! How an assignment ended, in words, with what an operator may do about it.
//!
//! Neighbours: [`super::summary`] says it of what has ended. What a failure is due to stands in the note of its end.

use caf_actors::journal::Note;

use super::{Ending, Life, Scene, ago, counted, length};

/// What made an assignment end as it did, where its code does not say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// It waited for a slot until its deadline, for so long.
    NoSlot { waited_ms: Option<u64> },
    /// The wait before the next call would have outlasted a limit.
    NextWait {
        wait_ms: u64,
        limit: String,
        last_code: Option<String>,
    },
    /// What it talks to is left alone.
    LeftAlone,
    /// It was not tried again for want of a token.
    NoRetry,
}

impl Cause {
    /// As the note of the end has it; `accepted_ms`: when the pool took it.
    pub(super) fn of(note: &Note, accepted_ms: Option<u64>) -> Option<Self> {
        if note.text("circuit_breaker").is_some() {
            return Some(Self::LeftAlone);
        }
        if note.text("retry_budget").is_some() {
            return Some(Self::NoRetry);
        }
        if note.text("status") != Some("timeout") {
            return None;
        }
        if note.is_true("waiting") {
            let waited_ms = accepted_ms.map(|accepted| note.at_ms.saturating_sub(accepted));
            return Some(Self::NoSlot { waited_ms });
        }
        let limit = match note.text("limit") {
            Some("retry_budget") => "the retry budget",
            Some("total_timeout") => "the total time limit",
            Some(other) => other,
            None => "its deadline",
        };
        let limit = match note.number("limit_ms") {
            Some(ms) => format!("{limit} of {}", length(ms)),
            None => limit.to_owned(),
        };
        Some(Self::NextWait {
            wait_ms: note.number("next_wait_ms")?,
            limit,
            last_code: note.text("last_error_code").map(str::to_owned),
        })
    }

    fn words(&self, pool: &str, calls: usize) -> String {
        match self {
            Self::LeftAlone => {
                let not = if calls == 0 {
                    "no call was made"
                } else {
                    "no further call was made"
                };
                format!("What it talks to kept failing and is left alone for a while: {not}.")
            }
            Self::NoRetry => {
                "It was not tried again: too many retries at the same endpoint have not helped.".to_owned()
            }
            Self::NoSlot { waited_ms } => {
                let waited = waited_ms.map_or("its whole time".to_owned(), length);
                format!("It waited {waited} for a slot of pool {pool} and got none.")
            }
            Self::NextWait {
                wait_ms,
                limit,
                last_code,
            } => {
                let last = last_code.as_deref().unwrap_or("an error");
                format!(
                    "The last attempt failed with {last}; the wait of {} before the next one would outlast {limit}.",
                    length(*wait_ms)
                )
            }
        }
    }
}

/// An assignment about which everything is said.
pub(super) fn finished(life: &Life, scene: &Scene<'_>) -> String {
    if life.ending.is_none() {
        return "It was answered before: what came again was only settled, or answered with the recorded result."
            .to_owned();
    }
    let told = match life.answer.broker_told {
        true => " and the broker was told",
        false => "",
    };
    format!("{} Its answer is confirmed{told}.", ended(life, scene))
}

/// What may be done about it.
pub(super) fn advice(life: &Life, scene: &Scene<'_>) -> Option<String> {
    let has_letter = life.answer.dead_letter.as_ref().is_some_and(|at| !at.is_empty());
    let mend = life.ending.as_ref().and_then(|ending| mend(ending, life, scene));
    let replay = "caf-worker dlq replay runs it again";
    match (mend, has_letter) {
        (None, false) => None,
        (None, true) => Some(
            "A dead letter was left: see caf-worker dlq list, and dlq replay to run it again.".to_owned(),
        ),
        (Some((first, _)), false) => Some(format!("{first}.")),
        (Some((first, true)), true) => Some(format!(
            "{first}. A dead letter was left (caf-worker dlq list): after that, {replay}."
        )),
        (Some((first, false)), true) => Some(format!(
            "{first}: the dead letter (caf-worker dlq list) has the same bytes, and dlq replay would only send them again."
        )),
    }
}

/// What has to be done before the same assignment can end well, and whether it can then.
fn mend(ending: &Ending, life: &Life, scene: &Scene<'_>) -> Option<(String, bool)> {
    match &life.cause {
        Some(Cause::NoSlot { .. }) => {
            return Some((
                format!(
                    "Give pool {} more slots ({}), start another worker, or give the job a longer deadline",
                    scene.pool(),
                    scene.slots_key()
                ),
                true,
            ));
        }
        Some(Cause::LeftAlone) => {
            return Some((
                "Mend what it talks to, or wait until it works again".to_owned(),
                true,
            ));
        }
        Some(Cause::NextWait { .. }) => {
            return Some(("Make the limit longer or the waits shorter".to_owned(), true));
        }
        Some(Cause::NoRetry) | None => {}
    }
    let sender = |what: &str| Some((format!("{what}: mend the sender"), false));
    match (ending.reason.as_deref(), ending.error_code.as_deref()) {
        (Some("tenant_not_allowed"), _) => Some((
            "Allow the tenant first (tenants.allowed, then SIGHUP)".to_owned(),
            true,
        )),
        (Some("quota_exceeded"), _) => Some((
            "Send it again when the tenant has less under way, or raise the limit (tenants.overrides, then SIGHUP)".to_owned(),
            true,
        )),
        (Some("unsupported_job_type"), _) => sender("No block runs this job type"),
        (
            Some(
                "unsupported_version"
                | "missing_field"
                | "invalid_field"
                | "duplicate_key"
                | "invalid_inputs"
                | "unsupported_payload_ref",
            ),
            _,
        ) => sender("The assignment is not as it must be"),
        (None, Some("INVALID_INPUT" | "MISSING_REQUIRED_FIELD" | "INVALID_FORMAT")) => {
            sender("The inputs are not as they must be")
        }
        _ => None,
    }
}

/// How it ended, as a sentence.
pub(super) fn ended(life: &Life, scene: &Scene<'_>) -> String {
    let Some(ending) = &life.ending else {
        return "It has ended.".to_owned();
    };
    let code = ending.error_code.as_deref().unwrap_or("no code");
    // The cause says the same with numbers.
    let message = ending.message.as_deref();
    let message = message.filter(|_| !matches!(life.cause, Some(Cause::NextWait { .. })));
    let message = message.map(|text| format!(": {text}")).unwrap_or_default();
    let calls = match life.attempts.len() {
        0 => "without a call".to_owned(),
        calls => format!("after {}", counted(calls as u64, "attempt")),
    };
    let when = ago(life.ended_ms, scene.now_ms);
    let mut said = match ending.status.as_str() {
        "rejected" => format!(
            "Refused {when}: {}, {code}{message}.",
            ending.reason.as_deref().unwrap_or("rejected")
        ),
        "success" => format!(
            "Ended {when} with success {calls}, {} after it was first handled.",
            length(ending.latency_ms.unwrap_or_default())
        ),
        status => format!("Ended {when} with {status} {calls}: {code}{message}."),
    };
    if let Some(cause) = &life.cause {
        said = format!("{said} {}", cause.words(scene.pool(), life.attempts.len()));
    }
    if let (Some(worker), "timeout") = (&life.taken_over_from, ending.status.as_str()) {
        said = format!(
            "{said} It was taken over from worker {worker}, and its deadline counts from the first start there."
        );
    }
    said
}
