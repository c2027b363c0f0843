//! Bounded queues on the wire: exact counts, each policy, admission, and the degradation scenarios of the contract.
//!
//! Jobs ask a server that withholds its answers until the test opens it, so that no count depends on how fast anything is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use caf_testkit::client::{ACK, RESULT};
use caf_testkit::wait::poll;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, NatsOptions, wait_until};
use serde_json::{Value, json};

use crate::side_effects::Outside;
use crate::support::{
    ASSIGNMENTS, CONSUMER, Node, SOON, answers, assert_each_answered_once, jobs, statuses, wait_answered,
};

/// Lines that only a bounded queue writes.
const LINES: [&str; 5] = [
    "Queue rejection",
    "Overload status changed",
    "Queue full - rejecting request",
    "Assignment deferred",
    "Assignment degraded",
];
/// Set, the degradation scenarios take their full time and load. DEGRADE-001 then needs a release build and cores of its own:
/// less than a tenth is refused only where some 900 jobs end per second.
const LONG: &str = "LOAD_LONG";

/// What `change` says of the policy; `pools` gives slots and queue of cpu, gpu and io.
fn queued(worker: WorkerBuilder, pools: [(usize, usize); 3], change: &Value) -> WorkerBuilder {
    let pool = |(slots, queue)| json!({"max_concurrency": slots, "max_queue_size": queue});
    let sizes = json!({"cpu": pool(pools[0]), "gpu": pool(pools[1]), "io": pool(pools[2])});
    let mut policy = change.clone();
    policy["resource_pools"] = sizes;
    worker
        .env("CP2_QUEUE_MANAGEMENT_ENABLED", "true")
        .policy("queue", &policy)
}

/// A worker with one slot and a queue of this size in its io pool, beside a server that withholds its answers.
fn start(
    queue: usize,
    change: &Value,
    adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
) -> (Node, Outside) {
    let outside = Outside::start();
    let node = Node::start_with(|worker| {
        let worker = outside.allow(worker);
        adjust(queued(worker, [(1, 10), (1, 10), (1, queue)], change))
    });
    (node, outside)
}

fn in_pool(job: AssignmentBuilder, class: &str) -> AssignmentBuilder {
    job.set("resources", json!({"class": class}))
}

/// Waits until so many acknowledgements are stored.
#[track_caller]
fn wait_acks(node: &Node, count: usize) {
    wait_until(&format!("{count} acknowledgements"), SOON, || {
        answers(&node.client).on(ACK).len() >= count
    });
}

/// Sends one after the other, each when the one before has been acknowledged.
fn send_in_turn(node: &Node, load: &[AssignmentBuilder]) {
    let before = answers(&node.client).on(ACK).len();
    for (n, job) in load.iter().enumerate() {
        node.client.assign(job).expect("is sent");
        wait_acks(node, before + n + 1);
    }
}

/// Acknowledgements by `status` and `overload_status`.
fn acks_by(node: &Node, load: &[AssignmentBuilder], key: &str) -> BTreeMap<String, usize> {
    let all = node.answers();
    let mut counts = BTreeMap::new();
    for job in load {
        for ack in all.acks(job.assignment_id()) {
            let value = ack[key].as_str().unwrap_or("none").to_owned();
            *counts.entry(value).or_default() += 1;
        }
    }
    counts
}

fn counts<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected.map(|(key, count)| (key.to_owned(), count)).into()
}

fn lines_of(node: &Node, message: &str) -> Vec<Value> {
    let mut logs = node.worker.logs();
    logs.retain(|log| log["message"] == message);
    logs
}

/// Row 4.
#[test]
fn each_pool_accepts_exactly_its_slots_and_its_queue_and_refuses_the_rest() {
    for (class, accepted) in [("cpu", 2 + 5), ("gpu", 1 + 3), ("io", 3 + 4)] {
        let outside = Outside::start();
        let node =
            Node::start_with(|worker| queued(outside.allow(worker), [(2, 5), (1, 3), (3, 4)], &json!({})));
        let load = jobs(20, |_| in_pool(outside.job("held"), class));
        node.client.assign_all(&load).expect("are sent");
        wait_acks(&node, 20);
        let refused = 20 - accepted;
        assert_eq!(
            acks_by(&node, &load, "status"),
            counts([("accepted", accepted), ("rejected", refused)]),
            "{class}"
        );
        outside.open();
        node.wait_answered(&load, SOON);
        let all = node.answers();
        assert_each_answered_once(&all, &load);
        assert_eq!(
            statuses(&all),
            counts([("error", refused), ("success", accepted)])
        );
        for ack in all.on(ACK).iter().filter(|ack| ack["status"] == "rejected") {
            assert_eq!(
                (&ack["message"], &ack["overload_status"]),
                (&json!("queue_full"), &json!("critical"))
            );
        }
        for result in all.on(RESULT).iter().filter(|result| result["status"] == "error") {
            assert_eq!(
                (
                    &result["error_code"],
                    &result["error"]["retryable"],
                    &result["overload_status"]
                ),
                (&json!("SYSTEM_OVERLOAD"), &json!(true), &json!("critical"))
            );
        }
        assert_eq!(all.on(caf_testkit::client::DLQ).len(), 0);
        let rejections = lines_of(&node, "Queue rejection");
        assert_eq!(rejections.len(), refused);
        for line in rejections {
            let context = &line["context"];
            assert_eq!(
                (&line["level"], &context["resource_pool"]),
                (&json!("WARN"), &json!(class))
            );
            assert_eq!(
                (&context["overload_status"], &context["rejection_reason"]),
                (&json!("critical"), &json!("queue_full"))
            );
            assert_eq!(context["queue_depth"], context["max_queue_size"]);
        }
        assert_eq!(lines_of(&node, "Queue full - rejecting request").len(), refused);
        let changes = lines_of(&node, "Overload status changed");
        assert_eq!(changes[0]["context"]["old_status"], "healthy");
        for pair in changes.windows(2) {
            assert_eq!(pair[0]["context"]["new_status"], pair[1]["context"]["old_status"]);
        }
        assert_eq!(changes.last().expect("some")["context"]["new_status"], "healthy");
    }
}

/// The same load, with the flag off: CP1.
#[test]
fn with_the_flag_off_nothing_is_refused_and_nothing_is_said_of_queues() {
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| {
        let worker = queued(outside.allow(worker), [(2, 5), (1, 3), (3, 4)], &json!({}));
        worker
            .env("CP2_QUEUE_MANAGEMENT_ENABLED", "false")
            .env("LOG_LEVEL", "debug")
    });
    let load = jobs(60, |n| in_pool(outside.job("held"), ["cpu", "gpu", "io"][n % 3]));
    node.client.assign_all(&load).expect("are sent");
    wait_acks(&node, 60);
    assert_eq!(acks_by(&node, &load, "status"), counts([("accepted", 60)]));
    assert_eq!(acks_by(&node, &load, "overload_status"), counts([("none", 60)]));
    let pool = io_pool(&mut node, 12);
    let told: Vec<_> = pool.as_object().expect("is an object").keys().collect();
    assert_eq!(
        told,
        [
            "queued",
            "running",
            "slots",
            "slots_unaccounted",
            "tenants_at_limit",
            "tenants_waiting"
        ]
    );
    outside.open();
    node.wait_answered(&load, SOON);
    let all = node.answers();
    assert_each_answered_once(&all, &load);
    assert_eq!(statuses(&all), counts([("success", 60)]));
    assert!(
        all.on(RESULT)
            .iter()
            .all(|result| result.get("queue_depth").is_none())
    );
    for line in LINES {
        assert_eq!(lines_of(&node, line).len(), 0, "{line}");
    }
}

/// What the health page says of the io pool, when so many wait.
#[track_caller]
fn io_pool(node: &mut Node, queued: usize) -> Value {
    let mut pool = Value::Null;
    wait_until(&format!("{queued} are queued"), SOON, || {
        let page = node.worker.get("/_health").expect("answers");
        let page = page.json().expect("is JSON");
        assert_eq!(page["status"], "healthy", "a full queue is no fault: {page}");
        pool = page["details"]["pools"]["io"].clone();
        pool["queued"] == queued
    });
    pool
}

#[test]
fn the_health_page_tells_how_full_a_bounded_queue_is_and_how_many_it_refused() {
    let (mut node, outside) = start(10, &json!({}), |worker| worker);
    let told = |node: &mut Node, queued: usize, status: &str, rejected: u64| {
        let expected = json!({
            "queued": queued, "running": usize::from(queued > 0), "slots": 1, "slots_unaccounted": 0,
            "tenants_waiting": usize::from(queued > 0), "tenants_at_limit": 0,
            "max_queue_size": 10, "overload_status": status, "rejected": rejected,
        });
        assert_eq!(io_pool(node, queued), expected);
    };
    told(&mut node, 0, "healthy", 0);
    let mut load = Vec::new();
    for (more, queued, status, rejected) in [
        (6, 5, "degraded", 0),
        (3, 8, "overloaded", 0),
        (2, 10, "critical", 0),
        (3, 10, "critical", 3),
    ] {
        let jobs = jobs(more, |_| outside.job("held"));
        send_in_turn(&node, &jobs);
        told(&mut node, queued, status, rejected);
        load.extend(jobs);
    }
    outside.open();
    node.wait_answered(&load, SOON);
    wait_until("all is idle", SOON, || io_pool(&mut node, 0)["running"] == 0);
    told(&mut node, 0, "healthy", 3);
}

/// Row 16.
#[test]
fn an_overloaded_pool_drops_who_waits_longest_for_each_newcomer() {
    let (node, outside) = start(10, &json!({"rejection_policy": "drop_oldest"}), |worker| worker);
    let load = jobs(30, |_| outside.job("held"));
    node.client.assign_all(&load).expect("are sent");
    wait_until("21 are dropped", SOON, || {
        answers(&node.client).on(RESULT).len() == 21
    });
    assert_eq!(acks_by(&node, &load, "status"), counts([("accepted", 30)]));
    outside.open();
    node.wait_answered(&load, SOON);
    let all = node.answers();
    assert_each_answered_once(&all, &load);
    assert_eq!(statuses(&all), counts([("error", 21), ("success", 9)]));
    for result in all.on(RESULT).iter().filter(|result| result["status"] == "error") {
        assert_eq!(
            (&result["error_code"], &result["error"]["retryable"]),
            (&json!("SYSTEM_OVERLOAD"), &json!(true))
        );
    }
    assert_eq!(all.on(caf_testkit::client::DLQ).len(), 0);
    let rejections = lines_of(&node, "Queue rejection");
    assert_eq!(rejections.len(), 21);
    assert!(
        rejections
            .iter()
            .all(|line| line["context"]["rejection_reason"] == "overloaded")
    );
    assert_eq!(outside.seen()["/held"], 9, "what was dropped never ran");
}

/// Row 5. One attempt is all there is: deferrals are none.
#[test]
fn a_deferred_message_comes_back_and_is_answered_once() {
    let defer = json!({
        "rejection_policy": "defer",
        "policies": {"defer": {"enabled": true, "max_defer_time_ms": 3_000}},
    });
    let (node, outside) = start(3, &defer, |worker| {
        worker.env("NATS_MAX_DELIVER", 1).env("LOG_LEVEL", "debug")
    });
    let held = jobs(3, |_| outside.job("held"));
    send_in_turn(&node, &held);
    let late = [outside.job("late"), outside.job("never").deadline_ms(3_000)];
    node.client.assign_all(&late).expect("are sent");
    let delays = |job: &AssignmentBuilder| -> Vec<u64> {
        let mut lines = lines_of(&node, "Assignment deferred");
        lines.retain(|line| line["context"]["assignment_id"] == job.assignment_id());
        assert!(
            lines.iter().all(|line| line["level"] == "DEBUG"),
            "each comes back several times: {lines:?}"
        );
        lines
            .iter()
            .filter_map(|line| line["context"]["delay_ms"].as_u64())
            .collect()
    };
    // Its time passes while it is away: row 8b.
    wait_until("the one without time is answered", SOON, || {
        answers(&node.client).results(late[1].assignment_id()).len() == 1
    });
    wait_until("the other was deferred again and again", SOON, || {
        delays(&late[0]).len() >= 3
    });
    assert_eq!(
        node.answers().acks(late[0].assignment_id()).len(),
        0,
        "nothing is said of a deferral"
    );
    outside.open();
    let all = [held, late.to_vec()].concat();
    node.wait_answered(&all, SOON);
    let answered = node.answers();
    assert_each_answered_once(&answered, &all);
    let result = |job: &AssignmentBuilder| answered.results(job.assignment_id())[0].clone();
    assert_eq!(result(&late[0])["status"], "success");
    assert_eq!(result(&late[1])["status"], "timeout");
    assert!(
        result(&late[1])["latency_ms"].as_u64() >= Some(3_000),
        "from its first start"
    );
    assert_eq!(answered.acks(late[1].assignment_id())[0]["status"], "accepted");
    assert_eq!(answered.on(caf_testkit::client::DLQ).len(), 0);
    assert_eq!(lines_of(&node, "Queue rejection").len(), 0);
    assert!(
        delays(&late[0])[..3].iter().all(|delay_ms| *delay_ms == 1_000),
        "two thirds are used"
    );
    let short = delays(&late[1]);
    let last = short.last().expect("it was deferred");
    assert!(
        short[0] == 1_000 && *last < 1_000,
        "what is left of its time: {short:?}"
    );
}

/// Half a queue is used, and the contract's number is 0: what waits does not come round at the shortest time for ever.
/// They come back beyond looks of the watchdog, which may find all on their way to the worker: 16 are still below half.
#[test]
fn who_is_deferred_again_and_again_stays_away_longer_each_time_and_is_not_refused() {
    let defer = json!({"rejection_policy": "defer", "policies": {"defer": {"max_defer_time_ms": 1_600}}});
    let (node, outside) = start(4, &defer, |worker| {
        worker
            .env("WORKER__NATS__MAX_ACK_PENDING", 40)
            .env("LOG_LEVEL", "debug")
    });
    let held = jobs(3, |_| outside.job("held"));
    send_in_turn(&node, &held);
    let late = jobs(8, |_| outside.job("late"));
    for job in &late {
        node.client.assign(job).expect("is sent");
    }
    let delays = |job: &AssignmentBuilder| -> Vec<u64> {
        let mut lines = lines_of(&node, "Assignment deferred");
        lines.retain(|line| line["context"]["assignment_id"] == job.assignment_id());
        lines
            .iter()
            .filter_map(|line| line["context"]["delay_ms"].as_u64())
            .collect()
    };
    wait_until("each was deferred nine times", SOON, || {
        late.iter().all(|job| delays(job).len() >= 9)
    });
    for job in &late {
        assert_eq!(
            delays(job)[..9],
            [100, 200, 400, 800, 1_600, 1_600, 1_600, 1_600, 1_600]
        );
    }
    outside.open();
    let all = [held, late].concat();
    node.wait_answered(&all, SOON);
    assert_eq!(statuses(&node.answers()), counts([("success", 11)]));
    assert_eq!(lines_of(&node, "Queue rejection").len(), 0);
}

#[test]
fn no_more_than_half_of_the_consumer_is_deferred() {
    let defer = json!({"rejection_policy": "defer", "policies": {"defer": {"max_defer_time_ms": 60_000}}});
    let (node, outside) = start(3, &defer, |worker| {
        worker
            .env("WORKER__NATS__MAX_ACK_PENDING", 24)
            .env("LOG_LEVEL", "debug")
    });
    let held = jobs(3, |_| outside.job("held"));
    send_in_turn(&node, &held);
    // Each is sent back for 20 of its 200 seconds, or refused. One after the other: what is on its way to the worker
    // when the watchdog looks counts as somebody else's.
    let more = jobs(20, |_| outside.job("late"));
    let decided = || {
        let refused = acks_by(&node, &more, "status")
            .get("rejected")
            .copied()
            .unwrap_or(0);
        (lines_of(&node, "Assignment deferred").len(), refused)
    };
    for (n, job) in more.iter().enumerate() {
        node.client.assign(job).expect("is sent");
        wait_until("it is decided", SOON, || decided().0 + decided().1 > n);
    }
    let (deferred, refused) = decided();
    assert!(
        (11..=12).contains(&deferred),
        "half of 24, less what may have been on its way: {deferred}"
    );
    assert_eq!(refused, 20 - deferred);
    let rejections = lines_of(&node, "Queue rejection");
    assert!(
        rejections
            .iter()
            .all(|line| line["context"]["rejection_reason"] == "critical")
    );
    assert_eq!(rejections.len(), refused);
    outside.open();
    let all = [held, more].concat();
    node.wait_answered(&all, SOON * 2);
    assert_each_answered_once(&node.answers(), &all);
    assert_eq!(
        statuses(&node.answers()),
        counts([("error", refused), ("success", 3 + deferred)])
    );
}

#[test]
fn degraded_jobs_say_what_they_lost() {
    let (node, outside) = start(10, &json!({"rejection_policy": "degrade"}), |worker| worker);
    let held = jobs(9, |_| outside.job("held"));
    send_in_turn(&node, &held);
    let failing = AssignmentBuilder::new("fail", json!({"error_code": "NETWORK_ERROR"})).max_attempts(3);
    let failing = [in_pool(failing, "io")];
    send_in_turn(&node, &failing);
    outside.open();
    let all = [held, failing.to_vec()].concat();
    node.wait_answered(&all, SOON);
    let answered = node.answers();
    assert_each_answered_once(&answered, &all);
    let level = |job: &AssignmentBuilder| {
        let result = &answered.results(job.assignment_id())[0];
        result["metadata"]["degraded"]
            .as_str()
            .unwrap_or("none")
            .to_owned()
    };
    assert_eq!(
        [0, 5, 6, 8, 9].map(|n| level(&all[n])),
        ["none", "none", "light", "light", "medium"]
    );
    let failed = &answered.results(failing[0].assignment_id())[0];
    assert_eq!(
        (&failed["status"], &failed["retries_used"]),
        (&json!("error"), &json!(0))
    );
    let lines = lines_of(&node, "Assignment degraded");
    assert_eq!(lines.len(), 4);
    let (last, limit_ms) = (&lines[3]["context"], 24_000);
    assert_eq!(
        (&last["degraded"], &last["skip_retries"], &last["time_limit_ms"]),
        (&json!("medium"), &json!(true), &json!(limit_ms))
    );
}

/// Design section 4: nothing is refused, and what does not fit stays at the broker.
#[test]
fn who_waits_pulls_no_more_than_the_fullest_pool_can_take() {
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| {
        queued(outside.allow(worker), [(8, 100), (1, 100), (1, 2)], &json!({}))
            .env("WORKER__QUEUE__ADMISSION", "wait")
            .env("WORKER__NATS__STALL_MS", 300)
    });
    let load = jobs(40, |_| outside.job("held"));
    node.client.assign_all(&load).expect("are sent");
    wait_acks(&node, 3);
    let state = || node.client.consumer(ASSIGNMENTS, CONSUMER).expect("there is one");
    wait_until("all are at the broker", SOON, || {
        (state().ack_pending, state().pending) == (3, 37)
    });
    // Longer than all stages of a stall.
    let too_many = poll(Duration::from_secs(3), || {
        let state = state();
        (state.ack_pending != 3 || state.pending != 37).then_some(state)
    });
    assert_eq!(too_many, None);
    assert_eq!(acks_by(&node, &load, "status"), counts([("accepted", 3)]));
    node.worker.wait_for_readiness(200).expect("is ready");
    outside.open();
    node.wait_answered(&load, SOON);
    assert_each_answered_once(&node.answers(), &load);
    assert_eq!(statuses(&node.answers()), counts([("success", 40)]));
    assert_eq!(lines_of(&node, "Queue rejection").len(), 0);
    assert_eq!(lines_of(&node, "Consumption stalled").len(), 0);
}

/// Core mode has nobody to send anything back to: deferrals do not exist, and who waits stops reading.
#[test]
fn without_jetstream_nothing_is_deferred_and_who_waits_refuses_nothing() {
    for (admission, refused) in [("refuse", 9), ("wait", 0)] {
        let outside = Outside::start();
        let node = Node::beside(NatsOptions::default(), |worker| {
            let defer = json!({"rejection_policy": "defer"});
            queued(outside.allow(worker), [(1, 10), (1, 10), (1, 10)], &defer)
                .env("WORKER__NATS__MODE", "core")
                .env("WORKER__QUEUE__ADMISSION", admission)
                .env("LOG_LEVEL", "debug")
        });
        let heard = node.client.collect_answers().expect("listens");
        let load = jobs(20, |_| outside.job("held"));
        node.client.assign_all(&load).expect("are sent");
        heard.wait_for(ACK, 11 + refused, SOON).expect("are acknowledged");
        outside.open();
        heard.wait_for(RESULT, 20, SOON).expect("are answered");
        assert_each_answered_once(&heard, &load);
        let mut expected = counts([("success", 20 - refused)]);
        if refused > 0 {
            expected.insert("error".to_owned(), refused);
        }
        assert_eq!(statuses(&heard), expected, "{admission}");
        assert_eq!(lines_of(&node, "Assignment deferred").len(), 0);
    }
}

// ---- Contract 9.3. Shortened: everything that comes at once comes before the server answers anybody. ----

fn is_long() -> bool {
    std::env::var_os(LONG).is_some()
}

/// Sends so many per second.
fn send_at(node: &Node, load: &[AssignmentBuilder], per_second: usize) {
    let begun = Instant::now();
    for (n, batch) in load.chunks((per_second / 20).max(1)).enumerate() {
        let due = Duration::from_millis(50) * u32::try_from(n).expect("small");
        let _ = poll(due.saturating_sub(begun.elapsed()), || None::<()>);
        node.client.assign_all(batch).expect("are sent");
    }
}

fn degrade_node(outside: &Outside, slots: usize) -> Node {
    let slots = slots.max(1);
    Node::start_with(|worker| {
        queued(
            outside.allow(worker),
            [(4, 100), (1, 100), (slots, 100)],
            &json!({}),
        )
    })
}

fn share(part: usize, all: usize) -> f64 {
    f64::from(u32::try_from(part).expect("small")) / f64::from(u32::try_from(all).expect("small"))
}

/// DEGRADE-001: a burst beyond the queue.
#[test]
fn degrade_001_a_burst_beyond_the_queue_is_refused_in_part_and_all_that_was_accepted_succeeds() {
    let outside = Outside::start();
    let slots = if is_long() { 100 } else { 20 };
    let node = degrade_node(&outside, slots);
    let load = if is_long() {
        outside.open();
        let load = jobs(10_000, |_| {
            outside.job("burst-1024").max_attempts(0).deadline_ms(30_000)
        });
        send_at(&node, &load, 1_000);
        load
    } else {
        let load = jobs(130, |_| outside.job("burst-1024").max_attempts(0));
        node.client.assign_all(&load).expect("are sent");
        wait_acks(&node, 130);
        assert_eq!(
            acks_by(&node, &load, "status"),
            counts([("accepted", 120), ("rejected", 10)])
        );
        outside.open();
        load
    };
    wait_answered(&node.client, &load, SOON * 4);
    let all = node.answers();
    assert_each_answered_once(&all, &load);
    let refused = all
        .on(ACK)
        .iter()
        .filter(|ack| ack["status"] == "rejected")
        .count();
    let succeeded = statuses(&all).get("success").copied().unwrap_or(0);
    assert!(refused > 0 || is_long(), "{refused}");
    assert!(share(refused, load.len()) < 0.1, "{refused} of {}", load.len());
    assert!(share(succeeded, load.len() - refused) >= 0.9, "{succeeded}");
    for result in all.on(RESULT).iter().filter(|result| result["status"] == "error") {
        assert_eq!(result["error_code"], "SYSTEM_OVERLOAD");
    }
}

/// DEGRADE-002: a steady load beyond what runs at once; the signals are in the answers.
#[test]
fn degrade_002_signals_are_sent_while_the_queue_stays_bounded() {
    let outside = Outside::start();
    let node = degrade_node(&outside, 10);
    let load = if is_long() {
        let load = jobs(12_000, |_| {
            outside.job("after/30/x-1024").max_attempts(0).deadline_ms(30_000)
        });
        send_at(&node, &load, 200);
        load
    } else {
        let load = jobs(100, |_| outside.job("steady-1024").max_attempts(0));
        node.client.assign_all(&load).expect("are sent");
        wait_acks(&node, 100);
        assert_eq!(
            acks_by(&node, &load, "overload_status"),
            counts([("degraded", 30), ("healthy", 59), ("overloaded", 11)])
        );
        outside.open();
        load
    };
    wait_answered(&node.client, &load, SOON * 4);
    let all = node.answers();
    assert_each_answered_once(&all, &load);
    let succeeded = statuses(&all).get("success").copied().unwrap_or(0);
    assert!(
        share(succeeded, load.len()) >= 0.9,
        "{succeeded} of {}",
        load.len()
    );
    assert!(
        all.on(RESULT)
            .iter()
            .all(|result| result["queue_depth"].as_u64() <= Some(100))
    );
    let signals = lines_of(&node, "Overload status changed");
    assert!(!signals.is_empty() || is_long());
}

/// DEGRADE-003: after an overload everything is as before.
#[test]
fn degrade_003_after_an_overload_the_queue_is_healthy_again_and_all_succeeds() {
    let outside = Outside::start();
    let node = degrade_node(&outside, 10);
    let (overload, after) = if is_long() {
        let overload = jobs(6_000, |_| {
            outside
                .job("after/100/x-1024")
                .max_attempts(0)
                .deadline_ms(30_000)
        });
        send_at(&node, &overload, 200);
        let after = jobs(3_000, |_| {
            outside.job("after/10/x-1024").max_attempts(0).deadline_ms(30_000)
        });
        send_at(&node, &after, 50);
        (overload, after)
    } else {
        let overload = jobs(150, |_| outside.job("over-1024").max_attempts(0));
        node.client.assign_all(&overload).expect("are sent");
        wait_acks(&node, 150);
        assert_eq!(
            acks_by(&node, &overload, "status"),
            counts([("accepted", 110), ("rejected", 40)])
        );
        outside.open();
        node.wait_answered(&overload, SOON);
        let after = jobs(50, |_| outside.job("after-1024").max_attempts(0));
        send_in_turn(&node, &after);
        (overload, after)
    };
    wait_answered(&node.client, &after, SOON * 4);
    let all = node.answers();
    assert_each_answered_once(&all, &[overload, after.clone()].concat());
    let succeeded = after
        .iter()
        .filter(|job| all.results(job.assignment_id())[0]["status"] == "success")
        .count();
    assert!(
        share(succeeded, after.len()) >= 0.95,
        "{succeeded} of {}",
        after.len()
    );
    let last = lines_of(&node, "Overload status changed")
        .pop()
        .expect("it was overloaded");
    assert_eq!(last["context"]["new_status"], "healthy", "{last}");
    assert_eq!(last["context"]["resource_pool"], "io");
}
