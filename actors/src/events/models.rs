//! Calls of models: how many, how they ended, how long they took, what they used (contract 8.5).
//!
//! Neighbours: the block worker emits one per call, also of one that was given up. Labels are keys of the settings and closed
//! sets; what was asked and answered is in none of it.

use std::sync::Arc;

use std::time::Duration;

use caf_protocol::assignment::Identity;
use caf_protocol::model_call::{CallFacts, CallStatus, ModelTarget};

use super::{Event, Level};
use crate::clock::whole_ms;
use crate::metrics::{Metric, MetricKind};

/// Upper bounds of times in milliseconds: from a cached answer of a small local model to the longest answers of large ones.
const CALL_BUCKETS_MS: &[u64] = &[
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000,
];
/// The same until something is to be seen.
const FIRST_TOKEN_BUCKETS_MS: &[u64] = &[25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000];

/// Calls.
pub static CALLS: Metric = Metric {
    name: "worker_llm_calls_total",
    help: "Calls of models by entry of the settings (providers) and how they ended: success; rate_limited, refused for there being \
           too many; error, any other way, given up and cancelled included.",
    labels: &["provider", "status"],
    kind: MetricKind::Counter,
};

/// Tokens.
pub static TOKENS: Metric = Metric {
    name: "worker_llm_tokens_total",
    help: "Tokens as providers count them, sent (input) and received (output); of failed calls too, where the provider says it.",
    labels: &["provider", "direction"],
    kind: MetricKind::Counter,
};

/// What calls cost.
pub static COST: Metric = Metric {
    name: "worker_llm_cost_total",
    help: "Cost of calls by their tokens and the prices of the settings, in the currency of those.",
    labels: &["provider"],
    kind: MetricKind::Counter,
};

/// How long calls took.
pub static CALL_DURATION: Metric = Metric {
    name: "worker_llm_call_duration_seconds",
    help: "Time from the beginning of a call, connecting included and waiting for our own limits not, to its end.",
    labels: &["provider", "status"],
    kind: MetricKind::Seconds(CALL_BUCKETS_MS),
};

/// How long the first token took.
pub static FIRST_TOKEN: Metric = Metric {
    name: "worker_llm_first_token_seconds",
    help: "Time from the beginning of a call to the first token of a streamed answer.",
    labels: &["provider"],
    kind: MetricKind::Seconds(FIRST_TOKEN_BUCKETS_MS),
};

/// A call ended, `took` after it began.
pub fn called(
    identity: &Arc<Identity>,
    target: &ModelTarget,
    facts: &CallFacts,
    status: CallStatus,
    took: Option<Duration>,
) -> Event {
    let (provider, status) = (&*target.listed_as, status.as_str());
    let mut event = Event::new(Level::Debug, "Model called")
        .of(identity)
        .with("provider", provider)
        .with("model", &*target.model)
        .with("llm_call_status", status)
        .measuring(CALLS.one(&[provider, status]));
    if let Some(took) = took {
        let sample = CALL_DURATION.sample(&[provider, status], took.as_secs_f64());
        event = event.with("duration_ms", whole_ms(took)).measuring(sample);
    }
    if let Some(first) = facts.first_token {
        let sample = FIRST_TOKEN.sample(&[provider], first.as_secs_f64());
        event = event.with("first_token_ms", whole_ms(first)).measuring(sample);
    }
    let cost = facts.cost.amount();
    let tokens = [
        ("input", "input_tokens", facts.usage.input),
        ("output", "output_tokens", facts.usage.output),
    ];
    for (direction, field, tokens) in tokens {
        let Some(tokens) = tokens else { continue };
        // Exact up to 2^53 tokens: nobody sends as many.
        let sample = TOKENS.sample(&[provider, direction], tokens as f64);
        event = event.with(field, tokens).measuring(sample);
    }
    if cost > 0.0 {
        event = event.with("cost", cost).measuring(COST.sample(&[provider], cost));
    }
    event
}
