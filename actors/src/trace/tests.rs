use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use caf_protocol::assignment::Identity;
use caf_protocol::error_code::ErrorCode;
use caf_protocol::headers::Headers;
use caf_protocol::outcome::Failure;

use super::*;

/// Keeps spans as they come.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Vec<FinishedSpan>>);

impl Kept {
    pub(crate) fn all(&self) -> Vec<FinishedSpan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl SpanSink for Kept {
    fn take(&self, span: FinishedSpan) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }
}

pub(crate) fn tracer(follows_parent: bool, ratio: f64) -> (Tracer, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    let sampler = Sampler {
        follows_parent,
        ratio,
    };
    let sink = Arc::clone(&kept) as Arc<dyn SpanSink>;
    (Tracer::new(sink, sampler, "caf-worker"), kept)
}

fn remote(sampled: bool) -> RemoteTrace {
    RemoteTrace {
        trace_id: TraceId::new([7; 16]).expect("is not zero"),
        span_id: SpanId::new([9; 8]),
        sampled: Some(sampled),
        state: Some("a=1".into()),
    }
}

fn message(header: Option<String>) -> Outgoing {
    let mut headers = Headers::default();
    if let Some(header) = header {
        headers.push(TRACEPARENT, header);
    }
    Outgoing {
        subject: "caf.exec.result.v1".to_owned(),
        headers,
        payload: Bytes::new(),
    }
}

fn attribute(span: &FinishedSpan, name: &str) -> Option<Attribute> {
    let found = span.attributes.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| value.clone())
}

#[tokio::test(start_paused = true)]
async fn spans_form_a_tree_below_the_callers_with_the_times_at_which_things_happened() {
    let (tracer, kept) = tracer(true, 1.0);
    let received = Instant::now();
    tokio::time::advance(Duration::from_millis(20)).await;
    let execution = tracer.execution(Some(&remote(true)), received);
    let step = execution.child("worker.step.execution", SpanKind::Internal);
    tokio::time::advance(Duration::from_millis(30)).await;
    drop(step);
    drop(execution);

    let [step, execution] = <[_; 2]>::try_from(kept.all()).expect("two");
    assert_eq!(
        (execution.parent, execution.parent_is_remote),
        (SpanId::new([9; 8]), true)
    );
    assert_eq!(
        (step.parent, step.parent_is_remote),
        (Some(execution.context.span_id), false)
    );
    assert_eq!(step.context.trace_id, remote(true).trace_id);
    assert_eq!(step.context.state.as_deref(), Some("a=1"));
    let took = |span: &FinishedSpan| span.end.duration_since(span.start).expect("in order");
    assert_eq!(
        (took(&execution), took(&step)),
        (Duration::from_millis(50), Duration::from_millis(30))
    );
    assert!(
        step.start >= execution.start,
        "the wait before it was opened counts"
    );
    assert_eq!(attribute(&execution, "execution.status"), Some("started".into()));
    assert_eq!(attribute(&execution, "service.name"), Some("caf-worker".into()));
}

#[tokio::test]
async fn without_a_caller_each_delivery_begins_a_trace_of_its_own() {
    let (tracer, kept) = tracer(true, 1.0);
    drop((
        tracer.execution(None, Instant::now()),
        tracer.execution(None, Instant::now()),
    ));
    let [one, other] = <[_; 2]>::try_from(kept.all()).expect("two");
    assert_ne!(one.context.trace_id, other.context.trace_id);
    assert_eq!((one.parent, one.parent_is_remote), (None, false));
}

#[tokio::test]
async fn what_is_not_sampled_is_not_recorded_and_others_are_told_so() {
    let (tracer, kept) = tracer(true, 1.0);
    let execution = tracer.execution(Some(&remote(false)), Instant::now());
    let step = execution.child("worker.step.execution", SpanKind::Internal);
    let told = step.context().expect("is told").traceparent();
    assert!(told.ends_with("-00") && told.contains(&"07".repeat(16)), "{told}");
    drop((step, execution));
    assert_eq!(kept.all(), []);
}

#[tokio::test]
async fn while_traces_are_off_nothing_is_told_and_nothing_recorded() {
    let mut span = Tracer::default().execution(Some(&remote(true)), Instant::now());
    span.set("a", "b");
    span.fail(&Failure::deadline());
    let below = span.scope().publishing(Publishing::Result, &message(None));
    assert!(span.context().is_none() && below.context().is_none());
    assert!(Tracer::default().left_behind(&message(None)).context().is_none());
}

#[tokio::test]
async fn a_message_is_published_in_the_span_that_its_header_names_and_once_more_in_another_that_links_to_it()
{
    let (tracer, kept) = tracer(true, 1.0);
    let execution = tracer.execution(None, Instant::now());
    let scope = execution.scope();
    let named = scope.context().expect("is there").publishing("result");
    let message = message(Some(named.traceparent()));
    drop(scope.publishing(Publishing::Result, &message));
    let again = tracer.execution(None, Instant::now());
    drop(again.scope().publishing(Publishing::Result, &message));
    drop(
        tracer
            .left_behind(&message)
            .publishing(Publishing::Result, &message),
    );

    let [first, repeated, left_behind] = <[_; 3]>::try_from(kept.all()).expect("three");
    assert_eq!((first.context.span_id, &first.link), (named.span_id, &None));
    assert_eq!(first.parent, execution.context().map(|context| context.span_id));
    assert_eq!(
        repeated.link.as_ref().map(|link| link.span_id),
        Some(named.span_id)
    );
    assert_eq!(repeated.parent, again.context().map(|context| context.span_id));
    assert_ne!(repeated.context.span_id, named.span_id);
    assert_eq!(
        (left_behind.parent, &left_behind.link),
        (Some(named.span_id), &None)
    );
    assert_eq!(left_behind.context.trace_id, named.trace_id);
}

#[tokio::test]
async fn a_failure_is_told_by_its_code_and_never_by_what_a_job_may_have_put_into_its_words() {
    let (tracer, kept) = tracer(true, 1.0);
    let mut span = tracer.execution(None, Instant::now());
    span.identify(&Identity {
        assignment_id: "a-1".to_owned(),
        tenant_id: "acme".to_owned(),
        replay: 2,
        ..Identity::default()
    });
    let failure = Failure::new(ErrorCode::HttpError, "s3cret").with("status_code", 503.into());
    span.fail(&failure.with("secret", "s3cret".into()).internally("s3cret"));
    drop(span);
    let span = &kept.all()[0];
    for (name, value) in [
        ("assignment.id", "a-1"),
        ("tenant.id", "acme"),
        ("error.code", "HTTP_ERROR"),
        ("error.type", "server_error"),
        ("error.message", ErrorCode::HttpError.sentence()),
    ] {
        assert_eq!(attribute(span, name), Some(value.into()), "{name}");
    }
    assert_eq!(
        attribute(span, "http.response.status_code"),
        Some(Attribute::Number(503))
    );
    assert_eq!(attribute(span, "assignment.replay"), Some(Attribute::Number(2)));
    assert_eq!(span.error, Some(ErrorCode::HttpError.sentence()));
    assert!(!format!("{span:?}").contains("s3cret"));
}

#[tokio::test]
async fn a_span_has_a_bounded_number_of_events_and_counts_the_rest() {
    let (tracer, kept) = tracer(true, 1.0);
    let mut span = tracer.execution(None, Instant::now());
    (0..MAX_EVENTS + 3).for_each(|_| span.event("not confirmed", Vec::new()));
    drop(span);
    let span = &kept.all()[0];
    assert_eq!((span.events.len(), span.dropped_events), (MAX_EVENTS, 3));
}
