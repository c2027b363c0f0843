//! Puts an answer together: from events of a stream, or from one document.
//!
//! Neighbours: `call` gives it what arrives and asks for the result at the end; `sse` finds the events. Pure. What is
//! not whole is a failure: an answer without its end is never returned. Never repeats in a failure what a server sent.

use caf_protocol::block::Outputs;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::model::{MAX_TOKENS, Usage};
use caf_protocol::outcome::Failure;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Shape;
use super::refusal::Refusal;

/// Most calls of tools in one answer: a list that is filled by numbers from outside.
const MAX_TOOL_CALLS: usize = 128;
/// Longest name of a model and longest reason to stop that are passed on, in bytes.
const MAX_WORD_BYTES: usize = 128;
/// What ends a stream.
const DONE: &[u8] = b"[DONE]";

/// Why an answer is not one.
#[derive(Debug)]
pub(super) enum Broken {
    /// It is not of the API; the rule.
    Shape(&'static str),
    /// The server says in it that it failed.
    Refused(Refusal),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Shape(rule) => not_of_the_api(rule),
            Broken::Refused(refusal) => refusal.failure(),
        }
    }
}

/// An answer that the API does not describe. Counts as broken off: the same call may be answered well.
pub(super) fn not_of_the_api(rule: &str) -> Failure {
    Failure::new(ErrorCode::NetworkError, format!("the provider's answer {rule}"))
}

/// An answer, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Answer {
    text: String,
    refusal: String,
    calls: Vec<ToolCall>,
    finish_reason: Option<String>,
    model: Option<String>,
    embeddings: Vec<(usize, Vec<f64>)>,
    pub(super) usage: Usage,
    /// Whether any part of the answer has come.
    pub(super) has_begun: bool,
    is_done: bool,
}

#[derive(Debug, Default)]
struct ToolCall {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

/// One event, or a whole answer.
#[derive(Deserialize)]
struct Document {
    choices: Option<Vec<Choice>>,
    data: Option<Vec<Row>>,
    model: Option<Value>,
    usage: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<u64>,
    #[serde(alias = "delta")]
    message: Option<Message>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Value>,
    refusal: Option<String>,
    /// What it thinks before it answers, under either name: no part of the answer, but it has begun.
    reasoning_content: Option<Value>,
    reasoning: Option<Value>,
    tool_calls: Option<Vec<CallPart>>,
}

#[derive(Deserialize)]
struct CallPart {
    index: Option<u64>,
    id: Option<String>,
    function: Option<FunctionPart>,
}

#[derive(Deserialize)]
struct FunctionPart {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct Row {
    index: Option<usize>,
    embedding: Vec<f64>,
}

impl Answer {
    /// Takes the data of one event.
    pub(super) fn event(&mut self, data: &[u8]) -> Result<(), Broken> {
        if self.is_done {
            return Ok(());
        }
        match data.trim_ascii() {
            b"" => Ok(()),
            DONE => {
                self.is_done = true;
                Ok(())
            }
            data => self.document(data),
        }
    }

    /// Whether the server has said that there is no more.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Takes an event's document, or a whole answer.
    pub(super) fn document(&mut self, data: &[u8]) -> Result<(), Broken> {
        let document: Document = serde_json::from_slice(data)
            .map_err(|_| Broken::Shape("is not the JSON that the API describes"))?;
        if let Some(error) = document.error.filter(|error| !error.is_null()) {
            return Err(Broken::Refused(Refusal::within(&error)));
        }
        if let Some(Value::String(model)) = document.model
            && self.model.is_none()
        {
            self.model = word(&model);
        }
        if let Some(usage) = &document.usage {
            self.count(usage);
        }
        for row in document.data.into_iter().flatten() {
            self.has_begun = true;
            let index = row.index.unwrap_or(self.embeddings.len());
            self.embeddings.push((index, row.embedding));
        }
        for choice in document.choices.into_iter().flatten() {
            if choice.index.unwrap_or(0) == 0 {
                self.choice(choice)?;
            }
        }
        Ok(())
    }

    fn choice(&mut self, choice: Choice) -> Result<(), Broken> {
        if let Some(message) = choice.message {
            let thoughts = [&message.reasoning_content, &message.reasoning];
            self.has_begun |= thoughts
                .into_iter()
                .flatten()
                .any(|thought| !matches!(thought.as_str(), None | Some("")));
            if let Some(content) = &message.content {
                push_text(&mut self.text, content)?;
            }
            self.refusal
                .push_str(message.refusal.as_deref().unwrap_or_default());
            for part in message.tool_calls.into_iter().flatten() {
                self.call(part)?;
            }
        }
        // Who speaks is said before anything is.
        let is_empty = self.text.is_empty() && self.refusal.is_empty() && self.calls.is_empty();
        self.has_begun |= !is_empty || choice.finish_reason.is_some();
        match choice.finish_reason.as_deref() {
            None | Some("") => Ok(()),
            Some("error") => Err(Broken::Refused(Refusal::within(&Value::Null))),
            Some(reason) => {
                self.finish_reason = word(reason);
                Ok(())
            }
        }
    }

    fn call(&mut self, part: CallPart) -> Result<(), Broken> {
        let is_new = part.id.as_ref().is_some_and(|id| !id.is_empty());
        let place = match part.index {
            Some(index) => self.calls.iter().position(|call| call.index == Some(index)),
            // Without numbers, a call begins where an id stands.
            None if is_new => None,
            None => self.calls.len().checked_sub(1),
        };
        let place = match place {
            Some(place) => place,
            None if self.calls.len() < MAX_TOOL_CALLS => {
                self.calls.push(ToolCall {
                    index: part.index,
                    ..ToolCall::default()
                });
                self.calls.len() - 1
            }
            None => return Err(Broken::Shape("calls more tools than the limit")),
        };
        let call = &mut self.calls[place];
        if let Some(id) = part.id.filter(|_| call.id.is_empty()) {
            call.id = id;
        }
        if let Some(function) = part.function {
            call.name.push_str(function.name.as_deref().unwrap_or_default());
            call.arguments
                .push_str(function.arguments.as_deref().unwrap_or_default());
        }
        Ok(())
    }

    /// What comes later is the whole: some servers count in every event.
    fn count(&mut self, usage: &Value) {
        if let Some(input) = tokens(&usage["prompt_tokens"]) {
            self.usage.input = Some(input);
        }
        if let Some(output) = tokens(&usage["completion_tokens"]) {
            self.usage.output = Some(output);
        }
    }

    /// What the job yields, if the answer is whole. `asked` is the model, `texts` how many embeddings were asked for.
    pub(super) fn outputs(&self, shape: Shape, asked: &str, texts: usize) -> Result<Outputs, Failure> {
        let mut outputs = Map::new();
        match shape {
            Shape::Embedding => {
                outputs.insert("embeddings".to_owned(), self.vectors(texts)?);
            }
            Shape::Chat | Shape::Text => {
                let Some(reason) = &self.finish_reason else {
                    return Err(not_of_the_api("ends before the model has finished"));
                };
                match shape {
                    Shape::Chat => outputs.insert("message".to_owned(), self.message()),
                    _ => outputs.insert("text".to_owned(), json!(self.text)),
                };
                if shape == Shape::Text && !self.calls.is_empty() {
                    outputs.insert("tool_calls".to_owned(), self.tool_calls());
                }
                outputs.insert("finish_reason".to_owned(), json!(reason));
            }
        }
        outputs.insert("model".to_owned(), json!(self.model.as_deref().unwrap_or(asked)));
        outputs.insert("usage".to_owned(), json!(self.usage));
        Ok(outputs)
    }

    /// In the order of the texts, one for each.
    fn vectors(&self, texts: usize) -> Result<Value, Failure> {
        let mut rows: Vec<_> = self.embeddings.iter().collect();
        rows.sort_by_key(|(index, _)| *index);
        let is_whole = rows.len() == texts
            && rows.iter().enumerate().all(|(place, (index, _))| *index == place)
            && rows.iter().all(|(_, row)| !row.is_empty());
        if !is_whole {
            return Err(not_of_the_api("has not one embedding for each text"));
        }
        Ok(json!(rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>()))
    }

    fn message(&self) -> Value {
        let has_text = !self.text.is_empty() || (self.calls.is_empty() && self.refusal.is_empty());
        let mut message = json!({
            "role": "assistant",
            "content": if has_text { json!(self.text) } else { Value::Null },
        });
        if !self.calls.is_empty() {
            message["tool_calls"] = self.tool_calls();
        }
        if !self.refusal.is_empty() {
            message["refusal"] = json!(self.refusal);
        }
        message
    }

    fn tool_calls(&self) -> Value {
        let calls = self.calls.iter().map(|call| {
            json!({
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            })
        });
        Value::Array(calls.collect())
    }
}

/// Content is a text, or a list of parts of which those that are texts count.
fn push_text(text: &mut String, content: &Value) -> Result<(), Broken> {
    match content {
        Value::Null => {}
        Value::String(more) => text.push_str(more),
        Value::Array(parts) => {
            for part in parts {
                text.push_str(part["text"].as_str().unwrap_or_default());
            }
        }
        _ => return Err(Broken::Shape("has content that is no text")),
    }
    Ok(())
}

/// A number of tokens that can be believed.
fn tokens(value: &Value) -> Option<u64> {
    value.as_u64().filter(|tokens| *tokens <= MAX_TOKENS)
}

/// A short text that may be passed on.
fn word(text: &str) -> Option<String> {
    let is_word = (1..=MAX_WORD_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
    is_word.then(|| text.to_owned())
}

#[cfg(test)]
mod tests;
