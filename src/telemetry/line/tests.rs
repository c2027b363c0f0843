use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use caf_actors::events::{self, Event, Log};
use caf_protocol::assignment::Identity;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::ids::{Correlation, RunFlowStep};
use caf_protocol::outcome::{Failure, Outcome, StepResult};
use proptest::prelude::*;
use slog::{Logger, Never, o};

use super::*;

/// The line of an event as it is written straight, and as it is written by way of JSON values.
type Both = (Option<String>, String);

struct Judge {
    seen: Arc<Mutex<Option<Both>>>,
    worker_id: String,
    secrets: Secrets,
    at: SystemTime,
}

impl Drain for Judge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let straight = event_line(record, values, &self.worker_id, &self.secrets, self.at);
        let by_values = values_line(record, values, &self.worker_id, &self.secrets, self.at);
        *self.seen.lock().unwrap() = Some((straight.map(text), text(by_values)));
        Ok(())
    }
}

fn both(event: Event, worker_id: &str, at: SystemTime) -> Both {
    let seen = Arc::new(Mutex::new(None));
    let judge = Judge {
        seen: Arc::clone(&seen),
        worker_id: worker_id.to_owned(),
        secrets: Secrets::new(["zq0000MARK".to_owned()]),
        at,
    };
    Log::new(Logger::root(judge.fuse(), o!()), "w").emit(event);
    seen.lock().unwrap().take().unwrap()
}

/// Texts that have to be hidden, masked, escaped or cut, and some that have not.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[a-zA-Z0-9_. -]{0,12}",
        1 => Just("zq0000MARK".to_owned()),
        1 => Just("password=hunter2 ".to_owned()),
        1 => Just("Bearer abc".to_owned()),
        1 => Just("nats://u:p@h:4222".to_owned()),
        1 => Just("AKIAABCDEFGHIJKLMNOPQR".to_owned()),
        1 => Just("someone@example.com".to_owned()),
        1 => Just("x".repeat(9 * 1024)),
        2 => "[\\PC\"\\\\\n\t\u{0}\u{1b}\u{7f}\u{9b}\u{202e}\u{2028}ü€]{0,4}",
    ];
    proptest::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-f_]{1,6}",
        1 => Just("db_password".to_owned()),
        1 => Just("user.email".to_owned()),
        1 => Just("worker_id".to_owned()),
        1 => Just("error".to_owned()),
        1 => Just("context".to_owned()),
        1 => text(),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

prop_compose! {
    fn identity()(
        ids in proptest::array::uniform7(proptest::option::of(text())),
        replay in 0_u32..3,
        sandbox: bool,
    ) -> Arc<Identity> {
        let [assignment, tenant, run_id, flow_id, step_id, trace, job_type] = ids;
        Arc::new(Identity {
            assignment_id: assignment.unwrap_or_default(),
            tenant_id: tenant.unwrap_or_default(),
            job_type,
            replay,
            sandbox,
            correlation: Correlation {
                raw: RunFlowStep { run_id, flow_id, step_id },
                original_trace_id: trace,
                ..Correlation::default()
            },
            ..Identity::default()
        })
    }
}

fn ended(identity: &Arc<Identity>, outcome: Outcome, latency_ms: u64) -> Event {
    let step = StepResult {
        outcome,
        latency_ms,
        retries_used: 1,
        cost: Default::default(),
    };
    events::step_ended(identity, &step)
}

prop_compose! {
    fn event()(
        identity in identity(),
        fields in proptest::collection::btree_map(name(), value(), 0..6),
        texts in proptest::array::uniform2(text()),
        numbers in any::<[u64; 2]>(),
        kind in 0..6,
    ) -> Event {
        let [one, other] = &texts;
        let mut failure = Failure::new(ErrorCode::NetworkError, one.clone());
        failure.details = fields.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        failure.details.insert("waiting".to_owned(), other.as_str().into());
        match kind {
            0 => ended(&identity, Outcome::Success(failure.details), numbers[0]),
            1 => ended(&identity, Outcome::from(failure), numbers[1]),
            2 => events::attempt_failed(&identity, &failure, 3, numbers[0]),
            3 => events::publish_retried(None, (one, other), one, 2, numbers[0]),
            4 => events::logging::settings_refused(one, other, one, vec![other.clone()]),
            _ => events::features_in_force(fields.into_iter().collect()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_line_that_is_written_straight_is_the_same_to_the_byte(
        event in event(),
        worker_id in text(),
        nanos in 0_u64..4_000_000_000_000_000_000,
    ) {
        let (straight, by_values) = both(event, &worker_id, UNIX_EPOCH + Duration::from_nanos(nanos));
        if let Some(straight) = straight {
            prop_assert_eq!(straight, by_values);
        }
    }
}

#[test]
fn usual_lines_are_written_straight() {
    let identity = Arc::new(Identity {
        assignment_id: "550e8400-e29b-41d4-a716-446655440000".into(),
        tenant_id: "zq0000MARK".into(),
        ..Identity::default()
    });
    let failure = Failure::new(ErrorCode::NetworkError, "got password=hunter2 \u{202e}\n");
    for event in [
        ended(&identity, Outcome::Success(Map::new()), 7),
        ended(&identity, Outcome::from(failure), 7),
    ] {
        let (straight, by_values) = both(event, "worker-1", UNIX_EPOCH);
        assert_eq!(straight, Some(by_values.clone()));
        assert!(!by_values.contains("zq0000MARK") && !by_values.contains("hunter2"));
    }
}
