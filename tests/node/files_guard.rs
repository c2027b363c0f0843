//! The guard of files from outside: a worker that is killed while it writes, and things in a root that are no content.
//!
//! Neighbours: `support`; `stall` of the test kit holds real system calls, so that the worker dies at a named point. What
//! each attack on a path comes to stands in the tests of the block.

use std::path::Path;
use std::process::Command;

use caf_testkit::stall::{HeldCall, Stall};
use caf_testkit::{AssignmentBuilder, wait_until};
use serde_json::{Value, json};

use crate::support::{Node, SOON};

fn put(path: &str, content: &str) -> AssignmentBuilder {
    let given = json!({"path": path, "content": content, "overwrite": true});
    AssignmentBuilder::new("fs.put", given).max_attempts(1)
}

fn get(path: &str) -> AssignmentBuilder {
    AssignmentBuilder::new("fs.get", json!({"path": path})).max_attempts(1)
}

/// Jobs of a worker that was killed may wait meanwhile.
fn run(node: &Node, job: AssignmentBuilder) -> Value {
    let jobs = [job];
    node.client.assign_all(&jobs).expect("is sent");
    let id = jobs[0].assignment_id();
    wait_until("it is answered", SOON, || !node.answers().results(id).is_empty());
    node.answers().results(id)[0].clone()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("lists");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("is readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_worker_that_is_killed_while_it_writes_leaves_no_content_behind_and_the_next_one_cleans_up() {
    for call in [HeldCall::Write, HeldCall::Sync, HeldCall::Rename] {
        let stall = Stall::new().expect("is made");
        let slow = stall.directory();
        std::fs::write(slow.join("old"), "old").expect("writes");
        let roots = format!("[blocks.fs.roots]\nslow = \"{}\"\n", slow.display());
        let with_roots = roots.clone();
        let mut node = Node::start_with(|worker| worker.under(&stall).file("config/worker.toml", roots));
        stall.hold(call).expect("is switched");
        node.client
            .assign_all(&[put("slow/old", "new"), put("slow/new", "new")])
            .expect("are sent");
        wait_until("both hang", SOON, || stall.held(call) == 2);
        node.worker.kill();
        let left = names(&slow);
        let temporary: Vec<_> = left.iter().filter(|name| name.starts_with(".caf-")).collect();
        assert_eq!((left.len(), temporary.len()), (3, 2), "{call:?}: {left:?}");
        assert_eq!(std::fs::read_to_string(slow.join("old")).expect("is read"), "old");

        node.worker = node.another(|worker| worker.file("config/worker.toml", with_roots));
        let result = run(&node, get(&format!("slow/{}", temporary[0])));
        assert_eq!(result["error_code"], "INVALID_INPUT", "{result}");
        assert_eq!(run(&node, put("slow/other", "x"))["status"], "success");
        assert_eq!(names(&slow), ["old", "other"], "{call:?}");
    }
}

#[test]
fn what_is_no_content_of_a_root_is_refused_and_nothing_waits_for_it() {
    let node = Node::start_with(|worker| {
        let quota = "[blocks.fs.quotas.data]\nmax_bytes = 1000\nmax_files = 20\n";
        worker.file("config/worker.toml", quota)
    });
    assert_eq!(run(&node, put("data/dir/a", "a"))["status"], "success");
    let home = node.worker.directory().to_owned();
    let data = home.join("data");
    std::fs::write(home.join("outside"), "hunter2").expect("writes");
    std::fs::hard_link(home.join("outside"), data.join("hard")).expect("links");
    std::os::unix::fs::symlink("../outside", data.join("soft")).expect("links");
    let made = Command::new("mkfifo").arg(data.join("fifo")).status();
    assert!(made.expect("runs").success());
    for (path, code) in [
        ("data/fifo", "EXECUTION_FAILED"),
        ("data/dir", "EXECUTION_FAILED"),
        ("data/hard", "PERMISSION_DENIED"),
        ("data/soft", "PERMISSION_DENIED"),
        ("data/../outside", "INVALID_INPUT"),
        ("data/a\u{1}b", "INVALID_INPUT"),
        ("/etc/passwd", "PERMISSION_DENIED"),
        ("data/none", "RESOURCE_UNAVAILABLE"),
    ] {
        let result = run(&node, get(path));
        assert_eq!(result["error_code"], code, "{path}: {result}");
        assert!(!result.to_string().contains("hunter2"), "{path}");
    }
    assert_eq!(run(&node, put("data/hard", "x"))["status"], "success");
    assert_eq!(
        std::fs::read_to_string(home.join("outside")).expect("is read"),
        "hunter2"
    );
    let full = run(&node, put("data/large", &"x".repeat(1_001)));
    assert_eq!(full["error_code"], "RESOURCE_UNAVAILABLE", "{full}");
    assert_eq!(full["error"]["details"]["quota_bytes"], json!(1_000), "{full}");
}
