//! Calls of a real server that can do everything wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use caf_protocol::block::{BlockContext, Outputs};
use caf_protocol::secret::vault::{Destination, NamedSecret};
use caf_testkit::openai::{End, OpenAi, Pace, Reply, Said};
use serde_json::json;

use super::*;
use crate::settings::{BlockSettings, ProviderSettings};
use crate::tests::{block_on, context, context_for, inputs};
use crate::{Extras, OperationLimits};

/// Blocks that know this server as `openai:*`, with prices.
struct Bench {
    registry: caf_protocol::block::Registry,
    providers: Providers,
    settings: ProviderSettings,
    vault: Vault,
}

impl Bench {
    fn new(server: &OpenAi, change: impl FnOnce(&mut ProviderSettings)) -> Self {
        let mut settings = ProviderSettings::new(server.base_url());
        settings.input_price_per_million = 2.5;
        settings.output_price_per_million = 10.0;
        change(&mut settings);
        let (providers, vault) = (Providers::default(), Vault::default());
        let extras = Extras {
            providers: providers.clone(),
            vault: vault.clone(),
            ..Extras::default()
        };
        let built = crate::build(&BlockSettings::default(), OperationLimits::default(), extras);
        let bench = Self {
            registry: built.expect("builds").registry,
            providers,
            settings,
            vault,
        };
        assert!(bench.registry.get("chat").is_none(), "nobody is there yet");
        bench.put();
        bench
    }

    fn put(&self) {
        let all = BTreeMap::from([("openai:*".to_owned(), self.settings.clone())]);
        self.providers.replace(&all).expect("is valid");
    }

    fn task(&self, job_type: &str, given: Value) -> Result<Arc<dyn Task>, Failure> {
        let block = self.registry.get(job_type).expect("is offered");
        let called = Called {
            job_type,
            provider_id: Some("openai:gpt-4o"),
        };
        let chosen = block.chosen(&called)?.expect("is chosen");
        chosen.prepare(inputs(given))
    }

    fn run(&self, job_type: &str, given: Value, context: BlockContext) -> (Result<Outputs, Failure>, Cost) {
        let task = self.task(job_type, given).expect("is accepted");
        let outcome = block_on(Arc::clone(&task).run(context));
        (outcome, task.cost())
    }

    fn chat(&self) -> (Result<Outputs, Failure>, Cost) {
        self.run("chat", json!({"text": "hunter2"}), context())
    }
}

fn server() -> OpenAi {
    OpenAi::start(None, &[]).expect("starts")
}

#[test]
fn a_job_of_each_type_gets_its_answer_with_what_it_used_and_cost() {
    let server = server();
    for streams in [true, false] {
        let bench = Bench::new(&server, |settings| settings.stream = streams);
        let (chat, cost) = bench.chat();
        let chat = chat.expect("succeeds");
        assert_eq!(
            chat["message"],
            json!({"role": "assistant", "content": "Hello, wörld"})
        );
        assert_eq!(chat["finish_reason"], "stop");
        assert_eq!(chat["usage"], json!({"input_tokens": 11, "output_tokens": 7}));
        assert_eq!((cost.amount(), cost.is_incomplete()), (0.000_097_5, false));
        for job_type in ["text.generate", "text.completion", "completion", "ai.generate"] {
            let (text, _) = bench.run(job_type, json!({"prompt": "x", "max_tokens": 5}), context());
            assert_eq!(text.expect("succeeds")["text"], "Hello, wörld", "{job_type}");
        }
        let (rows, cost) = bench.run("embedding", json!({"input": ["a", "b"]}), context());
        let rows = rows.expect("succeeds");
        assert_eq!(rows["embeddings"].as_array().expect("is a list").len(), 2);
        assert!(cost.amount() > 0.0 && !cost.is_incomplete());
    }
    assert_eq!(server.objections(), Vec::<String>::new());
    assert!(server.asked().iter().all(|asked| asked.body["model"] == "gpt-4o"));
}

#[test]
fn however_an_answer_travels_it_is_the_same() {
    let server = server();
    let bench = Bench::new(&server, |_| {});
    let pace = |part_bytes, is_chatty, is_unframed| Pace {
        part_bytes,
        is_chatty,
        is_unframed,
        ..Pace::default()
    };
    for pace in [
        pace(Some(1), false, false),
        pace(Some(7), true, false),
        pace(None, true, true),
    ] {
        server.set(move |_| Reply::at(pace.clone()));
        let outputs = bench.chat().0.expect("succeeds");
        assert_eq!(outputs["message"]["content"], "Hello, wörld");
    }
    server.set(|_| Reply::ending(End::NoDone));
    assert!(bench.chat().0.is_ok(), "the model has finished");
}

#[test]
fn an_answer_without_its_end_is_a_failure_with_an_unknown_cost() {
    let server = server();
    let bench = Bench::new(&server, |settings| {
        settings.max_response_bytes = 100_000;
        settings.first_token_timeout_ms = 10_000;
    });
    let broken = json!({"error": {"message": "hunter2", "type": "server_error", "code": null}});
    for (end, code, kind) in [
        (End::Short(2), ErrorCode::NetworkError, "connection_error"),
        (End::Cut(2), ErrorCode::NetworkError, "connection_error"),
        (End::Reset(2), ErrorCode::NetworkError, "connection_error"),
        (End::Event(2, broken), ErrorCode::HttpError, "server_error"),
        (
            End::Endless(1, b": x\n".to_vec()),
            ErrorCode::ResourceUnavailable,
            "resource",
        ),
        (
            End::Endless(1, b"x".repeat(1_000)),
            ErrorCode::ResourceUnavailable,
            "resource",
        ),
    ] {
        let reply = Reply::ending(end.clone());
        server.set(move |_| reply.clone());
        let (outcome, cost) = bench.chat();
        let failure = outcome.expect_err("is not whole");
        assert_eq!((failure.code, failure.error_type()), (code, kind), "{end:?}");
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
        assert!(cost.is_incomplete(), "{end:?}");
    }
}

#[test]
fn each_limit_on_time_ends_the_call_and_closes_its_connection() {
    let server = server();
    let bench = |change: fn(&mut ProviderSettings)| Bench::new(&server, change);
    let held = |pace: Pace| move |_: &caf_testkit::openai::Asked| Reply::at(pace.clone());
    let head = Pace {
        holds_head: true,
        ..Pace::default()
    };
    let middle = Pace {
        holds_after: Some(1),
        ..Pace::default()
    };
    let first = Pace {
        holds_after: Some(0),
        ..Pace::default()
    };
    for (pace, change) in [
        (
            &head,
            (|settings| settings.first_token_timeout_ms = 100) as fn(&mut ProviderSettings),
        ),
        (&first, |settings| settings.first_token_timeout_ms = 100),
        (&middle, |settings| settings.idle_timeout_ms = 100),
        (&middle, |settings| settings.total_timeout_ms = 100),
        (&head, |settings| {
            settings.stream = false;
            settings.total_timeout_ms = 100;
        }),
    ] {
        server.set(held(pace.clone()));
        let (outcome, cost) = bench(change).chat();
        let failure = outcome.expect_err("is too slow");
        assert_eq!(
            (failure.code, failure.error_type()),
            (ErrorCode::ConnectionTimeout, "timeout")
        );
        assert!(failure.is_retryable() && cost.is_incomplete());
    }
    let cancelled = context();
    let token = cancelled.cancel.clone();
    let bench = bench(|_| {});
    server.set(held(middle));
    let task = bench.task("chat", json!({"text": "x"})).expect("is accepted");
    let before = server.asked().len();
    let outcome = block_on(async {
        let running = actix_rt::spawn(Arc::clone(&task).run(cancelled));
        while server.asked().len() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        token.cancel();
        running.await.expect("does not panic")
    });
    assert_eq!(
        outcome.expect_err("is cancelled").code,
        ErrorCode::CancelledByUser
    );
    assert!(task.cost().is_incomplete());
    server.release();
}

#[test]
fn refusals_have_their_codes_and_cost_nothing() {
    let server = server();
    let bench = Bench::new(&server, |_| {});
    for (reply, code, kind) in [
        (Reply::status(401), ErrorCode::PermissionDenied, "permission"),
        (Reply::status(403), ErrorCode::PermissionDenied, "permission"),
        (Reply::status(404), ErrorCode::InvalidInput, "validation"),
        (Reply::status(400), ErrorCode::InvalidInput, "validation"),
        (Reply::context_length(), ErrorCode::InvalidInput, "validation"),
        (Reply::quota(), ErrorCode::QuotaExceeded, "quota"),
        (Reply::status(503), ErrorCode::HttpError, "server_error"),
        (Reply::status(302), ErrorCode::HttpError, "client_error"),
    ] {
        server.set(move |_| reply.clone());
        let (outcome, cost) = bench.chat();
        let failure = outcome.expect_err("is refused");
        assert_eq!((failure.code, failure.error_type()), (code, kind));
        assert_eq!(cost, Cost::default());
    }
    server.set(|_| Reply::rate_limited("7"));
    let context = context();
    let told = context.model_call.clone();
    let failure = bench
        .run("chat", json!({"text": "x"}), context)
        .0
        .expect_err("is refused");
    assert_eq!(
        (&failure.details["retry_after_ms"], failure.is_retryable()),
        (&json!(7_000), true)
    );
    assert!(told.facts().is_rate_limited);
    server.set(|_| {
        Said {
            usage: None,
            ..Said::default()
        }
        .into()
    });
    let (outcome, cost) = bench.chat();
    assert_eq!(outcome.expect("succeeds")["usage"], json!({}));
    assert!(cost.is_incomplete() && cost.amount() == 0.0);
}

#[test]
fn a_secret_goes_to_the_provider_for_whom_it_is_for_and_comes_back_to_nobody() {
    let server = OpenAi::start(Some("sk-value-of-key"), &[]).expect("starts");
    let bench = Bench::new(&server, |settings| settings.secret = Some("key".to_owned()));
    let key = |tenants: &str, block_type: &str, destination: &str| {
        let destination = Destination::parse(destination).expect("is one");
        let named = NamedSecret::new(
            "sk-value-of-key".into(),
            [tenants.to_owned()],
            [block_type.to_owned()],
            vec![destination],
        );
        bench.vault.replace([("key".to_owned(), named)]);
    };
    let here = format!("http://{}", server.address());
    for (tenant, block_type, destination) in [
        ("other", BLOCK_TYPE, here.as_str()),
        ("acme", "http.request", here.as_str()),
        ("acme", BLOCK_TYPE, "api.example.com"),
    ] {
        key(tenant, block_type, destination);
        let failure = bench.chat().0.expect_err("is not for it");
        assert_eq!(failure.code, ErrorCode::PermissionDenied);
    }
    assert_eq!(server.asked().len(), 0);
    key("acme", BLOCK_TYPE, &here);
    server.set(|_| {
        Said {
            text: vec!["sk-value-".to_owned(), "of-key".to_owned()],
            ..Said::default()
        }
        .into()
    });
    let outputs = bench.chat().0.expect("is let in");
    assert_eq!(outputs["message"]["content"], "[REDACTED]");
}

#[test]
fn no_more_calls_run_at_once_than_the_provider_allows_and_minutes_have_their_bound() {
    let server = server();
    let bench = Bench::new(&server, |settings| settings.max_concurrency = Some(2));
    server.set(|_| {
        Reply::at(Pace {
            before_head: Duration::from_millis(20),
            ..Pace::default()
        })
    });
    block_on(async {
        let jobs = (0..8).map(|_| {
            let task = bench.task("chat", json!({"text": "x"})).expect("is accepted");
            actix_rt::spawn(task.run(context()))
        });
        for job in jobs.collect::<Vec<_>>() {
            job.await.expect("does not panic").expect("succeeds");
        }
    });
    assert_eq!(server.most_calls(), 2);
    let bench = Bench::new(&server, |settings| settings.requests_per_minute = Some(1));
    assert!(bench.chat().0.is_ok());
    let failure = bench
        .run("chat", json!({"text": "x"}), context_for(Duration::from_secs(9)))
        .0;
    let failure = failure.expect_err("has no room before its deadline");
    assert_eq!(
        (failure.code, failure.error_type()),
        (ErrorCode::SystemOverload, "overload")
    );
    assert!(
        failure.details["retry_after_ms"]
            .as_u64()
            .is_some_and(|ms| ms > 9_000)
    );
}

#[test]
fn who_is_not_in_the_settings_is_refused_and_who_comes_into_them_is_called() {
    let server = server();
    let mut bench = Bench::new(&server, |settings| settings.pool = ResourceClass::Gpu);
    let block = bench.registry.get("chat").expect("is offered");
    let called = |provider_id| Called {
        job_type: "chat",
        provider_id,
    };
    for id in [None, Some("other:x"), Some("openai")] {
        let failure = block.chosen(&called(id)).err().expect("is nobody");
        assert_eq!(
            (failure.code, failure.error_type(), failure.is_retryable()),
            (ErrorCode::ResourceUnavailable, "provider_unavailable", false)
        );
    }
    let chosen = block
        .chosen(&called(Some("openai:x")))
        .expect("is somebody")
        .expect("is bound");
    assert_eq!(chosen.spec().class, ResourceClass::Gpu);
    let nameless = block
        .chosen(&called(Some("openai:")))
        .expect("is somebody")
        .expect("is bound");
    let failure = nameless
        .prepare(inputs(json!({"text": "x"})))
        .err()
        .expect("names no model");
    assert_eq!(failure.code, ErrorCode::InvalidInput);
    bench.settings.model = Some("other-model".to_owned());
    bench.put();
    assert!(bench.chat().0.is_ok());
    assert_eq!(
        server.asked().last().expect("was asked").body["model"],
        "other-model"
    );
    bench.providers.replace(&BTreeMap::new()).expect("is valid");
    assert!(bench.registry.get("chat").is_none());
}
