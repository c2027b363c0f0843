use super::*;

fn answers() -> Answers {
    Answers::new(&SubjectSettings::default(), "w")
}

fn step(text: &str) -> StepResult {
    let outputs = Outputs::from_iter([("text".to_owned(), json!(text))]);
    StepResult {
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
        .result(&identity(), &step("hello"), None, usize::MAX, 1)
        .message;
    let exact = wire_bytes(&whole);
    assert_eq!(
        answers()
            .result(&identity(), &step("hello"), None, exact, 1)
            .message,
        whole
    );
    let cut = answers().result(&identity(), &step("hello"), None, exact - 1, 1);
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
    let draft = |step: &StepResult, limit| answers().draft(&identity(), step, None, limit, 1);
    let Draft::Whole(whole) = draft(&step("hello"), usize::MAX) else {
        panic!("nothing is larger than that")
    };
    let exact = wire_bytes(&whole);
    for limit in [exact, exact + 1] {
        assert_eq!(draft(&step("hello"), limit), Draft::Whole(whole.clone()));
    }
    let too_large = Draft::TooLarge {
        bytes: exact,
        outputs: Some(Bytes::from_static(b"{\"text\":\"hello\"}")),
    };
    assert_eq!(draft(&step("hello"), exact - 1), too_large);

    let failure = Failure::new(ErrorCode::InvalidInput, "x").with("long", json!("x".repeat(5_000)));
    let failed = StepResult {
        outcome: Outcome::from(failure),
        ..step("")
    };
    let offered = draft(&failed, 2_000);
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
    let refer = |limit| answers().referring(&identity(), &step("hello"), None, &kept, limit, 1);
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
    let step = StepResult {
        outcome: Outcome::from(failure),
        latency_ms: 1,
        retries_used: 0,
    };
    let cut = answers().result(&identity(), &step, None, 2_000, 1);
    assert!(wire_bytes(&cut.message) <= 2_000);
    let body: Value = serde_json::from_slice(&cut.message.payload).expect("json");
    assert_eq!(
        (&body["error_type"], &body["error"]["retryable"]),
        (&json!("server_error"), &json!(true))
    );
    assert_eq!(body["error"]["details"]["status_code"], 503);
    assert!(body["error"]["details"]["outputs_bytes"].as_u64() > Some(5_000));
}

#[test]
fn a_dead_letter_that_does_not_fit_keeps_hash_and_size() {
    let headers = Headers::default();
    let original = Original {
        subject: "s",
        headers: &headers,
        payload: &[b'x'; 5000],
        position: None,
        received_at_ms: 1,
    };
    let failure = Failure::new(ErrorCode::InvalidFormat, "payload: is not valid JSON");
    let body = |limit| -> Value {
        let letter = answers().dead_letter(None, &failure, "unreadable", &original, limit, 2);
        serde_json::from_slice(&letter.payload).expect("json")
    };
    assert_eq!(
        body(10_000)["original_payload"].as_str().map(str::len),
        Some(5000)
    );
    let whole = answers().dead_letter(None, &failure, "unreadable", &original, usize::MAX, 2);
    let exact = wire_bytes(&whole);
    for limit in [exact, exact + 1] {
        assert_eq!(body(limit)["original_payload"].as_str().map(str::len), Some(5000));
    }
    let cut = body(exact - 1);
    assert_eq!(cut.get("original_payload"), None);
    assert_eq!(
        (&cut["original_payload_bytes"], &cut["original_payload_hash"]),
        (&json!(5000), &json!(sha256_hex(&[b'x'; 5000])))
    );
}
