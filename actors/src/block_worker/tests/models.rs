//! Calls of models: one span and one count each, by what the attempt has written down when it ends, however it ends.

use std::sync::Mutex;

use caf_protocol::assignment::Identity;
use caf_protocol::block::{BlockFuture, Outputs};
use caf_protocol::ids::Correlation;
use caf_protocol::model::{Cost, Price, Usage};
use caf_protocol::model_call::ModelTarget;

use super::*;
use crate::block_worker::model::Calling;
use crate::metrics::{Meter, Sample};
use crate::trace::tests::tracer;
use crate::trace::{Attribute, FinishedSpan, SpanKind};

struct Model;

impl Task for Model {
    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn model(&self) -> Option<ModelTarget> {
        Some(ModelTarget {
            provider_id: "openai:small".into(),
            listed_as: "openai:*".into(),
            model: "small".into(),
        })
    }

    fn run(self: Arc<Self>, _: BlockContext) -> BlockFuture {
        Box::pin(async { Ok(Outputs::new()) })
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Meter for Heard {
    fn record(&self, sample: &Sample) {
        let text = format!("{}{:?} {}", sample.metric.name, sample.labels, sample.value);
        self.0.lock().expect("no panic holds it").push(text);
    }
}

/// The spans and samples of a call during which this was written down.
async fn called(
    write: impl AsyncFnOnce(&BlockContext),
    attempt: Attempt,
) -> (Vec<FinishedSpan>, Vec<String>) {
    let (tracer, kept) = tracer(true, 1.0);
    let heard = Arc::new(Heard::default());
    let log = Log::discard().with_meter(Arc::clone(&heard) as Arc<dyn Meter>);
    let step = tracer
        .execution(None, Instant::now())
        .child("worker.step.execution", SpanKind::Internal);
    let mut context = BlockContext {
        tenant_id: "acme".to_owned(),
        assignment_id: "a-1".to_owned(),
        correlation: Correlation::default(),
        deadline: Instant::now() + Duration::from_secs(60),
        attempt: 0,
        model_call: Default::default(),
        cancel: CancellationToken::new(),
    };
    let calling = Calling::open(&Model, &step, &mut context).expect("calls a model");
    let told = context.correlation.span.clone().expect("is told");
    write(&context).await;
    calling.close(&attempt, &Arc::new(Identity::default()), &log);
    let spans: Vec<_> = kept
        .all()
        .into_iter()
        .filter(|span| span.kind == SpanKind::Client)
        .collect();
    for span in &spans {
        assert_eq!((span.name, &span.context), ("worker.llm.call", &told));
        assert_eq!(span.parent, step.context().map(|context| context.span_id));
    }
    let samples = heard.0.lock().expect("no panic holds it").clone();
    (spans, samples)
}

fn attribute<'a>(span: &'a FinishedSpan, name: &str) -> Option<&'a Attribute> {
    let mut named = span.attributes.iter();
    named.find(|(known, _)| *known == name).map(|(_, value)| value)
}

async fn wait(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_counts_from_when_it_was_sent_with_its_tokens_and_the_first_of_them() {
    let write = async |context: &BlockContext| {
        wait(1_000).await;
        context.model_call.sent();
        wait(200).await;
        context.model_call.first_token();
        wait(300).await;
        let (input, output) = (Some(11), Some(7));
        let price = Price::per_million(31_250.0).expect("is one");
        context
            .model_call
            .used(Usage { input, output }, Cost::of(Some(8), price));
    };
    let (spans, samples) = called(write, Attempt::Done(Ok(Outputs::new()))).await;
    assert_eq!(
        samples,
        [
            r#"worker_llm_calls_total["openai:*", "success"] 1"#,
            r#"worker_llm_call_duration_seconds["openai:*", "success"] 0.5"#,
            r#"worker_llm_first_token_seconds["openai:*"] 0.2"#,
            r#"worker_llm_tokens_total["openai:*", "input"] 11"#,
            r#"worker_llm_tokens_total["openai:*", "output"] 7"#,
            r#"worker_llm_cost_total["openai:*"] 0.25"#,
        ]
    );
    let span = &spans[0];
    let took = span.end.duration_since(span.start).expect("in order");
    assert_eq!(
        (spans.len(), took, span.error),
        (1, Duration::from_millis(500), None)
    );
    for (name, value) in [
        ("provider.id", Attribute::from("openai:small")),
        ("model.id", "small".into()),
        ("llm.call.status", "success".into()),
        ("llm.tokens.input", 11u64.into()),
        ("llm.tokens.output", 7u64.into()),
    ] {
        assert_eq!(attribute(span, name), Some(&value), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_cut_off_counts_with_what_was_known_of_it() {
    let write = async |context: &BlockContext| {
        context.model_call.sent();
        wait(100).await;
    };
    for (attempt, error) in [
        (Attempt::Cancelled, None),
        (Attempt::OutOfTime(Limit::Deadline), Some("CANCELLED_BY_TIMEOUT")),
        (Attempt::Done(Err(failed(NETWORK))), Some("NETWORK_ERROR")),
    ] {
        let (spans, samples) = called(write, attempt).await;
        assert_eq!(
            samples,
            [
                r#"worker_llm_calls_total["openai:*", "error"] 1"#,
                r#"worker_llm_call_duration_seconds["openai:*", "error"] 0.1"#,
            ]
        );
        assert_eq!(attribute(&spans[0], "llm.call.status"), Some(&"error".into()));
        assert_eq!(
            attribute(&spans[0], "error.code"),
            error.map(Attribute::from).as_ref()
        );
        assert_eq!(attribute(&spans[0], "llm.tokens.input"), None);
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_is_a_status_of_its_own_and_what_was_never_sent_is_no_call() {
    let refused = || Attempt::Done(Err(failed(ErrorCode::SystemOverload)));
    let (spans, samples) = called(
        async |context: &BlockContext| context.model_call.rate_limited(),
        refused(),
    )
    .await;
    assert_eq!(
        samples,
        [r#"worker_llm_calls_total["openai:*", "rate_limited"] 1"#]
    );
    assert_eq!(
        attribute(&spans[0], "llm.call.status"),
        Some(&"rate_limited".into())
    );
    let (spans, samples) = called(async |_: &BlockContext| {}, refused()).await;
    assert_eq!((spans, samples), (vec![], vec![]));
}
