//! What a model answers, in the shapes of the OpenAI API.
//!
//! Neighbours: [`super`] sends them. `tests/fixtures/openai/answers.schema.json` judges them. Knows no sockets and no time.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// When the answers were made, in seconds since the Unix epoch: always the same.
const CREATED: u64 = 1_767_225_600;
/// Numbers of an embedding, unless the request says otherwise.
const DIMENSIONS: usize = 4;

/// A call of a tool, in the pieces in which a stream brings its arguments.
#[derive(Debug, Clone, Default)]
pub struct ToolCall {
    /// Its id.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments, JSON as text.
    pub arguments: Vec<String>,
}

/// What is said.
#[derive(Debug, Clone)]
pub struct Said {
    /// The text in the pieces in which a stream brings it.
    pub text: Vec<String>,
    /// Calls of tools; then there is no text.
    pub tool_calls: Vec<ToolCall>,
    /// Why it ends.
    pub finish_reason: String,
    /// Tokens of the prompt and of the answer; nothing: none are told.
    pub usage: Option<(u64, u64)>,
}

impl Default for Said {
    fn default() -> Self {
        Self {
            text: ["Hel", "lo", ", wörld"].map(str::to_owned).to_vec(),
            tool_calls: Vec::new(),
            finish_reason: "stop".to_owned(),
            usage: Some((11, 7)),
        }
    }
}

/// An error as the API words it.
pub fn error(message: &str, kind: &str, code: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

/// The models that are there.
pub fn models(names: &[String]) -> Value {
    let model =
        |name: &String| json!({"id": name, "object": "model", "created": CREATED, "owned_by": "tests"});
    json!({"object": "list", "data": names.iter().map(model).collect::<Vec<_>>()})
}

fn usage((input, output): (u64, u64)) -> Value {
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
}

fn head(is_chat: bool, is_chunk: bool, model: &str) -> Value {
    let (id, object) = match (is_chat, is_chunk) {
        (true, false) => ("chatcmpl-1", "chat.completion"),
        (true, true) => ("chatcmpl-1", "chat.completion.chunk"),
        (false, _) => ("cmpl-1", "text_completion"),
    };
    json!({"id": id, "object": object, "created": CREATED, "model": model})
}

impl Said {
    /// The answer in one piece.
    pub fn whole(&self, is_chat: bool, model: &str) -> Value {
        let mut answer = head(is_chat, false, model);
        let mut choice = json!({"index": 0, "finish_reason": self.finish_reason, "logprobs": null});
        if is_chat {
            let has_text = self.tool_calls.is_empty();
            let text = has_text.then(|| self.text.concat());
            choice["message"] = json!({"role": "assistant", "content": text, "refusal": null});
            if !has_text {
                let call = |call: &ToolCall| {
                    let function = json!({"name": call.name, "arguments": call.arguments.concat()});
                    json!({"id": call.id, "type": "function", "function": function})
                };
                choice["message"]["tool_calls"] = self.tool_calls.iter().map(call).collect();
            }
        } else {
            choice["text"] = self.text.concat().into();
        }
        answer["choices"] = json!([choice]);
        if let Some(tokens) = self.usage {
            answer["usage"] = usage(tokens);
        }
        answer
    }

    /// The answer as a stream brings it: beginning, pieces, end, and the usage if it is asked for. The pieces come with a mark.
    pub fn chunks(&self, is_chat: bool, model: &str, tells_usage: bool) -> Vec<(bool, Value)> {
        let chunk = |choices: Value| {
            let mut chunk = head(is_chat, true, model);
            chunk["choices"] = choices;
            if tells_usage {
                chunk["usage"] = Value::Null;
            }
            chunk
        };
        let of = |delta: Value, end: Option<&str>| {
            let mut choice = json!({"index": 0, "finish_reason": end, "logprobs": null});
            match is_chat {
                true => choice["delta"] = delta,
                false => choice["text"] = delta["content"].as_str().unwrap_or_default().into(),
            }
            chunk(json!([choice]))
        };
        let mut chunks = Vec::new();
        if is_chat {
            chunks.push((false, of(json!({"role": "assistant", "content": ""}), None)));
        }
        if self.tool_calls.is_empty() {
            let pieces = self.text.iter();
            chunks.extend(pieces.map(|piece| (true, of(json!({"content": piece}), None))));
        }
        for (index, call) in self.tool_calls.iter().enumerate() {
            let function = json!({"name": call.name, "arguments": ""});
            let begun = json!({"index": index, "id": call.id, "type": "function", "function": function});
            chunks.push((true, of(json!({"tool_calls": [begun]}), None)));
            for piece in &call.arguments {
                let more = json!({"index": index, "function": {"arguments": piece}});
                chunks.push((true, of(json!({"tool_calls": [more]}), None)));
            }
        }
        chunks.push((false, of(json!({}), Some(&self.finish_reason))));
        if let (true, Some(tokens)) = (tells_usage, self.usage) {
            let mut last = chunk(json!([]));
            last["usage"] = usage(tokens);
            chunks.push((false, last));
        }
        chunks
    }

    /// One embedding for each text, the same for the same text; tokens of the prompt only.
    pub fn embeddings(&self, request: &Value, model: &str) -> Value {
        let texts: Vec<&str> = match &request["input"] {
            Value::Array(texts) => texts.iter().filter_map(Value::as_str).collect(),
            text => text.as_str().into_iter().collect(),
        };
        let count = request["dimensions"]
            .as_u64()
            .map_or(DIMENSIONS, |count| count as usize);
        let is_base64 = request["encoding_format"] == "base64";
        let data = texts.iter().enumerate().map(|(index, text)| {
            let vector = vector_of(text, count);
            let embedding = match is_base64 {
                true => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                    BASE64_STANDARD.encode(bytes).into()
                }
                false => json!(vector),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        });
        let data: Vec<Value> = data.collect();
        let (input, _) = self.usage.unwrap_or_default();
        let mut answer = json!({"object": "list", "model": model, "data": data});
        if self.usage.is_some() {
            answer["usage"] = json!({"prompt_tokens": input, "total_tokens": input});
        }
        answer
    }
}

/// The embedding of a text: eighths, which any float holds exactly.
pub fn vector_of(text: &str, dimensions: usize) -> Vec<f32> {
    let bytes: Vec<u8> = text.bytes().collect();
    let at = |place: usize| bytes.get(place % bytes.len().max(1)).copied().unwrap_or_default();
    (0..dimensions).map(|place| f32::from(at(place)) / 8.0).collect()
}
