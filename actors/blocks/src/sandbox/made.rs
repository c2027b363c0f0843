//! Makes outputs up that fit the schema of a block, and the failures and delays that the contract names (6.9).
//!
//! Neighbours: [`super`] marks what comes out. Pure: the same draws make the same outputs. Repeats of the inputs only what
//! real outputs repeat: path and content type.

use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use caf_protocol::approval::{Answer, ApprovalId, Decision, Way};
use caf_protocol::block::{Inputs, Outputs};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use caf_protocol::timestamp::iso_micros;
use serde_json::{Value, json};

use super::Play;
use super::chance::Chance;
use crate::inputs::base64;

/// What made-up times are counted from: 1 January 2026, in seconds since the Unix epoch. No clock is looked at.
const BEGINNING_S: u64 = 1_767_225_600;
/// Made-up times lie within a day.
const DAY_S: u64 = 86_400;

/// The contract's range of delays in milliseconds; nothing for what takes the time it takes.
pub(super) fn delay_ms(play: Play) -> Option<RangeInclusive<u64>> {
    match play {
        Play::AsItIs | Play::Chat | Play::Text | Play::Embedding => None,
        Play::Http => Some(100..=500),
        Play::Put | Play::Get | Play::Delete => Some(20..=200),
        Play::Sql => Some(30..=300),
        Play::Human => Some(1_000..=5_000),
    }
}

/// What an attempt that fails by chance says.
pub(super) fn failure(play: Play) -> Failure {
    let code = match play {
        Play::Http | Play::Chat | Play::Text | Play::Embedding => ErrorCode::NetworkError,
        Play::Get => ErrorCode::ResourceUnavailable,
        Play::AsItIs | Play::Put | Play::Delete | Play::Sql | Play::Human => ErrorCode::ExecutionFailed,
    };
    Failure::new(code, "the sandbox was told to fail this attempt").with("sandbox", true.into())
}

/// Outputs of a job with these inputs, which its block has accepted.
pub(super) fn outputs(play: Play, inputs: &Inputs, chance: &mut Chance) -> Outputs {
    let outputs = match play {
        Play::AsItIs => json!({}),
        Play::Human => return approval(false, chance),
        Play::Http => http(inputs, chance),
        Play::Put => put(inputs, chance),
        Play::Get => get(inputs, chance),
        Play::Delete => json!({"path": inputs.get("path"), "deleted": true}),
        Play::Sql => sql(inputs, chance),
        Play::Chat | Play::Text | Play::Embedding => model(play, inputs, chance),
    };
    match outputs {
        Value::Object(outputs) => outputs,
        _ => Outputs::new(),
    }
}

/// What people who do not exist have decided.
pub(super) fn approval(rejected: bool, chance: &mut Chance) -> Outputs {
    let words = [word(chance), word(chance), word(chance), word(chance)].concat();
    let id = ApprovalId::parse(&words).expect("four words of 16 hexadecimal digits are an id");
    let decision = Decision {
        decision: if rejected {
            Answer::Rejected
        } else {
            Answer::Approved
        },
        by: "sandbox".to_owned(),
        comment: Some("nobody was asked: the job was only rehearsed".to_owned()),
        at: (BEGINNING_S + chance.below(DAY_S)) * 1_000,
        via: Way::Api,
    };
    decision.outputs(&id)
}

fn word(chance: &mut Chance) -> String {
    format!("{:016x}", chance.next())
}

fn time(chance: &mut Chance) -> String {
    let at = Duration::from_secs(BEGINNING_S + chance.below(DAY_S));
    iso_micros(SystemTime::UNIX_EPOCH + at)
}

fn http(inputs: &Inputs, chance: &mut Chance) -> Value {
    let is_head = inputs
        .get("method")
        .and_then(Value::as_str)
        .is_some_and(|method| method.eq_ignore_ascii_case("HEAD"));
    let body = json!({"sandbox": true, "id": word(chance)}).to_string();
    json!({
        "status_code": 200,
        "headers": {"content-type": "application/json", "x-sandbox": "true"},
        "body": if is_head { String::new() } else { body },
        "latency_ms": 100 + chance.below(401),
    })
}

fn put(inputs: &Inputs, chance: &mut Chance) -> Value {
    let size = size_of(inputs);
    let mut outputs = json!({
        "path": inputs.get("path"),
        "size": size,
        "size_bytes": size,
        "created": time(chance),
    });
    if let Some(content_type) = inputs.get("content_type").filter(|value| !value.is_null()) {
        outputs["content_type"] = content_type.clone();
    }
    outputs
}

/// How many bytes would have been written.
fn size_of(inputs: &Inputs) -> usize {
    let present = |name| inputs.get(name).filter(|value: &&Value| !value.is_null());
    let is_base64 = inputs
        .get("encoding")
        .and_then(Value::as_str)
        .is_some_and(|encoding| encoding.eq_ignore_ascii_case("base64"));
    match present("content").or_else(|| present("data")) {
        Some(Value::String(text)) if is_base64 => base64("content", text).map_or(0, |bytes| bytes.len()),
        Some(Value::String(text)) => text.len(),
        Some(other) => other.to_string().len(),
        None => 0,
    }
}

fn get(inputs: &Inputs, chance: &mut Chance) -> Value {
    let content = format!("sandbox content {}\n", word(chance));
    json!({
        "path": inputs.get("path"),
        "size": content.len(),
        "size_bytes": content.len(),
        "content": content,
        "encoding": "text",
        "modified": time(chance),
    })
}

/// Vectors have this many numbers.
const DIMENSIONS: u64 = 8;

fn model(play: Play, inputs: &Inputs, chance: &mut Chance) -> Value {
    let usage = json!({"input_tokens": 1 + chance.below(100), "output_tokens": 1 + chance.below(100)});
    let text = format!("sandbox answer {}", word(chance));
    match play {
        Play::Embedding => {
            let texts = inputs.get("input").or_else(|| inputs.get("text"));
            let count = texts.and_then(Value::as_array).map_or(1, Vec::len);
            let mut vector = || {
                (0..DIMENSIONS)
                    .map(|_| json!(chance.below(1_000)))
                    .collect::<Vec<_>>()
            };
            let vectors: Vec<_> = (0..count).map(|_| vector()).collect();
            json!({"embeddings": vectors, "model": "sandbox", "usage": {"input_tokens": usage["input_tokens"]}})
        }
        Play::Chat => json!({
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "model": "sandbox",
            "usage": usage,
        }),
        _ => json!({"text": text, "finish_reason": "stop", "model": "sandbox", "usage": usage}),
    }
}

fn sql(inputs: &Inputs, chance: &mut Chance) -> Value {
    let text = inputs.get("query").or_else(|| inputs.get("sql"));
    let first = text.and_then(Value::as_str).unwrap_or_default().trim_start();
    let writes = ["insert", "update", "replace", "merge"].iter().any(|word| {
        let begins = first
            .get(..word.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(word));
        begins && !first.to_ascii_lowercase().contains("returning")
    });
    if writes {
        return json!({"rows": [], "row_count": 0, "columns": [], "affected_rows": 1});
    }
    let count = 1 + chance.below(3);
    let rows: Vec<_> = (1..=count)
        .map(|id| json!({"id": id, "value": word(chance)}))
        .collect();
    json!({"row_count": rows.len(), "rows": rows, "columns": ["id", "value"]})
}
