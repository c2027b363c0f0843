//! Answers of all kinds, whole and broken.

use proptest::prelude::*;

use super::*;
use crate::models::sse::Events;

fn of_stream(text: &[u8], pieces: usize) -> Result<Answer, Broken> {
    let (mut events, mut answer) = (Events::default(), Answer::default());
    for piece in text.chunks(pieces.max(1)) {
        for data in events.push(piece) {
            answer.event(&data)?;
        }
    }
    if let Some(data) = events.finish() {
        answer.event(&data)?;
    }
    Ok(answer)
}

fn stream(documents: &[Value]) -> Vec<u8> {
    let events: Vec<_> = documents
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect();
    (events.concat() + "data: [DONE]\n\n").into_bytes()
}

fn delta(delta: Value, finish_reason: Option<&str>) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], "model": "m"})
}

fn outputs(shape: Shape, answer: Result<Answer, Broken>) -> Result<Value, Failure> {
    let outputs = answer.map_err(Failure::from)?.outputs(shape, "asked", 2)?;
    Ok(Value::Object(outputs))
}

#[test]
fn calls_of_tools_are_put_together_by_their_numbers_or_by_their_ids() {
    for (first, second) in [(json!(0), json!(1)), (json!(null), json!(null))] {
        let part = |index: &Value, id: &str, name: &str, arguments: &str| {
            let mut call = json!({"index": index, "function": {"arguments": arguments}});
            if !id.is_empty() {
                call["id"] = json!(id);
                call["function"]["name"] = json!(name);
            }
            delta(json!({"tool_calls": [call]}), None)
        };
        let text = stream(&[
            part(&first, "c1", "weather", ""),
            part(&first, "", "", "{\"city\":"),
            part(&first, "", "", "\"Bern\"}"),
            part(&second, "c2", "time", "{}"),
            delta(json!({}), Some("tool_calls")),
        ]);
        let message = outputs(Shape::Chat, of_stream(&text, 7)).expect("is whole")["message"].clone();
        let call = |id, name, arguments| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let calls = json!([
            call("c1", "weather", "{\"city\":\"Bern\"}"),
            call("c2", "time", "{}")
        ]);
        assert_eq!(
            message,
            json!({"role": "assistant", "content": null, "tool_calls": calls})
        );
    }
}

#[test]
fn an_answer_begins_with_its_first_word_or_thought_not_with_who_speaks() {
    let mut answer = Answer::default();
    let mut begun_by = |document: Value| {
        answer.document(document.to_string().as_bytes()).expect("is one");
        std::mem::take(&mut answer).has_begun
    };
    assert!(!begun_by(delta(
        json!({"role": "assistant", "content": ""}),
        None
    )));
    assert!(!begun_by(json!({"choices": [], "usage": {"prompt_tokens": 1}})));
    assert!(begun_by(delta(json!({"content": "x"}), None)));
    assert!(begun_by(delta(
        json!({"reasoning_content": "x", "content": null}),
        None
    )));
    assert!(begun_by(delta(
        json!({"tool_calls": [{"index": 0, "id": "1"}]}),
        None
    )));
    assert!(begun_by(delta(json!({}), Some("stop"))));
}

#[test]
fn one_document_and_many_events_say_the_same() {
    let whole = json!({
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hi there"}, "finish_reason": "stop"},
            {"index": 1, "message": {"content": "another"}, "finish_reason": "stop"},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    });
    let mut answer = Answer::default();
    answer.document(whole.to_string().as_bytes()).expect("is one");
    let events = stream(&[
        delta(json!({"role": "assistant", "content": ""}), None),
        delta(json!({"content": "Hi"}), None),
        delta(json!({"content": " there"}), Some("stop")),
        json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
    ]);
    let expected = json!({
        "text": "Hi there", "finish_reason": "stop", "model": "m",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    });
    assert_eq!(outputs(Shape::Text, Ok(answer)), Ok(expected.clone()));
    assert_eq!(outputs(Shape::Text, of_stream(&events, 1)), Ok(expected));
}

#[test]
fn what_is_not_whole_or_not_of_the_api_is_never_an_answer() {
    let deep = format!(
        "data: {{\"choices\":{}{}}}\n\n",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    for text in [
        stream(&[]),
        stream(&[delta(json!({"content": "half"}), None)]),
        b"data: {\"choices\":[{\"delta\":{\"content\":\"hal".to_vec(),
        b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\"},\"finish_reason\":\"stop\"}]}\n\n".to_vec(),
        b"data: {\"usage\":{\"prompt_tokens\":NaN}}\n\n".to_vec(),
        b"<html>hunter2</html>".to_vec(),
        b"data: <html>hunter2</html>\n\n".to_vec(),
        deep.into_bytes(),
        stream(&[delta(json!({"content": {"a": "hunter2"}}), Some("stop"))]),
        stream(&[json!({"choices": "hunter2"})]),
        stream(&[
            delta(json!({"content": "x"}), None),
            json!({"error": {"message": "hunter2"}}),
        ]),
        stream(&[delta(json!({"content": "x"}), Some("error"))]),
    ] {
        let failure = outputs(Shape::Chat, of_stream(&text, 11)).expect_err("is none");
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
        assert!(failure.is_retryable() && failure.blames_provider(), "{failure:?}");
    }
    let many = (0..200).map(|index| delta(json!({"tool_calls": [{"index": index}]}), None));
    let many: Vec<_> = many.collect();
    assert!(outputs(Shape::Chat, of_stream(&stream(&many), 1_000)).is_err());
}

#[test]
fn numbers_of_tokens_that_cannot_be_are_unknown() {
    for (said, input) in [
        (json!(12), Some(12)),
        (json!(0), Some(0)),
        (json!(-1), None),
        (json!(1.5), None),
        (json!("12"), None),
        (json!(1e300), None),
        (json!(u64::MAX), None),
        (json!(null), None),
    ] {
        let mut answer = Answer::default();
        let document = json!({"choices": [], "usage": {"prompt_tokens": said}});
        answer.document(document.to_string().as_bytes()).expect("is one");
        assert_eq!(answer.usage.input, input, "{said}");
    }
    for usage in [json!("hunter2"), json!([1]), json!(7), json!(null)] {
        let mut answer = Answer::default();
        let document = json!({"choices": [], "usage": usage});
        answer.document(document.to_string().as_bytes()).expect("is one");
        assert_eq!(answer.usage, Usage::default());
    }
}

#[test]
fn embeddings_come_in_the_order_of_their_texts_and_all_or_none() {
    let row = |index: usize, first: f64| json!({"index": index, "embedding": [first, 0.25]});
    let of = |rows: &[Value]| {
        let mut answer = Answer::default();
        let document = json!({"data": rows, "usage": {"prompt_tokens": 2}});
        answer.document(document.to_string().as_bytes()).expect("is one");
        outputs(Shape::Embedding, Ok(answer))
    };
    let both = of(&[row(1, 0.1), row(0, -0.5)]).expect("is whole");
    assert_eq!(both["embeddings"], json!([[-0.5, 0.25], [0.1, 0.25]]));
    assert_eq!(
        (&both["model"], &both["usage"]),
        (&json!("asked"), &json!({"input_tokens": 2}))
    );
    for rows in [
        vec![row(0, 0.1)],
        vec![row(0, 0.1), row(0, 0.2)],
        vec![row(0, 0.1), row(2, 0.2)],
        vec![row(0, 0.1), row(1, 0.2), row(2, 0.2)],
        vec![row(0, 0.1), json!({"index": 1, "embedding": []})],
    ] {
        assert!(of(&rows).is_err(), "{rows:?}");
    }
}

proptest! {
    #[test]
    fn it_does_not_matter_how_an_answer_is_cut(
        words in prop::collection::vec("[a-zäß\"\\\\ \n]{0,5}", 0..12),
        pieces in 1_usize..40,
    ) {
        let mut documents: Vec<_> = words.iter().map(|word| delta(json!({"content": word}), None)).collect();
        documents.push(delta(json!({}), Some("stop")));
        let text = stream(&documents);
        let read = outputs(Shape::Text, of_stream(&text, pieces)).expect("is whole");
        prop_assert_eq!(&read["text"], &json!(words.concat()));
    }

    #[test]
    fn bytes_of_any_kind_are_read_without_a_panic_and_never_make_a_whole_answer(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        pieces in 1_usize..40,
    ) {
        prop_assert!(outputs(Shape::Chat, of_stream(&bytes, pieces)).is_err());
        let mut answer = Answer::default();
        let _ = answer.document(&bytes);
    }
}
