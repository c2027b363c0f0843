//! Who keeps watch: what must hold after each step, what must hold in the end, and what was seen at all.
//!
//! Races that nothing short of a transaction with the router could close are counted under `race:`; each is let through
//! under the condition that makes it one, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use caf_actors::approvals::record::Entry;
use caf_actors::claims::record::{ClaimRecord, ClaimState};
use caf_actors::pool::policy::Policy;
use caf_actors::pool::room::Admission;
use caf_actors::settings::SubjectSettings;
use caf_actors::sink::Outgoing;
use caf_protocol::approval::Standing;
use caf_protocol::assignment::{MAX_DEADLINE_MS, Reading};
use caf_protocol::cancel::CancelOutcome;
use caf_protocol::headers::MESSAGE_ID;
use caf_protocol::ids::AssignmentKey;

use super::broker::Delivery;
use super::kernel::{Micros, SECOND};
use super::scenario::{Kind, Scenario, Spec};
use super::world::World;

/// Token of acknowledgements by row 4b.
const QUOTA_EXCEEDED: &[u8] = b"quota_exceeded";
/// Longest time that a worker may take from its first question to an owner until it has written its claim.
const TAKE_OVER_TAKES: Micros = 20 * SECOND;

pub(crate) struct Audit {
    pub counts: BTreeMap<&'static str, u64>,
    /// Messages that the router has still to send.
    pub to_submit: usize,
    ledgers: Vec<Ledger>,
    by_key: BTreeMap<String, usize>,
    by_message_id: BTreeMap<String, usize>,
    subjects: SubjectSettings,
}

/// What was seen of one assignment.
#[derive(Default)]
struct Ledger {
    /// Every content that a plain subscriber has seen.
    acks: BTreeSet<Bytes>,
    results: Vec<Bytes>,
    /// How often the assignment has changed hands.
    terms_of_owners: u64,
    /// In whose term each result was decided on; nothing where a race let it through.
    decided: BTreeMap<Bytes, Option<u64>>,
    answered: bool,
    /// A result came from a process that had been stopped since it was last certain of its claim.
    stopped: bool,
    /// The row that each result was written for, and by whom.
    written: BTreeMap<Bytes, &'static str>,
    deaths: u32,
    deaths_alone: u32,
    /// What the claim said of that when a process took the assignment on.
    known_deaths: BTreeMap<usize, (u32, bool)>,
    running: Vec<Running>,
    /// Processes that have heard a request to cancel it before they knew how it ends.
    cancel_heard: BTreeSet<usize>,
    /// Processes that have written another result than that it is cancelled, and still hold it.
    answering: BTreeSet<usize>,
    last_write: BTreeMap<usize, Micros>,
    let_go: BTreeMap<usize, Micros>,
}

struct Running {
    process: usize,
    since: Micros,
    alone: bool,
}

impl Audit {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut audit = Self {
            counts: BTreeMap::new(),
            to_submit: scenario.specs.iter().map(|spec| spec.sent.len()).sum(),
            ledgers: scenario.specs.iter().map(|_| Ledger::default()).collect(),
            by_key: BTreeMap::new(),
            by_message_id: BTreeMap::new(),
            subjects: SubjectSettings::default(),
        };
        for (number, spec) in scenario.specs.iter().enumerate() {
            if let Some(key) = &spec.key {
                audit.by_key.insert(key.as_str().to_owned(), number);
                audit.by_message_id.insert(result_id(number), number);
                audit.by_message_id.insert(format!("a{number}.ack"), number);
            }
        }
        audit
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn letter_written(&mut self, spec: usize, letter: &Outgoing) {
        let id = letter.headers.get(MESSAGE_ID).expect("every letter has an id");
        self.by_message_id.insert(id.to_owned(), spec);
    }
}

pub(crate) fn result_id(spec: usize) -> String {
    format!("a{spec}.result")
}

impl World {
    fn ledger_of(&mut self, key: &str) -> (usize, &mut Ledger) {
        let spec = self.audit.by_key[key];
        (spec, &mut self.audit.ledgers[spec])
    }

    /// A result is written. Where a request to cancel was heard before the outcome was known, it decides that.
    pub(crate) fn result_written(
        &mut self,
        process: usize,
        spec: usize,
        result: &Outgoing,
        row: &'static str,
    ) {
        let ledger = &mut self.audit.ledgers[spec];
        ledger.written.insert(result.payload.clone(), row);
        let ran = matches!(row, "row 6" | "row 7" | "row 8" | "row 8b" | "row 16");
        if ran {
            ledger.answering.insert(process);
        }
        if ran && ledger.cancel_heard.contains(&process) {
            self.fail(format!(
                "process {process} answers assignment {spec} by {row}, and had heard that it is to be cancelled"
            ));
        }
    }

    /// A process has let an assignment go after it had written a result.
    pub(crate) fn answered_or_suppressed(&mut self, process: usize, spec: usize) {
        self.audit.ledgers[spec].answering.remove(&process);
    }

    /// A process has heard a request to cancel an assignment, and says what it met.
    pub(crate) fn cancel_heard(&mut self, process: usize, spec: usize, outcome: CancelOutcome) {
        self.note(|| format!("process {process} is asked to cancel assignment {spec}: {outcome:?}"));
        self.audit.count(match outcome {
            CancelOutcome::Cancelled => "cancel: a job that is held",
            CancelOutcome::Unknown => "cancel: a tombstone is left",
            CancelOutcome::Finished => "cancel: it has ended",
        });
        if outcome == CancelOutcome::Cancelled && self.audit.ledgers[spec].answering.contains(&process) {
            return self.fail(format!(
                "process {process} says that assignment {spec} is cancelled, and has written another result"
            ));
        }
        if outcome != CancelOutcome::Finished {
            self.audit.ledgers[spec].cancel_heard.insert(process);
        }
    }

    /// A question is written. It is settled once, and what is said to its assignment never changes.
    pub(crate) fn check_approval(&mut self, key: &str, before: Option<&Entry>, after: &Entry) {
        let spec = self.audit.by_key[key];
        let settled = before.filter(|before| before.standing != Standing::Pending);
        if settled.is_some_and(|before| before.standing != after.standing || before.result != after.result) {
            return self.fail(format!("the question of assignment {spec} is settled twice"));
        }
        if before.is_some_and(|before| before.answered.is_some()) {
            return self.fail(format!("the answered question of assignment {spec} is changed"));
        }
        if before.is_some_and(|before| before.ack != after.ack) {
            return self.fail(format!("the acknowledgement of question {spec} is changed"));
        }
        if settled.is_none()
            && let Some(result) = &after.result
        {
            let (what, is_due) = match after.standing {
                Standing::Pending => ("", false),
                Standing::Decided(_) => (
                    "a question is decided",
                    self.scenario.specs[spec].decided.is_some(),
                ),
                Standing::Expired { .. } => ("a question is over", true),
                Standing::Cancelled { .. } => ("a question is cancelled", self.scenario.is_cancelled(spec)),
            };
            if !is_due {
                return self.fail(format!("the question of assignment {spec} is settled by nobody"));
            }
            self.audit.count(what);
            let ledger = &mut self.audit.ledgers[spec];
            ledger.written.insert(result.payload.clone().into(), "row 18");
        }
    }

    /// Somebody tries to decide a question, at any worker, until it is settled.
    pub(crate) fn request_decision(&mut self, spec: usize) {
        let key = self.scenario.specs[spec]
            .key
            .as_ref()
            .expect("it asks")
            .as_str()
            .to_owned();
        let entry = self.broker.approvals.get(&key);
        if entry.is_some_and(|(_, entry)| entry.standing != Standing::Pending) {
            return;
        }
        let is_asked = entry.is_some();
        self.kernel
            .after(SECOND, Box::new(move |_, world| world.request_decision(spec)));
        let alive = self.processes.iter().filter(|process| process.alive);
        let nodes: Vec<_> = alive.filter_map(|process| process.node.clone()).collect();
        if !is_asked || nodes.is_empty() || !self.broker.up {
            return;
        }
        let node = nodes[self.kernel.dice.index(nodes.len())].clone();
        let id = node.id;
        self.deliver(
            id,
            Box::new(move |_, world| {
                world.kernel.spawn(Some(id), node.decide(key));
            }),
        );
    }

    /// A message has left the queue: its assignment must be answered, or carried by another message.
    pub(crate) fn check_not_lost(&mut self, spec: usize) {
        let is_carried = self.broker.messages.values().any(|message| message.spec == spec);
        let key = self.scenario.specs[spec].key.as_ref();
        let is_kept = key.is_some_and(|key| self.broker.approvals.contains_key(key.as_str()));
        if !is_carried && !is_kept && !self.audit.ledgers[spec].answered {
            self.fail(format!(
                "assignment {spec} is lost: its last message was acknowledged, and it has no answer"
            ));
        }
    }

    /// A process is about to publish a result. It must be the assignment's owner.
    pub(crate) fn check_decided(&mut self, process: usize, sequence: Option<u64>, message: &Outgoing) {
        let id = message.headers.get(MESSAGE_ID).expect("every result has an id");
        let spec = self.audit.by_message_id[id];
        let ledger = &self.audit.ledgers[spec];
        let is_known = ledger.results.contains(&message.payload);
        let key = self.scenario.specs[spec]
            .key
            .as_ref()
            .expect("it has an answer")
            .as_str();
        let record = self.broker.claims.get(key).map(|(_, record)| record);
        let owner = &self.processes[process].owner;
        let is_ours =
            record.is_none_or(|record| record.owner == *owner && record.state != ClaimState::Finished);
        let ledger = &mut self.audit.ledgers[spec];
        let term = (is_known || is_ours).then_some(ledger.terms_of_owners);
        ledger.decided.entry(message.payload.clone()).or_insert(term);
        if term.is_some() {
            return;
        }
        let proof = ledger.last_write.get(&process).copied().unwrap_or(0);
        if self.processes[process].thawed_at.is_some_and(|at| at >= proof) {
            self.audit.count("race: stopped between proof and publish");
            return;
        }
        if self.is_deceived(sequence) {
            self.audit
                .count("race: published under a lease that an earlier holder had ended");
            return;
        }
        let why = format!(
            "process {process} publishes a result of assignment {spec} that is not its own: {record:?}"
        );
        self.fail(why);
    }

    /// A process that was stopped since its last proof may have lost the claim by now, and never tells it of its answer.
    pub(crate) fn note_stopped(&mut self, process: usize, id: &str) {
        let Some(spec) = self.audit.by_message_id.get(id).copied() else {
            return;
        };
        let thawed = self.processes[process].thawed_at;
        let ledger = &mut self.audit.ledgers[spec];
        let proof = ledger.last_write.get(&process).copied().unwrap_or(0);
        ledger.stopped |= id == result_id(spec) && thawed.is_some_and(|at| at >= proof);
    }

    /// Something was published: this is what a plain subscriber sees.
    pub(crate) fn check_published(&mut self, id: &str, message: &Outgoing) {
        let Some(spec) = self.audit.by_message_id.get(id).copied() else {
            return self.fail(format!("nobody knows what {id} answers"));
        };
        let is_junk = self.scenario.specs[spec].kind == Kind::Junk;
        let subjects = &self.audit.subjects;
        let ledger = &mut self.audit.ledgers[spec];
        if message.subject == subjects.dlq {
            ledger.answered |= is_junk;
        } else if message.subject == subjects.ack {
            ledger.acks.insert(message.payload.clone());
            if ledger.acks.len() > 1 {
                self.fail(format!("assignment {spec} has two acknowledgements"));
            }
        } else {
            ledger.answered = true;
            if ledger.results.contains(&message.payload) {
                return;
            }
            ledger.results.push(message.payload.clone());
            if ledger.results.len() == 1 {
                return;
            }
            if self.scenario.specs[spec].kind == Kind::Asks {
                return self.fail(format!("the question of assignment {spec} has two results"));
            }
            let term = ledger.decided.get(&message.payload).copied().flatten();
            let same_term =
                |result: &Bytes| *result != message.payload && ledger.decided.get(result) == Some(&term);
            if term.is_some() && ledger.results.iter().any(same_term) {
                return self.fail(format!("assignment {spec} has two results of one owner"));
            }
            if self.scenario.is_calm && !self.has_poison() {
                return self.fail(format!(
                    "assignment {spec} has two results, and nothing has gone wrong"
                ));
            }
            // Each was decided on by its owner; so ownership has changed in between, which is checked where it does.
            self.audit
                .count("race: a second result of a new owner, dropped by the stream");
        }
    }

    /// Whether a lease on a message may be worth nothing, for a reason that its holder cannot see: the message reached
    /// some process long after it was sent (it waited in the socket of one that was stopped or cut off), which then
    /// spoke about it or took the assignment from an owner that happened not to answer.
    fn is_deceived(&self, sequence: Option<u64>) -> bool {
        sequence.is_some_and(|sequence| {
            self.broker.disturbed.contains(&sequence) || self.broker.late.contains(&sequence)
        })
    }

    fn has_poison(&self) -> bool {
        self.scenario.specs.iter().any(|spec| spec.kind == Kind::Poison)
    }

    pub(crate) fn let_go(&mut self, process: usize, key: &AssignmentKey) {
        let now = self.kernel.now;
        self.ledger_of(key.as_str()).1.let_go.insert(process, now);
    }

    /// A claim is written.
    pub(crate) fn check_claim(
        &mut self,
        from: usize,
        key: &str,
        before: Option<&ClaimRecord>,
        after: &ClaimRecord,
    ) {
        let now = self.kernel.now;
        let writer = self.processes[from].owner.clone();
        let spec = self.audit.by_key[key];
        if after.owner == writer {
            self.audit.ledgers[spec].last_write.insert(from, now);
        }
        if before.is_none_or(|before| before.owner != after.owner || before.attempt != after.attempt) {
            let known = (after.deaths, after.died_alone);
            self.audit.ledgers[spec].known_deaths.insert(from, known);
        }
        let Some(before) = before else { return };
        let is_same_term = before.owner == after.owner
            && before.attempt == after.attempt
            && (before.state, after.state) != (ClaimState::Interrupted, ClaimState::Running);
        self.audit.ledgers[spec].terms_of_owners += u64::from(!is_same_term);
        if before.state == ClaimState::Finished && before != after {
            return self.fail(format!("the claim on finished assignment {spec} is changed"));
        }
        if before.ack.is_none() && before.attempt != after.attempt {
            return self.fail(format!("a deferral of assignment {spec} counts as an attempt"));
        }
        if before.ack.is_some() && before.ack != after.ack {
            return self.fail(format!(
                "the fixed acknowledgement of assignment {spec} is changed"
            ));
        }
        if after.owner != writer {
            let deaths = ClaimRecord {
                deaths: after.deaths,
                died_alone: after.died_alone,
                ..before.clone()
            };
            if deaths != *after {
                self.fail(format!(
                    "process {from} writes what {} owns: assignment {spec}",
                    after.owner
                ));
            }
            return;
        }
        if before.owner == after.owner || before.state == ClaimState::Interrupted {
            return;
        }
        self.audit.count("taken over from a running owner");
        let Some(owner) = self.process_named(&before.owner) else {
            return self.fail(format!("{} was never there", before.owner));
        };
        let since = now.saturating_sub(TAKE_OVER_TAKES);
        let let_go = self.audit.ledgers[spec].let_go.get(&owner);
        let was_free = let_go.is_some_and(|at| *at >= since);
        if !was_free && !self.was_unreachable_since(owner, since) && self.was_unreachable_since(from, since) {
            self.audit
                .count("race: who asked was cut off itself, and back when it had asked");
            return;
        }
        if !was_free && !self.was_unreachable_since(owner, since) {
            self.fail(format!(
                "assignment {spec} is taken from process {owner}, which works on it and can be asked"
            ));
        }
    }

    /// A process is about to tell the broker something about a delivery. It must have it.
    pub(crate) fn check_verdict(&mut self, process: usize, token: &str) {
        let sequence: u64 = token
            .split('.')
            .next()
            .and_then(|number| number.parse().ok())
            .expect("a token of ours");
        let Some(message) = self.broker.messages.get(&sequence) else {
            return;
        };
        let is_current =
            matches!(&message.state, Delivery::Delivered { token: current, .. } if **current == *token);
        if is_current {
            return;
        }
        if self.is_deceived(Some(sequence)) {
            self.audit
                .count("race: a verdict of an earlier holder was on its way");
            return;
        }
        self.fail(format!(
            "process {process} speaks about delivery {token}, which it has lost"
        ));
    }

    pub(crate) fn attempt_begins(&mut self, process: usize, sequence: u64, spec: usize, alone: bool) {
        let now = self.kernel.now;
        self.note(|| {
            format!(
                "process {process} runs assignment {spec}{}",
                if alone { " alone" } else { "" }
            )
        });
        if self.audit.ledgers[spec].cancel_heard.contains(&process) {
            return self.fail(format!(
                "process {process} runs assignment {spec}, and has heard that it is to be cancelled"
            ));
        }
        let key = self.scenario.specs[spec].key.as_ref().expect("it runs").as_str();
        let record = self.broker.claims.get(key).map(|(_, record)| record);
        let owner = &self.processes[process].owner;
        let is_ours =
            record.is_some_and(|record| record.owner == *owner && record.state == ClaimState::Running);
        let proof = self.audit.ledgers[spec]
            .last_write
            .get(&process)
            .copied()
            .unwrap_or(0);
        if !is_ours {
            if self.processes[process].thawed_at.is_some_and(|at| at >= proof) {
                self.audit.count("race: stopped between proof and attempt");
            } else if self.is_deceived(Some(sequence)) {
                self.audit
                    .count("race: began under a lease that an earlier holder had ended");
            } else {
                return self.fail(format!(
                    "process {process} runs assignment {spec}, which is not its own: {record:?}"
                ));
            }
        }
        let (deaths, died_alone) = self.audit.ledgers[spec]
            .known_deaths
            .get(&process)
            .copied()
            .unwrap_or_default();
        let most = self.scenario.rule.max_deaths;
        if died_alone && deaths >= most || !alone && deaths > 0 && deaths + 1 >= most {
            return self.fail(format!(
                "process {process} runs assignment {spec}, alone: {alone}, after {deaths} deaths, one alone: {died_alone}"
            ));
        }
        let others: Vec<(usize, Micros)> = {
            let running = self.audit.ledgers[spec].running.iter();
            running.map(|running| (running.process, running.since)).collect()
        };
        for (other, since) in others {
            if other == process {
                return self.fail(format!("process {process} runs assignment {spec} twice at once"));
            }
            self.audit.count("race: runs beside an owner that was silent");
            let since = since.min(now.saturating_sub(TAKE_OVER_TAKES));
            if !self.was_unreachable_since(other, since) {
                return self.fail(format!(
                    "assignment {spec} runs in processes {other} and {process} at once"
                ));
            }
        }
        let beside = self.audit.ledgers.iter().flat_map(|ledger| &ledger.running);
        let mut beside = beside.filter(|running| running.process == process);
        if beside.any(|running| running.alone || alone) {
            return self.fail(format!(
                "process {process} runs something beside what must run alone"
            ));
        }
        self.audit.ledgers[spec].running.push(Running {
            process,
            since: now,
            alone,
        });
    }

    pub(crate) fn attempt_ends(&mut self, process: usize, spec: usize) {
        self.audit.ledgers[spec]
            .running
            .retain(|running| running.process != process);
    }

    pub(crate) fn check_pool(&mut self, process: usize, waiting: usize, running: usize) {
        let scenario = &self.scenario;
        // Who waits for the limit of a tenant may do so in the place of a slot.
        let idle = scenario
            .max_running
            .map_or(0, |_| scenario.slots.saturating_sub(running));
        let is_over = scenario
            .queue
            .as_ref()
            .is_some_and(|queue| waiting > queue.size + idle);
        if running > scenario.slots || is_over {
            self.fail(format!(
                "the pool of process {process} has {running} running and {waiting} waiting"
            ));
        }
    }

    /// An attempt begins, after so many retries and so long after the first call of this run. Asked of the scenario, not of
    /// the plan.
    pub(crate) fn check_retries(&mut self, spec: usize, retries: u32, since_first_call: Duration) {
        let Reading::Valid(assignment) = &self.scenario.specs[spec].reading else {
            return;
        };
        let rules = &self.scenario.retry;
        let budget = rules
            .policy
            .as_ref()
            .map(|policy| policy.default_policy.retry_budget_ms);
        let total = rules.total.as_ref().filter(|total| total.enforce_across_retries);
        let longest = budget
            .into_iter()
            .chain(total.map(|total| total.total_timeout_ms))
            .min();
        let too_late = longest.is_some_and(|longest| since_first_call >= Duration::from_millis(longest));
        let too_often = assignment.max_attempts.is_some_and(|most| retries >= most);
        if too_late || too_often {
            self.fail(format!(
                "assignment {spec} is called after {retries} retries and {since_first_call:?}: too late {too_late}, too often {too_often}"
            ));
        }
    }

    /// A process is gone; these were marked as running.
    pub(crate) fn process_ended(&mut self, process: usize) {
        for ledger in &mut self.audit.ledgers {
            ledger.running.retain(|running| running.process != process);
        }
    }

    pub(crate) fn died_with(&mut self, marks: &[(AssignmentKey, bool)]) {
        for (key, alone) in marks {
            let (_, ledger) = self.ledger_of(key.as_str());
            ledger.deaths += 1;
            ledger.deaths_alone += u32::from(*alone);
        }
    }

    /// Whether all has come to rest.
    pub(crate) fn is_over(&self) -> bool {
        self.healed
            && self.wounds == 0
            && self.audit.to_submit == 0
            && self.broker.messages.is_empty()
            && self.broker.approvals.values().all(|(_, entry)| entry.answered.is_some())
            // What a process left that has no successor in its slot waits for the next that starts; it is not missing.
            && self.hosts.iter().flatten().all(|disk| disk.locked_by.is_none() || disk.outbox.is_empty() && disk.marks.is_empty())
            && self
                .processes
                .iter()
                .filter_map(|process| process.node.as_ref())
                .all(|node| node.is_idle())
    }

    /// What must hold in the end.
    pub(crate) fn check_rest(&mut self) {
        for spec in 0..self.scenario.specs.len() {
            if let Err(why) = self.check_answer(spec) {
                return self.fail(format!("assignment {spec}: {why}"));
            }
        }
        let nodes: Vec<_> = self
            .processes
            .iter()
            .filter_map(|process| process.node.clone())
            .collect();
        for node in nodes {
            let all = self.scenario.queue.as_ref();
            let all = all.map(|queue| queue.most() + self.scenario.slots);
            let free = node.places.free();
            if free != all {
                self.fail(format!(
                    "process {} has lost a place: {free:?} of {all:?} are free",
                    node.id
                ));
            }
            let held = node.tenants.held("acme");
            if held > 0 {
                self.fail(format!(
                    "process {} has lost {held} shares of its tenant",
                    node.id
                ));
            }
            if !node.leases.renewable(self.instant()).is_empty() || !node.claims.held_in_fleet().is_empty() {
                self.fail(format!("process {} still holds leases or claims", node.id));
            }
        }
    }

    fn check_answer(&mut self, number: usize) -> Result<(), String> {
        let spec: &Spec = &self.scenario.clone().specs[number];
        let ledger = &self.audit.ledgers[number];
        let Some(key) = &spec.key else {
            return if ledger.answered {
                Ok(())
            } else {
                Err("no dead letter".to_owned())
            };
        };
        let Some(stored) = self.broker.stored(&result_id(number)) else {
            return Err("no result".to_owned());
        };
        let record = self.broker.claims.get(key.as_str()).map(|(_, record)| record);
        let never_told = match record {
            Some(record) if record.state == ClaimState::Finished => false,
            // What the question says counts: whoever gets the assignment again asks it first.
            Some(_) if self.broker.approvals.contains_key(key.as_str()) => false,
            Some(record) if self.is_deceived(Some(record.sequence)) => true,
            Some(_) if ledger.stopped => true,
            _ => return Err(format!("answered, but its claim says {record:?}")),
        };
        let Some(row) = ledger.written.get(&stored.payload).copied() else {
            return Err("its result was never written".to_owned());
        };
        let fits = match row {
            "row 2" => spec.kind == Kind::Invalid,
            "row 3" => spec.kind == Kind::Foreign,
            "row 4" => match &self.scenario.queue {
                // Who waits asks for no more than fits, and refuses only what should come again and cannot.
                Some(queue) => {
                    self.scenario.admission == Admission::Refuse
                        || matches!(queue.policy, Policy::Defer { .. })
                }
                None => false,
            },
            // What was taken on once is never refused.
            "row 4b" => self.scenario.max_queued.is_some() && ledger.acks.iter().all(says_over_quota),
            "row 16" => {
                matches!(&self.scenario.queue, Some(queue) if matches!(queue.policy, Policy::DropOldest { .. }))
            }
            "row 6" => matches!(spec.kind, Kind::Works { .. }),
            "row 7" => matches!(spec.kind, Kind::Fails | Kind::Works { failures: 1.. }),
            "row 8" => spec.deadline_ms < MAX_DEADLINE_MS || self.scenario.limits_calls(),
            "row 8b" => spec.deadline_ms < MAX_DEADLINE_MS,
            "row 9" => {
                !spec.repeatable && !self.scenario.faults.is_empty() || self.scenario.is_cancelled(number)
            }
            "row 18" => spec.kind == Kind::Asks,
            "row 14" => ledger.deaths >= self.scenario.rule.max_deaths && ledger.deaths_alone > 0,
            "row 17" => !self.scenario.is_calm || self.has_poison(),
            _ => false,
        };
        if !fits {
            return Err(format!(
                "{:?} left by {row} after {} deaths, {} of them alone",
                spec.kind, ledger.deaths, ledger.deaths_alone
            ));
        }
        if row != "row 4b" && !matches!(row, "row 14" | "row 17") && ledger.acks.iter().any(says_over_quota) {
            return Err(format!("was refused by a quota, and left by {row}"));
        }
        if ledger.acks.is_empty() {
            if matches!(row, "row 14" | "row 17") {
                self.audit
                    .count("race: an acknowledgement was fixed and never sent");
            } else {
                return Err(format!("left by {row} without an acknowledgement"));
            }
        }
        if never_told {
            self.audit.count(
                "race: answered under a lease that an earlier holder had ended, or after a stop, so its claim never heard",
            );
        }
        self.audit.count("assignments");
        Ok(())
    }
}

fn says_over_quota(ack: &Bytes) -> bool {
    ack.windows(QUOTA_EXCEEDED.len())
        .any(|part| part == QUOTA_EXCEEDED)
}
