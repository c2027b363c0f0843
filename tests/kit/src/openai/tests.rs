//! The server against the public description of the API, and against its own promises.

use jsonschema::Validator;
use serde_json::json;

use super::*;
use crate::http::{Response, request};
use crate::wait_until;

const SCHEMA: &str = include_str!("../../../fixtures/openai/answers.schema.json");
const SOON: Duration = Duration::from_secs(10);

fn shape(name: &str) -> Validator {
    let mut schema: Value = serde_json::from_str(SCHEMA).expect("is JSON");
    schema["$ref"] = format!("#/$defs/{name}").into();
    jsonschema::validator_for(&schema).expect("is a schema")
}

#[track_caller]
fn assert_is(name: &str, answer: &Value) {
    let problems: Vec<String> = shape(name)
        .iter_errors(answer)
        .map(|error| error.to_string())
        .collect();
    assert_eq!(problems, Vec::<String>::new(), "{name}: {answer}");
}

const JSON: (&str, &str) = ("Content-Type", "application/json");
const KEY: (&str, &str) = ("Authorization", "Bearer k");

fn post(server: &OpenAi, path: &str, body: &Value) -> Response {
    let body = body.to_string();
    request(server.address(), "POST", path, &[JSON, KEY], body.as_bytes()).expect("answers")
}

fn chat() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}

fn events(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines
        .filter_map(|line| line.strip_prefix("data:"))
        .map(str::trim)
        .collect()
}

fn server() -> OpenAi {
    OpenAi::start(Some("k"), &["m"]).expect("starts")
}

#[test]
fn answers_have_the_shapes_of_the_public_description() {
    let said = Said::default();
    let tools = Said {
        tool_calls: vec![ToolCall {
            id: "call_1".to_owned(),
            name: "look".to_owned(),
            arguments: vec!["{\"a\":".to_owned(), "1}".to_owned()],
        }],
        finish_reason: "tool_calls".to_owned(),
        ..Said::default()
    };
    for said in [
        &said,
        &tools,
        &Said {
            usage: None,
            ..said.clone()
        },
    ] {
        assert_is("chat", &said.whole(true, "m"));
        for tells_usage in [true, false] {
            for (_, chunk) in said.chunks(true, "m", tells_usage) {
                assert_is("chat_chunk", &chunk);
            }
        }
    }
    assert_is("completion", &said.whole(false, "m"));
    for (_, chunk) in said.chunks(false, "m", true) {
        assert_is("completion", &chunk);
    }
    for format in ["float", "base64"] {
        let asked = json!({"input": ["one", "two"], "encoding_format": format});
        assert_is("embeddings", &said.embeddings(&asked, "m"));
    }
    assert_is("models", &answers::models(&["m".to_owned()]));
    for reply in [Reply::rate_limited("1"), Reply::quota(), Reply::context_length()]
        .into_iter()
        .chain([400, 401, 403, 404, 429, 500, 503].map(Reply::status))
    {
        let Reply::Fail(_, _, body) = reply else {
            panic!("it fails")
        };
        assert_is("error", &body);
    }
}

#[test]
fn the_judge_of_shapes_objects_to_what_is_left_out_or_made_up() {
    let mut whole = Said::default().whole(true, "m");
    whole["choices"][0]["message"]["mood"] = "good".into();
    assert!(!shape("chat").is_valid(&whole));
    let mut chunk = Said::default().chunks(true, "m", true).remove(0).1;
    chunk.as_object_mut().expect("is one").remove("id");
    assert!(!shape("chat_chunk").is_valid(&chunk));
    assert!(!shape("error").is_valid(&json!({"error": "no"})));
    assert!(!shape("embeddings").is_valid(&json!({"object": "list", "model": "m", "data": []})));
}

#[test]
fn what_is_asked_well_is_answered_over_the_wire() {
    let server = server();
    let whole = post(&server, "/v1/completions", &json!({"model": "m", "prompt": "x"}));
    assert_eq!(
        (whole.status, whole.header("content-type")),
        (200, Some("application/json"))
    );
    assert_is("completion", &whole.json().expect("is JSON"));
    let stream = post(&server, "/v1/chat/completions", &streamed(chat())).text();
    let events = events(&stream);
    let (done, chunks) = events.split_last().expect("are some");
    assert_eq!(*done, "[DONE]");
    let chunks: Vec<Value> = chunks
        .iter()
        .map(|event| event.parse().expect("is JSON"))
        .collect();
    chunks.iter().for_each(|chunk| assert_is("chat_chunk", chunk));
    let text = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert_eq!(text.collect::<String>(), "Hello, wörld");
    assert_eq!(chunks.last().expect("is one")["usage"]["total_tokens"], 18);
    let models = request(server.address(), "GET", "/v1/models", &[KEY], b"").expect("answers");
    assert_is("models", &models.json().expect("is JSON"));
    assert_eq!((server.asked().len(), server.objections()), (3, vec![]));
}

#[test]
fn requests_are_held_against_the_api() {
    let server = server();
    let status = |path: &str, body: Value| post(&server, path, &body).status;
    assert_eq!(status("/v1/chat/completions", json!({"model": "m"})), 400);
    assert_eq!(
        status(
            "/v1/chat/completions",
            json!({"model": "m", "messages": [{"role": "me", "content": ""}]})
        ),
        400
    );
    assert_eq!(status("/v1/embeddings", json!({"model": "m", "input": []})), 400);
    assert_eq!(status("/chat/completions", chat()), 400);
    assert_eq!(server.objections().len(), 4);
    let mut other = chat();
    other["model"] = "n".into();
    assert_eq!(status("/v1/chat/completions", other), 404);
    let no_key = request(server.address(), "POST", "/v1/embeddings", &[JSON], b"{}").expect("answers");
    assert_eq!(no_key.status, 401);
}

#[test]
fn a_call_that_is_held_is_counted_and_missed_when_its_other_side_leaves() {
    let server = server();
    server.set(|_| {
        Reply::at(Pace {
            holds_after: Some(1),
            ..Pace::default()
        })
    });
    let body = streamed(chat()).to_string();
    let ask = || {
        let mut stream = TcpStream::connect(server.address()).expect("connects");
        let length = body.len();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nAuthorization: Bearer k\r\nContent-Length: {length}\r\n\r\n"
        );
        stream
            .write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())
            .expect("is sent");
        stream
    };
    let (one, mut other) = (ask(), ask());
    wait_until("both are there", SOON, || server.calls() == 2);
    drop(one);
    wait_until("one is gone", SOON, || {
        (server.calls(), server.abandoned()) == (1, 1)
    });
    server.release();
    wait_until("the other is answered", SOON, || server.calls() == 0);
    let mut text = [0; 4_096];
    let count = other.read(&mut text).expect("answers");
    assert!(String::from_utf8_lossy(&text[..count]).contains("Hel"));
    assert_eq!(
        (server.abandoned(), server.most_calls(), server.connections()),
        (1, 2, 1)
    );
}

#[test]
fn a_stream_ends_as_it_is_told_to() {
    let server = server();
    let got = |end: End| {
        let pace = Pace {
            is_unframed: true,
            part_bytes: Some(3),
            is_chatty: true,
            ..Pace::default()
        };
        server.set(move |_| Reply::Say(Said::default(), pace.clone(), end.clone()));
        let body = streamed(chat()).to_string();
        request(
            server.address(),
            "POST",
            "/v1/chat/completions",
            &[JSON, KEY],
            body.as_bytes(),
        )
        .map(|answer| answer.text())
    };
    let counts = |end| got(end).map(|text| events(&text).len()).ok();
    assert_eq!(counts(End::Whole), Some(7));
    assert_eq!(counts(End::NoDone), Some(6));
    assert_eq!(counts(End::Short(2)), Some(3));
    assert_eq!(counts(End::Cut(0)), Some(1));
    assert_eq!(counts(End::Event(1, json!({"error": {}}))), Some(3));
    assert_eq!(counts(End::Reset(1)), None);
}
