//! Traces, as a collector, a router and a called server see them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use caf_testkit::client::{ACK, ASSIGN, Message, RESULT};
use caf_testkit::faulty_http::{Fault, FaultyHttp};
use caf_testkit::otlp::{Answer, OtlpReceiver, ReceivedSpan, names, one};
use caf_testkit::tls::Certificates;
use caf_testkit::worker::{Finished, WorkerBuilder};
use caf_testkit::{AssignmentBuilder, http, wait_until};
use serde_json::{Value, json};

use crate::support::{ANSWERS, Node, SOON, jobs};

const FLAG: &str = "CP2_OBSERVABILITY_TRACING_ENABLED";
const TRACE: &str = "9f3c1a7be24d40c88a61d2f05b7e934c";
const CALLER: &str = "00f067aa0ba902b7";
/// The five spans of a job that succeeds at once.
const TREE: [&str; 5] = [
    "worker.execution",
    "worker.publish.ack",
    "worker.publish.result",
    "worker.response.process",
    "worker.step.execution",
];

/// A worker that exports to this address soon after a span is over.
fn exporting(worker: WorkerBuilder, url: &str, protocol: &str) -> WorkerBuilder {
    worker
        .env(FLAG, "true")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        .env("OTEL_BSP_SCHEDULE_DELAY", "20")
}

fn node(receiver: &OtlpReceiver, protocol: &str) -> Node {
    Node::start_with(|worker| {
        exporting(worker, &receiver.url(), protocol)
            .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
            .env("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=k%20y")
            .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    })
}

/// Sends a job with these headers and returns its spans, once there are `count`.
fn trace_of(
    node: &Node,
    receiver: &OtlpReceiver,
    job: &AssignmentBuilder,
    headers: &[(&str, &str)],
    count: usize,
) -> Vec<ReceivedSpan> {
    node.client
        .publish(ASSIGN, headers, job.bytes())
        .expect("is sent");
    wait_until("its spans arrive", SOON, || {
        receiver.of_assignment(job.assignment_id()).len() >= count
    });
    receiver.of_assignment(job.assignment_id())
}

fn answer(node: &Node, subject: &str, job: &AssignmentBuilder) -> Vec<Message> {
    let stored = node.client.stream_messages(ANSWERS).expect("can be read");
    let is_its = |message: &Message| {
        message.subject == subject && message.json()["assignment_id"] == job.assignment_id()
    };
    stored.into_iter().filter(is_its).collect()
}

fn attribute<'a>(span: &'a ReceivedSpan, name: &str) -> &'a Value {
    span.attributes.get(name).unwrap_or(&Value::Null)
}

fn leave(mut node: Node) -> Finished {
    node.worker.terminate().expect("is told");
    node.worker.finish(SOON).expect("ends")
}

/// What became of all spans, by the last line about them.
fn counts(finished: &Finished) -> BTreeMap<&'static str, u64> {
    let lines = finished.stdout();
    let stopped = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["message"] == "Trace export stopped")
        .expect("is logged");
    ["exported", "dropped", "failed"]
        .into_iter()
        .map(|name| (name, stopped["context"][name].as_u64().expect("is a number")))
        .collect()
}

fn is_a_tree_below_the_caller(spans: &[ReceivedSpan]) {
    assert_eq!(names(spans), TREE);
    let execution = one(spans, "worker.execution").expect("is there");
    assert_eq!((&*execution.trace_id, &*execution.parent_id), (TRACE, CALLER));
    for span in spans {
        assert_eq!(span.trace_id, TRACE, "{span:?}");
        assert!(span.times.0 <= span.times.1, "{span:?}");
        if span.name != "worker.execution" {
            assert_eq!(span.parent_id, execution.span_id, "{span:?}");
            assert!(
                execution.times.0 <= span.times.0 && span.times.1 <= execution.times.1,
                "{span:?}"
            );
        }
    }
}

#[test]
fn a_job_is_a_tree_of_spans_below_the_routers_and_its_answers_name_theirs() {
    for (protocol, path) in [
        (
            "grpc",
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        ),
        ("http/protobuf", "/v1/traces"),
    ] {
        let receiver = OtlpReceiver::start().expect("starts");
        let node = node(&receiver, protocol);
        let (run, flow, step) = (
            "01J8ZQ4T6M9X2K7V5R3N1B0CDE",
            "01J8ZQ4T6M9X2K7V5R3N1B0CDF",
            "01J8ZQ4T6M9X2K7V5R3N1B0CDG",
        );
        let job = AssignmentBuilder::sleep(30)
            .without("correlation")
            .run_flow_step(run, flow, step);
        let traceparent = format!("00-{TRACE}-{CALLER}-01");
        let headers = [("traceparent", &*traceparent), ("tracestate", "a=1")];
        let spans = trace_of(&node, &receiver, &job, &headers, TREE.len());
        is_a_tree_below_the_caller(&spans);

        let span = |name| one(&spans, name).expect("is there");
        let execution = span("worker.execution");
        for (name, value) in [
            ("service.name", "caf-worker"),
            ("tenant.id", job.value()["tenant_id"].as_str().unwrap()),
            ("run.id", run),
            ("flow.id", flow),
            ("assignment.id", job.assignment_id()),
            ("execution.status", "completed"),
        ] {
            assert_eq!(attribute(execution, name), value, "{name}");
        }
        assert_eq!((execution.kind, execution.state.as_str()), (5, "a=1"));
        assert!(attribute(execution, "queue.wait_ms").is_u64());
        assert_eq!(execution.resource["service.name"], "caf-worker");
        assert_eq!(execution.resource["deployment.environment.name"], "test");
        let attempt = span("worker.step.execution");
        assert_eq!(
            (attribute(attempt, "step.id"), attribute(attempt, "step.type")),
            (&json!(step), &json!("sleep"))
        );
        assert!(attribute(attempt, "duration_ms").as_u64() >= Some(30) && attempt.kind == 1);
        assert_eq!(span("worker.response.process").kind, 1);

        for (subject, name) in [(ACK, "worker.publish.ack"), (RESULT, "worker.publish.result")] {
            let message = &answer(&node, subject, &job)[0];
            let published = span(name);
            let named = format!("00-{TRACE}-{}-01", published.span_id);
            assert_eq!(message.header("traceparent"), Some(&*named), "{name}");
            assert_eq!(message.header("tracestate"), Some("a=1"));
            assert_eq!(
                (published.kind, attribute(published, "subject")),
                (4, &json!(subject))
            );
        }
        assert_eq!(
            attribute(span("worker.publish.result"), "result.status"),
            "success"
        );
        assert_eq!(
            answer(&node, RESULT, &job)[0].json().get("trace_id"),
            Some(&json!(TRACE))
        );
        for request in receiver.requests() {
            assert_eq!((&*request[":path"], &*request["x-api-key"]), (path, "k y"));
        }
    }
}

#[test]
fn a_collector_is_spoken_to_encrypted_when_its_authority_is_trusted_and_not_at_all_otherwise() {
    let certificates = Certificates::generate().expect("are made");
    let receiver = OtlpReceiver::start_encrypted(&certificates).expect("starts");
    let authority = certificates.authority().display().to_string();
    for (protocol, trusted) in [("grpc", true), ("http/protobuf", true), ("http/protobuf", false)] {
        let node = Node::start_with(|worker| {
            let worker = exporting(worker, &receiver.url(), protocol);
            if trusted {
                worker.env("OTEL_EXPORTER_OTLP_CERTIFICATE", &authority)
            } else {
                worker
            }
        });
        let before = receiver.count();
        node.assert_alive();
        let counts = counts(&leave(node));
        let made = TREE.len() as u64;
        let (exported, lost) = if trusted { (made, 0) } else { (0, made) };
        assert_eq!(
            (counts["exported"], counts["failed"]),
            (exported, lost),
            "{protocol} {trusted}"
        );
        assert_eq!((receiver.count() - before) as u64, exported);
    }
}

#[test]
fn every_way_to_name_a_trace_is_read_and_what_is_malformed_begins_a_new_one_without_changing_the_payload() {
    let receiver = OtlpReceiver::start().expect("starts");
    let node = node(&receiver, "http/protobuf");
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let echo = || AssignmentBuilder::echo().without("correlation");
    let hex_of_text = format!("00-{}-{}-01", "39".repeat(128), "30".repeat(64));
    let zero = format!("00-{}-{CALLER}-01", "0".repeat(32));
    for (job, headers, caller) in [
        (echo().set("traceparent", json!(parent)), vec![], Some(CALLER)),
        (
            echo().set("trace_id", json!(TRACE)).set("span_id", json!(CALLER)),
            vec![],
            Some(CALLER),
        ),
        (
            echo().set("trace_id", json!(TRACE.to_uppercase())),
            vec![("traceparent", &*hex_of_text)],
            Some(""),
        ),
        (
            echo(),
            vec![("X-Trace-Id", TRACE), ("X-Span-Id", CALLER)],
            Some(CALLER),
        ),
        (echo(), vec![("traceparent", &*zero)], None),
        (
            echo().set("trace_id", json!("tr-1")),
            vec![("traceparent", &*hex_of_text)],
            None,
        ),
    ] {
        let before = job.value().clone();
        let spans = trace_of(&node, &receiver, &job, &headers, 1);
        wait_until("all arrive", SOON, || {
            let count = receiver.of_assignment(job.assignment_id()).len();
            count.is_multiple_of(TREE.len())
        });
        let of_job = |span: &&ReceivedSpan| attribute(span, "assignment.id") == job.assignment_id();
        let execution = spans.iter().find(of_job).expect("is there");
        match caller {
            Some(caller) => assert_eq!(
                (&*execution.trace_id, &*execution.parent_id),
                (TRACE, caller),
                "{before}"
            ),
            None => assert!(
                execution.trace_id != TRACE && execution.parent_id.is_empty(),
                "{before} {execution:?}"
            ),
        }
        let is_its = |line: &Value| line["context"]["assignment_id"] == job.assignment_id();
        let line = node.worker.logs().into_iter().find(is_its).expect("is logged");
        let known = line["trace_id"] == *execution.trace_id
            || attribute(execution, "assignment.trace_id") == &line["trace_id"];
        assert!(
            known,
            "the log and the trace find each other: {line} {execution:?}"
        );
        let result = &answer(&node, RESULT, &job)[0];
        let named = result.header("traceparent").expect("is there");
        assert_eq!(named.split('-').nth(1), Some(&*execution.trace_id));
        let given = before.get("trace_id").filter(|id| *id != "tr-1").cloned();
        let expected = given.or_else(|| {
            headers
                .iter()
                .any(|(name, _)| *name == "trace_id")
                .then(|| json!(TRACE))
        });
        assert_eq!(
            result.json().get("trace_id"),
            expected.as_ref(),
            "no id is invented: {before}"
        );
    }
}

#[test]
fn a_called_server_is_told_the_attempt_and_no_other_origin_is() {
    let receiver = OtlpReceiver::start().expect("starts");
    let node = node(&receiver, "grpc");
    let (server, other) = (
        FaultyHttp::start().expect("starts"),
        FaultyHttp::start().expect("starts"),
    );
    let location: &'static str = Box::leak(format!("Location: {}", other.url("/end")).into_boxed_str());
    server.set(move |call| match call.path {
        "/away" => Fault::Status(302, location),
        _ if call.number == 0 => Fault::Status(503, ""),
        _ => Fault::None,
    });
    let get = |url: String, headers: Value| {
        let inputs = json!({"url": url, "method": "GET", "headers": headers});
        AssignmentBuilder::new("http.request", inputs).max_attempts(2)
    };
    let spans = trace_of(
        &node,
        &receiver,
        &get(server.url("/x"), json!({})),
        &[],
        TREE.len() + 1,
    );
    let attempts: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "worker.step.execution")
        .collect();
    let told: Vec<_> = attempts
        .iter()
        .map(|span| Some(format!("00-{}-{}-01", span.trace_id, span.span_id)))
        .collect();
    assert_eq!(server.header("/x", "traceparent"), told);
    let [failed, succeeded] = attempts[..] else {
        panic!("{spans:?}")
    };
    assert_eq!(
        (attribute(failed, "error.code"), attribute(failed, "error.type")),
        (&json!("HTTP_ERROR"), &json!("server_error"))
    );
    assert!(failed.error.is_some() && attribute(failed, "error.message").is_string());
    assert!(succeeded.error.is_none() && attribute(succeeded, "step.attempt") == 2);
    let execution = one(&spans, "worker.execution").expect("is there");
    assert_eq!(
        (attribute(execution, "execution.status"), &execution.error),
        (&json!("completed"), &None)
    );

    trace_of(
        &node,
        &receiver,
        &get(server.url("/away"), json!({})),
        &[],
        TREE.len(),
    );
    assert_eq!(server.header("/away", "traceparent").iter().flatten().count(), 1);
    assert_eq!(other.header("/end", "traceparent"), [None]);
    let own = get(server.url("/own"), json!({"Traceparent": "mine"}));
    trace_of(&node, &receiver, &own, &[], TREE.len());
    assert!(
        server
            .header("/own", "traceparent")
            .iter()
            .all(|told| told.as_deref() == Some("mine"))
    );
}

#[test]
fn failed_rejected_and_repeated_assignments_have_their_spans_and_no_secret_is_in_any() {
    let receiver = OtlpReceiver::start().expect("starts");
    let node = node(&receiver, "grpc");
    let secret = "s3cr3t-value";
    let inputs =
        json!({"error_code": "EXECUTION_FAILED", "message": format!("password={secret}, and {secret}")});
    let failing = AssignmentBuilder::new("fail", inputs).max_attempts(1);
    let spans = trace_of(&node, &receiver, &failing, &[], TREE.len() + 1);
    let execution = one(&spans, "worker.execution").expect("is there");
    assert_eq!(
        (
            attribute(execution, "execution.status"),
            attribute(execution, "error.code")
        ),
        (&json!("error"), &json!("EXECUTION_FAILED"))
    );
    assert!(execution.error.is_some() && one(&spans, "worker.step.execution").unwrap().error.is_some());
    assert_eq!(
        attribute(one(&spans, "worker.publish.result").unwrap(), "result.status"),
        "error"
    );
    assert!(one(&spans, "worker.publish.dead_letter").is_ok());

    let unknown = AssignmentBuilder::new("no.such.block", json!({"token": secret}));
    let spans = trace_of(&node, &receiver, &unknown, &[], TREE.len());
    let execution = one(&spans, "worker.execution").expect("is there");
    assert_eq!(
        (
            attribute(execution, "execution.status"),
            attribute(execution, "execution.outcome")
        ),
        (&json!("error"), &json!("rejected"))
    );
    assert_eq!(
        names(&spans)
            .iter()
            .filter(|name| **name == "worker.step.execution")
            .count(),
        0
    );

    let job = AssignmentBuilder::echo().set("job", json!({"type": "echo", "payload": {"password": secret}}));
    let first = trace_of(&node, &receiver, &job, &[], TREE.len());
    let results = node.client.collect(&[RESULT]).expect("listens");
    let again = trace_of(&node, &receiver, &job, &[], TREE.len() + 2);
    let repeated: Vec<_> = again.iter().filter(|span| !first.contains(span)).collect();
    let published = repeated
        .iter()
        .find(|span| span.name == "worker.publish.result")
        .expect("is there");
    assert_eq!(
        published.links,
        [one(&first, "worker.publish.result").unwrap().span_id.clone()]
    );
    // Nobody knows it here any more but the result itself.
    assert_eq!(attribute(published, "result.status"), "success");
    let execution = repeated
        .iter()
        .find(|span| span.name == "worker.execution")
        .expect("is there");
    assert_eq!(attribute(execution, "execution.outcome"), "repeated");
    wait_until("the result comes again", SOON, || results.len() == 1);
    let (stored, sent) = (&answer(&node, RESULT, &job)[0], &results.messages()[0]);
    assert_eq!(
        (&stored.payload, stored.header("traceparent")),
        (&sent.payload, sent.header("traceparent"))
    );

    node.client
        .publish(
            ASSIGN,
            &[("traceparent", &format!("00-{TRACE}-{CALLER}-01"))],
            secret,
        )
        .expect("is sent");
    let unreadable = || {
        receiver
            .spans()
            .into_iter()
            .find(|span| span.trace_id == TRACE && span.name == "worker.execution")
    };
    wait_until("what cannot be read has a span", SOON, || unreadable().is_some());
    assert_eq!(
        attribute(&unreadable().unwrap(), "execution.outcome"),
        "unreadable"
    );
    assert!(!format!("{:?}", receiver.spans()).contains(secret));
    assert!(!format!("{:?}", receiver.requests()).contains(secret));
}

#[test]
fn with_traces_off_nothing_is_sent_and_no_header_added_whatever_the_variables_of_opentelemetry_say() {
    let receiver = OtlpReceiver::start().expect("starts");
    let server = FaultyHttp::start().expect("starts");
    let node = Node::start_with(|worker| {
        worker
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url())
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
            .env("OTEL_BSP_MAX_QUEUE_SIZE", "nonsense")
            .env("WORKER__BLOCKS__HTTP__ALLOW_TARGETS", "127.0.0.0/8")
    });
    let get = AssignmentBuilder::new("http.request", json!({"url": server.url("/x"), "method": "GET"}));
    let parent = format!("00-{TRACE}-{CALLER}-01");
    node.client
        .publish(ASSIGN, &[("traceparent", &parent)], get.bytes())
        .expect("is sent");
    node.wait_answered(std::slice::from_ref(&get), SOON);
    for subject in [ACK, RESULT] {
        assert_eq!(answer(&node, subject, &get)[0].header("traceparent"), None);
    }
    assert_eq!(server.header("/x", "traceparent"), [None]);
    let finished = leave(node);
    assert!(!finished.stdout().contains("Trace export"));
    assert_eq!(receiver.requests(), []);
}

#[test]
fn a_bad_collector_costs_no_job_anything_and_every_lost_span_is_counted() {
    let dead = FaultyHttp::refusing().expect("has a port");
    let receiver = OtlpReceiver::start().expect("starts");
    for (collector, protocol) in [
        (None, "grpc"),
        (Some(Answer::Hang), "grpc"),
        (Some(Answer::Garbage), "grpc"),
        (Some(Answer::Refuse), "http/protobuf"),
        (Some(Answer::Hang), "http/protobuf"),
        (Some(Answer::Garbage), "http/protobuf"),
    ] {
        let url = collector.map_or_else(|| dead.url(""), |_| receiver.url());
        receiver.set(collector.unwrap_or(Answer::Take));
        let node = Node::start_with(|worker| {
            exporting(worker, &url, protocol)
                .env("OTEL_BSP_MAX_QUEUE_SIZE", "20")
                .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
                // Whoever waited for these would not end in time.
                .env("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")
                .env("OTEL_BSP_EXPORT_TIMEOUT", "600000")
                .env("WORKER__WORKER__TRACING__FLUSH_TIMEOUT_MS", "200")
        });
        let all = jobs(20, |_| AssignmentBuilder::echo());
        node.client.assign_all(&all).expect("are sent");
        node.wait_answered(&all, SOON);
        let finished = leave(node);
        assert_eq!(finished.code(), Some(0), "{}", finished.stderr());
        let counts = counts(&finished);
        let made = 20 * TREE.len() as u64;
        assert_eq!(
            (counts.values().sum::<u64>(), counts["exported"]),
            (made, 0),
            "{collector:?} {protocol}: {counts:?}"
        );
        if collector == Some(Answer::Hang) {
            // One batch of 10 is on its way and 20 wait.
            assert!(counts["dropped"] >= made - 30, "{protocol}: {counts:?}");
        }
        assert!(finished.stdout().matches("Trace export failing").count() <= 1);
    }
    assert_eq!(receiver.count(), 0);
}

#[test]
fn what_a_collector_refuses_of_a_batch_is_counted_and_its_return_is_told_once() {
    let receiver = OtlpReceiver::start().expect("starts");
    receiver.set(Answer::RefuseSome(1));
    let mut node = Node::start_with(|worker| {
        exporting(worker, &receiver.url(), "grpc").env("CP2_OBSERVABILITY_METRICS_ENABLED", "true")
    });
    let send = |node: &Node| {
        let job = [AssignmentBuilder::echo()];
        node.client.assign_all(&job).expect("is sent");
        node.wait_answered(&job, SOON);
    };
    send(&node);
    node.worker
        .wait_for_message("Trace export failing")
        .expect("is told");
    receiver.set(Answer::Take);
    send(&node);
    node.worker
        .wait_for_message("Trace export recovered")
        .expect("is told");
    let port = node.worker.metrics_port().expect("is logged");
    let scraped = http::get(port, "/metrics").expect("answers").text();
    for outcome in ["exported", "dropped", "failed"] {
        let series = format!("worker_trace_spans_total{{outcome=\"{outcome}\"}}");
        assert!(scraped.contains(&series), "{series}: {scraped}");
    }
    let finished = leave(node);
    let counts = counts(&finished);
    assert_eq!(counts.values().sum::<u64>(), 2 * TREE.len() as u64, "{counts:?}");
    assert_eq!(
        (counts["exported"] as usize, counts["dropped"]),
        (receiver.count(), 0),
        "{counts:?}"
    );
    assert!(counts["failed"] > 0);
}

/// All arrive at the rates that a small machine has. `TRACES_LONG=1` sends 500 tasks a second for 20 seconds and prints
/// the share that arrived.
#[test]
fn under_load_every_span_arrives_or_is_counted_as_dropped() {
    let long = std::env::var_os("TRACES_LONG").is_some();
    let (rounds, per_round) = if long { (200, 50) } else { (4, 50) };
    let receiver = OtlpReceiver::start().expect("starts");
    let node = Node::start_with(|worker| {
        let worker = worker
            .env(FLAG, "true")
            .env("OTLP_ENDPOINT", receiver.url())
            .env("LOG_LEVEL", "warn");
        worker
            .env("WORKER__LOG__LEVEL", "info")
            .env("WORKER_CPU_POOL_SIZE", "8")
    });
    let begun = Instant::now();
    let mut sent = 0;
    for round in 1..=rounds {
        let all = jobs(per_round, |_| AssignmentBuilder::echo());
        node.client.assign_all(&all).expect("are sent");
        sent += all.len();
        // 50 every tenth of a second.
        let next = begun + Duration::from_millis(100) * round;
        wait_until("the next round is due", SOON, || Instant::now() >= next);
    }
    wait_until("all are answered", Duration::from_secs(120), || {
        node.client
            .stream_count(ANSWERS)
            .is_ok_and(|count| count as usize >= 2 * sent)
            && node
                .client
                .stream_count(crate::support::ASSIGNMENTS)
                .is_ok_and(|count| count == 0)
    });
    let took = begun.elapsed();
    let finished = leave(node);
    let (counts, made) = (counts(&finished), (sent * TREE.len()) as u64);
    assert_eq!(counts.values().sum::<u64>(), made, "{counts:?}");
    assert_eq!(counts["exported"] as usize, receiver.count());
    assert_eq!(counts["failed"], 0, "{counts:?}");
    let share = counts["exported"] as f64 / made as f64;
    assert!(share >= 0.99, "{counts:?}");
    if long {
        println!(
            "{sent} tasks in {took:?}: {counts:?}, {:.2} % arrived",
            share * 100.0
        );
    }
}
