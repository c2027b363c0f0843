//! Bounded queues: rows 4, 5 and 16, and what is told about them, counted at the sink, the log and the meter.

use std::collections::BTreeMap;

use caf_actors::settings::policies::{QueuePolicySettings, RejectionPolicy};
use caf_actors::sink::Verdict;
use caf_worker::settings::{Admission, Settings};
use serde_json::{Value, json};

use crate::rig::{Rig, assignment, failing, in_system, waiting};

/// One slot and a queue of ten in the pool of the probe.
fn ten(change: impl FnOnce(&mut QueuePolicySettings)) -> Settings {
    let mut settings = Settings::default();
    settings.pools.cpu.max_concurrency = 1;
    let queue = &mut settings.worker.queue.v2;
    queue.enabled = true;
    queue.max_queue_size = 10;
    change(queue);
    settings
}

fn policy(policy: RejectionPolicy) -> Settings {
    ten(|queue| queue.rejection_policy = policy)
}

/// Delivers waiting jobs `a-<n>`, and waits until each is acknowledged, so that the next one finds it in its place.
async fn deliver(rig: &Rig, numbers: impl IntoIterator<Item = u64>, patch: &Value) {
    for n in numbers {
        let acks = rig.counts().0;
        rig.deliver(assignment(&format!("a-{n}"), patch), n).await;
        rig.published(|counts| counts.0 > acks).await;
    }
}

fn ack_of(rig: &Rig, id: &str) -> Value {
    let acks: Vec<_> = rig
        .acks()
        .into_iter()
        .filter(|ack| ack["assignment_id"] == id)
        .collect();
    assert_eq!(acks.len(), 1, "acknowledgements of {id}");
    acks[0].clone()
}

fn counted(rig: &Rig, metric: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (labels, value) in rig.samples(metric) {
        assert!(value >= 0.0);
        *counts.entry(labels.join(" ")).or_default() += 1;
    }
    counts
}

const OF_THE_QUEUE: [&str; 3] = ["Queue rejection", "Overload status changed", "Assignment queued"];

/// Contract 4.1, 8.2, 8.4: as it fills, and as it empties.
#[test]
fn each_change_of_status_is_told_once_and_answers_carry_load_and_depth() {
    in_system(async {
        let rig = Rig::start_with(ten(|_| {})).await;
        deliver(&rig, 0..13, &waiting()).await;
        let status = |n: usize| ack_of(&rig, &format!("a-{n}"))["overload_status"].clone();
        assert_eq!(
            [0, 4, 5, 7, 8, 9, 10, 11].map(status),
            [
                "healthy",
                "healthy",
                "degraded",
                "degraded",
                "overloaded",
                "overloaded",
                "critical",
                "critical"
            ]
        );
        assert_eq!(
            rig.ack_statuses(),
            BTreeMap::from([("accepted".into(), 11), ("rejected".into(), 2)])
        );
        rig.release();
        rig.settled(13).await;
        let load = |n: usize| {
            let result = rig.result_of(&format!("a-{n}"));
            (
                result.get("overload_status").cloned(),
                result.get("queue_depth").cloned(),
            )
        };
        assert_eq!(load(0), (None, None));
        assert_eq!(load(1), (None, Some(json!(1))));
        assert_eq!(load(5), (Some(json!("degraded")), Some(json!(5))));
        assert_eq!(load(8), (Some(json!("overloaded")), Some(json!(8))));
        assert_eq!(load(10), (Some(json!("critical")), Some(json!(10))));
        assert_eq!(load(11), (Some(json!("critical")), Some(json!(10))), "refused");
        rig.wait("the queue is empty", |rig| {
            rig.lines("Overload status changed") == 6
        })
        .await;
        let gauge: Vec<f64> = rig
            .samples("worker_overload_status")
            .into_iter()
            .map(|(_, value)| value)
            .collect();
        assert_eq!(gauge, [1.0, 2.0, 3.0, 2.0, 1.0, 0.0]);
        assert_eq!(rig.lines("Queue rejection"), 2);
        assert_eq!(rig.lines("Queue full - rejecting request"), 2);
        assert_eq!(
            counted(&rig, "worker_queue_rejections_total"),
            BTreeMap::from([("cpu queue_full".into(), 2)])
        );
        assert_eq!(
            counted(&rig, "worker_queue_acceptances_total"),
            BTreeMap::from([("cpu".into(), 11)])
        );
        assert_eq!(
            counted(&rig, "worker_queue_wait_seconds"),
            BTreeMap::from([("cpu".into(), 11)])
        );
        rig.stop().await;
    });
}

#[test]
fn without_the_flag_nothing_is_refused_and_nothing_told_but_what_waits_is_measured() {
    in_system(async {
        let mut settings = policy(RejectionPolicy::DropOldest);
        settings.worker.queue.v2.enabled = false;
        settings.queue.admission = Some(Admission::Wait);
        let rig = Rig::start_with(settings).await;
        deliver(&rig, 0..40, &waiting()).await;
        rig.release();
        rig.settled(40).await;
        assert_eq!(rig.counts(), (40, 40, 0));
        assert!(
            rig.results()
                .iter()
                .all(|result| result["status"] == "success" && result.get("queue_depth").is_none())
        );
        assert!(
            rig.acks()
                .iter()
                .all(|ack| ack["status"] == "accepted" && ack.get("overload_status").is_none())
        );
        for line in OF_THE_QUEUE {
            assert_eq!(rig.lines(line), 0, "{line}");
        }
        let of_queue = |name: &&str| name.contains("queue") || name.contains("overload");
        let measured: Vec<_> = rig.metrics().into_iter().filter(of_queue).collect();
        let accepted = "worker_queue_acceptances_total";
        assert_eq!(measured, [accepted, "worker_queue_wait_seconds"]);
        assert_eq!(rig.samples(accepted).len(), 40);
        rig.stop().await;
    });
}

/// Row 16.
#[test]
fn the_oldest_that_waits_makes_room_and_is_told_so_without_a_second_word() {
    in_system(async {
        let rig = Rig::start_with(policy(RejectionPolicy::DropOldest)).await;
        deliver(&rig, 0..14, &waiting()).await;
        rig.settled(5).await;
        assert_eq!(rig.ack_statuses()["accepted"], 14);
        let dropped: Vec<_> = rig
            .results()
            .iter()
            .map(|result| result["assignment_id"].clone())
            .collect();
        assert_eq!(dropped, ["a-1", "a-2", "a-3", "a-4", "a-5"]);
        for result in rig.results() {
            assert_eq!(
                (
                    &result["status"],
                    &result["error_code"],
                    &result["error"]["retryable"]
                ),
                (&json!("error"), &json!("SYSTEM_OVERLOAD"), &json!(true))
            );
        }
        assert!(rig.verdicts().iter().all(|(_, verdict)| *verdict == Verdict::Ack));
        rig.release();
        rig.settled(14).await;
        assert_eq!(
            rig.counts(),
            (14, 14, 0),
            "one ack and one result each, no letter"
        );
        assert_eq!(rig.lines("Queue rejection"), 5);
        assert_eq!(
            counted(&rig, "worker_queue_rejections_total"),
            BTreeMap::from([("cpu overloaded".into(), 5)])
        );
        assert_eq!(rig.runs(), 9);
        // Who is dropped has waited too, and has not run.
        for (metric, jobs) in [
            ("worker_queue_wait_seconds", 14),
            ("worker_wait_seconds", 14),
            ("worker_step_executions_total", 14),
            ("worker_step_execution_duration_seconds", 9),
        ] {
            assert_eq!(rig.samples(metric).len(), jobs, "{metric}");
        }
        rig.stop().await;
    });
}

/// Counts stay exact however the newcomers arrive.
#[test]
fn a_burst_is_let_in_whole_and_drops_as_many_as_it_must() {
    in_system(async {
        let rig = Rig::start_with(policy(RejectionPolicy::DropOldest)).await;
        for n in 0..200 {
            rig.deliver(assignment(&format!("a-{n}"), &waiting()), n).await;
        }
        rig.published(|counts| counts.0 == 200 && counts.1 == 191).await;
        assert_eq!(rig.ack_statuses()["accepted"], 200);
        rig.release();
        rig.settled(200).await;
        assert_eq!(rig.counts(), (200, 200, 0));
        assert_eq!(
            rig.runs(),
            9,
            "one slot, and the queue up to where it is overloaded"
        );
        rig.stop().await;
    });
}

#[test]
fn who_has_waited_too_long_is_not_dropped_any_more() {
    in_system(async {
        let rig = Rig::start_with(ten(|queue| {
            queue.rejection_policy = RejectionPolicy::DropOldest;
            queue.policies.drop_oldest.max_drop_age_ms = 1;
        }))
        .await;
        deliver(&rig, 0..9, &waiting()).await;
        rig.pass(std::time::Duration::from_millis(20)).await;
        deliver(&rig, 9..13, &waiting()).await;
        assert_eq!(
            rig.ack_statuses(),
            BTreeMap::from([("accepted".into(), 11), ("rejected".into(), 2)])
        );
        rig.release();
        rig.settled(13).await;
        assert_eq!((rig.counts(), rig.runs()), ((13, 13, 0), 11));
        rig.stop().await;
    });
}

/// Row 5, with claims of this process only: its book keeps the first start.
#[test]
fn a_deferred_message_goes_back_without_a_word_and_its_deadline_counts_from_its_first_start() {
    in_system(async {
        let rig = Rig::start_with(policy(RejectionPolicy::Defer)).await;
        deliver(&rig, 0..6, &waiting()).await;
        let short =
            json!({"job": {"type": "probe", "payload": {"wait": true}}, "options": {"deadline_ms": 3_000}});
        rig.deliver(assignment("late", &short), 6).await;
        rig.settled(1).await;
        assert_eq!(
            rig.verdicts(),
            [("delivery-6".to_owned(), Verdict::Nak { delay_ms: 100 })]
        );
        assert_eq!(rig.counts(), (6, 0, 0), "no acknowledgement, no result");
        rig.pass(std::time::Duration::from_millis(100)).await;
        for (n, away_ms) in [(1, 200), (2, 400), (3, 800)] {
            rig.deliver_again(assignment("late", &short), 6, &format!("again {n}"))
                .await;
            rig.settled(n + 1).await;
            assert!(
                matches!(rig.verdicts()[n].1, Verdict::Nak { delay_ms } if delay_ms == away_ms),
                "twice as long each time: {:?}",
                rig.verdicts()
            );
            rig.pass(std::time::Duration::from_millis(away_ms)).await;
        }
        rig.pass(std::time::Duration::from_millis(1_600)).await;
        rig.deliver_again(assignment("late", &short), 6, "for the last time")
            .await;
        rig.settled(5).await;
        let result = rig.result_of("late");
        assert_eq!(
            (&result["status"], &result["retries_used"]),
            (&json!("timeout"), &json!(0))
        );
        assert_eq!(ack_of(&rig, "late")["status"], "accepted");
        assert_eq!(rig.lines("Queue rejection"), 0);
        rig.release();
        rig.settled(11).await;
        assert_eq!(rig.counts(), (7, 7, 0));
        rig.stop().await;
    });
}

#[test]
fn no_more_than_half_of_what_may_be_unacknowledged_is_deferred_and_nothing_without_time_left() {
    in_system(async {
        let mut settings = policy(RejectionPolicy::Defer);
        settings.nats.max_ack_pending = 6;
        let rig = Rig::start_with(settings).await;
        deliver(&rig, 0..6, &waiting()).await;
        let hurried = json!({"job": {"type": "probe", "payload": {}}, "options": {"deadline_ms": 90}});
        rig.deliver(assignment("hurried", &hurried), 90).await;
        rig.settled(1).await;
        assert_eq!(ack_of(&rig, "hurried")["message"], "queue_full");
        for n in 10..15 {
            let long =
                json!({"job": {"type": "probe", "payload": {}}, "options": {"deadline_ms": 3_600_000}});
            rig.deliver(assignment(&format!("a-{n}"), &long), n).await;
        }
        rig.settled(6).await;
        let deferred = rig
            .verdicts()
            .into_iter()
            .filter(|(_, verdict)| matches!(verdict, Verdict::Nak { .. }));
        assert_eq!(deferred.count(), 3);
        assert_eq!(rig.ack_statuses()["rejected"], 3);
        assert_eq!(
            counted(&rig, "worker_queue_rejections_total"),
            BTreeMap::from([("cpu critical".into(), 3)])
        );
        rig.stop().await;
    });
}

#[test]
fn degraded_jobs_are_called_once_have_less_time_and_say_so() {
    in_system(async {
        let rig = Rig::start_with(policy(RejectionPolicy::Degrade)).await;
        deliver(&rig, 0..9, &waiting()).await;
        deliver(&rig, [9], &failing("NETWORK_ERROR", 3)).await;
        rig.release();
        rig.settled(10).await;
        let degraded = |n: usize| {
            rig.result_of(&format!("a-{n}"))["metadata"]
                .get("degraded")
                .cloned()
        };
        assert_eq!(
            [5, 6, 8, 9].map(degraded),
            [
                None,
                Some(json!("light")),
                Some(json!("light")),
                Some(json!("medium"))
            ]
        );
        let result = rig.result_of("a-9");
        assert_eq!(
            (&result["status"], &result["retries_used"]),
            (&json!("error"), &json!(0))
        );
        assert_eq!(rig.lines("Assignment degraded"), 4);
        rig.stop().await;
    });
}

#[test]
fn a_degraded_job_ends_when_its_shorter_time_is_over() {
    in_system(async {
        let rig = Rig::start_with(ten(|queue| {
            queue.rejection_policy = RejectionPolicy::Degrade;
            let levels = &mut queue.policies.degrade.degradation_levels;
            levels.medium.timeout_reduction_factor = 0.001;
        }))
        .await;
        deliver(&rig, 0..9, &waiting()).await;
        // Of an hour some seconds are left, or the test waits in vain.
        let long = json!({"job": {"type": "probe", "payload": {}}, "options": {"deadline_ms": 3_600_000}});
        deliver(&rig, [9], &long).await;
        rig.settled(1).await;
        let result = rig.result_of("a-9");
        assert_eq!(result["status"], "timeout");
        assert!(result["latency_ms"].as_u64() >= Some(3_600), "{result}");
        rig.release();
        rig.settled(10).await;
        rig.stop().await;
    });
}
