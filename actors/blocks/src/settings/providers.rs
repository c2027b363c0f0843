//! Section `providers`: servers that run models, by the id under which the router chooses them.
//!
//! Neighbours: [`super`] is the settings of the blocks; `crate::models` makes its set of providers of these. All of it may
//! be replaced while the node runs.

use std::collections::BTreeMap;

use caf_protocol::block::ResourceClass;
use caf_protocol::model::Price;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Checks, SettingError};

/// Most entries: each has a line of its own in metrics, and clients of its own on each thread.
const MAX_PROVIDERS: usize = 256;
/// Longest id in bytes, as on the wire; longest name of a model.
const MAX_ID_BYTES: usize = 128;
/// Most calls and tokens in a minute that can be told: what is beyond is no limit.
const MAX_REQUESTS: u64 = 100_000;
const MAX_TOKENS: u64 = 1_000_000_000_000;

/// Section `providers.<id>`: one server that speaks the API of OpenAI, or a compatible one: vLLM, Ollama, llama.cpp, TEI.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderSettings {
    /// `executor.provider_id` of the assignments that it is for, in place of the entry's name. With `*` at its end it is for
    /// all that begin so: `openai:*`. The longest one that fits counts, a whole one first.
    #[serde(default)]
    pub id: Option<String>,
    /// Address before `/chat/completions` and `/embeddings`, such as `https://api.openai.com/v1` or
    /// `http://127.0.0.1:11434/v1`. Trusted as a target, unlike addresses of jobs: no rule of `blocks.http` holds for it.
    pub base_url: String,
    /// Name of the model there. Without it, what stands after the first `:` of the assignment's `executor.provider_id`.
    #[serde(default)]
    pub model: Option<String>,
    /// Name of a secret (`secrets.<name>`) that is sent as `Authorization: Bearer`. It must list `model.call` among its block
    /// types, the server among its destinations, and the tenants whose jobs may use it.
    #[serde(default)]
    pub secret: Option<String>,
    /// Pool of the jobs: `io` for a server elsewhere, `gpu` for one on an accelerator of this host.
    #[serde(default = "ProviderSettings::pool")]
    pub pool: ResourceClass,
    /// Whether answers are asked for piece by piece. Jobs get them in one piece all the same; what it changes is that a
    /// server that stalls is noticed.
    #[serde(default = "ProviderSettings::stream")]
    pub stream: bool,
    /// Most calls at once, of this worker. A job that waits for its turn keeps its slot.
    #[serde(default)]
    pub max_concurrency: Option<u32>,
    /// Most calls that begin within any 60 s, of this worker.
    #[serde(default)]
    pub requests_per_minute: Option<u64>,
    /// Tokens within 60 s after which no call begins, of this worker. They are counted when a call ends.
    #[serde(default)]
    pub tokens_per_minute: Option<u64>,
    /// Longest look-up of the host's name, and longest connecting with TCP and TLS: each, in milliseconds.
    #[serde(default = "ProviderSettings::connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Longest time from the request to the first part of the answer, in milliseconds; only with `stream`.
    #[serde(default = "ProviderSettings::first_token_timeout_ms")]
    pub first_token_timeout_ms: u64,
    /// Longest time without a byte of the answer once it has begun, in milliseconds.
    #[serde(default = "ProviderSettings::idle_timeout_ms")]
    pub idle_timeout_ms: u64,
    /// Longest time of one call from the request to the last byte, in milliseconds. The deadline of the job is a limit too.
    #[serde(default = "ProviderSettings::total_timeout_ms")]
    pub total_timeout_ms: u64,
    /// Largest answer in bytes, as it travels: a token that comes alone takes some 200.
    #[serde(default = "ProviderSettings::max_response_bytes")]
    pub max_response_bytes: u64,
    /// Price of a million tokens of prompts, with at most nine decimal places.
    #[serde(default)]
    pub input_price_per_million: f64,
    /// Price of a million tokens of answers, with at most nine decimal places.
    #[serde(default)]
    pub output_price_per_million: f64,
}

impl ProviderSettings {
    fn pool() -> ResourceClass {
        ResourceClass::Io
    }

    fn stream() -> bool {
        true
    }

    fn connect_timeout_ms() -> u64 {
        5_000
    }

    fn first_token_timeout_ms() -> u64 {
        60_000
    }

    fn idle_timeout_ms() -> u64 {
        30_000
    }

    fn total_timeout_ms() -> u64 {
        600_000
    }

    fn max_response_bytes() -> u64 {
        16 << 20
    }

    /// The server at this address, with defaults for everything else.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            id: None,
            base_url: base_url.into(),
            model: None,
            secret: None,
            pool: Self::pool(),
            stream: Self::stream(),
            max_concurrency: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            connect_timeout_ms: Self::connect_timeout_ms(),
            first_token_timeout_ms: Self::first_token_timeout_ms(),
            idle_timeout_ms: Self::idle_timeout_ms(),
            total_timeout_ms: Self::total_timeout_ms(),
            max_response_bytes: Self::max_response_bytes(),
            input_price_per_million: 0.0,
            output_price_per_million: 0.0,
        }
    }

    /// The id that the entry of this name is for.
    pub fn id<'a>(&'a self, name: &'a str) -> &'a str {
        self.id.as_deref().unwrap_or(name)
    }

    fn check(&self, name: &str, checks: &mut Checks<'_>) {
        let id = self.id(name);
        let key = if self.id.is_some() { "id" } else { "" };
        let is_id = (1..=MAX_ID_BYTES).contains(&id.len())
            && !id.chars().any(char::is_control)
            && !id.trim_end_matches('*').contains('*')
            && !id.ends_with("**");
        let rule = "must be an id of 1 to 128 bytes, with \"*\" at its end at most";
        match key {
            "" => checks.require_here(is_id, rule, format_args!("{id:?}")),
            key => checks.require(key, is_id, rule, format_args!("{id:?}")),
        }
        let rule = "must be an http or https address with a host, and without credentials or fragment";
        checks.require("base_url", base_url(&self.base_url).is_some(), rule, "(hidden)");
        let is_model = |model: &String| is_text(model);
        let rule = "must be a name of 1 to 128 bytes without control characters";
        checks.require(
            "model",
            self.model.as_ref().is_none_or(is_model),
            rule,
            "another value",
        );
        let has_model = self.model.is_some() || id.ends_with('*') || id.contains(':');
        let rule = "must be given where the id has no \":\" before the name of a model";
        checks.require("model", has_model, rule, "nothing");
        let is_pool = self.pool != ResourceClass::Cpu;
        checks.require("pool", is_pool, "must be io or gpu", self.pool.as_str());
        self.check_limits(checks);
    }

    fn check_limits(&self, checks: &mut Checks<'_>) {
        let count = |checks: &mut Checks<'_>, key, value: Option<u64>, most: u64| {
            let holds = value.is_none_or(|value| (1..=most).contains(&value));
            let rule = format!("must be 1 to {most}");
            checks.require(key, holds, &rule, value.unwrap_or_default());
        };
        count(
            checks,
            "max_concurrency",
            self.max_concurrency.map(u64::from),
            100_000,
        );
        count(
            checks,
            "requests_per_minute",
            self.requests_per_minute,
            MAX_REQUESTS,
        );
        count(checks, "tokens_per_minute", self.tokens_per_minute, MAX_TOKENS);
        for (key, value) in [
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("first_token_timeout_ms", self.first_token_timeout_ms),
            ("idle_timeout_ms", self.idle_timeout_ms),
            ("total_timeout_ms", self.total_timeout_ms),
        ] {
            checks.limit_ms(key, value);
        }
        checks.bytes("max_response_bytes", self.max_response_bytes);
        for (key, price) in [
            ("input_price_per_million", self.input_price_per_million),
            ("output_price_per_million", self.output_price_per_million),
        ] {
            let holds = Price::per_million(price).is_some();
            checks.require(
                key,
                holds,
                "must be a price from 0 to 1000000 with at most nine decimal places",
                price,
            );
        }
    }
}

/// Checks every rule of the section that the types cannot express.
///
/// # Errors
/// Every broken rule; never empty.
pub fn check(providers: &BTreeMap<String, ProviderSettings>) -> Result<(), Vec<SettingError>> {
    let mut checks = Checks {
        section: vec!["providers"],
        broken: Vec::new(),
    };
    let mut ids: BTreeMap<&str, &str> = BTreeMap::new();
    for (number, (name, provider)) in providers.iter().enumerate() {
        let rule = format!("must be one of at most {MAX_PROVIDERS}");
        checks.require(name, number < MAX_PROVIDERS, &rule, "one more");
        let taken = ids.insert(provider.id(name), name);
        checks.section(name, |checks| {
            if let Some(other) = taken {
                let rule = format!("must not be for the same id as providers.{other}");
                checks.require("id", false, &rule, provider.id(name));
            }
            provider.check(name, checks);
        });
    }
    if checks.broken.is_empty() {
        Ok(())
    } else {
        Err(checks.broken)
    }
}

/// Whether this can be the name of a model.
pub(crate) fn is_text(text: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// The address before the names of calls, without a slash at its end; nothing for what is none.
pub(crate) fn base_url(text: &str) -> Option<Url> {
    let mut url = Url::parse(text.trim()).ok()?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.host_str().is_some_and(|host| !host.is_empty())
        && url.port() != Some(0)
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none();
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    is_plain.then_some(url)
}
