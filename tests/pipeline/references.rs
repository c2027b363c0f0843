//! Jobs whose inputs are kept elsewhere, with a fetcher that does as it is told. Real ones are in `tests/node/large.rs`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use caf_actors::sink::Verdict;
use caf_protocol::block::{BlockContext, RunMode};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use caf_protocol::reference::{Fetch, FetchFuture, Fetchers, Location, Scheme};
use caf_worker::settings::Settings;
use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::rig::{Rig, assignment, in_system};

/// Gives these answers in turn; after the last it never answers.
#[derive(Default)]
struct Scripted {
    answers: Mutex<VecDeque<Result<Bytes, Failure>>>,
    calls: AtomicUsize,
}

impl Scripted {
    fn new(answers: impl IntoIterator<Item = Result<&'static str, ErrorCode>>) -> Arc<Self> {
        let answer = |answer: Result<&'static str, ErrorCode>| {
            answer
                .map(|text| Bytes::from_static(text.as_bytes()))
                .map_err(|code| Failure::new(code, "asked to fail"))
        };
        Arc::new(Self {
            answers: Mutex::new(answers.into_iter().map(answer).collect()),
            calls: AtomicUsize::new(0),
        })
    }

    async fn rig(self: &Arc<Self>) -> Rig {
        let fetchers = Fetchers::default().with(Arc::clone(self) as Arc<dyn Fetch>);
        Rig::start_with_fetchers(Settings::default(), fetchers).await
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

impl Fetch for Scripted {
    fn scheme(&self) -> Scheme {
        Scheme::File
    }

    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn fetch(self: Arc<Self>, _: Location, _: u64, _: BlockContext) -> FetchFuture {
        self.calls.fetch_add(1, SeqCst);
        let answer = self.answers.lock().expect("no panic holds it").pop_front();
        async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
        .boxed_local()
    }
}

fn referring(attempts: u32, deadline_ms: u64) -> Value {
    json!({
        "job": {"type": "probe", "payload_ref": "file:data/x"},
        "options": {"deadline_ms": deadline_ms, "retry": {"max_attempts": attempts}},
    })
}

#[test]
fn inputs_are_fetched_once_and_kept_for_later_attempts() {
    in_system(async {
        let source = Scripted::new([Ok("{\"fail\":\"EXECUTION_FAILED\"}")]);
        let rig = source.rig().await;
        rig.deliver(assignment("a", &referring(3, 30_000)), 1).await;
        rig.settled(1).await;
        assert_eq!((source.calls(), rig.runs()), (1, 3));
        assert_eq!(rig.result_of("a")["retries_used"], 2);
        assert_eq!(rig.counts(), (1, 1, 1));
        rig.stop().await;
    });
}

#[test]
fn what_another_try_can_mend_is_fetched_again_by_the_plan_of_the_job() {
    in_system(async {
        let source = Scripted::new([Err(ErrorCode::NetworkError), Ok("{}")]);
        let rig = source.rig().await;
        rig.deliver(assignment("a", &referring(3, 30_000)), 1).await;
        rig.settled(1).await;
        assert_eq!((source.calls(), rig.runs()), (2, 1));
        let result = rig.result_of("a");
        assert_eq!(
            (&result["status"], &result["retries_used"]),
            (&json!("success"), &json!(1))
        );
        rig.stop().await;
    });
}

#[test]
fn inputs_that_the_block_does_not_take_are_an_error_without_another_try() {
    in_system(async {
        let source = Scripted::new([Ok("{\"refuse\":1}")]);
        let rig = source.rig().await;
        rig.deliver(assignment("a", &referring(3, 30_000)), 1).await;
        rig.settled(1).await;
        assert_eq!((source.calls(), rig.runs()), (1, 0));
        let result = rig.result_of("a");
        assert_eq!(
            (&result["status"], &result["error_code"], &result["retries_used"]),
            (&json!("error"), &json!("INVALID_INPUT"), &json!(0))
        );
        assert_eq!(rig.acks()[0]["status"], "accepted");
        assert_eq!(rig.counts(), (1, 1, 1));
        rig.stop().await;
    });
}

#[test]
fn a_fetch_that_never_ends_is_ended_by_the_deadline() {
    in_system(async {
        let source = Scripted::new([]);
        let rig = source.rig().await;
        rig.deliver(assignment("a", &referring(3, 100)), 1).await;
        rig.settled(1).await;
        assert_eq!(rig.result_of("a")["error_code"], "CANCELLED_BY_TIMEOUT");
        assert_eq!((source.calls(), rig.counts()), (1, (1, 1, 0)));
        rig.stop().await;
    });
}

/// Intake cannot see it: the block worker heeds it.
#[test]
fn a_timeout_among_fetched_inputs_shortens_the_deadline() {
    in_system(async {
        let source = Scripted::new([Ok("{\"wait\":true,\"timeout_ms\":100}")]);
        let rig = source.rig().await;
        rig.deliver(assignment("a", &referring(1, 3_600_000)), 1).await;
        rig.settled(1).await;
        assert_eq!(rig.result_of("a")["status"], "timeout");
        rig.stop().await;
    });
}

#[test]
fn a_job_that_is_cut_off_while_its_inputs_are_fetched_is_handed_back() {
    in_system(async {
        let source = Scripted::new([]);
        let rig = source.rig().await;
        // Nothing of it has run, so that it may run elsewhere although it must not run twice.
        let mut once = referring(1, 30_000);
        once["job"]["type"] = json!("probe.once");
        rig.deliver(assignment("a", &once), 1).await;
        rig.wait("a fetch", |_| source.calls() == 1).await;
        rig.tree().cancel_all.cancel();
        rig.settled(1).await;
        assert_eq!(rig.verdicts()[0].1, Verdict::Nak { delay_ms: 100 });
        assert_eq!(rig.counts(), (1, 0, 0));
        rig.stop().await;
    });
}

#[test]
fn a_reference_that_nobody_here_resolves_is_rejected_before_it_takes_a_slot() {
    in_system(async {
        let source = Scripted::new([]);
        let rig = source.rig().await;
        let mut object = referring(1, 30_000);
        object["job"]["payload_ref"] = json!("nats-obj://inputs/x");
        rig.deliver(assignment("a", &object), 1).await;
        rig.settled(1).await;
        let ack = &rig.acks()[0];
        assert_eq!(
            (&ack["status"], &ack["reason"]),
            (&json!("rejected"), &json!("unsupported_payload_ref"))
        );
        assert_eq!(rig.result_of("a")["error"]["details"]["field"], "job.payload_ref");
        assert_eq!((rig.counts(), source.calls()), ((1, 1, 1), 0));
        rig.stop().await;
    });
}
