//! Inputs of all shapes, and what becomes of them.

use caf_protocol::error_code::ErrorCode;

use super::*;
use crate::tests::inputs;

fn sent(shape: Shape, given: Value) -> Result<Value, Failure> {
    let ask = Ask::from_inputs(shape, &inputs(given), "m")?;
    assert_eq!(format!("{ask:?}"), "Ask");
    Ok(serde_json::from_slice(&ask.bytes(false)).expect("is JSON"))
}

#[test]
fn every_form_of_a_prompt_becomes_messages() {
    let user = json!({"role": "user", "content": "x"});
    for (given, messages) in [
        (json!({"text": "x"}), json!([user])),
        (
            json!({"prompt": "x", "metadata": {"a": 1}, "timeout_ms": 5}),
            json!([user]),
        ),
        (json!({"messages": [user]}), json!([user])),
        (
            json!({"messages": "[{\"role\":\"user\",\"content\":\"x\"}]", "prompt": null}),
            json!([user]),
        ),
        (
            json!({"text": "x", "role": "assistant"}),
            json!([{"role": "assistant", "content": "x"}]),
        ),
        (
            json!({"system": "be kind", "prompt": "x"}),
            json!([{"role": "system", "content": "be kind"}, user]),
        ),
        (
            json!({"messages": [
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
                {"role": "assistant", "content": null, "tool_calls": []},
                {"role": "tool", "content": "y", "tool_call_id": "1"},
            ]}),
            json!([
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
                {"role": "assistant", "content": null, "tool_calls": []},
                {"role": "tool", "content": "y", "tool_call_id": "1"},
            ]),
        ),
    ] {
        for shape in [Shape::Chat, Shape::Text] {
            let body = sent(shape, given.clone()).expect("is a request");
            assert_eq!(body, json!({"model": "m", "messages": messages}), "{given}");
        }
    }
}

#[test]
fn parameters_are_passed_on_as_values_also_from_their_string_forms() {
    let given = json!({
        "text": "x", "model": "m", "n": "1", "stream": true, "temperature": "0.7", "top_p": 1, "max_tokens": "16",
        "seed": -3, "stop": ["a"], "tools": "[{\"type\":\"function\"}]", "tool_choice": "auto",
        "response_format": {"type": "json_object"}, "parallel_tool_calls": "false", "user": "u", "top_k": null,
    });
    let expected = json!({
        "model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0.7, "top_p": 1, "max_tokens": 16,
        "seed": -3, "stop": ["a"], "tools": [{"type": "function"}], "tool_choice": "auto",
        "response_format": {"type": "json_object"}, "parallel_tool_calls": false, "user": "u",
    });
    assert_eq!(sent(Shape::Chat, given), Ok(expected));
    let ask = Ask::from_inputs(Shape::Chat, &inputs(json!({"text": "x"})), "m").expect("is one");
    let streamed: Value = serde_json::from_slice(&ask.bytes(true)).expect("is JSON");
    assert_eq!(
        (&streamed["stream"], &streamed["stream_options"]),
        (&json!(true), &json!({"include_usage": true}))
    );
}

#[test]
fn texts_for_embeddings_are_one_or_many() {
    for (given, texts) in [
        (json!({"input": "x"}), json!(["x"])),
        (
            json!({"input": ["x", "y"], "encoding_format": "float"}),
            json!(["x", "y"]),
        ),
        (json!({"text": "x"}), json!(["x"])),
    ] {
        assert_eq!(
            sent(Shape::Embedding, given).expect("is one"),
            json!({"model": "m", "input": texts})
        );
    }
}

#[test]
fn what_is_wrong_is_refused_with_its_field_and_without_its_value() {
    use ErrorCode::{InvalidFormat, InvalidInput, MissingRequiredField};
    let message = |message: Value| json!({"messages": [message]});
    for (shape, given, code, field) in [
        (Shape::Chat, json!({}), MissingRequiredField, "messages"),
        (Shape::Chat, json!({"text": " "}), InvalidInput, "text"),
        (Shape::Chat, json!({"text": 1}), InvalidFormat, "text"),
        (
            Shape::Chat,
            json!({"text": "hunter2", "prompt": "hunter2"}),
            InvalidInput,
            "text",
        ),
        (Shape::Chat, json!({"messages": []}), InvalidInput, "messages"),
        (
            Shape::Chat,
            json!({"messages": ["hunter2"]}),
            InvalidFormat,
            "messages",
        ),
        (
            Shape::Chat,
            message(json!({"role": "hunter2", "content": "x"})),
            InvalidInput,
            "messages",
        ),
        (
            Shape::Chat,
            message(json!({"role": "user"})),
            InvalidFormat,
            "messages",
        ),
        (
            Shape::Chat,
            message(json!({"role": "user", "content": 1})),
            InvalidFormat,
            "messages",
        ),
        (
            Shape::Chat,
            json!({"messages": [{"role": "user", "content": "x"}], "role": "user"}),
            InvalidInput,
            "role",
        ),
        (
            Shape::Chat,
            json!({"text": "x", "role": "hunter2"}),
            InvalidInput,
            "role",
        ),
        (
            Shape::Chat,
            json!({"text": "x", "model": "hunter2"}),
            InvalidInput,
            "model",
        ),
        (Shape::Chat, json!({"text": "x", "n": 2}), InvalidInput, "n"),
        (
            Shape::Chat,
            json!({"text": "x", "logprobs": true}),
            InvalidInput,
            "logprobs",
        ),
        (
            Shape::Chat,
            json!({"text": "x", "hunter2 and more": true}),
            InvalidInput,
            "payload",
        ),
        (
            Shape::Chat,
            json!({"text": "x", "temperature": "hunter2"}),
            InvalidFormat,
            "temperature",
        ),
        (
            Shape::Chat,
            json!({"text": "x", "max_tokens": 1.5}),
            InvalidInput,
            "max_tokens",
        ),
        (
            Shape::Chat,
            json!({"text": "x", "stop": [1]}),
            InvalidFormat,
            "stop",
        ),
        (
            Shape::Chat,
            json!({"text": "x".repeat(MAX_REQUEST_BYTES)}),
            InvalidInput,
            "payload",
        ),
        (Shape::Embedding, json!({}), MissingRequiredField, "input"),
        (Shape::Embedding, json!({"input": []}), InvalidInput, "input"),
        (Shape::Embedding, json!({"input": [""]}), InvalidInput, "input"),
        (
            Shape::Embedding,
            json!({"input": [[1, 2]]}),
            InvalidFormat,
            "input",
        ),
        (
            Shape::Embedding,
            json!({"input": vec!["x"; 2_049]}),
            InvalidInput,
            "input",
        ),
        (
            Shape::Embedding,
            json!({"input": "x", "encoding_format": "base64"}),
            InvalidInput,
            "encoding_format",
        ),
        (
            Shape::Embedding,
            json!({"input": "x", "temperature": 1}),
            InvalidInput,
            "temperature",
        ),
    ] {
        let failure = sent(shape, given).expect_err("is refused");
        assert_eq!(
            (failure.code, &failure.details["field"]),
            (code, &json!(field)),
            "{failure:?}"
        );
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
    }
}
