//! What the pipeline's settings must obey beyond their types. Each `validate` names the key and the rule.
//!
//! Upper limits are far above sensible use: they catch a wrong unit or a slipped digit before it becomes an empty
//! memory or a timer that never fires.

use std::collections::HashMap;

use caf_protocol::reference::is_bucket_name;
use url::Url;

use super::rules::Rules;
use super::{
    DrainSettings, INTERNAL_BUCKETS, IdempotencySettings, LimitSettings, NatsSettings, NatsTlsSettings,
    OutboxSettings, PayloadRefSettings, PoolsSettings, RetrySettings, SubjectSettings, SupervisionSettings,
};

/// Longest subject or name in bytes; the server allows about as much.
const MAX_NAME_BYTES: usize = 255;
/// A day in milliseconds.
const DAY_MS: u64 = 24 * 3_600 * 1_000;

impl NatsSettings {
    /// Checks addresses, names, times and credentials.
    pub fn validate(&self, rules: &mut Rules) {
        rules.require("url", self.url.split(',').all(is_server_url), URL_RULE);
        for (key, name) in [
            ("stream", &self.stream),
            ("durable", &self.durable),
            ("results_stream", &self.results_stream),
            ("dlq_stream", &self.dlq_stream),
        ] {
            rules.require(key, is_stream_name(name), NAME_RULE);
        }
        let own =
            is_bucket_name(&self.objects_bucket) && !INTERNAL_BUCKETS.contains(&self.objects_bucket.as_str());
        rules.require("objects_bucket", own, OBJECT_BUCKET_RULE);
        let same = "must differ from nats.stream";
        rules.relate(
            "results_stream",
            "stream",
            self.results_stream != self.stream,
            same,
        );
        rules.relate("dlq_stream", "stream", self.dlq_stream != self.stream, same);
        rules.range("ack_wait_ms", self.ack_wait_ms, 1_000..=3_600_000);
        rules.range("max_ack_pending", self.max_ack_pending, 1..=1_000_000);
        rules.range("max_deliver", self.max_deliver, 1..=1_000);
        rules.range("connect_deadline_ms", self.connect_deadline_ms, 0..=DAY_MS);
        rules.range("request_timeout_ms", self.request_timeout_ms, 100..=60_000);
        rules.range("stall_ms", self.stall_ms, 200..=3_600_000);
        rules.require("state_bucket", is_bucket_name(&self.state_bucket), BUCKET_RULE);
        self.validate_credentials(rules);
        rules.section("tls", |rules| self.tls.validate(rules));
        rules.section("subjects", |rules| self.subjects.validate(rules));
    }

    fn validate_credentials(&self, rules: &mut Rules) {
        let both = "user and password go together";
        rules.relate(
            "user",
            "password",
            self.user.is_none() || self.password.is_some(),
            both,
        );
        rules.relate(
            "password",
            "user",
            self.password.is_none() || self.user.is_some(),
            both,
        );
        let given: Vec<&str> = [
            ("url", self.url.contains('@')),
            ("user", self.user.is_some() || self.password.is_some()),
            ("token", self.token.is_some()),
            ("credentials_file", self.credentials_file.is_some()),
            ("nkey_file", self.nkey_file.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, is_given)| is_given.then_some(key))
        .collect();
        if let [first, others @ ..] = given.as_slice() {
            for other in others {
                let rule = format!("only one kind of credentials can be given; nats.{first} has some too");
                rules.relate(other, first, false, rule);
            }
        }
    }
}

impl NatsTlsSettings {
    fn validate(&self, rules: &mut Rules) {
        let both = "cert_file and key_file go together";
        let (cert, key) = (self.cert_file.is_some(), self.key_file.is_some());
        rules.relate("cert_file", "key_file", !cert || key, both);
        rules.relate("key_file", "cert_file", !key || cert, both);
    }
}

impl SubjectSettings {
    fn validate(&self, rules: &mut Rules) {
        let all = [
            ("assign", &self.assign),
            ("ack", &self.ack),
            ("result", &self.result),
            ("heartbeat", &self.heartbeat),
            ("dlq", &self.dlq),
            ("owner", &self.owner),
            ("cancel", &self.cancel),
        ];
        let mut seen = HashMap::new();
        for (key, subject) in all {
            // Requests come one token below.
            let rest = subject.strip_prefix(&self.cancel);
            let token = rest.and_then(|rest| rest.strip_prefix('.'));
            let is_heard = token.is_some_and(|token| !token.contains('.'));
            let rule = "must not be one token below nats.subjects.cancel, where requests to cancel are heard";
            rules.relate(key, "cancel", !is_heard, rule);
            rules.require(key, is_subject(subject), SUBJECT_RULE);
            if let Some(earlier) = seen.insert(subject.as_str(), key) {
                let rule = format!("must differ from nats.subjects.{earlier}");
                rules.relate(key, earlier, false, rule);
            }
        }
    }
}

impl LimitSettings {
    /// Checks that something can be held.
    pub fn validate(&self, rules: &mut Rules) {
        rules.range("max_held", self.max_held, 1..=100_000);
        rules.range("max_held_bytes", self.max_held_bytes, 1_024..=1 << 36);
        rules.range("max_payload_ref_bytes", self.max_payload_ref_bytes, 1..=1 << 30);
    }
}

impl PayloadRefSettings {
    /// Checks that every entry can be a bucket of jobs.
    pub fn validate(&self, rules: &mut Rules) {
        let usable = |bucket: &String| is_bucket_name(bucket) && !INTERNAL_BUCKETS.contains(&bucket.as_str());
        rules.require("buckets", self.buckets.iter().all(usable), OBJECT_BUCKET_RULE);
    }
}

impl PoolsSettings {
    /// Checks that every pool can run something.
    pub fn validate(&self, rules: &mut Rules) {
        for (name, pool) in [("cpu", &self.cpu), ("gpu", &self.gpu), ("io", &self.io)] {
            rules.section(name, |rules| {
                rules.range("max_concurrency", pool.max_concurrency, 1..=1_024);
                rules.range("max_queue_size", pool.max_queue_size.unwrap_or(1), 1..=1_000_000);
            });
        }
    }
}

impl IdempotencySettings {
    /// Checks that something can be remembered.
    pub fn validate(&self, rules: &mut Rules) {
        rules.require("bucket", is_bucket_name(&self.bucket), BUCKET_RULE);
        rules.range("ttl_s", self.ttl_s, 1..=7 * 24 * 3_600);
        rules.range("max_entries", self.max_entries, 1..=10_000_000);
        rules.range("memory_bytes", self.memory_bytes, 1_024..=1 << 32);
    }
}

impl RetrySettings {
    /// Checks that a job is called at least once.
    pub fn validate(&self, rules: &mut Rules) {
        rules.range("max_attempts", self.max_attempts, 1..=100);
    }
}

impl SupervisionSettings {
    /// Checks the budget; 0 restarts ends the node at the first failure.
    pub fn validate(&self, rules: &mut Rules) {
        rules.range("max_restarts", self.max_restarts, 0..=1_000);
        rules.range("window_s", self.window_s, 1..=24 * 3_600);
        rules.range("max_deaths", self.max_deaths, 1..=100);
    }
}

impl DrainSettings {
    /// Checks that the soft limit comes first.
    pub fn validate(&self, rules: &mut Rules) {
        rules.range("soft_s", self.soft_s, 0..=3_600);
        rules.range("hard_s", self.hard_s, 1..=3_600);
        let rule = format!("must not exceed drain.hard_s ({})", self.hard_s);
        rules.relate("soft_s", "hard_s", self.soft_s <= self.hard_s, rule);
    }
}

impl OutboxSettings {
    /// Checks that a few results fit before pulling stops.
    pub fn validate(&self, rules: &mut Rules) {
        rules.range("max_bytes", self.max_bytes, 1 << 20..=1 << 40);
    }
}

const URL_RULE: &str = "must be addresses such as nats://host:4222, separated by commas, with scheme nats, tls, ws \
                        or wss and nothing after the port";
const NAME_RULE: &str =
    "must have 1 to 255 bytes and no spaces, control characters, '.', '*', '>', '/' or '\\'";
const BUCKET_RULE: &str = "must have 1 to 128 letters, digits, '-' or '_'";
const OBJECT_BUCKET_RULE: &str =
    "must have 1 to 128 letters, digits, '-' or '_', and not be a bucket of the worker's own state";
const SUBJECT_RULE: &str = "must be words of visible ASCII characters joined by dots, without '*', '>', spaces or a \
                            leading '$', at most 255 bytes";

/// Whether the broker's client can connect to this. A missing scheme means `nats`.
fn is_server_url(text: &str) -> bool {
    let text = text.trim();
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("nats://{text}")
    };
    Url::parse(&whole).is_ok_and(|url| {
        let is_web = matches!(url.scheme(), "ws" | "wss");
        (is_web || matches!(url.scheme(), "nats" | "tls"))
            && url.host_str().is_some_and(|host| !host.is_empty())
            && url.port() != Some(0)
            && (is_web || matches!(url.path(), "" | "/"))
            && url.query().is_none()
            && url.fragment().is_none()
    })
}

fn is_stream_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\'))
}

fn is_subject(subject: &str) -> bool {
    subject.len() <= MAX_NAME_BYTES
        && !subject.starts_with('$')
        && subject.split('.').all(|word| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>')
        })
}

#[cfg(test)]
mod tests;
