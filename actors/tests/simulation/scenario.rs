//! What a seed stands for: settings, assignments, and the faults that happen to them.

use std::sync::Arc;

use bytes::Bytes;
use caf_actors::block_worker::retry::RetryRules;
use caf_actors::claims::record::QuarantineRule;
use caf_actors::pool::line::Ageing;
use caf_actors::pool::policy::{Policy, QueueRules};
use caf_actors::pool::room::Admission;
use caf_actors::settings::policies::{
    DegradationLevels, OverloadThresholds, RetryPolicySettings, TotalLimit,
};
use caf_protocol::assignment::{MAX_DEADLINE_MS, Reading, read};
use caf_protocol::headers::Headers;
use caf_protocol::ids::AssignmentKey;

use super::dice::Dice;
use super::kernel::{MS, Micros, SECOND};

/// Faults happen before this; then everything heals.
pub(crate) const HEALED_AT: Micros = 45 * SECOND;
/// Everything must be answered by then.
pub(crate) const OVER_AT: Micros = 900 * SECOND;

/// Tenants that are served.
pub(crate) const TENANTS: [&str; 3] = ["acme", "beta", "gamma"];

/// What a seed has more of than chance would give: what is rare everywhere at once meets often enough nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Emphasis {
    Nothing,
    /// Many questions, and processes that die before they are kept.
    Questions,
    /// Bursts that fill short queues.
    Queues,
}

impl Emphasis {
    fn draw(dice: &mut Dice) -> Self {
        match dice.index(4) {
            0 => Self::Questions,
            1 => Self::Queues,
            _ => Self::Nothing,
        }
    }
}

/// What an assignment does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Fails so many calls, then succeeds.
    Works { failures: u32 },
    /// Every call fails.
    Fails,
    /// Kills its process.
    Poison,
    /// Asks people.
    Asks,
    /// Cannot be run.
    Invalid,
    /// Of a tenant that is not served.
    Foreign,
    /// Nobody can be answered.
    Junk,
}

#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub kind: Kind,
    pub duration: Micros,
    pub repeatable: bool,
    pub payload: Bytes,
    pub reading: Reading,
    pub key: Option<AssignmentKey>,
    /// In milliseconds; the longest that there is outlasts the simulation.
    pub deadline_ms: u64,
    /// When it, and its copies, are sent.
    pub sent: Vec<Micros>,
    /// When somebody begins to try to decide, of those that ask; nobody does in some.
    pub decided: Option<Micros>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Kill {
        worker: usize,
    },
    Freeze {
        worker: usize,
        lasts: Micros,
    },
    Cut {
        worker: usize,
        lasts: Micros,
        survives: bool,
    },
    BrokerAway {
        lasts: Micros,
    },
    Drain {
        worker: usize,
        surge: bool,
    },
    SlowKeeper {
        worker: usize,
        lasts: Micros,
    },
}

/// Everything that a seed decides before the first step.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub workers: usize,
    pub share_a_host: bool,
    pub specs: Vec<Spec>,
    pub faults: Vec<(Micros, Fault)>,
    /// One of so many polls is the last of its process; 0 for never.
    pub kill_one_in: u64,
    /// One of so many replies is lost; 0 for none.
    pub lose_one_in: u64,
    /// One of so many entries cannot be kept on disk; 0 for none.
    pub unkept_one_in: u64,
    pub ack_wait: Micros,
    pub request_limit: Micros,
    pub slots: usize,
    pub queue: Option<QueueRules>,
    pub admission: Admission,
    /// Of the consumer: at most half of it may be deferred.
    pub max_ack_pending: u64,
    pub max_held: usize,
    pub rule: QuarantineRule,
    pub soft_limit: Micros,
    pub hard_limit: Micros,
    /// Wall clocks differ, in milliseconds.
    pub skew_ms: Vec<u64>,
    /// Nothing goes wrong but what assignments do.
    pub is_calm: bool,
    /// What all workers say of retries.
    pub retry: RetryRules,
    /// Most jobs of the one tenant that may wait at a worker.
    pub max_queued: Option<usize>,
    /// When all workers are told to cancel which assignment.
    pub cancels: Vec<(Micros, usize)>,
    /// Of each tenant, as [`TENANTS`].
    pub weights: [u32; TENANTS.len()],
    /// Most jobs of a tenant that a worker runs at once.
    pub max_running: Option<usize>,
    pub ageing: Ageing,
}

impl Scenario {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let emphasis = Emphasis::draw(dice);
        let is_calm = dice.percent(15);
        let workers = 1 + dice.index(4);
        let ack_wait = [4, 10][dice.index(2)] * SECOND;
        let count = 3 + dice.index(10);
        let with_poison = dice.percent(35);
        let specs = (0..count)
            .map(|number| Spec::draw(dice, number, with_poison, emphasis))
            .collect();
        let mut scenario = Self {
            workers,
            share_a_host: dice.percent(40),
            specs,
            faults: Vec::new(),
            kill_one_in: if is_calm || dice.percent(60) {
                0
            } else {
                dice.range(100, 2_000)
            },
            lose_one_in: if is_calm || dice.percent(50) {
                0
            } else {
                dice.range(5, 60)
            },
            unkept_one_in: if is_calm || dice.percent(85) { 0 } else { 4 },
            ack_wait,
            request_limit: dice.range(1, 3) * SECOND,
            slots: 1 + dice.index(3),
            queue: match emphasis {
                Emphasis::Queues => Some(queue(dice, 3)),
                _ => dice.percent(60).then(|| queue(dice, 1)),
            },
            admission: if dice.percent(25) {
                Admission::Wait
            } else {
                Admission::Refuse
            },
            max_ack_pending: dice.range(4, 20),
            max_held: 2 + dice.index(7),
            rule: QuarantineRule {
                max_deaths: 1 + u32::try_from(dice.index(3)).expect("small"),
                max_attempts: match emphasis {
                    Emphasis::Questions => [2, 2, 10][dice.index(3)],
                    _ => [2, 10, 10][dice.index(3)],
                },
            },
            soft_limit: dice.range(1, 6) * SECOND,
            hard_limit: 8 * SECOND,
            skew_ms: (0..workers).map(|_| dice.range(0, 1_000)).collect(),
            is_calm,
            retry: retry_rules(dice),
            max_queued: dice
                .percent(if emphasis == Emphasis::Queues { 50 } else { 25 })
                .then(|| 1 + dice.index(3)),
            cancels: Vec::new(),
            weights: [(); TENANTS.len()].map(|()| 1 + u32::try_from(dice.index(3)).expect("small")),
            max_running: dice.percent(30).then(|| 1 + dice.index(2)),
            ageing: Ageing(std::time::Duration::from_millis([0, 100, 1_000][dice.index(3)])),
        };
        if !is_calm {
            let count = dice.index(9);
            scenario.faults = (0..count).map(|_| Self::fault(dice, workers, ack_wait)).collect();
        } else if dice.percent(50) {
            let fault = Fault::Drain {
                worker: dice.index(workers),
                surge: dice.percent(50),
            };
            scenario.faults = vec![(dice.range(0, 20) * SECOND, fault)];
        }
        if dice.percent(if emphasis == Emphasis::Questions { 70 } else { 40 }) {
            let count = 1 + dice.index(4);
            scenario.cancels = (0..count).map(|_| scenario.cancel(dice)).collect();
        }
        scenario
    }

    /// The weight of a tenant.
    pub(crate) fn weight(&self, tenant: &str) -> u32 {
        let known = TENANTS.iter().position(|known| *known == tenant);
        self.weights[known.expect("others are not let in")]
    }

    /// Whether something beside the deadline bounds the calls of a job.
    pub(crate) fn limits_calls(&self) -> bool {
        self.retry.policy.is_some() || self.retry.total.is_some()
    }

    /// A request around the time at which its assignment is sent: before it, while it is worked on, or late.
    fn cancel(&self, dice: &mut Dice) -> (Micros, usize) {
        let number = dice.index(self.specs.len());
        let spec = &self.specs[number];
        let first = spec.sent[0];
        let at = match dice.index(3) {
            0 => first.saturating_sub(dice.range(0, 2_000) * MS),
            1 => first + dice.range(0, 100) * MS,
            _ => first + dice.range(0, 10_000) * MS,
        };
        (at, number)
    }

    /// Whether anything asks people.
    pub(crate) fn asks(&self) -> bool {
        self.specs.iter().any(|spec| spec.kind == Kind::Asks)
    }

    /// Whether anybody asks to cancel an assignment.
    pub(crate) fn is_cancelled(&self, spec: usize) -> bool {
        self.cancels.iter().any(|(_, cancelled)| *cancelled == spec)
    }

    /// What was drawn, for the trace.
    pub(crate) fn describe(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} workers, on one host: {}, slots {}, queue {:?}, held {}, ack wait {} ms, request limit {} ms, {:?}",
            self.workers,
            self.share_a_host,
            self.slots,
            self.queue,
            self.max_held,
            self.ack_wait / MS,
            self.request_limit / MS,
            self.rule
        )];
        lines.push(format!("{:?}, at most waiting {:?}", self.retry, self.max_queued));
        lines.push(format!(
            "weights {:?}, running {:?}, {:?}",
            self.weights, self.max_running, self.ageing
        ));
        lines.push(format!(
            "one in so many: killed at a step {}, reply lost {}, not kept {}",
            self.kill_one_in, self.lose_one_in, self.unkept_one_in
        ));
        lines.extend(self.specs.iter().enumerate().map(|(number, spec)| {
            let sent: Vec<u64> = spec.sent.iter().map(|at| at / MS).collect();
            format!(
                "assignment {number}: {:?}, takes {} ms, sent at {sent:?} ms",
                spec.kind,
                spec.duration / MS
            )
        }));
        let cancels = self.cancels.iter();
        lines.extend(cancels.map(|(at, spec)| format!("at {} ms: cancel assignment {spec}", at / MS)));
        lines.extend(
            self.faults
                .iter()
                .map(|(at, fault)| format!("at {} ms: {fault:?}", at / MS)),
        );
        lines
    }

    fn fault(dice: &mut Dice, workers: usize, ack_wait: Micros) -> (Micros, Fault) {
        let at = dice.range(0, 30_000) * MS;
        let worker = dice.index(workers);
        // Around the times at which something lapses, as well as far beyond.
        let lasts = match dice.index(3) {
            0 => dice.range(10, 3_000) * MS,
            1 => ack_wait / 10 * dice.range(7, 14),
            _ => ack_wait + dice.range(0, 12_000) * MS,
        };
        let fault = match dice.index(13) {
            0..=2 => Fault::Kill { worker },
            3..=5 => Fault::Freeze { worker, lasts },
            6..=8 => Fault::Cut {
                worker,
                lasts,
                survives: dice.percent(50),
            },
            9 => Fault::BrokerAway { lasts },
            10..=11 => Fault::Drain {
                worker,
                surge: dice.percent(50),
            },
            _ => Fault::SlowKeeper { worker, lasts },
        };
        (at, fault)
    }
}

/// CP1, or a policy whose budget some jobs use up; and a total limit in some.
fn retry_rules(dice: &mut Dice) -> RetryRules {
    let policy = dice.percent(50).then(|| {
        let mut policy = RetryPolicySettings::default();
        policy.default_policy.retry_budget_ms = dice.range(500, 40_000);
        policy.default_policy.base_delay_ms = dice.range(0, 2_000);
        Arc::new(policy)
    });
    let total = dice.percent(20).then(|| TotalLimit {
        total_timeout_ms: dice.range(200, 20_000),
        enforce_across_retries: dice.percent(50),
    });
    RetryRules {
        default_attempts: 4,
        policy,
        total,
    }
}

/// Short queues with early thresholds, so that a dozen assignments are enough to fill them.
fn queue(dice: &mut Dice, least: usize) -> QueueRules {
    let levels = DegradationLevels::default();
    QueueRules {
        size: least + dice.index(5),
        thresholds: [
            OverloadThresholds::default(),
            OverloadThresholds {
                degraded: 0.2,
                overloaded: 0.4,
                critical: 1.0,
            },
        ][dice.index(2)],
        policy: match dice.index(6) {
            0 => Policy::RejectNew,
            1..=3 => Policy::DropOldest {
                max_age: std::time::Duration::from_millis(dice.range(500, 60_000)),
            },
            4 => Policy::Defer {
                max_ms: dice.range(100, 30_000),
            },
            _ => Policy::Degrade {
                light: levels.light,
                medium: levels.medium,
            },
        },
    }
}

impl Spec {
    fn draw(dice: &mut Dice, number: usize, with_poison: bool, emphasis: Emphasis) -> Self {
        let kind = match dice.index(20) {
            9..=18 if emphasis == Emphasis::Questions => Kind::Asks,
            9..=10 if emphasis == Emphasis::Queues => Kind::Works { failures: 0 },
            0 => Kind::Invalid,
            1 => Kind::Foreign,
            2 => Kind::Junk,
            3..=4 => Kind::Fails,
            9..=10 => Kind::Asks,
            5..=6 if with_poison => Kind::Poison,
            5..=8 => Kind::Works {
                failures: 1 + u32::try_from(dice.index(3)).expect("small"),
            },
            _ => Kind::Works { failures: 0 },
        };
        let duration = match dice.index(10) {
            0..=4 => dice.range(1, 300) * MS,
            5..=8 => dice.range(300, 5_000) * MS,
            _ => dice.range(5_000, 14_000) * MS,
        };
        let has_short_deadline = kind != Kind::Poison && dice.percent(12);
        let deadline_ms = match () {
            // How long the question waits.
            () if kind == Kind::Asks => dice.range(1, 40_000),
            () if has_short_deadline => dice.range(1, 4_000),
            () if kind == Kind::Poison || dice.percent(50) => MAX_DEADLINE_MS,
            () => 30_000,
        };
        let attempts = 1 + dice.index(4);
        let version = if kind == Kind::Invalid { "0" } else { "1" };
        let tenant = if kind == Kind::Foreign {
            "other"
        } else {
            // Those of one tenant go by what they are worth.
            let most = if emphasis == Emphasis::Queues {
                2
            } else {
                TENANTS.len()
            };
            TENANTS[dice.index(most)]
        };
        let priority = [25, 50, 50, 100][dice.index(4)];
        let payload = if kind == Kind::Junk {
            format!("junk {number}")
        } else {
            format!(
                r#"{{"version":"{version}","assignment_id":"a{number}","request_id":"r{number}","tenant_id":"{tenant}","executor":{{"provider_id":"p"}},"job":{{"type":"simulated"}},"options":{{"priority":{priority},"deadline_ms":{deadline_ms},"retry":{{"max_attempts":{attempts}}}}}}}"#
            )
        };
        let reading = read(payload.as_bytes(), &Headers::default());
        let key = match &reading {
            Reading::Unanswerable(_) => None,
            Reading::Invalid(identity, _) => Some(identity.key()),
            Reading::Valid(assignment) => Some(assignment.identity.key()),
        };
        let last = if emphasis == Emphasis::Queues {
            4_000
        } else {
            20_000
        };
        let first = dice.range(0, last) * MS;
        let mut sent = vec![first];
        while sent.len() < 3 && dice.percent(25) {
            let later = if dice.percent(50) {
                dice.range(0, 50)
            } else {
                dice.range(0, 20_000)
            };
            sent.push(first + later * MS);
        }
        let decided = (kind == Kind::Asks && dice.percent(70)).then(|| match emphasis {
            // About when its time is over.
            Emphasis::Questions if dice.percent(50) => {
                (first + (deadline_ms + dice.range(0, 40)) * MS).saturating_sub(20 * MS)
            }
            _ => first + dice.range(0, 20_000) * MS,
        });
        Self {
            decided,
            kind,
            duration,
            repeatable: dice.percent(50),
            payload: payload.into(),
            reading,
            key,
            deadline_ms,
            sent,
        }
    }
}
