//! Exports spans to a collector: a bounded queue, and a thread with an event loop of its own that empties it.
//!
//! Neighbours: the pipeline hands finished spans to a queue, which never waits; `otlp` gives them the form of OTLP,
//! `wire` sends that. Every span is counted once: exported, failed, or dropped because the queue was full. Nothing else
//! of the node waits for a collector but a shutdown, for as long as the settings say. Not the exporters of
//! `opentelemetry-otlp`: those read the environment by themselves, keep to themselves what a collector refused, and leave
//! to each retry how long a shutdown takes.

mod otlp;
mod wire;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caf_actors::events::Log;
use caf_actors::events::tracing::{self as events, SpanCounts, SpanOutcome};
use caf_actors::trace::{FinishedSpan, SpanSink, Tracer};
use caf_protocol::block::CancellationToken;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::DropGuard;

use crate::settings::origin::shown_endpoint;
use crate::settings::tracing::{OtlpProtocol, Target, TracingSettings};
use crate::telemetry::secrets::Secrets;
use otlp::Resource;
use wire::{Refusal, Wire};

/// Wait before the second try of an export; doubles with each.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// Longest wait between two tries.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Tries of one export: what waits meanwhile is newer, and worth more than this.
const MAX_TRIES: u32 = 5;
/// Time beyond the flush for the thread to say that it is done.
const GRACE: Duration = Duration::from_millis(250);

/// A running export. It ends when this is dropped; [`Traces::stop`] waits for it.
pub struct Traces {
    /// Opens the spans that are exported here.
    pub tracer: Tracer,
    /// Stops it when dropped.
    stop: DropGuard,
    stopped: oneshot::Receiver<()>,
    flush: Duration,
    counts: Arc<Counts>,
    log: Log,
}

/// Takes spans in for the exporter.
struct Queue {
    sender: mpsc::Sender<FinishedSpan>,
    counts: Arc<Counts>,
    log: Log,
}

/// Spans by what became of them.
#[derive(Default)]
struct Counts {
    made: AtomicU64,
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn now(&self) -> SpanCounts {
        SpanCounts {
            exported: self.exported.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    /// What nothing has become of yet is given up: nobody sends it any more.
    fn settle(&self) -> u64 {
        let SpanCounts {
            exported,
            dropped,
            failed,
        } = self.now();
        let settled = exported + dropped + failed;
        let left = self.made.load(Ordering::Relaxed).saturating_sub(settled);
        self.failed.fetch_add(left, Ordering::Relaxed);
        left
    }
}

impl SpanSink for Queue {
    fn take(&self, span: FinishedSpan) {
        self.counts.made.fetch_add(1, Ordering::Relaxed);
        if self.sender.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            self.log.emit(events::spans(SpanOutcome::Dropped, 1));
        }
    }
}

impl Traces {
    /// Starts the thread. Connects when there is something to send. No span holds one of these `secrets`.
    ///
    /// # Errors
    /// When the authorities cannot be read, or the system gives no thread.
    pub fn start(settings: &TracingSettings, secrets: &Secrets, log: &Log) -> io::Result<Self> {
        let target = settings.target();
        let wire = Wire::new(&target, settings)?;
        let (sender, receiver) = mpsc::channel(settings.queue_size);
        let counts = Arc::new(Counts::default());
        let queue = Queue {
            sender,
            counts: Arc::clone(&counts),
            log: log.clone(),
        };
        let stop = CancellationToken::new();
        let (done, stopped) = oneshot::channel();
        let exporter = Exporter {
            wire,
            resource: Resource::of(settings, log.worker_id(), secrets.clone()),
            receiver,
            batch_size: settings.batch_size,
            delay: Duration::from_millis(settings.schedule_delay_ms),
            limit: Duration::from_millis(settings.export_timeout_ms),
            counts: Arc::clone(&counts),
            dropped_before: 0,
            failing: false,
            address: shown_endpoint(&target.url),
            protocol: target.protocol,
            log: log.clone(),
        };
        let flush = Duration::from_millis(settings.flush_timeout_ms);
        spawn(exporter, stop.clone(), done, flush)?;
        tell_started(&target, log);
        Ok(Self {
            tracer: Tracer::new(Arc::new(queue), settings.sampler(), &settings.service_name()),
            stop: stop.drop_guard(),
            stopped,
            flush,
            counts,
            log: log.clone(),
        })
    }

    /// Sends what waits, for as long as the settings allow, and says in the log what became of all spans.
    pub async fn stop(self) {
        let Self {
            tracer,
            stop,
            stopped,
            flush,
            counts,
            log,
        } = self;
        drop(tracer);
        drop(stop);
        let _ = timeout(flush + GRACE, stopped).await;
        let given_up = counts.settle();
        log.emit(events::spans(SpanOutcome::Failed, given_up));
        log.emit(events::export_stopped(counts.now()));
    }
}

fn tell_started(target: &Target, log: &Log) {
    let protocol = match target.protocol {
        OtlpProtocol::Grpc => "grpc",
        OtlpProtocol::HttpProtobuf => "http/protobuf",
    };
    log.emit(events::export_started(protocol, &shown_endpoint(&target.url)));
    for outcome in SpanOutcome::ALL {
        log.emit(events::spans(outcome, 0));
    }
}

/// What a failure most likely comes from: HTTP/2 breaks off at its first frame when the other side speaks HTTP/1.
fn hint(protocol: OtlpProtocol, reason: &str) -> Option<&'static str> {
    let is_other =
        protocol == OtlpProtocol::Grpc && (reason.contains("frame") || reason.contains("connection error"));
    is_other.then_some("does the collector speak HTTP there? worker.tracing.protocol is grpc; the other one is http/protobuf")
}

fn spawn(
    exporter: Exporter,
    stop: CancellationToken,
    done: oneshot::Sender<()>,
    flush: Duration,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()?;
    std::thread::Builder::new()
        .name("traces".to_owned())
        .spawn(move || {
            runtime.block_on(exporter.run(stop, flush));
            let _ = done.send(());
            // A name that is being looked up must not keep the process.
            runtime.shutdown_background();
        })?;
    Ok(())
}

/// Empties the queue.
struct Exporter {
    wire: Wire,
    resource: Resource,
    receiver: mpsc::Receiver<FinishedSpan>,
    batch_size: usize,
    /// Longest wait of a batch that does not fill up.
    delay: Duration,
    /// Longest time of one export with all its tries.
    limit: Duration,
    counts: Arc<Counts>,
    /// Spans that had been dropped when the log was last told.
    dropped_before: u64,
    /// Whether the log was told that spans are being lost.
    failing: bool,
    /// The collector's, for the log.
    address: String,
    protocol: OtlpProtocol,
    log: Log,
}

impl Exporter {
    /// Exports until it is told to stop, and then for as long as the flush may take. What is in hand by then is counted by
    /// [`Counts::settle`].
    async fn run(mut self, stop: CancellationToken, flush: Duration) {
        let over = async {
            stop.cancelled().await;
            sleep(flush).await;
        };
        tokio::select! {
            () = over => {}
            () = self.export_all(&stop) => {}
        }
    }

    async fn export_all(&mut self, stop: &CancellationToken) {
        while let Some(batch) = self.next_batch(stop).await {
            self.export(batch).await;
        }
    }

    /// A batch that is full, or whose time is over; after the stop whatever is there. Nothing when no more spans will come.
    async fn next_batch(&mut self, stop: &CancellationToken) -> Option<Vec<FinishedSpan>> {
        let mut batch = Vec::new();
        let mut end = None;
        while batch.len() < self.batch_size {
            let room = self.batch_size - batch.len();
            let waiting = async {
                match end {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled(), if !self.receiver.is_closed() => self.receiver.close(),
                taken = self.receiver.recv_many(&mut batch, room) => match taken {
                    0 => break,
                    _ => end = end.or_else(|| Some(Instant::now() + self.delay)),
                },
                () = waiting => break,
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    async fn export(&mut self, batch: Vec<FinishedSpan>) {
        let count = batch.len() as u64;
        let request = self.resource.request(batch);
        let ended = timeout(self.limit, self.send(request)).await;
        let ended = ended.unwrap_or_else(|_| Err("the collector did not take the spans in time".to_owned()));
        let (failed, reason) = match ended {
            Ok(None) => (0, None),
            Ok(Some(refused)) => (refused.spans.min(count), Some(refused.reason)),
            Err(reason) => (count, Some(reason)),
        };
        let exported = count - failed;
        self.counts.exported.fetch_add(exported, Ordering::Relaxed);
        self.counts.failed.fetch_add(failed, Ordering::Relaxed);
        self.log.emit(events::spans(SpanOutcome::Exported, exported));
        self.log.emit(events::spans(SpanOutcome::Failed, failed));
        self.tell(reason);
    }

    /// Tries until the collector has taken it, or will not. Returns what it refused of it.
    async fn send(&mut self, request: otlp::Request) -> Result<Option<wire::Partly>, String> {
        let mut wait = FIRST_RETRY;
        for attempt in 1.. {
            match self.wire.send(&request).await {
                Ok(refused) => return Ok(refused),
                Err(Refusal::Final(reason)) => return Err(reason),
                Err(Refusal::Later(reason)) if attempt >= MAX_TRIES => return Err(reason),
                Err(Refusal::Later(_)) => {}
            }
            sleep(wait).await;
            wait = wait.saturating_mul(2).min(LONGEST_RETRY);
        }
        Ok(None)
    }

    /// One line when spans begin to be lost, one when they are not any more.
    fn tell(&mut self, reason: Option<String>) {
        let counts = self.counts.now();
        let newly_dropped = counts.dropped > self.dropped_before;
        self.dropped_before = counts.dropped;
        let overflow = || newly_dropped.then(|| "more spans were made than could be exported".to_owned());
        match (reason.or_else(overflow), self.failing) {
            (Some(reason), false) => {
                let hint = hint(self.protocol, &reason);
                self.log
                    .emit(events::export_failing(&self.address, &reason, hint, counts));
            }
            (None, true) => self.log.emit(events::export_recovered(counts)),
            (Some(_), true) => return,
            (None, false) => return,
        }
        self.failing = !self.failing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_speaks_http_is_hinted_at_and_one_that_is_away_is_not() {
        let broken = "client error (SendRequest): connection error: stream closed because of a broken pipe";
        for reason in [broken, "http2 error: frame with invalid size"] {
            assert!(hint(OtlpProtocol::Grpc, reason).is_some(), "{reason}");
            assert_eq!(hint(OtlpProtocol::HttpProtobuf, reason), None);
        }
        let away = "client error (Connect): tcp connect error: Connection refused";
        assert_eq!(hint(OtlpProtocol::Grpc, away), None);
    }
}
