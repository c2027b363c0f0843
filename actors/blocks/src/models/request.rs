//! What a job asks a model, read and checked before anything is sent, and written as the API wants it.
//!
//! Neighbours: [`super`] prepares an [`Ask`] from inputs; `call` puts the model to it and sends it. Pure. Fields that
//! steer the answer are passed on as they came; one that this worker does not know is refused: it would seem to have an
//! effect.

use caf_protocol::block::Inputs;
use caf_protocol::outcome::Failure;
use serde_json::{Map, Value, json};

use super::Shape;
use crate::inputs::{Fields, invalid_format, invalid_input};

/// Largest request in bytes; larger inputs are no prompt.
const MAX_REQUEST_BYTES: usize = 8 << 20;
/// Most texts of one call that asks for embeddings, as at OpenAI.
const MAX_TEXTS: usize = 2_048;
/// Most messages of one call.
const MAX_MESSAGES: usize = 10_000;
/// Longest name of a field that is repeated to the caller, in bytes.
const MAX_FIELD_BYTES: usize = 64;
/// Who may speak.
const ROLES: [&str; 6] = ["assistant", "developer", "function", "system", "tool", "user"];

/// Of what kind the value of a parameter is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A finite number, or its text.
    Number,
    /// A whole number, or its text.
    Whole,
    /// True or false, or its text.
    Flag,
    /// A text.
    Text,
    /// A list, or its JSON text.
    List,
    /// An object, or its JSON text.
    Object,
    /// A text or a list of texts.
    Texts,
    /// A word, or an object.
    Choice,
}

/// Parameters of answers that are passed on.
const OF_CHAT: [(&str, Kind); 21] = [
    ("frequency_penalty", Kind::Number),
    ("logit_bias", Kind::Object),
    ("max_completion_tokens", Kind::Whole),
    ("max_tokens", Kind::Whole),
    ("min_p", Kind::Number),
    ("parallel_tool_calls", Kind::Flag),
    ("presence_penalty", Kind::Number),
    ("prompt_cache_key", Kind::Text),
    ("reasoning_effort", Kind::Text),
    ("repetition_penalty", Kind::Number),
    ("response_format", Kind::Object),
    ("safety_identifier", Kind::Text),
    ("seed", Kind::Whole),
    ("service_tier", Kind::Text),
    ("stop", Kind::Texts),
    ("temperature", Kind::Number),
    ("tool_choice", Kind::Choice),
    ("tools", Kind::List),
    ("top_k", Kind::Whole),
    ("top_p", Kind::Number),
    ("user", Kind::Text),
];
/// Parameters of embeddings that are passed on.
const OF_EMBEDDING: [(&str, Kind); 2] = [("dimensions", Kind::Whole), ("user", Kind::Text)];
/// Fields that say nothing to a model: the pipeline's, and the caller's own. `stream` is decided by the settings.
const IGNORED: [&str; 8] = [
    "metadata",
    "options",
    "resources",
    "retry",
    "sandbox",
    "stream",
    "stream_options",
    "timeout_ms",
];

/// A request that lacks nothing but whether it streams. `Debug` shows nothing of it.
#[derive(Clone)]
pub(super) struct Ask {
    body: Map<String, Value>,
    /// How many texts embeddings are asked for; 0 of other requests.
    pub(super) texts: usize,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}

impl Ask {
    /// Reads the inputs of a job that asks this model.
    pub(super) fn from_inputs(shape: Shape, inputs: &Inputs, model: &str) -> Result<Self, Failure> {
        let fields = Fields(inputs);
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(model));
        check_model(&fields, model)?;
        let (own, passed): (&[&'static str], &[(&'static str, Kind)]) = match shape {
            Shape::Embedding => (&["encoding_format", "input", "model", "text"], &OF_EMBEDDING),
            Shape::Chat | Shape::Text => (
                &["messages", "model", "n", "prompt", "role", "system", "text"],
                &OF_CHAT,
            ),
        };
        check_names(inputs, own, passed)?;
        let mut texts = 0;
        match shape {
            Shape::Embedding => {
                let input = input(&fields)?;
                texts = input.len();
                body.insert("input".to_owned(), Value::Array(input));
            }
            Shape::Chat | Shape::Text => {
                if fields.whole(&["n"], 1..=1)?.is_some() {
                    // One answer is what comes without it.
                }
                body.insert("messages".to_owned(), Value::Array(messages(&fields)?));
            }
        }
        for &(name, kind) in passed {
            if let Some(value) = parameter(&fields, name, kind)? {
                body.insert(name.to_owned(), value);
            }
        }
        let ask = Self { body, texts };
        if ask.bytes(true).len() > MAX_REQUEST_BYTES {
            return Err(invalid_input(
                "payload",
                "must be at most 8388608 bytes as a request",
            ));
        }
        Ok(ask)
    }

    /// The body of the request.
    pub(super) fn bytes(&self, streams: bool) -> Vec<u8> {
        let mut body = self.body.clone();
        if streams && self.texts == 0 {
            body.insert("stream".to_owned(), json!(true));
            body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
        Value::Object(body).to_string().into_bytes()
    }
}

/// The router has chosen the model with the provider: a job cannot choose another.
fn check_model(fields: &Fields<'_>, model: &str) -> Result<(), Failure> {
    match fields.text(&["model"])? {
        Some(other) if other != model => Err(invalid_input(
            "model",
            "must be the one of the provider that the assignment names, or absent",
        )),
        _ => Ok(()),
    }
}

fn check_names(inputs: &Inputs, own: &[&str], passed: &[(&str, Kind)]) -> Result<(), Failure> {
    let is_known = |name: &str| {
        own.contains(&name) || IGNORED.contains(&name) || passed.iter().any(|(known, _)| *known == name)
    };
    let unknown = inputs
        .iter()
        .find(|(name, value)| !value.is_null() && !is_known(name));
    let Some((name, _)) = unknown else {
        return Ok(());
    };
    // A name that is a text of some length is none.
    let is_name = name.len() <= MAX_FIELD_BYTES
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let rule = "is no parameter that this worker passes on to a provider";
    Err(invalid_input(if is_name { name } else { "payload" }, rule))
}

/// The messages: given as such, or one that is made of a text.
fn messages(fields: &Fields<'_>) -> Result<Vec<Value>, Failure> {
    let given: Vec<_> = ["messages", "prompt", "text"]
        .into_iter()
        .filter(|name| fields.value(&[name]).is_some())
        .collect();
    let mut messages = Vec::new();
    if let Some(system) = fields.text(&["system"])? {
        messages.push(json!({"role": "system", "content": system}));
    }
    match given.as_slice() {
        [] => return Err(Failure::missing("messages").with("or", json!(["prompt", "text"]))),
        ["messages"] => {
            if fields.value(&["role"]).is_some() {
                return Err(invalid_input(
                    "role",
                    "must not stand beside messages: each has its own",
                ));
            }
            let list = fields.array(&["messages"])?.unwrap_or_default();
            if list.is_empty() || list.len() > MAX_MESSAGES {
                return Err(invalid_input("messages", "must be 1 to 10000 messages"));
            }
            for message in &list {
                check_message(message)?;
            }
            messages.extend(list);
        }
        [name] => {
            let text = fields.required_text(&[name])?;
            let role = fields.text(&["role"])?.unwrap_or("user");
            if !ROLES.contains(&role) {
                return Err(invalid_input(
                    "role",
                    "must be the role of a message, such as user",
                ));
            }
            messages.push(json!({"role": role, "content": text}));
        }
        [_, other, ..] => {
            return Err(invalid_input(
                other,
                "must be the only one of messages, prompt and text",
            ));
        }
    }
    Ok(messages)
}

fn check_message(message: &Value) -> Result<(), Failure> {
    let Some(message) = message.as_object() else {
        return Err(invalid_format(
            "messages",
            "must be objects with role and content",
        ));
    };
    let role = message.get("role").and_then(Value::as_str);
    if !role.is_some_and(|role| ROLES.contains(&role)) {
        let rule = "must each have a role: assistant, developer, function, system, tool or user";
        return Err(invalid_input("messages", rule));
    }
    match message.get("content") {
        Some(Value::String(_) | Value::Array(_)) => Ok(()),
        None | Some(Value::Null) if role == Some("assistant") => Ok(()),
        _ => Err(invalid_format(
            "messages",
            "must each have content: a text or a list of parts",
        )),
    }
}

/// The texts that embeddings are asked for.
fn input(fields: &Fields<'_>) -> Result<Vec<Value>, Failure> {
    if fields.value(&["input"]).is_some() && fields.value(&["text"]).is_some() {
        return Err(invalid_input("text", "must not stand beside input"));
    }
    if fields
        .text(&["encoding_format"])?
        .is_some_and(|format| format != "float")
    {
        return Err(invalid_input("encoding_format", "must be float"));
    }
    let Some((name, value)) = fields.value(&["input", "text"]) else {
        return Err(Failure::missing("input"));
    };
    let texts = match value {
        Value::String(_) => vec![value.clone()],
        Value::Array(texts) => texts.clone(),
        _ => return Err(invalid_format(name, "must be a string or a list of strings")),
    };
    if texts.is_empty() || texts.len() > MAX_TEXTS {
        return Err(invalid_input(name, "must be 1 to 2048 strings"));
    }
    if !texts.iter().all(Value::is_string) {
        return Err(invalid_format(name, "must be a string or a list of strings"));
    }
    if texts.iter().any(|text| text.as_str() == Some("")) {
        return Err(invalid_input(name, "must not hold empty strings"));
    }
    Ok(texts)
}

fn parameter(fields: &Fields<'_>, name: &'static str, kind: Kind) -> Result<Option<Value>, Failure> {
    let Some((_, value)) = fields.value(&[name]) else {
        return Ok(None);
    };
    Ok(match kind {
        Kind::Number => Some(number(name, value)?),
        Kind::Whole => whole(name, value).map(Some)?,
        Kind::Flag => Some(json!(fields.flag(&[name], false)?)),
        Kind::Text => fields.text(&[name])?.map(Value::from),
        Kind::List => fields.array(&[name])?.map(Value::Array),
        Kind::Object => fields.object(&[name])?.map(Value::Object),
        Kind::Texts => match value {
            Value::String(_) => Some(value.clone()),
            Value::Array(texts) if texts.iter().all(Value::is_string) => Some(value.clone()),
            _ => return Err(invalid_format(name, "must be a string or a list of strings")),
        },
        Kind::Choice => match value {
            Value::String(_) | Value::Object(_) => Some(value.clone()),
            _ => return Err(invalid_format(name, "must be a string or an object")),
        },
    })
}

fn number(name: &str, value: &Value) -> Result<Value, Failure> {
    let parsed = match value {
        Value::String(text) => serde_json::from_str(text.trim()).unwrap_or(Value::Null),
        other => other.clone(),
    };
    if parsed.is_number() {
        Ok(parsed)
    } else {
        Err(invalid_format(name, "must be a number"))
    }
}

fn whole(name: &str, value: &Value) -> Result<Value, Failure> {
    let parsed = number(name, value).map_err(|_| invalid_format(name, "must be a whole number"))?;
    // A seed may be negative, and so may what stands for "no limit" at some servers.
    if parsed.is_i64() || parsed.is_u64() {
        Ok(parsed)
    } else {
        Err(invalid_input(name, "must be a whole number"))
    }
}

#[cfg(test)]
mod tests;
