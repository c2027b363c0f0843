//! A disk that hangs: which limit ends the job, what becomes of the thread, and that nothing else suffers.
//!
//! Neighbours: `stall` of the test kit holds real system calls of the worker below one directory, the root `slow`.

use std::time::Duration;

use caf_testkit::client::HEARTBEAT;
use caf_testkit::stall::{HeldCall, Stall};
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, wait_until};
use serde_json::{Value, json};

use crate::support::{Node, SOON, jobs};

/// Limit of every operation on files, in milliseconds, where limits are in force.
const LIMIT_MS: u64 = 200;
/// Most threads that may outlive their job.
const MAX_STRAYS: usize = 32;

/// A node whose root `slow` can hang. The policy is always there; `flag` says whether it is in force.
fn node(stall: &Stall, flag: bool, adjust: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Node {
    let slow = stall.directory().display().to_string();
    let roots = format!(
        "[blocks.fs.roots]\ndata = \"./data\"\nslow = \"{slow}\"\n\
         [blocks.sql.connections.slow]\nurl = \"sqlite://{slow}/file.db\"\nstatement_timeout_ms = {LIMIT_MS}\n"
    );
    let limits = json!({"fs_operations": {
        "read_timeout_ms": LIMIT_MS, "write_timeout_ms": LIMIT_MS, "delete_timeout_ms": LIMIT_MS,
    }});
    Node::start_with(|worker| {
        let worker = worker
            .under(stall)
            .file("config/worker.toml", roots)
            .policy("timeout", &limits)
            .env("CP2_COMPLETE_TIMEOUT_ENABLED", flag);
        adjust(worker)
    })
}

fn health(node: &mut Node) -> Value {
    let page = node.worker.get("/_health").expect("answers");
    page.json().expect("is JSON")
}

fn wait_for_strays(node: &mut Node, count: usize) {
    wait_until(&format!("{count} strays"), SOON, || {
        health(node)["details"]["stray_threads"] == count
    });
}

fn run(node: &Node, job: AssignmentBuilder) -> Value {
    node.client
        .assign_all(std::slice::from_ref(&job))
        .expect("is sent");
    node.wait_answered(std::slice::from_ref(&job), SOON);
    node.answers().results(job.assignment_id())[0].clone()
}

/// `Operation timeout` lines so far: type of operation and limit.
fn told(node: &Node) -> Vec<(Value, Value, Value)> {
    let lines = node.worker.logs().into_iter();
    lines
        .filter(|log| log["message"] == "Operation timeout")
        .map(|log| {
            assert_eq!(
                (&log["level"], &log["error_code"]),
                (&json!("WARN"), &json!("timeout"))
            );
            let context = &log["context"];
            assert!(
                context["elapsed_ms"].as_u64() >= context["timeout_ms"].as_u64(),
                "{log}"
            );
            (
                context["operation_type"].clone(),
                context["timeout_type"].clone(),
                context["timeout_ms"].clone(),
            )
        })
        .collect()
}

/// One operation that hangs: which call, and the job that makes it.
struct Hang {
    call: HeldCall,
    operation: &'static str,
    job: fn() -> AssignmentBuilder,
}

const HANGS: [Hang; 5] = [
    Hang {
        call: HeldCall::Read,
        operation: "fs_read",
        job: || AssignmentBuilder::new("fs.blob_get", json!({"path": "slow/old"})),
    },
    Hang {
        call: HeldCall::Open,
        operation: "fs_read",
        job: || AssignmentBuilder::new("fs.blob_get", json!({"path": "slow/old"})),
    },
    Hang {
        call: HeldCall::Write,
        operation: "fs_write",
        job: || AssignmentBuilder::new("fs.blob_put", json!({"path": "slow/new", "content": "new"})),
    },
    Hang {
        call: HeldCall::Sync,
        operation: "fs_write",
        job: || {
            let given = json!({"path": "slow/old", "content": "new", "overwrite": true});
            AssignmentBuilder::new("fs.blob_put", given)
        },
    },
    Hang {
        call: HeldCall::Unlink,
        operation: "fs_delete",
        job: || AssignmentBuilder::new("fs.blob_delete", json!({"path": "slow/old"})),
    },
];

fn assert_timeout(result: &Value) {
    assert_eq!(
        (&result["status"], &result["error_code"], &result["retries_used"]),
        (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT"), &json!(0)),
        "{result}"
    );
}

/// The worker goes on with other work, also with files elsewhere.
fn assert_goes_on(node: &Node, name: &str) {
    node.assert_alive();
    let path = format!("data/{name}");
    let put = AssignmentBuilder::new(
        "fs.blob_put",
        json!({"path": path, "content": "x", "overwrite": true}),
    );
    assert_eq!(run(node, put)["status"], "success");
}

#[test]
fn with_the_flag_a_hung_operation_ends_at_its_limit_and_its_thread_is_counted_until_it_returns() {
    let stall = Stall::new().expect("is made");
    let mut node = node(&stall, true, |worker| worker);
    let slow = |name: &str| stall.directory().join(name);
    for (n, Hang { call, operation, job }) in HANGS.iter().enumerate() {
        std::fs::write(slow("old"), "old").expect("is written");
        stall.hold(*call).expect("is switched");
        let result = run(&node, job());
        assert_timeout(&result);
        assert_eq!(stall.held(*call), 1, "{operation}");
        let expected = (json!(operation), json!("operation"), json!(LIMIT_MS));
        assert_eq!(told(&node).split_off(n), [expected]);
        wait_for_strays(&mut node, 1);
        assert_goes_on(&node, operation);
        assert_eq!(health(&mut node)["status"], "healthy", "one stray is no illness");

        stall.release(*call).expect("is switched");
        wait_for_strays(&mut node, 0);
        if *call != HeldCall::Unlink {
            // What was given up does not come true later, and leaves nothing behind.
            let left = std::fs::read_dir(stall.directory()).expect("is there").flatten();
            let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
            assert_eq!(names, ["old"], "{call:?}");
            assert_eq!(std::fs::read(slow("old")).expect("is there"), b"old");
        }
    }
}

#[test]
fn without_the_flag_the_deadline_ends_a_hung_operation_and_no_line_tells_of_a_limit() {
    let deadline_ms = 1_000;
    let stall = Stall::new().expect("is made");
    let mut node = node(&stall, false, |worker| worker);
    for Hang { call, operation, job } in &HANGS {
        std::fs::write(stall.directory().join("old"), "old").expect("is written");
        stall.hold(*call).expect("is switched");
        let result = run(&node, job().deadline_ms(deadline_ms));
        assert_timeout(&result);
        assert!(
            result["latency_ms"].as_u64() >= Some(deadline_ms),
            "{operation}: {result}"
        );
        wait_for_strays(&mut node, 1);
        stall.release(*call).expect("is switched");
        wait_for_strays(&mut node, 0);
    }
    assert_goes_on(&node, "after");
    assert_eq!(told(&node), []);
}

#[test]
fn a_database_file_on_a_disk_that_hangs_ends_at_its_statement_limit_whatever_the_flag() {
    let stall = Stall::new().expect("is made");
    // An empty file is a database; a header that hangs is enough.
    std::fs::write(stall.directory().join("file.db"), "").expect("is written");
    let mut node = node(&stall, false, |worker| worker);
    stall.hold(HeldCall::Read).expect("is switched");
    let query = json!({"query": "SELECT * FROM sqlite_schema", "connection": "slow"});
    let result = run(&node, AssignmentBuilder::new("sql.query", query));
    assert_timeout(&result);
    assert_eq!(result["error_message"], "statement limit has passed", "{result}");
    wait_for_strays(&mut node, 1);
    stall.release(HeldCall::Read).expect("is switched");
    wait_for_strays(&mut node, 0);
}

#[test]
fn inputs_on_a_disk_that_hangs_end_their_job_at_the_read_limit() {
    let stall = Stall::new().expect("is made");
    std::fs::write(stall.directory().join("inputs"), "{\"x\":1}").expect("is written");
    let mut node = node(&stall, true, |worker| worker);
    stall.hold(HeldCall::Read).expect("is switched");
    let job = AssignmentBuilder::new("echo", json!({}));
    let referred = json!({"type": "echo", "payload_ref": "file:slow/inputs"});
    assert_timeout(&run(&node, job.set("job", referred)));
    assert_eq!(
        told(&node),
        [(json!("fs_read"), json!("operation"), json!(LIMIT_MS))]
    );
    wait_for_strays(&mut node, 1);
    stall.release(HeldCall::Read).expect("is switched");
    wait_for_strays(&mut node, 0);
}

#[test]
fn at_the_bound_of_strays_no_thread_is_started_and_the_health_page_says_so() {
    let stall = Stall::new().expect("is made");
    std::fs::write(stall.directory().join("old"), "old").expect("is written");
    // As many at once as there may be: more would all be running when the bound is reached.
    let mut node = node(&stall, true, |worker| {
        worker
            .env("WORKER_IO_POOL_SIZE", MAX_STRAYS)
            .env("WORKER__WORKER__HEARTBEAT_INTERVAL_MS", 100)
    });
    let beats = node.client.collect(&[HEARTBEAT]).expect("listens");
    let get = || AssignmentBuilder::new("fs.blob_get", json!({"path": "slow/old"}));
    stall.hold(HeldCall::Read).expect("is switched");
    let hanging = jobs(MAX_STRAYS, |_| get());
    node.client.assign_all(&hanging).expect("are sent");
    node.wait_answered(&hanging, SOON);
    wait_for_strays(&mut node, MAX_STRAYS);
    for job in &hanging {
        assert_timeout(&node.answers().results(job.assignment_id())[0]);
    }

    let refused = run(&node, get());
    assert_eq!(
        (&refused["status"], &refused["error_code"]),
        (&json!("error"), &json!("SYSTEM_OVERLOAD")),
        "{refused}"
    );
    assert_eq!(stall.held(HeldCall::Read), MAX_STRAYS, "nothing more was started");
    let page = health(&mut node);
    assert_eq!(
        (&page["status"], &page["checks"]["threads"]["status"]),
        (&json!("degraded"), &json!("fail")),
        "{page}"
    );
    wait_until("heartbeats say so too", SOON, || {
        let beat = beats.on(HEARTBEAT).pop().unwrap_or_default();
        beat["status"] == "degraded" && beat["metadata"]["reasons"] == json!(["threads"])
    });
    node.assert_alive();

    stall.release(HeldCall::Read).expect("is switched");
    wait_for_strays(&mut node, 0);
    assert_eq!(health(&mut node)["status"], "healthy");
    assert_eq!(run(&node, get())["status"], "success");
}

#[test]
fn a_disk_that_is_only_slow_is_waited_for() {
    let stall = Stall::new().expect("is made");
    let limit = "WORKER__WORKER__TIMEOUTS__V2__FS_OPERATIONS__WRITE_TIMEOUT_MS";
    let node = node(&stall, true, |worker| worker.env(limit, 60_000));
    stall
        .delay(HeldCall::Sync, Duration::from_millis(LIMIT_MS))
        .expect("is switched");
    let put = AssignmentBuilder::new("fs.blob_put", json!({"path": "slow/new", "content": "x"}));
    assert_eq!(run(&node, put)["status"], "success");
    assert!(stall.held(HeldCall::Sync) >= 1);
    assert_eq!(told(&node), []);
}

#[test]
fn a_worker_with_a_thread_on_a_disk_that_hangs_can_leave_all_the_same() {
    let stall = Stall::new().expect("is made");
    std::fs::write(stall.directory().join("old"), "old").expect("is written");
    let mut node = node(&stall, true, |worker| worker);
    stall.hold(HeldCall::Read).expect("is switched");
    assert_timeout(&run(
        &node,
        AssignmentBuilder::new("fs.blob_get", json!({"path": "slow/old"})),
    ));
    wait_for_strays(&mut node, 1);
    node.worker.terminate().expect("is told");
    let status = node.worker.wait_exit(SOON).expect("leaves");
    assert_eq!(status.code(), Some(0), "nothing was held any more");
}

#[test]
fn at_the_soft_limit_a_hung_removal_is_handed_back_only_where_it_may_be_repeated() {
    let stall = Stall::new().expect("is made");
    let mut node = node(&stall, false, |worker| worker.env("WORKER__DRAIN__SOFT_S", 1));
    for name in ["a", "b"] {
        std::fs::write(stall.directory().join(name), "x").expect("is written");
    }
    stall.hold(HeldCall::Unlink).expect("is switched");
    let delete = |name: &str, missing_ok: bool| {
        let given = json!({"path": format!("slow/{name}"), "missing_ok": missing_ok});
        AssignmentBuilder::new("fs.blob_delete", given)
    };
    let load = [delete("a", true), delete("b", false)];
    node.client.assign_all(&load).expect("are sent");
    wait_until("both hang", SOON, || stall.held(HeldCall::Unlink) == 2);
    node.worker.terminate().expect("is told");
    let status = node.worker.wait_exit(SOON).expect("leaves");
    assert_eq!(status.code(), Some(0));
    let answers = node.answers();
    assert!(
        answers.results(load[0].assignment_id()).is_empty(),
        "goes back to the stream"
    );
    let cancelled = &answers.results(load[1].assignment_id())[0];
    assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
}

#[test]
fn a_removal_that_was_given_up_before_its_last_step_does_not_come_true() {
    let stall = Stall::new().expect("is made");
    let file = stall.directory().join("dir/old");
    std::fs::create_dir(stall.directory().join("dir")).expect("is made");
    std::fs::write(&file, "old").expect("is written");
    let mut node = node(&stall, true, |worker| worker);
    stall.hold(HeldCall::Open).expect("is switched");
    let delete = AssignmentBuilder::new("fs.blob_delete", json!({"path": "slow/dir/old"}));
    assert_timeout(&run(&node, delete));
    stall.release(HeldCall::Open).expect("is switched");
    wait_for_strays(&mut node, 0);
    assert!(file.exists());
    let again = AssignmentBuilder::new("fs.blob_delete", json!({"path": "slow/dir/old"}));
    assert_eq!(run(&node, again)["status"], "success");
    assert!(!file.exists());
}

#[test]
fn a_state_directory_on_a_disk_that_hangs_is_said_and_does_not_keep_the_process() {
    let stall = Stall::new().expect("is made");
    let mut node = Node::start_with(|worker| {
        worker
            .under(&stall)
            .env("WORKER__WORKER__STATE_DIR", stall.directory().display())
            .env("WORKER__DRAIN__SOFT_S", 1)
            .env("WORKER__DRAIN__HARD_S", 2)
    });
    stall.hold(HeldCall::Write).expect("is switched");
    let job = AssignmentBuilder::echo();
    node.client.assign(&job).expect("is sent");
    node.worker.wait_for_readiness(503).expect("it is said");
    let page = node.worker.get("/_health").expect("answers");
    let why = page.json().expect("is JSON")["checks"]["state_dir"].clone();
    assert_eq!(why["status"], "fail", "{why}");
    assert!(why["message"].to_string().contains("does not answer"), "{why}");
    stall.release(HeldCall::Write).expect("is switched");
    node.worker.wait_for_readiness(200).expect("goes on");
    node.wait_answered(&[job], SOON);
    stall.hold(HeldCall::Write).expect("is switched");
    // Its mark hangs, and the result of the other.
    let marked = AssignmentBuilder::new("http.request", json!({"url": "http://service.invalid/"}));
    node.client.assign(&marked).expect("is sent");
    node.client.assign(&AssignmentBuilder::echo()).expect("is sent");
    wait_until("both hang", SOON, || stall.held(HeldCall::Write) > 1);
    node.worker.terminate().expect("is told");
    node.worker.wait_exit(SOON).expect("leaves");
}
