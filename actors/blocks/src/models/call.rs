//! One call of a model: its turn, the request, the answer as it comes, and the time that each may take.
//!
//! Neighbours: [`super`] runs it for each attempt; `pace` gives turns, `http::direct` sends, `answer` puts together what
//! comes. Whatever way a call ends, also by being dropped, it is counted and told. Never retries.

use std::future::Future;
use std::time::Duration;

use awc::http::header::{self, HeaderMap, HeaderValue};
use bytes::Bytes;
use caf_protocol::block::{BlockContext, Outputs};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::model::Usage;
use caf_protocol::outcome::Failure;
use caf_protocol::secret::reference::SecretRef;
use caf_protocol::secret::vault::{Borrowed, Target};
use tokio::time::Instant;

use super::answer::{Answer, not_of_the_api};
use super::pace::Turn;
use super::refusal::Refusal;
use super::sse::Events;
use super::{BLOCK_TYPE, ModelTask, Shape};
use crate::http::{Exchange, Server, say_span};

/// Most bytes of a refusal that are read; its code stands at the beginning.
const MAX_REFUSAL_BYTES: u64 = 64 * 1024;
/// What it names in place of an input: no input is at fault.
const PROVIDER_FIELD: &str = "executor.provider_id";
/// The status that says so.
const TOO_MANY: u16 = 429;

/// One attempt, from its turn on.
pub(super) async fn run(task: &ModelTask, context: &BlockContext) -> Result<Outputs, Failure> {
    let turn = task.provider.pace.turn(context).await;
    let turn = turn.inspect_err(|_| context.model_call.rate_limited())?;
    let (headers, borrowed) = headers(task, context)?;
    let mut under_way = UnderWay::new(task, context, turn);
    let total = Duration::from_millis(task.provider.settings.total_timeout_ms);
    let exchange = exchange(&mut under_way, headers);
    let outcome = within(total, "the provider's whole answer", exchange).await;
    borrowed.scrub(under_way.end(outcome.flatten()))
}

/// Headers of the request, and the secret in them.
fn headers(task: &ModelTask, context: &BlockContext) -> Result<(HeaderMap, Borrowed), Failure> {
    let mut headers = HeaderMap::new();
    let accept = if task.streams() {
        "text/event-stream, application/json"
    } else {
        "application/json"
    };
    for (name, value) in [
        (header::ACCEPT, accept),
        (header::ACCEPT_ENCODING, "identity"),
        (header::CONTENT_TYPE, "application/json"),
        (
            header::USER_AGENT,
            concat!("caf-worker/", env!("CARGO_PKG_VERSION")),
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(span) = &context.correlation.span {
        say_span(&mut headers, span);
    }
    let Some(name) = &task.provider.settings.secret else {
        return Ok((headers, Borrowed::default()));
    };
    let reference = SecretRef {
        name: name.clone(),
        prefix: "Bearer ".to_owned(),
    };
    let no_header = || {
        let rule = "the provider's secret cannot be the value of a header";
        Failure::of_field(ErrorCode::ExecutionFailed, PROVIDER_FIELD, rule)
    };
    let target = Target::of_url(task.url()).ok_or_else(no_header)?;
    let lent = task
        .shared
        .vault
        .lend((&reference, PROVIDER_FIELD), (BLOCK_TYPE, context), &target)?;
    let text = format!("{}{}", reference.prefix, lent.value().expose().trim());
    let mut value = HeaderValue::try_from(text).map_err(|_| no_header())?;
    value.set_sensitive(true);
    headers.insert(header::AUTHORIZATION, value);
    Ok((headers, vec![lent].into()))
}

/// Sends the request and receives the answer.
async fn exchange(under_way: &mut UnderWay<'_>, headers: HeaderMap) -> Result<Outputs, Failure> {
    let (task, context) = (under_way.task, under_way.context);
    let settings = &task.provider.settings;
    let server = Server {
        url: task.url(),
        number: task.provider.number,
        generation: task.provider.generation,
        connect_limit: task.provider.connect_limit(),
        max_body_bytes: settings.max_response_bytes,
    };
    let streams = task.streams();
    let body = Bytes::from(task.ask.bytes(streams));
    let post = task
        .shared
        .direct
        .post(server, &context.tenant_id, &headers, &body);
    // A server that does not stream is silent until it has thought.
    let first = Duration::from_millis(match streams {
        true => settings.first_token_timeout_ms,
        false => settings.total_timeout_ms,
    });
    let until_first = under_way.began + first;
    under_way.may_cost = true;
    let answered = until(until_first, "the first part of the provider's answer", post).await?;
    let answer = answered.map_err(|unanswered| {
        under_way.may_cost = unanswered.may_have_arrived;
        unanswered.failure
    })?;
    let idle = Duration::from_millis(settings.idle_timeout_ms);
    let status = answer.status();
    if !(200..300).contains(&status) {
        let retry_after_ms = answer.retry_after_ms();
        // The status is the news; a body that cannot be had changes nothing.
        let body = tokio::time::timeout(idle, answer.receive(MAX_REFUSAL_BYTES)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        under_way.may_cost = false;
        return Err(Refusal::by_status(status, &body, retry_after_ms).failure());
    }
    if answer.content_type() == "text/event-stream" {
        by_events(under_way, answer, (until_first, idle)).await?;
    } else {
        at_once(under_way, answer, settings.max_response_bytes).await?;
    }
    under_way.answer.outputs(task.shape, &task.model, task.ask.texts)
}

/// Reads a stream to its end.
async fn by_events(
    under_way: &mut UnderWay<'_>,
    mut exchange: Exchange,
    (until_first, idle): (Instant, Duration),
) -> Result<(), Failure> {
    if exchange.is_coded() {
        return Err(not_of_the_api("comes in a coding that was not asked for"));
    }
    let mut events = Events::default();
    loop {
        let next = exchange.next();
        let next = match under_way.answer.has_begun {
            false => until(until_first, "the first part of the provider's answer", next).await?,
            true => within(idle, "the next part of the provider's answer", next).await?,
        };
        let Some(bytes) = next else { break };
        for data in events.push(&bytes?) {
            under_way.answer.event(&data)?;
        }
        under_way.note_first();
        if under_way.answer.is_done() {
            // To the end of the body, so that the connection can be used again; who does not end it loses that only.
            let rest = tokio::time::timeout(Duration::from_millis(100), exchange.next()).await;
            drop(rest);
            return Ok(());
        }
    }
    if let Some(data) = events.finish() {
        under_way.answer.event(&data)?;
    }
    Ok(())
}

/// Reads an answer that comes whole: none was asked for piece by piece, or the server does not do so.
async fn at_once(under_way: &mut UnderWay<'_>, exchange: Exchange, max_bytes: u64) -> Result<(), Failure> {
    let body = exchange.receive(max_bytes).await?;
    if !body.trim_ascii_start().starts_with(b"data:") {
        under_way.answer.document(&body)?;
        return Ok(());
    }
    // A stream that is not called one.
    let mut events = Events::default();
    let mut ended = events.push(&body);
    ended.extend(events.finish());
    for data in ended {
        under_way.answer.event(&data)?;
    }
    Ok(())
}

async fn until<T>(end: Instant, what: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout_at(end, work)
        .await
        .map_err(|_| too_slow(what))
}

async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| too_slow(what))
}

/// A limit on one attempt ran out.
fn too_slow(what: &str) -> Failure {
    let text = format!("timeout while waiting for {what}");
    Failure::new(ErrorCode::ConnectionTimeout, text)
}

/// A call that was sent; counted and told when it is over, however.
struct UnderWay<'a> {
    task: &'a ModelTask,
    context: &'a BlockContext,
    turn: Turn,
    began: Instant,
    answer: Answer,
    /// Whether the provider may have begun to work, and counts it.
    may_cost: bool,
    is_over: bool,
}

impl<'a> UnderWay<'a> {
    fn new(task: &'a ModelTask, context: &'a BlockContext, turn: Turn) -> Self {
        context.model_call.sent();
        Self {
            task,
            context,
            turn,
            began: Instant::now(),
            answer: Answer::default(),
            may_cost: false,
            is_over: false,
        }
    }

    fn note_first(&mut self) {
        if self.answer.has_begun {
            self.context.model_call.first_token();
        }
    }

    fn end(&mut self, outcome: Result<Outputs, Failure>) -> Result<Outputs, Failure> {
        let failure = outcome.as_ref().err();
        if failure.is_some_and(|failure| failure.details.get("status_code") == Some(&TOO_MANY.into())) {
            self.context.model_call.rate_limited();
        }
        self.tell();
        outcome
    }

    /// What was used: nothing where no provider can have begun, and unknown where one has and does not say.
    fn usage(&self) -> Usage {
        let mut usage = self.answer.usage;
        if !self.may_cost && usage == Usage::default() {
            usage = Usage {
                input: Some(0),
                output: Some(0),
            };
        }
        // Embeddings have no tokens of an answer.
        if self.task.shape == Shape::Embedding && usage.input.is_some() {
            usage.output = usage.output.or(Some(0));
        }
        usage
    }

    fn tell(&mut self) {
        self.is_over = true;
        let usage = self.usage();
        let cost = self.task.provider.cost(usage);
        self.turn.tokens = usage.input.unwrap_or(0).saturating_add(usage.output.unwrap_or(0));
        self.task.spend(cost);
        // What nobody counted is not told as nothing.
        self.context.model_call.used(self.answer.usage, cost);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.tell();
        }
    }
}
