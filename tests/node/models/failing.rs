//! Model calls that go wrong: each way of failing has its code and its word for the router, and none is a success.

use std::time::{SystemTime, UNIX_EPOCH};

use caf_testkit::openai::{End, answers};

use super::*;

/// The date in so many seconds, as HTTP writes it.
fn http_date(in_secs: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("is later")
        .as_secs();
    let (days, secs) = ((now + in_secs) / 86_400, (now + in_secs) % 86_400);
    // Civil date from days since the epoch, by the calendar of 400 years.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let week = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][days as usize % 7];
    let months = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let name = months[month as usize - 1];
    let (hour, minute, second) = (secs / 3_600, secs / 60 % 60, secs % 60);
    format!("{week}, {day:02} {name} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[test]
fn an_answer_that_is_late_is_given_up_at_the_limit_that_ran_out_and_its_connection_is_closed() {
    let long = Duration::from_secs(600);
    let server = server();
    server.set(move |asked| {
        let text = asked.prompt();
        let is = |word: &str| text.contains(word);
        let slow = Duration::from_millis(60);
        match () {
            () if is("head") => Reply::at(Pace {
                before_head: long,
                ..Pace::default()
            }),
            () if is("first") => Reply::at(Pace {
                before_first: long,
                ..Pace::default()
            }),
            () if is("middle") => Reply::at(Pace {
                between: long,
                ..Pace::default()
            }),
            // Never late, and never over.
            () => {
                let said = Said {
                    text: vec!["x".to_owned(); 10_000],
                    ..Said::default()
                };
                Reply::Say(
                    said,
                    Pace {
                        between: slow,
                        ..Pace::default()
                    },
                    End::Whole,
                )
            }
        }
    });
    let limits = "first_token_timeout_ms = 600\nidle_timeout_ms = 500\ntotal_timeout_ms = 1500";
    let node = start(&[provider("openai:*", &server, limits)]);
    let sent = ["head", "first", "middle", "whole"].map(|word| prompt("openai:m", word));
    for (job, result) in sent.iter().zip(results(&node, &sent)) {
        let told = (&result["status"], &result["error_code"], &result["error_type"]);
        assert_eq!(
            told,
            (&json!("error"), &json!("CONNECTION_TIMEOUT"), &json!("timeout")),
            "{} {result}",
            job.value()
        );
        assert_eq!(
            (&result["error"]["retryable"], &result["outputs"]),
            (&json!(true), &json!({}))
        );
    }
    wait_until("its connections are closed", SOON, || {
        (server.calls(), server.connections()) == (0, 0)
    });
    assert_eq!(server.abandoned(), 4);
    // The deadline of the job is a limit too, and says so.
    let late = result(&node, prompt("openai:m", "head").deadline_ms(300));
    assert_eq!(late["status"], "timeout", "{late}");
}

#[test]
fn what_is_cut_off_is_never_a_success() {
    let (server, whole) = (server(), server());
    let error = || answers::error("It broke.", "server_error", None);
    let cut = [
        End::Short(0),
        End::Short(2),
        End::Cut(0),
        End::Cut(2),
        End::Reset(0),
        End::Reset(2),
        End::Event(1, error()),
        End::Event(1, json!("[not an answer]")),
        End::Endless(1, vec![b'x'; 16 * 1024]),
        End::Endless(1, b": comment\n\n".repeat(1_024)),
    ];
    let ends = cut.clone();
    server.set(move |asked| {
        let text = asked.prompt();
        let number = text.rsplit('#').next().and_then(|rest| rest.split('"').next());
        let number: usize = number
            .and_then(|number| number.parse().ok())
            .expect("has a number");
        let pace = Pace {
            is_unframed: text.contains("unframed"),
            ..Pace::default()
        };
        Reply::Say(Said::default(), pace, ends[number].clone())
    });
    whole.set(|asked| {
        let end = if asked.prompt().contains("reset") {
            End::Reset(0)
        } else {
            End::Cut(0)
        };
        Reply::ending(end)
    });
    let node = start(&[
        provider("openai:*", &server, "max_response_bytes = 1000000"),
        provider("whole:*", &whole, "stream = false"),
    ]);
    let mut sent = Vec::new();
    for way in ["framed", "unframed"] {
        sent.extend((0..cut.len()).map(|number| prompt("openai:m", &format!("{way} #{number}"))));
    }
    sent.extend(["cut", "reset"].map(|way| prompt("whole:m", way)));
    for (job, result) in sent.iter().zip(results(&node, &sent)) {
        let of = format!("{} {result}", job.value()["job"]["payload"]);
        assert_eq!(result["status"], "error", "{of}");
        assert!(result["outputs"].as_object().expect("is one").is_empty(), "{of}");
        let word = result["error_type"].as_str().expect("is told");
        assert!(
            ["connection_error", "server_error", "resource"].contains(&word),
            "{of}"
        );
    }
    // A server that leaves out the last word has said all the same that the model had finished.
    server.set(|_| Reply::ending(End::NoDone));
    assert_text(&result(&node, prompt("openai:m", "no last word")), "Hello, wörld");
    node.assert_alive();
}

#[test]
fn each_refusal_has_its_code_and_its_word_for_the_router() {
    let server = server();
    server.set(|asked| {
        let text = asked.prompt();
        let is = |word: &str| text.contains(word);
        match () {
            () if is("quota") => Reply::quota(),
            () if is("context") => Reply::context_length(),
            () if is("garbage") => Reply::Odd("text/html", b"<html>no</html>".to_vec()),
            () if is("list") => Reply::Odd("application/json", b"[]".to_vec()),
            () if is("empty") => Reply::Odd("application/json", Vec::new()),
            () if is("no http") => Reply::Raw(b"hello\r\n\r\n".to_vec(), Vec::new()),
            () => Reply::status(
                text.split("status ")
                    .nth(1)
                    .and_then(|rest| rest[..3].parse().ok())
                    .expect("is one"),
            ),
        }
    });
    let barred = OpenAi::start(Some("another key"), &[]).expect("starts");
    let silent = format!(
        "[providers.\"nobody:*\"]\nbase_url = \"http://127.0.0.1:{}/v1\"\n",
        closed_port()
    );
    let node = start(&[
        provider("openai:*", &server, ""),
        provider("barred:*", &barred, ""),
        silent,
    ]);
    let cases = [
        ("openai:m", "status 401", "PERMISSION_DENIED", "permission", false),
        ("openai:m", "status 403", "PERMISSION_DENIED", "permission", false),
        ("openai:m", "status 404", "INVALID_INPUT", "validation", false),
        ("openai:m", "status 400", "INVALID_INPUT", "validation", false),
        ("openai:m", "context", "INVALID_INPUT", "validation", false),
        ("openai:m", "quota", "QUOTA_EXCEEDED", "quota", false),
        ("openai:m", "status 429", "HTTP_ERROR", "client_error", true),
        ("openai:m", "status 500", "HTTP_ERROR", "server_error", true),
        ("openai:m", "status 503", "HTTP_ERROR", "server_error", true),
        ("openai:m", "garbage", "NETWORK_ERROR", "connection_error", true),
        ("openai:m", "list", "NETWORK_ERROR", "connection_error", true),
        ("openai:m", "empty", "NETWORK_ERROR", "connection_error", true),
        ("openai:m", "no http", "NETWORK_ERROR", "connection_error", true),
        ("barred:m", "a key", "PERMISSION_DENIED", "permission", false),
        ("nobody:m", "nobody", "NETWORK_ERROR", "connection_error", true),
    ];
    let sent = cases.map(|(provider_id, text, ..)| prompt(provider_id, text));
    for ((_, text, code, word, retryable), result) in cases.iter().zip(results(&node, &sent)) {
        let told = (
            &result["error_code"],
            &result["error_type"],
            &result["error"]["retryable"],
        );
        assert_eq!(
            told,
            (&json!(code), &json!(word), &json!(retryable)),
            "{text}: {result}"
        );
        // What the router looks for in texts is there for faults of the provider only.
        let is_its_fault = ["server_error", "connection_error"].contains(word);
        let message = result["error_message"].as_str().expect("is told");
        let trips = ["timeout", "connection", "5", "unavailable"]
            .iter()
            .any(|word| message.contains(word));
        assert!(is_its_fault || !trips, "{message}");
    }
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("has an address").port()
}

#[test]
fn a_wait_that_the_provider_asks_for_is_kept_before_the_next_call() {
    let server = server();
    server.set(|asked| {
        let text = asked.prompt();
        let retry_after = match text.contains("as a date") {
            true => http_date(3),
            false => "2".to_owned(),
        };
        // Each waits longer than both need to be asked for the first time.
        match asked.number < 2 {
            true => Reply::rate_limited(&retry_after),
            false => Reply::default(),
        }
    });
    // Also without a policy of retries, which other jobs need for it.
    let mut node = start(&[provider("openai:*", &server, "")]);
    let sent = ["in seconds", "as a date"].map(|text| prompt("openai:m", text).max_attempts(3));
    for result in results(&node, &sent) {
        assert_text(&result, "Hello, wörld");
        assert_eq!(result["retries_used"], 1, "{result}");
    }
    for (text, at_least) in [("in seconds", 2_000), ("as a date", 1_000)] {
        let asked: Vec<_> = server
            .asked()
            .into_iter()
            .filter(|asked| asked.prompt().contains(text))
            .collect();
        let waited = asked[1].at - asked[0].at;
        assert!(waited >= Duration::from_millis(at_least), "{text}: {waited:?}");
    }
    let limited = metric(
        &mut node,
        "worker_llm_calls_total{provider=\"openai:*\",status=\"rate_limited\"}",
    );
    assert_eq!((server.asked().len(), limited), (4, 2.0));
}

#[test]
fn attempts_are_made_as_the_policy_says_and_all_of_them_are_paid_for() {
    let server = server();
    server.set(|asked| match (asked.prompt().contains("denied"), asked.number) {
        (true, _) => Reply::status(403),
        // Its usage came before it broke: it is paid for.
        (false, 0) => {
            let said = Said {
                usage: Some((100, 10)),
                ..Said::default()
            };
            let usage = said.chunks(true, "m", true).pop().expect("is one").1;
            Reply::Say(said, Pace::default(), End::Event(1, usage))
        }
        (false, _) if asked.prompt().contains("uncounted") => {
            let usage = None;
            Said {
                usage,
                ..Said::default()
            }
            .into()
        }
        (false, _) => Reply::default(),
    });
    let node = Node::start_with(|worker| {
        let prices = "input_price_per_million = 1\noutput_price_per_million = 10";
        with(worker, &[provider("openai:*", &server, prices)])
            .policy("retry", &json!({}))
            .env("CP2_ADVANCED_RETRY_ENABLED", "true")
    });
    let again = result(&node, prompt("openai:m", "again").max_attempts(4));
    assert_text(&again, "Hello, wörld");
    // 100 + 100 of the first, 11 + 70 of the second.
    assert_eq!(
        (&again["retries_used"], &again["cost"]),
        (&json!(1), &json!(0.000_281))
    );
    let denied = result(&node, prompt("openai:m", "denied").max_attempts(4));
    assert_eq!(
        (&denied["error_code"], &denied["retries_used"]),
        (&json!("PERMISSION_DENIED"), &json!(0))
    );
    assert_eq!(server.asked().len(), 3);
    // Who does not say what was used does not make it nothing.
    assert!(again["metadata"]["cost_unknown"].is_null());
    let uncounted = result(&node, prompt("openai:m", "uncounted"));
    assert_text(&uncounted, "Hello, wörld");
    let told = (
        &uncounted["cost"],
        &uncounted["metadata"]["cost_unknown"],
        &uncounted["outputs"]["usage"],
    );
    assert_eq!(told, (&json!(0.0), &json!(true), &json!({})));
}

#[test]
fn a_cancelled_call_is_given_up_and_its_connection_is_closed() {
    let server = server();
    server.set(|_| {
        Reply::at(Pace {
            holds_after: Some(1),
            ..Pace::default()
        })
    });
    let mut node = Node::start_with(|worker| {
        with(worker, &[provider("openai:*", &server, "")]).env("CP2_CANCELLATION_ENABLED", "true")
    });
    let job = prompt("openai:m", "never mind");
    node.client.assign(&job).expect("is sent");
    wait_until("it is under way", SOON, || server.calls() == 1);
    let admin = ([127, 0, 0, 1], node.worker.admin_port().expect("is logged")).into();
    let body = json!({"version": "1", "tenant_id": "acme", "assignment_id": job.assignment_id(), "reason": "enough"});
    let headers = [("Content-Type", "application/json")];
    let answer =
        http::request(admin, "POST", "/v1/cancel", &headers, body.to_string().as_bytes()).expect("answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
    node.wait_answered(std::slice::from_ref(&job), SOON);
    assert_eq!(
        node.answers().results(job.assignment_id())[0]["status"],
        "cancelled"
    );
    wait_until("its connection is closed", SOON, || {
        (server.calls(), server.connections()) == (0, 0)
    });
    assert_eq!(server.abandoned(), 1);
    node.assert_alive();
}

#[test]
fn a_provider_that_keeps_failing_is_left_alone_and_others_are_not_concerned() {
    let (failing, well) = (server(), server());
    failing.set(|_| Reply::status(500));
    let node = Node::start_with(|worker| {
        with(
            worker,
            &[provider("failing:*", &failing, ""), provider("well:*", &well, "")],
        )
        .env("CP2_CIRCUIT_BREAKER_ENABLED", "true")
        .env("WORKER__WORKER__CIRCUIT_BREAKER__RECOVERY_MS", 3_600_000)
    });
    for _ in 0..5 {
        assert_eq!(
            result(&node, prompt("failing:m", "x"))["error_type"],
            "server_error"
        );
    }
    for result in results(&node, &jobs(5, |_| prompt("failing:m", "x"))) {
        assert_eq!(
            (&result["error_type"], &result["error_message"]),
            (&json!("provider_unavailable"), &json!("circuit_breaker_open")),
            "{result}"
        );
    }
    assert_eq!(failing.asked().len(), 5);
    assert_text(&result(&node, prompt("well:m", "x")), "Hello, wörld");
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    for (settings, problem) in [
        ("[providers.\"a:*\"]\nbase_url = \"ftp://h/v1\"\n", "base_url"),
        ("[providers.a]\nbase_url = \"http://127.0.0.1:1/v1\"\n", "model"),
        (
            "[providers.\"a:*\"]\nbase_url = \"http://127.0.0.1:1/v1\"\nsecret = \"none\"\n",
            "secret",
        ),
        (
            "[providers.\"a:*\"]\nbase_url = \"http://127.0.0.1:1/v1\"\ninput_price_per_million = -1\n",
            "input_price_per_million",
        ),
        (
            "[providers.\"a*b\"]\nbase_url = \"http://127.0.0.1:1/v1\"\nmodel = \"m\"\n",
            "a*b",
        ),
        (
            "[providers.\"a:*\"]\nbase_url = \"http://127.0.0.1:1/v1\"\npool = \"cpu\"\n",
            "pool",
        ),
        (
            "[providers.\"a:*\"]\nbase_url = \"http://127.0.0.1:1/v1\"\nconcurrency = 1\n",
            "concurrency",
        ),
    ] {
        let worker = program()
            .file("config/worker.toml", settings)
            .args(["config", "check"]);
        let checked = worker.run(SOON).expect("ends");
        let said = format!("{}{}", checked.stdout(), checked.stderr());
        assert!(
            checked.code() != Some(0) && said.contains(problem),
            "{settings}: {said}"
        );
    }
}
