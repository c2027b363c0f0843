use super::*;

fn answers() -> Answers {
    Answers::new(&SubjectSettings::default(), "w")
}

fn step(text: &str) -> StepResult {
    let outputs = Outputs::from_iter([("text".to_owned(), json!(text))]);
    StepResult {
        cost: Default::default(),
        outcome: Outcome::Success(outputs),
        latency_ms: 1,
        retries_used: 0,
    }
}

fn identity() -> Identity {
    Identity {
        assignment_id: "a".into(),
        tenant_id: "t".into(),
        ..Identity::default()
    }
}

#[test]
fn a_result_of_exactly_the_limit_travels_whole_and_one_byte_more_does_not() {
    let whole = answers()
        .result(&identity(), &mut step("hello"), None, usize::MAX, 1)
        .message;
    let exact = wire_bytes(&whole);
    assert_eq!(
        answers()
            .result(&identity(), &mut step("hello"), None, exact, 1)
            .message,
        whole
    );
    let cut = answers().result(&identity(), &mut step("hello"), None, exact - 1, 1);
    assert_eq!(cut.too_large_bytes, Some(exact));
    let body: Value = serde_json::from_slice(&cut.message.payload).expect("json");
    assert_eq!(
        (&body["status"], &body["error_code"]),
        (&json!("error"), &json!("RESOURCE_UNAVAILABLE"))
    );
    let outputs = serde_json::to_vec(&json!({"text": "hello"})).expect("json");
    assert_eq!(body["error"]["details"]["outputs_bytes"], outputs.len());
    assert_eq!(body["error"]["details"]["outputs_sha256"], sha256_hex(&outputs));
    assert_eq!(body["outputs"], json!({}));
}

#[test]
fn a_draft_fits_up_to_the_limit_and_above_it_offers_its_outputs_if_it_has_any() {
    let draft = |step: &mut StepResult, limit| answers().draft(&identity(), step, None, limit, 1);
    let Draft::Whole(whole) = draft(&mut step("hello"), usize::MAX) else {
        panic!("nothing is larger than that")
    };
    let exact = wire_bytes(&whole);
    for limit in [exact, exact + 1] {
        assert_eq!(draft(&mut step("hello"), limit), Draft::Whole(whole.clone()));
    }
    let too_large = Draft::TooLarge {
        bytes: exact,
        outputs: Some(Bytes::from_static(b"{\"text\":\"hello\"}")),
    };
    assert_eq!(draft(&mut step("hello"), exact - 1), too_large);

    let failure = Failure::new(ErrorCode::InvalidInput, "x").with("long", json!("x".repeat(5_000)));
    let mut failed = StepResult {
        cost: Default::default(),
        outcome: Outcome::from(failure),
        ..step("")
    };
    let offered = draft(&mut failed, 2_000);
    assert!(
        matches!(offered, Draft::TooLarge { outputs: None, .. }),
        "{offered:?}"
    );
}

#[test]
fn a_result_that_refers_to_its_outputs_is_held_to_the_limit_too() {
    let kept = OutputRef {
        uri: "nats-obj://b/k".to_owned(),
        size: 16,
        sha256: "0a".repeat(32),
    };
    let refer = |limit| answers().referring(&identity(), &mut step("hello"), None, &kept, limit, 1);
    let exact = wire_bytes(&refer(usize::MAX).message);
    assert_eq!(refer(exact).output_ref.as_ref(), Some(&kept));
    // A success without its outputs and without word of them would be a lie.
    let cut = refer(exact - 1);
    let body: Value = serde_json::from_slice(&cut.message.payload).expect("json");
    assert_eq!((cut.output_ref, &body["status"]), (None, &json!("success")));
    assert_eq!(
        body["outputs"],
        json!({"text": "hello"}),
        "it fits without the reference"
    );
}

#[test]
fn a_failure_that_does_not_fit_keeps_the_status_of_the_other_side() {
    let mut failure = Failure::new(ErrorCode::HttpError, "the server failed").with("status_code", json!(503));
    failure
        .outputs
        .insert("body".to_owned(), json!("x".repeat(5_000)));
    failure
        .details
        .insert("long".to_owned(), json!("x".repeat(5_000)));
    let mut step = StepResult {
        cost: Default::default(),
        outcome: Outcome::from(failure),
        latency_ms: 1,
        retries_used: 0,
    };
    let cut = answers().result(&identity(), &mut step, None, 2_000, 1);
    assert!(wire_bytes(&cut.message) <= 2_000);
    let body: Value = serde_json::from_slice(&cut.message.payload).expect("json");
    assert_eq!(
        (&body["error_type"], &body["error"]["retryable"]),
        (&json!("server_error"), &json!(true))
    );
    assert_eq!(body["error"]["details"]["status_code"], 503);
    assert!(body["error"]["details"]["outputs_bytes"].as_u64() > Some(5_000));
}

fn original<'a>(headers: &'a Headers, payload: &'a [u8]) -> Original<'a> {
    Original {
        subject: "s",
        headers,
        payload,
        position: None,
        received_at_ms: 1,
    }
}

fn cause(failure: &Failure) -> Cause<'_> {
    static ATTEMPT: std::sync::LazyLock<[Attempt; 1]> =
        std::sync::LazyLock::new(|| [answers().own_attempt(Some(7))]);
    Cause {
        failure,
        reason: "unreadable",
        retries_used: 3,
        attempts: &*ATTEMPT,
    }
}

#[test]
fn a_dead_letter_that_does_not_fit_keeps_hash_and_size() {
    let headers = Headers::default();
    let original = original(&headers, &[b'x'; 5000]);
    let failure = Failure::new(ErrorCode::InvalidFormat, "payload: is not valid JSON")
        .with("long", json!("x".repeat(3_000)));
    let body = |limit| -> Value {
        let letter = answers().dead_letter(None, &cause(&failure), &original, limit, 2);
        assert!(wire_bytes(&letter) <= limit);
        serde_json::from_slice(&letter.payload).expect("json")
    };
    assert_eq!(
        body(10_000)["original_payload"].as_str().map(str::len),
        Some(5000)
    );
    let cut = body(5000);
    assert_eq!(cut.get("original_payload"), None);
    assert_eq!(
        (&cut["original_payload_bytes"], &cut["original_payload_hash"]),
        (&json!(5000), &json!(sha256_hex(&[b'x'; 5000])))
    );
    assert_eq!(cut["original_payload_omitted"], "too_large");
    assert!(cut["error"]["details"]["long"].is_string());
    assert_eq!(body(2000)["error"]["details"].get("long"), None);
}

#[test]
fn a_dead_letter_tells_operators_the_whole_chain_without_secrets() {
    let failure = Failure::new(ErrorCode::NetworkError, "the server cannot be reached").internally(format!(
        "dial db.internal: password=hunter2 {}",
        "y".repeat(10_000)
    ));
    let headers = Headers::default();
    let original = original(&headers, b"{}");
    let letter = answers().dead_letter(None, &cause(&failure), &original, usize::MAX, 2);
    let body: Value = serde_json::from_slice(&letter.payload).expect("json");
    assert_eq!(body["error_chain"][0], "the server cannot be reached");
    let inner = body["error_chain"][1].as_str().expect("is text");
    assert!(
        inner.starts_with("dial db.internal: password=[REDACTED]"),
        "{inner}"
    );
    assert_eq!(inner.len(), MAX_CAUSE_BYTES);
    assert!(!String::from_utf8_lossy(&letter.payload).contains("hunter2"));
    assert!(!body["error"].to_string().contains("db.internal"));
    assert_eq!(
        body["attempts"],
        json!([{"worker_id": "w", "attempt": 1, "started_at": 7}])
    );
    assert_eq!((&body["retries_used"], &body["replay"]), (&json!(3), &json!(0)));
}

#[test]
fn a_dead_letter_keeps_only_the_hash_when_the_settings_say_so() {
    let mut headers = Headers::default();
    headers.push("Caf-Replay", "2");
    let failure = Failure::new(ErrorCode::InvalidFormat, "x");
    let settings = DlqSettings {
        payload: LetterPayload::Hash,
    };
    let letter = answers().with_letters(&settings).dead_letter(
        None,
        &cause(&failure),
        &original(&headers, b"top secret"),
        usize::MAX,
        2,
    );
    assert!(!String::from_utf8_lossy(&letter.payload).contains("top secret"));
    let body: Value = serde_json::from_slice(&letter.payload).expect("json");
    assert_eq!(body["original_payload_hash"], sha256_hex(b"top secret"));
    assert_eq!(
        (&body["original_payload_omitted"], &body["original_payload_bytes"]),
        (&json!("by_setting"), &json!(10))
    );
    assert_eq!(
        (&body["replay"], &body["original_headers"]["Caf-Replay"]),
        (&json!(2), &json!("2"))
    );
    let id = format!("sha256:{}.r2.dlq", sha256_hex(b"top secret"));
    assert_eq!(letter.headers.get("Nats-Msg-Id"), Some(id.as_str()));
}
