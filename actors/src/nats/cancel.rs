//! Hears requests to cancel on the broker, and passes on to all workers what one was asked on its admin port.
//!
//! Neighbours: [`crate::cancellation`] carries requests out. Every worker hears every request: a plain subscription, no queue
//! group, because nobody knows who holds a job. Thread, runtime and connection are its own: whoever may cancel may flood, and
//! neither leases nor assignments must wait for that. Runs only while the feature is on; whatever happens here ends neither
//! the worker nor its work.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use async_nats::{Client, Event, Message, ServerError};
use caf_protocol::cancel::{CancelRefusal, CancelRequest, tenant_of_token, tenant_token};
use futures_util::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout};

use super::connection::{Connection, Manner, connect_in};
use super::is_answerable;
use crate::cancellation::{Asker, Cancellations};
use crate::claims::Claims;
use crate::events::{self, Log};
use crate::settings::NatsSettings;

/// Requests that wait to be read; the client library drops what is beyond. They are small: what is read of the socket before
/// it is the turn of the reader here, some megabytes, bounds their bytes.
const MOST_UNREAD: usize = 64 * 1024;
/// Requests that wait to be carried out, of all tenants together; one has a quarter of that at most: enough to cancel all that
/// a fleet holds at once, one by one.
const MOST_WAITING: usize = 64 * 1024;
/// Their bytes, likewise.
const MOST_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// So many requests of a tenant find room in the half that others may not fill.
const FEW_WAITING: usize = 16;
/// Requests that are read from the connection before the next is carried out.
const READ_AT_ONCE: usize = 16;
/// Requests that wait to be passed on: the admin port has fewer connections.
const MOST_TO_PASS_ON: usize = 64;
/// Longest wait for handing one message to the connection.
const SEND_LIMIT: Duration = Duration::from_secs(1);
/// Shortest time between two warnings about what is no request.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What the listener needs.
pub struct CancelParts {
    /// Broker settings.
    pub settings: NatsSettings,
    /// Who carries requests out.
    pub cancellations: Cancellations,
    /// What has ended here.
    pub claims: Claims,
    /// Requests to pass on.
    pub to_pass_on: ToPassOn,
    /// Log; also the worker's id.
    pub log: Log,
}

/// How the admin port reaches all workers. Cheap to clone.
#[derive(Clone)]
pub struct PassOn(mpsc::Sender<Passed>);

/// The other end of a [`PassOn`].
pub struct ToPassOn(mpsc::Receiver<Passed>);

struct Passed {
    request: CancelRequest,
    done: oneshot::Sender<()>,
}

/// Both ends.
pub fn passing_on() -> (PassOn, ToPassOn) {
    let (sender, receiver) = mpsc::channel(MOST_TO_PASS_ON);
    (PassOn(sender), ToPassOn(receiver))
}

impl PassOn {
    /// Tells all workers of the broker, this one included. Whether the broker has it: nobody says who heard it there.
    pub async fn pass_on(&self, request: CancelRequest) -> bool {
        let (done, is_done) = oneshot::channel();
        let sent = self.0.try_send(Passed { request, done }).is_ok();
        sent && matches!(timeout(SEND_LIMIT, is_done).await, Ok(Ok(())))
    }
}

/// The running thread.
pub struct CancelListener {
    stop: watch::Sender<bool>,
    listens: watch::Receiver<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl CancelListener {
    /// Starts the thread; nothing, with a line in the log, when the system gives none.
    pub fn start(parts: CancelParts) -> Option<Self> {
        let (stop, is_stopped) = watch::channel(false);
        let (listening, listens) = watch::channel(false);
        let log = parts.log.clone();
        let told = log.clone();
        let listen = move || {
            let listened = catch_unwind(AssertUnwindSafe(|| -> Result<(), String> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| error.to_string())?;
                let ended = runtime.block_on(listen_until_stopped(parts, &listening, is_stopped));
                // Looking up the broker's name may take long, and must not keep the process.
                runtime.shutdown_background();
                ended
            }));
            let error = match listened {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => "a fault of the program".to_owned(),
            };
            told.emit(events::cancellation::ended(&error));
        };
        let thread = std::thread::Builder::new()
            .name("cancel".to_owned())
            .spawn(listen);
        match thread {
            Ok(thread) => Some(Self {
                stop,
                listens,
                thread,
            }),
            Err(error) => {
                log.emit(events::cancellation::ended(&error.to_string()));
                None
            }
        }
    }

    /// Resolves when the broker has taken the subscription, or the thread has ended. Waits without limit.
    pub async fn listens(&self) {
        let _ = self.listens.clone().wait_for(|listens| *listens).await;
    }

    /// Ends it.
    pub fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.thread.join();
    }
}

async fn listen_until_stopped(
    parts: CancelParts,
    listening: &watch::Sender<bool>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        ended = listen(parts, listening) => ended,
    }
}

async fn listen(parts: CancelParts, listening: &watch::Sender<bool>) -> Result<(), String> {
    let connection = connect_as_listener(&parts.settings, &parts.log).await?;
    let subject = format!("{}.*", parts.settings.subjects.cancel);
    let subscribed = connection.client.subscribe(subject).await;
    let mut requests = subscribed.map_err(|error| error.to_string())?;
    connection.round_trip().await;
    listening.send_replace(true);
    let mut desk = Desk {
        settings: parts.settings,
        cancellations: parts.cancellations,
        claims: parts.claims,
        client: connection.client.clone(),
        log: parts.log,
        warned: None,
        unsaid: 0,
    };
    let mut to_pass_on = parts.to_pass_on.0;
    let mut queue = Queue::default();
    unconstrained(async {
        loop {
            if let Some(request) = queue.next() {
                desk.take(request).await;
            }
            // Reading costs a tenth of carrying out: what a flood brings is sorted by tenant before the next is done.
            for _ in 0..READ_AT_ONCE {
                let Some(read) = requests.next().now_or_never() else {
                    break;
                };
                desk.put(&mut queue, read.ok_or("the connection is closed")?);
            }
            if let Ok(passed) = to_pass_on.try_recv() {
                desk.pass_on(passed).await;
            }
            // The connection has its turn on this thread.
            tokio::task::yield_now().await;
            if queue.is_empty() {
                tokio::select! {
                    biased;
                    Some(passed) = to_pass_on.recv() => desk.pass_on(passed).await,
                    read = requests.next() => desk.put(&mut queue, read.ok_or("the connection is closed")?),
                }
            }
        }
    })
    .await
}

/// A connection that complains once when the broker does not let us listen.
async fn connect_as_listener(settings: &NatsSettings, log: &Log) -> Result<Connection, String> {
    let manner = Manner {
        settings,
        name: "cancel",
        most_unread: MOST_UNREAD,
    };
    let (told, complained) = (log.clone(), AtomicBool::new(false));
    let report = move |event: &Event| match event {
        Event::ServerError(ServerError::Other(error))
            if error.to_lowercase().contains("permissions violation") =>
        {
            if !complained.swap(true, SeqCst) {
                told.emit(events::cancellation::not_permitted(error));
            }
        }
        other => told.emit(events::nats_reported("cancel", &other.to_string())),
    };
    let connected = connect_in(manner, log, |_| {}, report).await;
    connected.map_err(|error| error.to_string())
}

/// Requests that wait to be carried out, by the tenant of their subject: tenants take turns, and who sends more than there is
/// room for loses requests of his own. Pure.
#[derive(Default)]
struct Queue {
    waiting: HashMap<String, OfTenant>,
    turns: VecDeque<String>,
    requests: usize,
    bytes: usize,
}

#[derive(Default)]
struct OfTenant {
    requests: VecDeque<Message>,
    bytes: usize,
}

impl Queue {
    /// Lets it wait for the turn of its tenant; false when there is no room for it.
    fn put(&mut self, request: Message) -> bool {
        let subject = request.subject.as_str();
        let size = request.payload.len() + subject.len();
        let of_tenant = self.waiting.get(subject);
        let (own, own_bytes) = of_tenant.map_or((0, 0), |own| (own.requests.len(), own.bytes));
        // Half of the room is for tenants that have hardly any waiting.
        let share = if own < FEW_WAITING { 1 } else { 2 };
        let fits = own < MOST_WAITING / 4
            && own_bytes + size <= MOST_WAITING_BYTES / 4
            && self.requests < MOST_WAITING / share
            && self.bytes + size <= MOST_WAITING_BYTES / share;
        if !fits {
            return false;
        }
        if own == 0 {
            self.turns.push_back(subject.to_owned());
        }
        let of_tenant = self.waiting.entry(subject.to_owned()).or_default();
        of_tenant.requests.push_back(request);
        of_tenant.bytes += size;
        self.requests += 1;
        self.bytes += size;
        true
    }

    /// The oldest of the tenant whose turn it is.
    fn next(&mut self) -> Option<Message> {
        let subject = self.turns.pop_front()?;
        let of_tenant = self.waiting.get_mut(&subject)?;
        let request = of_tenant.requests.pop_front()?;
        let size = request.payload.len() + request.subject.len();
        of_tenant.bytes -= size;
        self.requests -= 1;
        self.bytes -= size;
        if of_tenant.requests.is_empty() {
            self.waiting.remove(&subject);
        } else {
            self.turns.push_back(subject);
        }
        Some(request)
    }

    fn is_empty(&self) -> bool {
        self.requests == 0
    }
}

/// Where requests are read and answered.
struct Desk {
    settings: NatsSettings,
    cancellations: Cancellations,
    claims: Claims,
    client: Client,
    log: Log,
    warned: Option<Instant>,
    /// Refusals since the last warning.
    unsaid: u64,
}

impl Desk {
    fn put(&mut self, queue: &mut Queue, request: Message) {
        if !queue.put(request) {
            let error = "too many requests of this tenant wait: this one is not carried out";
            self.refuse(error, Instant::now());
        }
    }

    async fn take(&mut self, message: Message) {
        let now = Instant::now();
        let answer = match read(&self.settings.subjects.cancel, &message.subject, &message.payload) {
            Ok(request) => {
                let done = self
                    .cancellations
                    .ask(&request, Asker::Subject, Some(&self.claims), now);
                done.map(|done| json(&done))
            }
            Err(error) => {
                self.refuse(&error, now);
                Some(json(&CancelRefusal {
                    version: caf_protocol::VERSION,
                    worker_id: self.log.worker_id().to_owned(),
                    error,
                }))
            }
        };
        let reply = message
            .reply
            .filter(|reply| is_answerable(reply, &self.settings.subjects));
        if let (Some(reply), Some(answer)) = (reply, answer) {
            let _ = timeout(SEND_LIMIT, self.client.publish(reply, answer)).await;
        }
    }

    fn refuse(&mut self, error: &str, now: Instant) {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= WARN_EVERY;
        if self.warned.is_none_or(is_due) {
            let others = std::mem::take(&mut self.unsaid);
            self.warned = Some(now);
            self.log
                .emit(events::cancellation::refused(Asker::Subject, error, others));
        } else {
            self.unsaid += 1;
            self.log
                .measure(|| events::cancellation::refused_again(Asker::Subject));
        }
    }

    /// This worker hears it as well, and has done it before.
    async fn pass_on(&self, Passed { request, done }: Passed) {
        let token = tenant_token(&request.tenant_id);
        let subject = format!("{}.{token}", self.settings.subjects.cancel);
        let sending = async {
            let sent = self.client.publish(subject, request.write().into()).await;
            sent.is_ok() && self.client.flush().await.is_ok()
        };
        if timeout(SEND_LIMIT, sending).await == Ok(true) {
            let _ = done.send(());
        }
    }
}

/// Reads a request, which is for the tenant of its subject only: so permissions of the broker say who may cancel whose jobs.
fn read(prefix: &str, subject: &str, payload: &[u8]) -> Result<CancelRequest, String> {
    let token = subject
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('.'));
    let tenant_id = token.and_then(tenant_of_token).ok_or_else(|| {
        "subject: its last token must be the tenant id, as base64url without padding".to_owned()
    })?;
    let request = CancelRequest::read(payload).map_err(|failure| failure.message)?;
    match request.tenant_id == tenant_id {
        true => Ok(request),
        false => Err("tenant_id: must be the tenant of the subject".to_owned()),
    }
}

fn json(answer: &impl Serialize) -> bytes::Bytes {
    let body = serde_json::to_vec(answer).expect("answers hold only strings and numbers");
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tenant: &str, number: usize, size: usize) -> Message {
        Message {
            subject: format!("c.{tenant}").into(),
            reply: None,
            payload: vec![b'x'; size].into(),
            headers: None,
            status: None,
            description: Some(number.to_string()),
            length: size,
        }
    }

    #[test]
    fn tenants_take_turns_and_who_floods_loses_requests_of_his_own() {
        let mut queue = Queue::default();
        let flood = 2 * MOST_WAITING;
        let refused = (0..flood).filter(|&n| !queue.put(request("evil", n, 10)));
        assert_eq!(refused.count(), flood - MOST_WAITING / 4);
        for n in 0..3 {
            assert!(queue.put(request("acme", n, 10)));
        }
        let first: Vec<_> = (0..7).filter_map(|_| queue.next()).collect();
        let of: Vec<_> = first
            .iter()
            .map(|request| (request.subject.as_str(), request.description.as_deref()))
            .collect();
        let (evil, acme) = ("c.evil", "c.acme");
        let number = |n| Some(n);
        assert_eq!(
            of,
            [
                (evil, number("0")),
                (acme, number("0")),
                (evil, number("1")),
                (acme, number("1")),
                (evil, number("2")),
                (acme, number("2")),
                (evil, number("3")),
            ]
        );
        while queue.next().is_some() {}
        assert!(queue.is_empty() && queue.waiting.is_empty() && queue.turns.is_empty());
        assert_eq!((queue.requests, queue.bytes), (0, 0));
    }

    #[test]
    fn tenants_that_ask_for_little_have_room_when_many_others_flood() {
        let mut queue = Queue::default();
        for tenant in 0..8 {
            for n in 0..MOST_WAITING {
                queue.put(request(&format!("evil-{tenant}"), n, 100));
            }
        }
        assert!(queue.requests <= MOST_WAITING / 2 + 8 * FEW_WAITING);
        assert!(queue.put(request("acme", 0, 10)));
        // Large ones take room by their bytes.
        let mut queue = Queue::default();
        let large = (0..MOST_WAITING).filter(|&n| queue.put(request("evil", n, 16 * 1024)));
        assert!(large.count() <= MOST_WAITING_BYTES / 4 / (16 * 1024));
    }

    #[test]
    fn a_request_is_for_the_tenant_of_its_subject_only() {
        let payload = br#"{"version":"1","tenant_id":"acme","assignment_id":"a"}"#;
        let of = |subject: &str| read("caf.exec.cancel.v1", subject, payload);
        let own = format!("caf.exec.cancel.v1.{}", tenant_token("acme"));
        assert_eq!(of(&own).map(|request| request.tenant_id), Ok("acme".to_owned()));
        let other = format!("caf.exec.cancel.v1.{}", tenant_token("evil"));
        assert!(of(&other).expect_err("is refused").starts_with("tenant_id: "));
        for bad in [
            "caf.exec.cancel.v1",
            "caf.exec.cancel.v1.",
            "caf.exec.cancel.v1.acme!",
            "caf.exec.cancel.v11.YWNtZQ",
        ] {
            assert!(of(bad).expect_err("is refused").starts_with("subject: "), "{bad}");
        }
    }
}
