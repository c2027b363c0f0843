//! What is told of model calls: spans, metrics, lines. And what is told to nobody: prompts, answers, keys.

use caf_testkit::openai::{End, answers};
use caf_testkit::otlp::OtlpReceiver;

use super::*;

/// What a prompt holds.
const PROMPT: &str = "planted-prompt-4711";
/// What the model says.
const ANSWER: &str = "planted-answer-4712";
/// What a server says when it fails: it quotes the prompt.
const QUOTED: &str = "planted-error-4713";

fn traced(worker: WorkerBuilder, settings: &[String], otlp: &OtlpReceiver) -> WorkerBuilder {
    with(worker, settings)
        .env("CP2_OBSERVABILITY_TRACING_ENABLED", "true")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.url())
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_BSP_SCHEDULE_DELAY", "20")
        .env("LOG_LEVEL", "debug")
        .env("WORKER__LOG__DEPENDENCIES", "debug")
}

#[test]
fn each_attempt_is_a_span_below_its_step_which_the_provider_is_told_of() {
    let (server, otlp) = (server(), OtlpReceiver::start().expect("starts"));
    server.set(|asked| match asked.number {
        0 => Reply::rate_limited("0"),
        _ => Reply::default(),
    });
    let settings = [provider(
        "openai:*",
        &server,
        "input_price_per_million = 2.5\noutput_price_per_million = 10",
    )];
    let mut node = Node::start_with(|worker| traced(worker, &settings, &otlp));
    let job = prompt("openai:gpt-4o", "x").max_attempts(2);
    assert_text(&result(&node, job.clone()), "Hello, wörld");
    let calls = || -> Vec<_> {
        let spans = otlp.of_assignment(job.assignment_id()).into_iter();
        spans.filter(|span| span.name == "worker.llm.call").collect()
    };
    wait_until("both spans are there", SOON, || calls().len() == 2);
    let spans = otlp.of_assignment(job.assignment_id());
    for (call, (asked, status)) in calls()
        .iter()
        .zip(server.asked().iter().zip(["rate_limited", "success"]))
    {
        // Client, by the number of OTLP.
        assert_eq!(call.kind, 3);
        let above = spans
            .iter()
            .find(|span| span.span_id == call.parent_id)
            .expect("has one above");
        assert_eq!(above.name, "worker.step.execution");
        let said = |name: &str| call.attributes.get(name).cloned().unwrap_or_default();
        let ids = ["provider.id", "model.id", "llm.call.status"].map(said);
        assert_eq!(ids, [json!("openai:gpt-4o"), json!("gpt-4o"), json!(status)]);
        let traceparent = asked.header("traceparent").expect("is told");
        assert!(
            traceparent.contains(&call.trace_id) && traceparent.contains(&call.span_id),
            "{traceparent}"
        );
        let tokens = ["llm.tokens.input", "llm.tokens.output"].map(said);
        match status {
            "success" => assert_eq!((tokens, &call.error), ([json!(11), json!(7)], &None)),
            _ => assert!(call.error.is_some() && tokens == [Value::Null, Value::Null]),
        }
    }
    let of = |name: &str, labels: &str| format!("{name}{{{labels}}}");
    let provider = "provider=\"openai:*\"";
    for (series, value) in [
        (
            of(
                "worker_llm_calls_total",
                &format!("{provider},status=\"success\""),
            ),
            1.0,
        ),
        (
            of(
                "worker_llm_calls_total",
                &format!("{provider},status=\"rate_limited\""),
            ),
            1.0,
        ),
        (
            of(
                "worker_llm_tokens_total",
                &format!("direction=\"input\",{provider}"),
            ),
            11.0,
        ),
        (
            of(
                "worker_llm_tokens_total",
                &format!("direction=\"output\",{provider}"),
            ),
            7.0,
        ),
        (of("worker_llm_cost_total", provider), 0.000_097_5),
        (
            of(
                "worker_llm_call_duration_seconds_count",
                &format!("{provider},status=\"success\""),
            ),
            1.0,
        ),
        (of("worker_llm_first_token_seconds_count", provider), 1.0),
    ] {
        assert_eq!(metric(&mut node, &series), value, "{series}");
    }
    let line = node.worker.wait_for_message("Model called").expect("is logged");
    assert_eq!(
        (&line["context"]["provider"], &line["context"]["model"]),
        (&json!("openai:*"), &json!("gpt-4o"))
    );
}

#[test]
fn prompts_answers_and_keys_are_nowhere_but_where_they_belong() {
    let (server, otlp) = (server(), OtlpReceiver::start().expect("starts"));
    let said = || Said {
        text: vec![ANSWER[..9].to_owned(), ANSWER[9..].to_owned()],
        ..Said::default()
    };
    server.set(move |asked| {
        let text = asked.prompt();
        let is = |word: &str| text.contains(word);
        let quoting = |code| answers::error(&format!("{QUOTED} {text} {KEY}"), QUOTED, code);
        match () {
            () if is("#refused") => Reply::Fail(400, format!("x-note: {QUOTED}\r\n"), quoting(Some(QUOTED))),
            () if is("#failed") => Reply::Fail(500, String::new(), quoting(None)),
            () if is("#event") => Reply::Say(said(), Pace::default(), End::Event(1, quoting(None))),
            () if is("#cut") => Reply::Say(said(), Pace::default(), End::Cut(1)),
            () if is("#held") => Reply::Say(
                said(),
                Pace {
                    holds_after: Some(1),
                    ..Pace::default()
                },
                End::Whole,
            ),
            () if is("#odd") => Reply::Odd("text/plain", format!("{QUOTED} {ANSWER}").into_bytes()),
            () => said().into(),
        }
    });
    let settings = [provider("openai:*", &server, "")];
    let mut node = Node::start_with(|worker| traced(worker, &settings, &otlp));
    let ways = ["#well", "#refused", "#failed", "#event", "#cut", "#odd"];
    let mut sent: Vec<_> = ways
        .iter()
        .map(|way| prompt("openai:m", &format!("{PROMPT} {way}")))
        .collect();
    let messages = json!([{"role": "system", "content": PROMPT}, {"role": "user", "content": [{"type": "text", "text": PROMPT}]}]);
    sent.push(ask(
        "chat",
        "openai:m",
        json!({"messages": messages, "user": PROMPT, "metadata": {"note": PROMPT}}),
    ));
    sent.push(ask("embedding", "openai:m", json!({"input": [PROMPT]})));
    // Wrong in every way that quotes something.
    sent.push(ask("chat", "openai:m", json!({"messages": PROMPT})));
    sent.push(ask(
        "chat",
        "openai:m",
        json!({"messages": [{"role": PROMPT, "content": PROMPT}]}),
    ));
    sent.push(ask(
        "text.generate",
        "openai:m",
        json!({"prompt": PROMPT, PROMPT.to_owned() + " as a name": PROMPT}),
    ));
    sent.push(ask(
        "text.generate",
        "openai:m",
        json!({"prompt": PROMPT, "temperature": PROMPT, "model": PROMPT}),
    ));
    sent.push(prompt("openai:m", &format!("{PROMPT} #held")).deadline_ms(700));
    let results = results(&node, &sent);
    for (job, result) in sent.iter().zip(&results) {
        let is_well = result["status"] == "success";
        let of = format!("{} {result}", job.value()["job"]);
        for planted in [PROMPT, QUOTED, KEY] {
            assert!(!result.to_string().contains(planted), "{planted}: {of}");
        }
        assert!(is_well || !result.to_string().contains(ANSWER), "{of}");
    }
    assert_text(&results[0], ANSWER);
    assert_eq!(
        server.asked()[0].header("authorization"),
        Some(format!("Bearer {KEY}").as_str())
    );
    wait_until("the spans are there", SOON, || {
        let spans = otlp.spans();
        spans.iter().filter(|span| span.name == "worker.llm.call").count() >= 9
    });

    let clean = |place: &str, text: &str| {
        for planted in [PROMPT, ANSWER, QUOTED, KEY] {
            let at = text.find(planted);
            let around = at.map(|at| {
                text.chars()
                    .skip(at.saturating_sub(200))
                    .take(400)
                    .collect::<String>()
            });
            assert_eq!(around, None, "{place} holds {planted}");
        }
    };
    clean("spans", &format!("{:?}", otlp.spans()));
    for line in node.worker.lines() {
        clean("output", &line.text);
    }
    let metrics = http::get(node.worker.metrics_port().expect("is logged"), "/metrics").expect("answers");
    clean("/metrics", &metrics.text());
    let admin = node.worker.admin_port().expect("is logged");
    let mut paths = vec!["/status".to_owned(), "/".to_owned()];
    paths.extend(sent.iter().map(|job| format!("/explain/{}", job.assignment_id())));
    for path in paths {
        clean(&path, &http::get(admin, &path).expect("answers").text());
    }
    // What is kept of an assignment that cannot be helped is the assignment: by its other fields nobody learns of it.
    for letter in node.client.stream_messages("caf-dlq").expect("can be read") {
        let mut letter = letter.json();
        letter.as_object_mut().expect("is one").remove("original_payload");
        clean("a dead letter", &letter.to_string());
    }
    // On disk are answers, and assignments that cannot be helped, until the broker has them; nothing else.
    let mut directories = vec![node.worker.directory().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("can be read").flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => directories.push(path),
                false if path.ends_with("worker.toml") => {}
                false => {
                    let text =
                        String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
                    for planted in [QUOTED, KEY] {
                        assert!(!text.contains(planted), "{} holds {planted}", path.display());
                    }
                }
            }
        }
    }
}
