//! Model calls of a whole node against a server that speaks as the OpenAI API does: what is asked and answered, what limits
//! hold, what failures mean, what an operator sees, and what nobody sees.
//!
//! `models/failing.rs` has what goes wrong, `models/told.rs` what is told of calls.

#[path = "models/failing.rs"]
mod failing;
#[path = "models/killed.rs"]
mod killed;
#[path = "models/told.rs"]
mod told;

use std::time::Duration;

use caf_testkit::openai::{Asked, OpenAi, Pace, Reply, Said, ToolCall, vector_of};
use caf_testkit::worker::WorkerBuilder;
use caf_testkit::{AssignmentBuilder, http, wait_until};
use serde_json::{Value, json};

use crate::support::{Node, SOON, assert_each_answered_once, jobs, program};

/// The key that the server lets in.
const KEY: &str = "sk-planted-key-0123456789";

/// The server that most tests talk to.
fn server() -> OpenAi {
    OpenAi::start(Some(KEY), &[]).expect("starts")
}

/// Settings of a provider, with the secret for it.
fn provider(id: &str, server: &OpenAi, more: &str) -> String {
    let (base, address, name) = (
        server.base_url(),
        server.address(),
        id.replace(|c: char| !c.is_alphanumeric(), "-"),
    );
    format!(
        "[providers.\"{id}\"]\nbase_url = \"{base}\"\nsecret = \"{name}\"\n{more}\n\
         [secrets.{name}]\nvalue = \"{KEY}\"\ntenants = [\"*\"]\nblock_types = [\"model.call\"]\ndestinations = [\"{address}\"]\n"
    )
}

fn with(worker: WorkerBuilder, settings: &[String]) -> WorkerBuilder {
    worker
        .file("config/worker.toml", settings.concat())
        .env("CP2_OBSERVABILITY_METRICS_ENABLED", "true")
}

fn start(settings: &[String]) -> Node {
    Node::start_with(|worker| with(worker, settings))
}

/// A job for this provider, called once.
fn ask(job_type: &str, provider_id: &str, payload: Value) -> AssignmentBuilder {
    AssignmentBuilder::new(job_type, payload)
        .set("executor", json!({"provider_id": provider_id, "channel": "nats"}))
        .max_attempts(1)
}

fn prompt(provider_id: &str, text: &str) -> AssignmentBuilder {
    ask("text.generate", provider_id, json!({"prompt": text}))
}

/// Sends these, and waits for the result of each, in their order.
#[track_caller]
fn results(node: &Node, jobs: &[AssignmentBuilder]) -> Vec<Value> {
    node.client.assign_all(jobs).expect("are sent");
    node.wait_answered(jobs, SOON);
    let answers = node.answers();
    assert_eq!(answers.objections(), Vec::<String>::new());
    let of = |job: &AssignmentBuilder| {
        let mut results = answers.results(job.assignment_id());
        assert_eq!(results.len(), 1, "{}", job.assignment_id());
        results.remove(0)
    };
    jobs.iter().map(of).collect()
}

fn result(node: &Node, job: AssignmentBuilder) -> Value {
    results(node, &[job]).remove(0)
}

/// The request whose prompt holds this.
#[track_caller]
fn asked(server: &OpenAi, text: &str) -> Asked {
    let found = server
        .asked()
        .into_iter()
        .find(|asked| asked.prompt().contains(text));
    found.unwrap_or_else(|| panic!("nobody asked for {text}"))
}

fn metric(node: &mut Node, series: &str) -> f64 {
    let port = node.worker.metrics_port().expect("is logged");
    let page = http::get(port, "/metrics").expect("answers").text();
    let mut lines = page.lines().filter_map(|line| line.rsplit_once(' '));
    let found = lines.find(|(name, _)| *name == series);
    found.map_or(-1.0, |(_, value)| value.parse().expect("is a number"))
}

#[track_caller]
fn assert_text(result: &Value, text: &str) {
    assert_eq!(
        (&result["status"], &result["outputs"]["text"]),
        (&json!("success"), &json!(text)),
        "{result}"
    );
}

#[test]
fn every_kind_of_job_is_answered_with_what_the_model_said_what_it_used_and_what_that_cost() {
    let (server, local) = (server(), OpenAi::start(Some(KEY), &["small"]).expect("starts"));
    server.set(|asked| {
        let said = match asked.body["tools"].is_null() {
            true => Said::default(),
            false => Said {
                tool_calls: vec![ToolCall {
                    id: "call_1".to_owned(),
                    name: "look".to_owned(),
                    arguments: ["{\"pla", "ce\":\"här\"}"].map(str::to_owned).to_vec(),
                }],
                finish_reason: "tool_calls".to_owned(),
                usage: Some((1_000_003, 500_001)),
                ..Said::default()
            },
        };
        let pace = Pace {
            part_bytes: Some(7),
            is_chatty: asked.number % 2 == 0,
            ..Pace::default()
        };
        Reply::Say(said, pace, Default::default())
    });
    let prices = "input_price_per_million = 2.5\noutput_price_per_million = 10";
    let node = start(&[
        provider("openai:*", &server, prices),
        provider(
            "local",
            &local,
            "model = \"small\"\nstream = false\npool = \"gpu\"",
        ),
    ]);
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]);
    let messages =
        json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "with-tools"}]);
    let sent = [
        ask(
            "chat",
            "openai:gpt-4o",
            json!({"text": "one-chat", "role": "user", "metadata": {"a": 1}}),
        ),
        ask(
            "chat",
            "openai:gpt-4o",
            json!({"messages": messages, "tools": tools, "response_format": {"type": "json_object"}}),
        ),
        ask(
            "completion",
            "openai:o1",
            json!({"prompt": "one-completion", "max_tokens": 9, "temperature": 0.5}),
        ),
        ask(
            "text.generate",
            "local",
            json!({"prompt": "one-text", "system": "be kind"}),
        ),
        ask("text.completion", "openai:gpt-4o", json!({"prompt": "one-more"})),
        ask("ai.generate", "openai:gpt-4o", json!({"prompt": "the-last"})),
        ask(
            "embedding",
            "local",
            json!({"input": ["eins", "zwei"], "metadata": {}}),
        ),
        ask("embedding", "openai:ada", json!({"input": "drei"})),
    ];
    let results = results(&node, &sent);
    assert_each_answered_once(&node.answers(), &sent);
    for (job, result) in sent.iter().zip(&results) {
        assert_eq!(result["status"], "success", "{result}");
        assert_eq!(result["provider_id"], job.value()["executor"]["provider_id"]);
    }
    let usage = |input: u64, output: u64| json!({"input_tokens": input, "output_tokens": output});
    // (11 * 2.5 + 7 * 10) / 10^6, and (1000003 * 2.5 + 500001 * 10) / 10^6: as floats that a person would write.
    let of_default = json!(0.0000975);
    let message = json!({"role": "assistant", "content": "Hello, wörld"});
    assert_eq!(results[0]["outputs"]["message"], message);
    assert_eq!(results[0]["outputs"]["finish_reason"], "stop");
    assert_eq!(results[0]["outputs"]["model"], "gpt-4o");
    assert_eq!(
        (&results[0]["outputs"]["usage"], &results[0]["cost"]),
        (&usage(11, 7), &of_default)
    );
    let call = &results[1]["outputs"]["message"]["tool_calls"][0];
    assert_eq!(
        call["function"],
        json!({"name": "look", "arguments": "{\"place\":\"här\"}"})
    );
    assert_eq!(results[1]["outputs"]["finish_reason"], "tool_calls");
    assert_eq!(
        (&results[1]["outputs"]["usage"], &results[1]["cost"]),
        (&usage(1_000_003, 500_001), &json!(7.500_017_5))
    );
    for number in [2, 3, 4, 5] {
        assert_text(&results[number], "Hello, wörld");
    }
    assert_eq!(
        (&results[2]["cost"], &results[3]["cost"]),
        (&of_default, &json!(0.0))
    );
    let vectors = |texts: &[&str]| json!(texts.iter().map(|text| vector_of(text, 4)).collect::<Vec<_>>());
    assert_eq!(results[6]["outputs"]["embeddings"], vectors(&["eins", "zwei"]));
    assert_eq!(results[7]["outputs"]["embeddings"], vectors(&["drei"]));
    assert_eq!(
        (
            &results[7]["outputs"]["usage"]["input_tokens"],
            &results[7]["cost"]
        ),
        (&json!(11), &json!(0.0000275))
    );

    // What was asked: by the rules of the API, for the model that was chosen, with what the job said and no more.
    assert_eq!((server.objections(), local.objections()), (vec![], vec![]));
    let chat = asked(&server, "one-chat");
    assert_eq!(
        (chat.path.as_str(), &chat.body["model"]),
        ("/v1/chat/completions", &json!("gpt-4o"))
    );
    assert_eq!(
        chat.body["messages"],
        json!([{"role": "user", "content": "one-chat"}])
    );
    assert!(chat.is_streamed() && chat.body["stream_options"]["include_usage"] == true);
    assert!(chat.body["metadata"].is_null());
    let with_tools = asked(&server, "with-tools").body;
    assert_eq!(
        (&with_tools["messages"], &with_tools["tools"]),
        (&messages, &tools)
    );
    assert_eq!(with_tools["response_format"], json!({"type": "json_object"}));
    let completion = asked(&server, "one-completion").body;
    assert_eq!(
        (
            &completion["model"],
            &completion["max_tokens"],
            &completion["temperature"]
        ),
        (&json!("o1"), &json!(9), &json!(0.5))
    );
    let text = asked(&local, "one-text");
    let first = json!({"role": "system", "content": "be kind"});
    assert_eq!((&text.body["messages"][0], text.is_streamed()), (&first, false));
    assert_eq!(asked(&local, "eins").path, "/v1/embeddings");
}

#[test]
fn who_is_called_is_the_entry_that_says_most_and_nobody_is_called_for_an_unknown_one() {
    let (general, special) = (server(), server());
    let node = start(&[
        provider("openai:*", &general, ""),
        provider("openai:gpt-4o", &special, ""),
    ]);
    let sent = [
        prompt("openai:gpt-4o", "to-special"),
        prompt("openai:gpt-4o-mini", "to-general"),
    ];
    for result in results(&node, &sent) {
        assert_text(&result, "Hello, wörld");
    }
    asked(&special, "to-special");
    assert_eq!(asked(&general, "to-general").body["model"], "gpt-4o-mini");
    for (job, code) in [
        (prompt("anthropic:x", "nobody"), "RESOURCE_UNAVAILABLE"),
        (prompt("openai:", "no model"), "INVALID_INPUT"),
        (prompt("openai:gpt-4o", ""), "INVALID_INPUT"),
        (
            ask(
                "chat",
                "openai:gpt-4o",
                json!({"messages": [{"role": "me", "content": "x"}]}),
            ),
            "INVALID_INPUT",
        ),
    ] {
        let result = result(&node, job.clone());
        assert_eq!(
            (&result["status"], &result["error_code"]),
            (&json!("error"), &json!(code)),
            "{result}"
        );
        let ack = &node.answers().acks(job.assignment_id())[0];
        assert_eq!(ack["status"], "rejected", "{ack}");
        if code == "RESOURCE_UNAVAILABLE" {
            assert_eq!(
                (&result["error_type"], &result["error"]["retryable"]),
                (&json!("provider_unavailable"), &json!(false))
            );
        }
    }
    assert_eq!((general.asked().len(), special.asked().len()), (1, 1));
}

#[test]
fn without_providers_their_jobs_are_unknown_as_ever() {
    let node = Node::start();
    let job = prompt("openai:gpt-4o", "anything");
    let result = result(&node, job.clone());
    assert_eq!(
        (&result["status"], &result["error_code"]),
        (&json!("error"), &json!("INVALID_INPUT")),
        "{result}"
    );
    let ack = &node.answers().acks(job.assignment_id())[0];
    assert_eq!(ack["status"], "rejected", "{ack}");
}

#[test]
fn the_example_is_answered_by_a_server_on_this_host_without_a_key() {
    let server = OpenAi::start(None, &["llama3.2"]).expect("starts");
    let settings = format!(
        "[providers.local]\nbase_url = \"{}\"\nmodel = \"llama3.2\"\npool = \"gpu\"\n",
        server.base_url()
    );
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models.jsonl");
    let worker = program()
        .file("config/worker.toml", settings)
        .args(["exec", example]);
    let ran = worker.run(SOON).expect("ends");
    assert_eq!(ran.code(), Some(0), "{} {}", ran.stdout(), ran.stderr());
    assert!(ran.stdout().contains("Hello, wörld"), "{}", ran.stdout());
    assert_eq!(
        (server.asked().len(), server.asked()[0].header("authorization")),
        (1, None)
    );
}

#[test]
fn sixty_four_calls_run_at_once_and_each_gets_its_own_answer() {
    const CALLS: usize = 64;
    let server = server();
    server.set(|asked| {
        let text = asked.body["messages"][0]["content"].as_str().unwrap_or_default();
        let said = Said {
            text: vec!["to ".to_owned(), text.to_owned()],
            ..Said::default()
        };
        Reply::Say(
            said,
            Pace {
                holds_after: Some(1),
                ..Pace::default()
            },
            Default::default(),
        )
    });
    let mut node = Node::start_with(|worker| {
        with(worker, &[provider("openai:*", &server, "")]).env("WORKER_IO_POOL_SIZE", CALLS)
    });
    let sent = jobs(CALLS, |number| {
        prompt("openai:gpt-4o", &format!("number {number}"))
    });
    node.client.assign_all(&sent).expect("are sent");
    wait_until("all are under way", SOON, || server.calls() == CALLS);
    server.release();
    node.wait_answered(&sent, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, &sent);
    for (number, job) in sent.iter().enumerate() {
        assert_text(
            &answers.results(job.assignment_id())[0],
            &format!("to number {number}"),
        );
    }
    assert_eq!((server.asked().len(), server.abandoned()), (CALLS, 0));
    let calls = metric(
        &mut node,
        "worker_llm_calls_total{provider=\"openai:*\",status=\"success\"}",
    );
    let tokens = metric(
        &mut node,
        "worker_llm_tokens_total{direction=\"output\",provider=\"openai:*\"}",
    );
    assert_eq!((calls, tokens), (64.0, 64.0 * 7.0));
}

#[test]
fn a_provider_is_never_asked_more_often_or_by_more_at_once_than_its_entry_allows() {
    const ALLOWED: usize = 3;
    let (narrow, slow) = (server(), server());
    narrow.set(|_| {
        Reply::at(Pace {
            before_first: Duration::from_millis(50),
            ..Pace::default()
        })
    });
    let mut node = start(&[
        provider("narrow:*", &narrow, &format!("max_concurrency = {ALLOWED}")),
        provider("slow:*", &slow, "requests_per_minute = 2"),
    ]);
    let sent = jobs(20, |number| prompt("narrow:m", &format!("number {number}")));
    for result in results(&node, &sent) {
        assert_text(&result, "Hello, wörld");
    }
    assert_eq!((narrow.asked().len(), narrow.most_calls()), (20, ALLOWED));
    let sent = jobs(5, |number| prompt("slow:m", &format!("number {number}")));
    let results = results(&node, &sent);
    let refused: Vec<_> = results
        .iter()
        .filter(|result| result["status"] != "success")
        .collect();
    assert_eq!((slow.asked().len(), refused.len()), (2, 3));
    for result in refused {
        assert_eq!(
            (&result["error_code"], &result["error_type"]),
            (&json!("SYSTEM_OVERLOAD"), &json!("overload")),
            "{result}"
        );
    }
    let limited = metric(
        &mut node,
        "worker_llm_calls_total{provider=\"slow:*\",status=\"rate_limited\"}",
    );
    assert_eq!(limited, 3.0);
}

#[test]
fn providers_are_replaced_by_a_reload_and_what_runs_runs_on() {
    let (before, after) = (server(), server());
    before.set(|_| {
        Reply::at(Pace {
            holds_after: Some(1),
            ..Pace::default()
        })
    });
    let priced = |price: &str| format!("output_price_per_million = {price}");
    let mut node = start(&[provider("openai:*", &before, &priced("1"))]);
    let running = prompt("openai:m", "before");
    node.client.assign(&running).expect("is sent");
    wait_until("it runs", SOON, || before.calls() == 1);
    let replace = |node: &mut Node, settings: &[String]| {
        let reloads = |node: &Node| {
            let is_reload = |line: &&Value| line["message"] == "Settings reloaded";
            node.worker.logs().iter().filter(is_reload).count()
        };
        let earlier = reloads(node);
        let file = node.worker.directory().join("config/worker.toml");
        std::fs::write(file, settings.concat()).expect("is written");
        node.worker.hang_up().expect("is told");
        wait_until("it has reloaded", SOON, || reloads(node) > earlier);
    };
    replace(&mut node, &[provider("openai:*", &after, &priced("1000"))]);
    let moved = prompt("openai:m", "after");
    node.client.assign(&moved).expect("is sent");
    let results_of = |node: &Node, job: &AssignmentBuilder| node.answers().results(job.assignment_id());
    wait_until("the newcomer is answered", SOON, || {
        !results_of(&node, &moved).is_empty()
    });
    let moved = results_of(&node, &moved).remove(0);
    assert_text(&moved, "Hello, wörld");
    assert_eq!(moved["cost"], 0.007);
    asked(&after, "after");
    before.release();
    node.wait_answered(std::slice::from_ref(&running), SOON);
    let ended = &node.answers().results(running.assignment_id())[0];
    assert_text(ended, "Hello, wörld");
    assert_eq!(ended["cost"], 0.000_007, "the prices that it began with");
    replace(&mut node, &[provider("other:*", &after, "")]);
    let refused = result(&node, prompt("openai:m", "too late"));
    assert_eq!(refused["error_code"], "RESOURCE_UNAVAILABLE", "{refused}");
    assert_text(&result(&node, prompt("other:m", "elsewhere")), "Hello, wörld");
    assert_eq!((before.asked().len(), after.asked().len()), (1, 2));
}
