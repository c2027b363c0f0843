//! One question to the policy store: a GET with a bounded answer within a bounded time, without redirects.
//!
//! Neighbours: [`super`] asks it for each question. Believes nothing that it is told: what is no policy is refused whole.

use std::io;
use std::time::Duration;

use caf_actors::errors::chain;
use caf_actors::mask::mask_text;
use caf_actors::settings::rules::Rules;
use caf_actors::settings::tenants::is_dots;
use caf_actors::settings::{PolicyStoreSettings, TenantOverride};
use caf_actors::tenants::Answer;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, ETAG, HeaderValue, IF_NONE_MATCH, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

use crate::trust;

/// Most bytes of an answer: a policy is a few hundred.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Longest ETag that is remembered; with a longer one the whole policy is asked for again.
const MAX_ETAG_BYTES: usize = 256;
/// Most characters of a reason in the log.
const MAX_REASON_CHARS: usize = 256;
/// How long a connection stays open for the next question.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What questions say of this program.
const AGENT: &str = concat!("caf-worker/", env!("CARGO_PKG_VERSION"));
/// What of a name stays as it is in a path: everything else could lead somewhere else.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The store cannot be asked, or answers nobody.
    Away(String),
    /// It was known to be away by then.
    NotAsked,
    /// It says something about this tenant that is no policy.
    Unusable(String),
}

/// A way to a store.
pub(super) struct Wire {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    base: String,
    authorization: Option<HeaderValue>,
    limit: Duration,
}

impl Wire {
    /// A way to this store. Connects with the first question.
    pub(super) fn new(settings: &PolicyStoreSettings) -> io::Result<Self> {
        let url = settings.url.as_deref().unwrap_or_default();
        let limit = Duration::from_millis(settings.timeout_ms);
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(limit));
        let tls = trust::client_config(settings.ca_file.as_deref(), "tenants.policy_store.ca_file")?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let token = settings.token.as_ref();
        let authorization = token.map(|token| HeaderValue::try_from(format!("Bearer {}", token.expose())));
        let mut authorization = authorization.transpose().map_err(io::Error::other)?;
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        Ok(Self {
            client: Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .build(connector),
            base: url.trim_end_matches('/').to_owned(),
            authorization,
            limit,
        })
    }

    /// Asks once.
    pub(super) async fn ask(
        &self,
        tenant: &str,
        policy: &str,
        etag: Option<&str>,
    ) -> Result<Answer, Refusal> {
        if is_dots(tenant) {
            // It would lead to another path, however it is written. No such tenant can have a policy there.
            return Ok(Answer::Absent);
        }
        let request = self.request(tenant, policy, etag)?;
        let asked = timeout(self.limit, async {
            let answer = self.client.request(request).await;
            read(answer.map_err(|error| away(&error))?, etag.is_some()).await
        });
        let in_time = asked.await;
        in_time.unwrap_or_else(|_| Err(Refusal::Away("it did not answer in time".to_owned())))
    }

    fn request(
        &self,
        tenant: &str,
        policy: &str,
        etag: Option<&str>,
    ) -> Result<Request<Empty<Bytes>>, Refusal> {
        let encoded = |name| utf8_percent_encode(name, IN_PATH);
        let text = format!(
            "{}/tenants/{}/policies/{}",
            self.base,
            encoded(tenant),
            encoded(policy)
        );
        let uri: Uri = text.parse().map_err(|error| away(&error))?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(etag) = etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
            headers.insert(IF_NONE_MATCH, etag);
        }
        Ok(request)
    }
}

async fn read(answer: Response<hyper::body::Incoming>, had_etag: bool) -> Result<Answer, Refusal> {
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED if had_etag => return Ok(Answer::Unchanged),
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(Answer::Absent),
        status if status.is_redirection() => {
            let why = format!("HTTP status {}: redirects are not followed", status.as_u16());
            return Err(Refusal::Unusable(why));
        }
        // Whoever is asked about, it says the same.
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) => {
            return Err(Refusal::Away(format!("HTTP status {}", status.as_u16())));
        }
        status if status.is_server_error() => {
            return Err(Refusal::Away(format!("HTTP status {}", status.as_u16())));
        }
        status => return Err(Refusal::Unusable(format!("HTTP status {}", status.as_u16()))),
    }
    let etag = answer.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
    let etag = etag
        .filter(|etag| etag.len() <= MAX_ETAG_BYTES)
        .map(str::to_owned);
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => Refusal::Unusable(format!("it is larger than {MAX_ANSWER_BYTES} bytes")),
        false => away(&*error),
    })?;
    let policy = policy_of(&body.to_bytes()).map_err(Refusal::Unusable)?;
    Ok(Answer::Policy(policy, etag))
}

/// A policy by the rules of the settings: the same keys, no others, every value within its range.
fn policy_of(body: &[u8]) -> Result<TenantOverride, String> {
    // A list would be read as the values of the keys in their order.
    if body
        .trim_ascii_start()
        .first()
        .is_some_and(|first| *first != b'{')
    {
        return Err("it is no JSON object".to_owned());
    }
    let policy: TenantOverride =
        serde_json::from_slice(body).map_err(|error| shortened(&error.to_string()))?;
    let mut rules = Rules::default();
    policy.validate(&mut rules);
    match rules.into_broken().first() {
        None => Ok(policy),
        Some(broken) => Err(format!("{} {}", broken.key.join("."), broken.rule)),
    }
}

fn away(error: &dyn std::error::Error) -> Refusal {
    Refusal::Away(shortened(&chain(error)))
}

fn shortened(text: &str) -> String {
    let masked = mask_text(text);
    masked
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_REASON_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(tenant: &str) -> String {
        let settings = PolicyStoreSettings {
            url: Some("http://store:80/base/".to_owned()),
            ..PolicyStoreSettings::default()
        };
        let wire = Wire::new(&settings).expect("a plain address");
        let request = wire.request(tenant, "worker", None).expect("is a path");
        assert_eq!(
            request.uri().authority().map(ToString::to_string).as_deref(),
            Some("store:80")
        );
        request
            .uri()
            .to_string()
            .trim_start_matches("http://store:80")
            .to_owned()
    }

    #[test]
    fn whatever_a_tenant_is_called_the_question_stays_below_its_base() {
        for (tenant, segment) in [
            ("acme.eu", "acme.eu"),
            ("../../admin", "..%2F..%2Fadmin"),
            ("a/b\\c", "a%2Fb%5Cc"),
            ("x?y#z", "x%3Fy%23z"),
            ("u@evil:80", "u%40evil%3A80"),
            ("%2e%2e", "%252e%252e"),
            ("größe 1", "gr%C3%B6%C3%9Fe%201"),
        ] {
            assert_eq!(
                path_of(tenant),
                format!("/base/tenants/{segment}/policies/worker")
            );
        }
    }

    #[test]
    fn what_is_no_policy_is_refused_whole_and_the_reason_says_which_key() {
        assert_eq!(policy_of(b"{}"), Ok(TenantOverride::default()));
        let policy = policy_of(br#"{"weight": 3, "max_running": null}"#).expect("known keys");
        assert_eq!((policy.weight, policy.max_running), (Some(3), None));
        for (body, word) in [
            (&b"{\"max_runing\": 3}"[..], "max_runing"),
            (b"{\"weight\": 0}", "weight must be"),
            (b"{\"rate_per_s\": -1}", "rate_per_s must be"),
            (b"{\"weight\": \"3\"}", "expected u32"),
            (b"{\"weight\": 1, \"weight\": 2}", "duplicate"),
            (b"[1]", ""),
            (b"\xff\x00<html>", ""),
            (b"", "EOF"),
        ] {
            let why = policy_of(body).expect_err("is no policy");
            assert!(why.contains(word), "{why}");
        }
    }
}
