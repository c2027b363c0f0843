//! Discovery: answers who looks for workers, by the NATS services API (ADR-32): `$SRV.PING`, `$SRV.INFO`, `$SRV.STATS`,
//! each also with `.caf-worker` and `.caf-worker.<id>` behind it.
//!
//! Neighbours: reads [`Vitals`] and counts; nothing waits for it, and it waits for nobody. Anybody in the account may ask, as
//! often as they like: so it has a thread, a runtime and a connection of its own, and a bound on what it answers; beyond that
//! it does not listen for a while. The client library's own services are not used: an endpoint of theirs subscribes to
//! its subject, and would take assignments away. Whatever happens here ends neither the worker nor its work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use async_nats::{Event, Message, ServerError, Subscriber};
use caf_protocol::discovery::{
    EndpointInfo, EndpointStats, Info, InfoType, Load, Ping, PingType, SERVICE, Service, Stats, StatsType,
    Verb,
};
use caf_protocol::timestamp::iso_micros;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::claim_store::owner_subject;
use super::connection::{Connection, Manner, connect_in};
use super::is_answerable;
use crate::counts::Counts;
use crate::events::{self, Log};
use crate::settings::{NatsMode, NatsSettings};
use crate::vitals::Vitals;

/// Most questions answered within a second. Each costs some hundredths of a millisecond; whoever watches a fleet asks once in
/// some seconds.
const MOST_PER_SECOND: u32 = 250;
/// How long nobody is listened to after more than that.
const DEAF: Duration = Duration::from_secs(1);
/// Shortest time between two warnings about that.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Questions of one subscription that wait to be read; the client library drops what is beyond. Each may be as large as a
/// message can be.
const MOST_UNREAD: usize = 32;
/// Longest wait for handing one message to the connection.
const SEND_LIMIT: Duration = Duration::from_secs(1);
/// What a worker is, for people.
const DESCRIPTION: &str =
    "Runs execution assignments as blocks. Send none by request: answers go to fixed subjects.";

/// What discovery tells of.
pub struct DiscoveryParts {
    /// Broker settings.
    pub settings: NatsSettings,
    /// Who answers. Its id is the name by which workers ask this one, where they do.
    pub service: Service,
    /// How the worker is.
    pub vitals: Vitals,
    /// Questions of other workers; nothing where they ask none.
    pub questions: Option<Counts>,
    /// Log.
    pub log: Log,
}

/// The running thread.
pub struct Discovery {
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl Discovery {
    /// Starts the thread; nothing, with a line in the log, when the system gives none.
    pub fn start(parts: DiscoveryParts) -> Option<Self> {
        let (stop, is_stopped) = watch::channel(false);
        let log = parts.log.clone();
        let told = log.clone();
        let answering = move || {
            let answered = catch_unwind(AssertUnwindSafe(|| -> Result<(), String> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| error.to_string())?;
                let ended = runtime.block_on(answer_until_stopped(&parts, is_stopped));
                // Looking up the broker's name may take long, and must not keep the process.
                runtime.shutdown_background();
                ended
            }));
            let error = match answered {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => "a fault of the program".to_owned(),
            };
            told.emit(events::discovery::ended(&error));
        };
        let thread = std::thread::Builder::new()
            .name("discovery".to_owned())
            .spawn(answering);
        match thread {
            Ok(thread) => Some(Self { stop, thread }),
            Err(error) => {
                log.emit(events::discovery::ended(&error.to_string()));
                None
            }
        }
    }

    /// Ends it: the worker is not found any more.
    pub fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.thread.join();
    }
}

async fn answer_until_stopped(parts: &DiscoveryParts, mut stop: watch::Receiver<bool>) -> Result<(), String> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        ended = answer(parts) => ended,
    }
}

async fn answer(parts: &DiscoveryParts) -> Result<(), String> {
    let started = iso_micros(SystemTime::now());
    let connection = connect_quietly(parts).await?;
    let mut warned: Option<Instant> = None;
    loop {
        let mut questions = listen(&connection, &parts.service.id).await?;
        let mut second = (Instant::now(), 0);
        while second.1 < MOST_PER_SECOND {
            let question = questions.next().await.ok_or("the connection is closed")?;
            second = counted(second, Instant::now());
            say(parts, &connection, &started, &question).await;
        }
        // To the broker this is the end of its subscriptions: what comes meanwhile costs us nothing.
        drop(questions);
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            parts.log.emit(events::discovery::flooded(MOST_PER_SECOND));
            warned = Some(Instant::now());
        }
        sleep(DEAF).await;
    }
}

/// Begin of the second that is counted, and questions in it.
fn counted((begun, questions): (Instant, u32), now: Instant) -> (Instant, u32) {
    match now.duration_since(begun) < Duration::from_secs(1) {
        true => (begun, questions + 1),
        false => (now, 1),
    }
}

/// A connection that complains once when the broker does not let us listen, and not at all when questions are dropped.
async fn connect_quietly(parts: &DiscoveryParts) -> Result<Connection, String> {
    let manner = Manner {
        settings: &parts.settings,
        name: "discovery",
        most_unread: MOST_UNREAD,
    };
    let (log, complained) = (parts.log.clone(), AtomicBool::new(false));
    let report = move |event: &Event| match event {
        Event::SlowConsumer(_) => {}
        Event::ServerError(ServerError::Other(error))
            if error.to_lowercase().contains("permissions violation") =>
        {
            if !complained.swap(true, SeqCst) {
                log.emit(events::discovery::not_permitted(error));
            }
        }
        other => log.emit(events::nats_reported("discovery", &other.to_string())),
    };
    let connected = connect_in(manner, &parts.log, |_| {}, report).await;
    connected.map_err(|error| error.to_string())
}

async fn listen(connection: &Connection, id: &str) -> Result<SelectAll<Subscriber>, String> {
    let mut subscriptions = Vec::new();
    for subject in Verb::ALL.into_iter().flat_map(|verb| verb.subjects(id)) {
        let subscribed = connection.client.subscribe(subject).await;
        subscriptions.push(subscribed.map_err(|error| error.to_string())?);
    }
    Ok(select_all(subscriptions))
}

/// Answers one question.
async fn say(parts: &DiscoveryParts, connection: &Connection, started: &str, question: &Message) {
    let Some(reply) = &question.reply else { return };
    if !is_answerable(reply, &parts.settings.subjects) {
        return;
    }
    let body = match Verb::of(&question.subject) {
        Some(Verb::Ping) => json(&ping(&parts.service)),
        Some(Verb::Info) => json(&info(parts)),
        Some(Verb::Stats) => json(&stats(parts, started)),
        None => return,
    };
    let _ = timeout(SEND_LIMIT, connection.client.publish(reply.clone(), body)).await;
}

fn json(answer: &impl Serialize) -> bytes::Bytes {
    let body = serde_json::to_vec(answer).expect("answers hold only strings and numbers");
    body.into()
}

fn ping(service: &Service) -> Ping {
    Ping {
        kind: PingType::V1,
        service: service.clone(),
    }
}

fn info(parts: &DiscoveryParts) -> Info {
    Info {
        kind: InfoType::V1,
        service: parts.service.clone(),
        description: DESCRIPTION.to_owned(),
        endpoints: endpoints(&parts.settings, &parts.service.id, parts.questions.is_some()),
    }
}

/// What a worker listens to: assignments, and questions of other workers where they ask.
fn endpoints(settings: &NatsSettings, id: &str, is_asked: bool) -> Vec<EndpointInfo> {
    let subjects = &settings.subjects;
    let mut metadata = vec![("ack", &subjects.ack), ("result", &subjects.result)];
    if settings.mode == NatsMode::Jetstream {
        metadata.push(("stream", &settings.stream));
    }
    let assign = EndpointInfo {
        name: "assign".to_owned(),
        subject: subjects.assign.clone(),
        queue_group: settings.durable.clone(),
        metadata: metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .collect(),
    };
    let owner = is_asked.then(|| EndpointInfo {
        name: "owner".to_owned(),
        subject: owner_subject(settings, id),
        queue_group: String::new(),
        metadata: Default::default(),
    });
    std::iter::once(assign).chain(owner).collect()
}

fn stats(parts: &DiscoveryParts, started: &str) -> Stats {
    let answered = parts.vitals.status().answered();
    let counts = std::iter::once(answered).chain(&parts.questions);
    let loads = [Some(parts.vitals.load()), None];
    let endpoints = endpoints(&parts.settings, &parts.service.id, parts.questions.is_some());
    let endpoints = endpoints.into_iter().zip(counts).zip(loads);
    Stats {
        kind: StatsType::V1,
        service: parts.service.clone(),
        started: started.to_owned(),
        endpoints: endpoints
            .map(|((endpoint, counts), load)| numbers(endpoint, counts, load))
            .collect(),
    }
}

fn numbers(endpoint: EndpointInfo, counts: &Counts, data: Option<Load>) -> EndpointStats {
    let counted = counts.view();
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    EndpointStats {
        name: endpoint.name,
        subject: endpoint.subject,
        queue_group: endpoint.queue_group,
        num_requests: counted.requests,
        num_errors: counted.errors,
        last_error: counted
            .last_error
            .map_or_else(String::new, |code| code.as_str().to_owned()),
        processing_time: nanoseconds(counted.took),
        average_processing_time: nanoseconds(counted.average()),
        data,
    }
}

/// Who a worker is: `id` is new at each start, `features` are names of flags in force.
pub fn service(id: &str, version: &str, worker_id: &str, mode: &str, features: &[&str]) -> Service {
    let metadata = [
        ("worker_id", worker_id.to_owned()),
        ("mode", mode.to_owned()),
        ("features", features.join(",")),
    ];
    Service {
        name: SERVICE.to_owned(),
        id: id.to_owned(),
        version: version.to_owned(),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_counted_by_the_second() {
        let start = Instant::now();
        let mut second = (start, 0);
        for _ in 0..3 {
            second = counted(second, start + Duration::from_millis(999));
        }
        assert_eq!(second, (start, 3));
        let next = start + Duration::from_secs(1);
        assert_eq!(counted(second, next), (next, 1));
    }

    #[test]
    fn who_cannot_be_asked_by_workers_has_one_endpoint_only() {
        let settings = NatsSettings {
            mode: NatsMode::Core,
            ..NatsSettings::default()
        };
        let names = |is_asked| -> Vec<String> {
            let all = endpoints(&settings, "an-id", is_asked);
            all.into_iter().map(|endpoint| endpoint.name).collect()
        };
        assert_eq!(names(false), ["assign"]);
        assert_eq!(names(true), ["assign", "owner"]);
        assert!(
            !endpoints(&settings, "an-id", true)[0]
                .metadata
                .contains_key("stream")
        );
    }
}
