//! What is known of an assignment, in words for a person and in fields for a program. Pure: the caller brings the time.
//!
//! Neighbours: [`super::explain`] finds what is explained here; the command `explain` prints it. Rows are those of the
//! table in ARCHITECTURE.md.

use caf_actors::claims::record::{ClaimRecord, ClaimState};
use caf_actors::journal::{Entry, Found, Note, Phase};
use caf_actors::pool::InLine;
use serde::Serialize;

use self::ends::{Cause, ended};
use self::happenings::happening;
use super::iso;

mod ends;
mod happenings;

/// What became of one assignment, as far as this worker knows.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// Whose it is.
    pub tenant_id: String,
    /// How often an operator had sent it again; 0 for the assignment itself.
    pub replay: u32,
    /// Its job type.
    pub job_type: String,
    /// The pool that took it.
    pub pool: Option<String>,
    /// Where it is.
    pub state: Phase,
    /// The same in one or two sentences.
    pub summary: String,
    /// What an operator may do about it.
    pub advice: Option<String>,
    /// What it waits for.
    pub waiting: Option<Waiting>,
    /// When it must be over.
    pub deadline: Option<Deadline>,
    /// Calls, in order.
    pub attempts: Vec<Attempt>,
    /// How it ended, if it has.
    pub outcome: Option<Ending>,
    /// What of the answer is confirmed.
    pub answer: AnswerState,
    /// What happened, in order, each with words.
    pub events: Vec<Happening>,
    /// How many happenings between the first and the last ones are not kept.
    pub left_out: u64,
    /// What the fleet's claim says, where it was asked.
    pub claim: Option<ClaimView>,
}

/// What an assignment waits for.
#[derive(Debug, Clone, Serialize)]
pub struct Waiting {
    /// `permission` (the fleet's claim), `slot`, `tenant_limit` (its tenant runs as many jobs as it may), `retry`,
    /// `confirmation`, or `broker` (to be delivered again).
    pub what: &'static str,
    /// For a slot: its place among those that wait for the same pool, from 1, by arrival; who starts next, `line` says.
    pub position: Option<usize>,
    /// For a slot: how many wait for the same pool.
    pub queue_depth: Option<usize>,
    /// For a slot: where it stands among the jobs of its tenant, and who waits beside it.
    pub line: Option<InLine>,
    /// For a slot: who has the slots of the pool; at most 20, the longest first.
    pub slots_held_by: Vec<Holder>,
    /// Until when, where that is known.
    pub until: Option<String>,
    /// The same in milliseconds from now.
    pub left_ms: Option<u64>,
}

/// Who has a slot.
#[derive(Debug, Clone, Serialize)]
pub struct Holder {
    /// Its id.
    pub assignment_id: String,
    /// Whose it is.
    pub tenant_id: String,
    /// Its job type.
    pub job_type: String,
    /// For how long, in milliseconds.
    pub running_ms: u64,
}

/// When it must be over.
#[derive(Debug, Clone, Serialize)]
pub struct Deadline {
    /// When.
    pub at: String,
    /// In so many milliseconds; 0 when it has passed.
    pub left_ms: u64,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// When it began.
    pub began_at: String,
    /// How long it took, or takes so far, in milliseconds.
    pub duration_ms: u64,
    /// Whether it runs.
    pub running: bool,
    /// How it failed, if it has.
    pub error_code: Option<String>,
}

/// How an assignment ended.
#[derive(Debug, Clone, Serialize)]
pub struct Ending {
    /// `success`, `error`, `timeout`, `cancelled` or `rejected`.
    pub status: String,
    /// The row of the table of cases.
    pub row: &'static str,
    /// Its code.
    pub error_code: Option<String>,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// What was wrong, masked and cut.
    pub message: Option<String>,
    /// From first handling to the end, in milliseconds.
    pub latency_ms: Option<u64>,
}

/// When each part of the answer was confirmed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AnswerState {
    /// The acknowledgement.
    pub acknowledgement: Option<String>,
    /// The result.
    pub result: Option<String>,
    /// The dead letter, where there is one.
    pub dead_letter: Option<String>,
    /// Whether the broker was told that the delivery is done with.
    pub broker_told: bool,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Happening {
    /// When.
    pub at: String,
    /// What, in words.
    pub words: String,
    /// What, as the log has it, with facts.
    #[serde(flatten)]
    pub note: Note,
}

/// What the fleet's claim says.
#[derive(Debug, Clone, Serialize)]
pub struct ClaimView {
    /// `running`, `interrupted` (given back) or `finished`.
    pub state: &'static str,
    /// The worker whose claim it is.
    pub worker_id: String,
    /// Starts that count, from 1.
    pub attempt: u32,
    /// How often a process died while it ran this.
    pub deaths: u32,
    /// First start of handling by any worker.
    pub first_start_at: String,
    /// Stream and sequence of the message.
    pub stream: String,
    /// The same.
    pub stream_sequence: u64,
    /// Stream and sequence of the result, where it is stored.
    pub result: Option<(String, u64)>,
    /// The same in a sentence.
    pub words: String,
}

impl ClaimView {
    /// Of a record; `own_id` is this worker's, `held` whether this process has it, and what its worker leaves undone the
    /// broker delivers again after `ack_wait_ms`.
    pub fn of(record: &ClaimRecord, (own_id, held): (&str, bool), ack_wait_ms: u64) -> Self {
        let who = match record.worker_id == own_id {
            true if held || record.state == ClaimState::Finished => "this worker".to_owned(),
            true => "an earlier life of this worker".to_owned(),
            false => format!("worker {}", record.worker_id),
        };
        let begun = iso(record.first_start_ms);
        let (state, words) = match record.state {
            ClaimState::Running if held => (
                "running",
                format!(
                    "{who} has it in hand (attempt {}, first started at {begun})",
                    record.attempt
                ),
            ),
            ClaimState::Running => (
                "running",
                format!(
                    "{who} has it in hand (attempt {}, first started at {begun}); should that one be gone, the broker \
                     delivers it again when nats.ack_wait_ms ({}) has passed",
                    record.attempt,
                    length(ack_wait_ms)
                ),
            ),
            ClaimState::Interrupted => (
                "interrupted",
                format!(
                    "{who} gave it back (first started at {begun}); whoever receives it next takes it on"
                ),
            ),
            ClaimState::Finished => ("finished", answered(record, &who)),
        };
        Self {
            state,
            worker_id: record.worker_id.clone(),
            attempt: record.attempt,
            deaths: record.deaths,
            first_start_at: begun,
            stream: record.stream.clone(),
            stream_sequence: record.sequence,
            result: record
                .outcome
                .as_ref()
                .and_then(|outcome| outcome.position.clone()),
            words,
        }
    }
}

/// What a record tells of an answer: of results neither the status nor the code.
fn answered(record: &ClaimRecord, who: &str) -> String {
    let how = match record.refused {
        true => "refused it",
        false => "has answered it (whether with success or an error, the claim does not say)",
    };
    let position = record
        .outcome
        .as_ref()
        .and_then(|outcome| outcome.position.as_ref());
    match position {
        Some((stream, sequence)) => {
            format!("{who} {how}; the result is message {sequence} of stream {stream}")
        }
        None => format!("{who} {how}; where the result is stored is not known"),
    }
}

/// What is known beside the journal.
#[derive(Default)]
pub struct Beside<'a> {
    /// Whether this process holds the assignment, where that is known.
    pub held: Option<bool>,
    /// Where it stands in the line of its pool, while it waits there.
    pub line: Option<InLine>,
    /// What the fleet's claim says, where it was asked.
    pub claim: Option<ClaimView>,
    /// The setting that the slots of its pool come from.
    pub slots_key: Option<&'a str>,
    /// What keeps this worker from the broker, as a sentence.
    pub trouble: Option<&'a str>,
}

/// What is explained, and what is known beside it.
struct Scene<'a> {
    found: &'a Found,
    beside: &'a Beside<'a>,
    now_ms: u64,
}

impl Scene<'_> {
    fn pool(&self) -> &str {
        self.found.entry.pool.as_deref().unwrap_or("its")
    }

    /// The setting that gives its pool more slots.
    fn slots_key(&self) -> String {
        let key = self.beside.slots_key.map(str::to_owned);
        key.unwrap_or_else(|| format!("pools.{}.max_concurrency", self.pool()))
    }
}

/// Explains an assignment.
pub fn explain(found: &Found, beside: Beside<'_>, now_ms: u64) -> Explanation {
    let entry = &found.entry;
    let life = Life::of(entry, now_ms);
    let lost = entry.phase.is_active() && beside.held == Some(false) && entry.phase != Phase::Answering;
    let scene = Scene {
        found,
        beside: &beside,
        now_ms,
    };
    let (summary, advice) = if lost {
        (
            "It was in hand here and is not any more: the part of the node that had it failed. The broker delivers it again."
                .to_owned(),
            Some("If it does not come back within the ack wait, look at the log for 'Actor failed, restarting'.".to_owned()),
        )
    } else {
        summary(&scene, &life)
    };
    let summary = match beside.trouble.filter(|_| entry.phase.is_active()) {
        None => summary,
        Some(trouble) => format!("{summary} {trouble} {}", meanwhile(entry.phase)),
    };
    let open_until = entry.deadline_ms.filter(|_| entry.phase.is_active());
    Explanation {
        tenant_id: found.tenant_id.clone(),
        replay: found.replay,
        job_type: entry.job_type.to_string(),
        pool: entry.pool.as_deref().map(str::to_owned),
        state: entry.phase,
        summary,
        advice,
        waiting: waiting(found, beside.line, now_ms),
        deadline: open_until.map(|at_ms| Deadline {
            at: iso(at_ms),
            left_ms: at_ms.saturating_sub(now_ms),
        }),
        attempts: life.attempts,
        outcome: life.ending,
        answer: life.answer,
        events: entry.notes().map(happening).collect(),
        left_out: entry.left_out,
        claim: beside.claim,
    }
}

/// What becomes of an assignment while its worker cannot reach the broker.
fn meanwhile(phase: Phase) -> &'static str {
    match phase {
        Phase::Answering => "The answer is kept, and sent when the broker can be reached.",
        Phase::Deciding => {
            "It is decided when the broker can be reached, unless another worker takes it first."
        }
        _ => {
            "It goes on; its answer is sent when the broker can be reached. Until then another worker may take it over."
        }
    }
}

/// What the notes say together.
#[derive(Default)]
struct Life {
    attempts: Vec<Attempt>,
    ending: Option<Ending>,
    answer: AnswerState,
    /// Whether the fleet's claims did not answer.
    claims_silent: bool,
    received_ms: Option<u64>,
    ended_ms: Option<u64>,
    last_reason: Option<String>,
    /// Part of the answer that is being sent again.
    unconfirmed: Option<String>,
    /// Why its time ran out, where that is known.
    cause: Option<Cause>,
    /// The worker that had it before, unless that one gave it back.
    taken_over_from: Option<String>,
}

impl Life {
    fn of(entry: &Entry, now_ms: u64) -> Self {
        let mut life = Self::default();
        let mut began_ms = None;
        let mut dropped = false;
        for note in entry.notes() {
            let code = note.text("error_code").map(str::to_owned);
            match note.event {
                "Assignment received" if life.received_ms.is_none() => life.received_ms = Some(note.at_ms),
                "Assignment accepted" => {
                    let received_ms = life.received_ms;
                    life = Self {
                        received_ms,
                        taken_over_from: life.taken_over_from.take(),
                        ..Self::default()
                    };
                    began_ms = None;
                }
                "Claims not available, asking again" => life.claims_silent = true,
                "Step execution started" | "Attempt started" => began_ms = Some(note.at_ms),
                "Attempt failed" => life.close(&mut began_ms, note.at_ms, code),
                "Queue rejection" => dropped = note.text("rejection_reason") == Some("overloaded"),
                "Assignment taken over" if !note.is_true("given_back") => {
                    life.taken_over_from = note.text("from_worker").map(str::to_owned);
                }
                "Step execution completed" | "Step execution failed" | "Step canceled" => {
                    // A job that ends because of the wait after its last call: that call had a failure of its own.
                    let waits =
                        note.number("next_wait_ms").is_some() || note.text("circuit_breaker").is_some();
                    let last = note.text("last_error_code").filter(|_| waits).map(str::to_owned);
                    life.close(&mut began_ms, note.at_ms, last.or(code));
                    life.cause = Cause::of(note, entry.accepted_ms);
                    life.end(note, dropped, entry.accepted_ms.is_some());
                }
                "Assignment rejected" | "Unknown block type" | "Queue full - rejecting request" => {
                    life.end(note, false, false);
                }
                // No call began after all.
                "Call refused by circuit breaker" => began_ms = None,
                "Answer not confirmed" => life.unconfirmed = note.text("part").map(str::to_owned),
                "Assignment concluded" => life.conclude(note),
                "Assignment not run" | "Result suppressed" => {
                    life.last_reason = note.text("reason").map(str::to_owned);
                }
                _ => {}
            }
        }
        if let (Some(began_ms), true) = (began_ms, entry.phase == Phase::Running) {
            life.attempts.push(Attempt {
                number: entry.attempt,
                began_at: iso(began_ms),
                duration_ms: now_ms.saturating_sub(began_ms),
                running: true,
                error_code: None,
            });
        }
        life
    }

    fn close(&mut self, began_ms: &mut Option<u64>, at_ms: u64, error_code: Option<String>) {
        let Some(began_ms) = began_ms.take() else { return };
        let number = self.attempts.last().map_or(0, |attempt| attempt.number) + 1;
        self.attempts.push(Attempt {
            number,
            began_at: iso(began_ms),
            duration_ms: at_ms.saturating_sub(began_ms),
            running: false,
            error_code,
        });
    }

    fn end(&mut self, note: &Note, dropped: bool, accepted: bool) {
        let status = note.text("status").unwrap_or("rejected");
        let reason = note.text("reason");
        let code = match (note.text("error_code"), reason) {
            (None, Some("queue_full")) => Some("SYSTEM_OVERLOAD"),
            (code, _) => code,
        };
        self.ended_ms = Some(note.at_ms);
        self.ending = Some(Ending {
            status: status.to_owned(),
            row: row_of(status, reason, dropped, accepted),
            error_code: code.map(str::to_owned),
            reason: reason.map(str::to_owned),
            message: note.text("error").map(str::to_owned),
            latency_ms: note.number("latency_ms"),
        });
    }

    fn conclude(&mut self, note: &Note) {
        self.answer = AnswerState {
            acknowledgement: note.number("acknowledgement_at_ms").map(iso),
            result: note.number("result_at_ms").map(iso),
            dead_letter: note.number("dead_letter_at_ms").map(iso),
            broker_told: note.is_true("broker_told"),
        };
    }
}

fn row_of(status: &str, reason: Option<&str>, dropped: bool, accepted: bool) -> &'static str {
    match (status, reason) {
        ("success", _) => "6",
        ("error", _) if dropped => "16",
        ("error", _) => "7",
        ("timeout", _) if accepted => "8",
        ("timeout", _) => "8b",
        ("cancelled", _) => "9",
        (_, Some("queue_full")) => "4",
        (_, Some("tenant_not_allowed")) => "3",
        (_, Some("quota_exceeded")) => "4b",
        (_, Some("quarantined")) => "14",
        (_, Some("attempts_exhausted")) => "17",
        _ => "2",
    }
}

fn waiting(found: &Found, line: Option<InLine>, now_ms: u64) -> Option<Waiting> {
    let entry = &found.entry;
    let what = match entry.phase {
        Phase::Deciding => "permission",
        Phase::Waiting if line.is_some_and(|line| line.at_limit) => "tenant_limit",
        Phase::Waiting => "slot",
        Phase::WaitingForRetry => "retry",
        Phase::Answering => "confirmation",
        Phase::Asking => "people",
        Phase::Deferred | Phase::Returned => "broker",
        Phase::Running | Phase::Elsewhere | Phase::Finished => return None,
    };
    let until_ms = entry.until_ms.filter(|_| matches!(what, "retry" | "broker"));
    let for_slot = entry.phase == Phase::Waiting;
    Some(Waiting {
        what,
        position: for_slot.then_some(found.before + 1),
        queue_depth: for_slot.then_some(found.waiting),
        line: line.filter(|_| for_slot),
        slots_held_by: found
            .slots
            .iter()
            .map(|slot| Holder {
                assignment_id: slot.assignment_id.clone(),
                tenant_id: slot.tenant_id.clone(),
                job_type: slot.job_type.clone(),
                running_ms: now_ms.saturating_sub(slot.since_ms),
            })
            .collect(),
        until: until_ms.map(iso),
        left_ms: until_ms.map(|until| until.saturating_sub(now_ms)),
    })
}

fn summary(scene: &Scene<'_>, life: &Life) -> (String, Option<String>) {
    let (entry, now_ms, pool) = (&scene.found.entry, scene.now_ms, scene.pool());
    let advice = |text: &str| Some(text.to_owned());
    match entry.phase {
        Phase::Deciding if life.claims_silent => (
            format!(
                "Received {} and not decided: the fleet's claims cannot be reached, and are asked again.",
                ago(life.received_ms, now_ms)
            ),
            advice("Look at checks.claims in /status, and at the bucket idempotency.bucket on the broker."),
        ),
        Phase::Deciding => (
            format!(
                "Received {}; the fleet is being asked for the right to answer it.",
                ago(life.received_ms, now_ms)
            ),
            advice("If this lasts, look at checks.claims in /status."),
        ),
        Phase::Waiting => waiting_for_slot(scene),
        Phase::Running => (
            format!(
                "Runs on pool {pool} for {}, attempt {}{}.{}",
                length(now_ms.saturating_sub(entry.started_ms.unwrap_or(now_ms))),
                entry.attempt,
                of_max(entry),
                deadline_left(entry, now_ms)
            ),
            None,
        ),
        Phase::WaitingForRetry => (
            format!(
                "Attempt {} failed with {}; attempt {}{} begins in {}. It keeps its slot on pool {pool}.{}",
                entry.attempt.saturating_sub(1),
                life.attempts
                    .last()
                    .and_then(|last| last.error_code.as_deref())
                    .unwrap_or("an error"),
                entry.attempt,
                of_max(entry),
                length(entry.until_ms.unwrap_or(now_ms).saturating_sub(now_ms)),
                deadline_left(entry, now_ms)
            ),
            None,
        ),
        Phase::Answering => (
            format!(
                "{} Its answer is on its way and not confirmed yet{}.",
                ended(life, scene),
                unconfirmed(life)
            ),
            match scene.beside.trouble {
                Some(_) => None,
                None => advice(
                    "If this lasts, look at publisher, outbox and checks.streams in /status: a stream of answers may be away.",
                ),
            },
        ),
        Phase::Asking => (
            "Asks people; any worker answers when somebody has decided.".to_owned(),
            advice("See /approvals on the admin port, or caf-worker approvals list."),
        ),
        Phase::Deferred => (
            format!(
                "Sent back to the broker because its pool is loaded; it is delivered again {}.",
                within(entry.until_ms, now_ms)
            ),
            advice("Its deadline counts on. More slots, or another worker, take it sooner."),
        ),
        Phase::Returned => (
            format!(
                "Given back to the broker ({}); whoever pulls next takes it on.",
                life.last_reason.as_deref().unwrap_or("the worker shuts down")
            ),
            advice("Ask the other workers."),
        ),
        Phase::Elsewhere => elsewhere(life, scene.beside.claim.as_ref()),
        Phase::Finished => (ends::finished(life, scene), ends::advice(life, scene)),
    }
}

fn waiting_for_slot(scene: &Scene<'_>) -> (String, Option<String>) {
    let (found, pool, now_ms) = (scene.found, scene.pool(), scene.now_ms);
    let entry = &found.entry;
    let holders = match found.slots.as_slice() {
        [] => String::new(),
        [longest, ..] => format!(
            " The slots are held by {}, the longest {} of tenant {} for {}.",
            counted(found.slots.len() as u64, "running job"),
            longest.assignment_id,
            longest.tenant_id,
            length(now_ms.saturating_sub(longest.since_ms))
        ),
    };
    let waited = length(now_ms.saturating_sub(entry.accepted_ms.unwrap_or(now_ms)));
    let left = deadline_left(entry, now_ms);
    if let Some(line) = scene.beside.line.filter(|line| line.at_limit) {
        return waiting_for_tenant(scene, &line, &waited, &left);
    }
    let place = match scene.beside.line {
        None => format!("number {} of {} in the queue", found.before + 1, found.waiting),
        Some(line) => match line.tenants.saturating_sub(1) {
            0 => format!("{} in the queue", place(&line)),
            others => format!(
                "{} of its tenant, which takes turns with {}; {} wait",
                place(&line),
                counted(others as u64, "other"),
                counted(found.waiting as u64, "job"),
            ),
        },
    };
    (
        format!("Waits for a slot of pool {pool} for {waited}, as {place}.{holders}{left}"),
        Some(format!(
            "Give pool {pool} more slots ({}), start another worker, or see why the running jobs take long.",
            scene.slots_key()
        )),
    )
}

/// Its place among the jobs of its tenant.
fn place(line: &InLine) -> String {
    format!(
        "number {} of {} (priority {})",
        line.before_of_tenant + 1,
        line.of_tenant,
        line.priority
    )
}

fn waiting_for_tenant(
    scene: &Scene<'_>,
    line: &InLine,
    waited: &str,
    left: &str,
) -> (String, Option<String>) {
    let most = line
        .tenant_max_running
        .map_or_else(String::new, |max| format!(" of at most {max}"));
    (
        format!(
            "Waits in pool {} for {waited}, as {} of tenant {}, which runs {}{most}: the limit of the tenant, not slots.{left}",
            scene.pool(),
            place(line),
            scene.found.tenant_id,
            counted(line.tenant_running as u64, "job"),
        ),
        Some(
            "Raise max_running of the tenant (tenants, then SIGHUP), or see why its running jobs take long."
                .to_owned(),
        ),
    )
}

fn elsewhere(life: &Life, claim: Option<&ClaimView>) -> (String, Option<String>) {
    let who = claim
        .map(|claim| format!(" By the fleet's claim, {}.", claim.words))
        .unwrap_or_default();
    let why = life.last_reason.as_deref().unwrap_or("another worker has it");
    (
        format!("Not in hand here: {why}.{who}"),
        Some("Ask that worker, or look at the stream of results.".to_owned()),
    )
}

fn unconfirmed(life: &Life) -> String {
    let part = life.unconfirmed.as_deref();
    part.map(|part| format!(": the {} is sent again", part.replace('_', " ")))
        .unwrap_or_default()
}

fn of_max(entry: &Entry) -> String {
    entry
        .max_attempts
        .map(|max| format!(" of at most {max}"))
        .unwrap_or_default()
}

fn deadline_left(entry: &Entry, now_ms: u64) -> String {
    match entry.deadline_ms {
        None => String::new(),
        Some(at) if at <= now_ms => " Its deadline has passed.".to_owned(),
        Some(at) => format!(" {} are left until its deadline.", length(at - now_ms)),
    }
}

/// A number with its noun.
pub fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

fn ago(at_ms: Option<u64>, now_ms: u64) -> String {
    match at_ms {
        Some(at_ms) => format!("{} ago", length(now_ms.saturating_sub(at_ms))),
        None => "earlier".to_owned(),
    }
}

fn within(at_ms: Option<u64>, now_ms: u64) -> String {
    match at_ms.map(|at| at.saturating_sub(now_ms)) {
        Some(left) if left > 0 => format!("in {}", length(left)),
        _ => "any moment".to_owned(),
    }
}

/// A length of time for people.
pub fn length(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..=59 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests;
