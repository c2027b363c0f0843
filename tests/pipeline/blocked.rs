//! The node in this process, with a real broker: what happens when the pipeline's own thread is blocked.
//!
//! Only a block that misbehaves while its inputs are prepared can do that; the shipped ones do not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use caf_actors::events::Log;
use caf_actors::metrics::Meter;
use caf_protocol::block::{
    Block, BlockContext, BlockFuture, BlockSpec, Inputs, Registry, ResourceClass, RunMode, Task,
};
use caf_protocol::outcome::Failure;
use caf_testkit::client::{HEARTBEAT, RESULT};
use caf_testkit::ports::free_port;
use caf_testkit::{AssignmentBuilder, Client, NatsServer, http};
use caf_worker::exit::Exit;
use caf_worker::settings::Settings;
use caf_worker::settings::in_force::InForce;
use caf_worker::settings::load::Ranks;
use caf_worker::signals::Signals;
use caf_worker::telemetry::metrics::Metrics;
use futures_util::FutureExt;
use serde_json::json;

/// A machine that is busy with other tests still renews three times in this.
const ACK_WAIT_MS: u64 = 2_000;
/// More than twice the lease.
const BLOCKED: Duration = Duration::from_millis(5_000);

/// Preparing `block.pipeline` blocks the thread of whoever prepares; running `block.slot` takes as long, and waits.
struct Blocker(BlockSpec);

struct Waits;

impl Blocker {
    fn new(job_type: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self(BlockSpec {
            job_types: job_type,
            class: ResourceClass::Cpu,
            repeatable: true,
            inputs: true.into(),
            outputs: true.into(),
        }))
    }
}

impl Block for Blocker {
    fn spec(&self) -> &BlockSpec {
        &self.0
    }

    fn prepare(&self, _: Inputs) -> Result<Arc<dyn Task>, Failure> {
        if self.0.job_types == ["block.pipeline"] {
            let until = Instant::now() + BLOCKED;
            while Instant::now() < until {
                std::thread::yield_now();
            }
        }
        Ok(Arc::new(Waits))
    }
}

impl Task for Waits {
    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn run(self: Arc<Self>, _: BlockContext) -> BlockFuture {
        async {
            tokio::time::sleep(BLOCKED).await;
            Ok(Inputs::new())
        }
        .boxed_local()
    }
}

/// Looks for workers.
fn ping(client: &Client) {
    let nats = client.nats();
    let asked = client.run(async move {
        nats.publish_with_reply("$SRV.PING", "who.is.there", "".into())
            .await
    });
    asked.expect("in time").expect("is sent");
}

/// A scrape that was answered while the pipeline's event loop was not.
fn wait_until_seen_blocked(port: u16) -> String {
    let name = "worker_event_loop_blocked_seconds{event_loop=\"pipeline\"} ";
    let blocked = caf_testkit::wait::poll(Duration::from_secs(20), || {
        let text = http::get(port, "/metrics").ok()?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let overdue: f64 = line.parse().ok()?;
        (overdue > 0.5).then_some(text)
    });
    blocked.expect("the pipeline is seen to be blocked")
}

#[test]
fn while_the_pipeline_is_blocked_leases_are_renewed_and_heartbeats_go_on() {
    let nats = NatsServer::start().expect("a broker");
    let client = Client::connect(&nats).expect("a client");
    let answers = client.collect_answers().expect("subscribed");
    let heartbeats = client.collect(&[HEARTBEAT]).expect("subscribed");

    let mut settings = Settings::default();
    settings.nats.url = nats.url();
    settings.nats.ack_wait_ms = ACK_WAIT_MS;
    settings.http.health_addr = "127.0.0.1:0".to_owned();
    settings.http.admin_addr = "127.0.0.1:0".to_owned();
    let metrics_port = free_port();
    settings.http.metrics_addr = format!("127.0.0.1:{metrics_port}");
    settings.worker.heartbeat_interval_ms = 200;
    let (stop, requests) = tokio::sync::mpsc::channel(1);
    let node = std::thread::spawn(move || {
        let registry = Registry::default()
            .with(Blocker::new(&["block.pipeline"]))
            .with(Blocker::new(&["block.slot"]));
        let metrics = Arc::new(Metrics::default());
        let log = Log::discard().with_meter(Arc::clone(&metrics) as Arc<dyn Meter>);
        actix_rt::System::new().block_on(async {
            caf_worker::serve::run(
                &settings,
                &InForce::of(&settings, &Ranks::new()),
                registry.into(),
                Signals::from(requests),
                (&log, Some(metrics)),
                caf_worker::admin::Told::default(),
            )
            .await
        })
    });
    caf_testkit::wait_until("the consumer is there", Duration::from_secs(20), || {
        client.consumer("caf-stream", "caf-workers").is_ok()
    });
    // The first job is held while the second one blocks the pipeline.
    for job_type in ["block.slot", "block.pipeline"] {
        let assignment = AssignmentBuilder::new(job_type, json!({}));
        client.assign(&assignment).expect("published");
    }
    let looked_for = client.collect(&["who.is.there"]).expect("subscribed");
    let scraped = wait_until_seen_blocked(metrics_port);
    let shows = |line: &str| scraped.lines().any(|shown| shown == line);
    assert!(shows("worker_health_status{check=\"pools\"} 0"), "{scraped}");
    // What the pool would have to say is not shown; what is known without it is.
    assert!(!scraped.contains("worker_queue_depth{"), "{scraped}");
    assert!(shows("worker_pool_slots{resource_pool=\"cpu\"} 4"), "{scraped}");
    caf_testkit::wait_until("both results", Duration::from_secs(30), || {
        ping(&client);
        answers.on(RESULT).len() == 2
    });
    // Asked all the time, nearly all of it while nothing else moved.
    let found = looked_for.on("who.is.there");
    assert!(
        found.len() > 100,
        "{} answers to whoever looked for workers",
        found.len()
    );
    let info = client
        .jetstream_api("CONSUMER.INFO.caf-stream.caf-workers", &json!({}))
        .expect("the consumer is there");
    assert_eq!(
        info["delivered"]["consumer_seq"], 2,
        "each message was delivered once"
    );
    assert_eq!(answers.objections(), Vec::<String>::new());
    let beats = heartbeats.on(HEARTBEAT).len();
    let expected = BLOCKED.as_millis() / 200 / 2;
    assert!(beats as u128 > expected, "{beats} heartbeats");

    stop.blocking_send("test").expect("the node listens");
    let exit = node
        .join()
        .expect("the node does not panic")
        .expect("it ends in order");
    assert_eq!(exit, Exit::Ok);
}
