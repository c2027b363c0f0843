//! Sandbox mode from outside: jobs are rehearsed, for a whole node or for one assignment, and nothing is touched.
//!
//! Neighbours: `support`. What must not be touched is watched from the other side: an HTTP server that counts calls, a
//! PostgreSQL server that logs connections, a directory that must stay as it was.

use caf_testkit::faulty_http::FaultyHttp;
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, Postgres};
use serde_json::{Value, json};

use crate::support::{Node, SOON, program};

/// What would be touched.
struct Outside {
    http: FaultyHttp,
    postgres: Postgres,
}

impl Outside {
    fn start() -> Self {
        let postgres = Postgres::start().expect("PostgreSQL starts");
        // It tells the program that connects.
        for statement in ["ALTER SYSTEM SET log_connections = on", "SELECT pg_reload_conf()"] {
            postgres.execute(statement).expect("is set");
        }
        Self {
            http: FaultyHttp::start().expect("the HTTP server starts"),
            postgres,
        }
    }

    /// Everything that a job could reach is granted.
    fn grant(&self, builder: WorkerBuilder) -> WorkerBuilder {
        builder
            .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.1")
            .env("WORKER__BLOCKS__SQL__CONNECTIONS__PG__URL", self.postgres.url())
            .env("WORKER__BLOCKS__FS__ROOTS__DATA", "./data")
    }

    /// One job of each kind that reaches outside.
    fn jobs(&self) -> Vec<AssignmentBuilder> {
        vec![
            AssignmentBuilder::new(
                "http.request",
                json!({"url": self.http.url("/x"), "method": "GET"}),
            ),
            AssignmentBuilder::new("fs.blob_put", json!({"path": "data/a", "content": "x"})),
            AssignmentBuilder::new("fs.blob_get", json!({"path": "data/a"})),
            AssignmentBuilder::new("fs.blob_delete", json!({"path": "data/a"})),
            AssignmentBuilder::new("sql.query", json!({"connection": "pg", "query": "SELECT 1 AS a"})),
        ]
    }

    /// Whether a worker has ever connected to the database.
    fn was_connected_to(&self) -> bool {
        self.postgres.log().contains("application_name=caf-worker")
    }
}

fn with_sandbox(job: AssignmentBuilder, place: &str) -> AssignmentBuilder {
    let mut value = job.value()[place].clone();
    value["sandbox"] = json!(true);
    job.set(place, value)
}

fn send(node: &Node, jobs: &[AssignmentBuilder]) -> Vec<Value> {
    node.client.assign_all(jobs).expect("are sent");
    node.wait_answered(jobs, SOON);
    let answers = node.answers();
    jobs.iter()
        .map(|job| answers.results(job.assignment_id())[0].clone())
        .collect()
}

#[test]
fn a_node_in_the_sandbox_answers_every_job_and_touches_nothing() {
    let outside = Outside::start();
    let node = Node::start_with(|builder| outside.grant(builder).env("WORKER_SANDBOX_MODE", "true"));
    let mut jobs = outside.jobs();
    // An assignment cannot leave the sandbox of its node.
    jobs.push(
        AssignmentBuilder::new("fs.put", json!({"path": "data/b", "content": "x"}))
            .set("sandbox", json!(false)),
    );
    for result in send(&node, &jobs) {
        assert_eq!(result["status"], "success", "{result}");
        assert_eq!(
            (&result["outputs"]["sandbox"], &result["metadata"]["sandbox"]),
            (&json!(true), &json!(true)),
            "{result}"
        );
    }
    let denied = [
        AssignmentBuilder::new("sql.query", json!({"connection": "pg", "query": "DROP TABLE t"}))
            .max_attempts(1),
        AssignmentBuilder::new(
            "http.request",
            json!({"url": "file:///etc/passwd", "method": "GET"}),
        )
        .max_attempts(1),
    ];
    for result in send(&node, &denied) {
        assert_eq!(result["error_code"], "PERMISSION_DENIED", "{result}");
        assert_eq!(result["metadata"]["sandbox"], json!(true), "{result}");
    }
    assert_eq!(outside.http.calls("/x"), 0);
    assert!(
        !node.worker.directory().join("data").exists(),
        "the root was not even made"
    );
    assert!(!outside.was_connected_to());
    let started = node.worker.logs();
    let started = started.iter().find(|line| line["message"] == "Worker starting");
    assert_eq!(started.expect("is told")["context"]["sandbox_mode"], json!(true));
}

#[test]
fn an_assignment_asks_for_the_sandbox_wherever_it_may_and_its_neighbour_runs_for_real() {
    let outside = Outside::start();
    let node = Node::start_with(|builder| outside.grant(builder));
    let put = |name: &str| {
        AssignmentBuilder::new("fs.put", json!({"path": format!("data/{name}"), "content": "x"}))
            .max_attempts(1)
    };
    let mut jobs = vec![
        put("top").set("sandbox", json!("true")),
        with_sandbox(put("job"), "job"),
        with_sandbox(put("options"), "options"),
        with_sandbox(put("metadata"), "metadata"),
    ];
    jobs.extend(outside.jobs().into_iter().map(|job| with_sandbox(job, "options")));
    for result in send(&node, &jobs) {
        assert_eq!(result["outputs"]["sandbox"], json!(true), "{result}");
    }
    assert_eq!(outside.http.calls("/x"), 0);
    assert!(!node.worker.directory().join("data").exists());
    assert!(!outside.was_connected_to());

    let real = put("real").set("metadata", json!({"sandbox": "eu-1"}));
    let unreadable = put("unreadable").set("sandbox", json!("maybe"));
    let query = AssignmentBuilder::new("sql.query", json!({"connection": "pg", "query": "SELECT 1 AS a"}));
    let results = send(&node, &[real, unreadable, query]);
    assert_eq!(results[0]["outputs"].get("sandbox"), None, "{}", results[0]);
    assert_eq!(results[0]["metadata"].get("sandbox"), None);
    assert!(node.worker.directory().join("data/real").exists());
    assert_eq!(
        results[1]["error"]["details"]["field"], "sandbox",
        "{}",
        results[1]
    );
    assert!(!node.worker.directory().join("data/unreadable").exists());
    assert_eq!(results[2]["outputs"]["rows"], json!([{"a": 1}]));
    assert!(outside.was_connected_to(), "what connects is seen");
}

#[test]
fn a_rehearsal_without_a_broker_is_the_same_each_time() {
    let job = AssignmentBuilder::new(
        "http.request",
        json!({"url": "http://h.example/", "method": "GET"}),
    )
    .id("a-1");
    let outputs = || {
        let finished = program()
            .args(["exec", "-", "--sandbox"])
            .stdin(job.bytes())
            .run(SOON)
            .expect("runs");
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
        let stdout = finished.stdout();
        let lines = stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("is JSON"));
        let result = lines
            .filter_map(|line| line["payload"].get("outputs").cloned())
            .next();
        result.expect("there is a result")
    };
    let first = outputs();
    assert_eq!(first["sandbox"], json!(true));
    assert_eq!(first, outputs());
}
