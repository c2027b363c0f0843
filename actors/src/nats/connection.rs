//! Connects to NATS, waits for it with patience, and tells when it comes and goes.
//!
//! Neighbours: `serve` and the lease keeper connect through [`connect`]; a connection lives on the runtime that made
//! it. Reconnects are the client library's, with our delays.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use bytes::Bytes;
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use url::Url;

use super::outage::{Cause, tell_of_outages};
use crate::clock::whole_ms;
use crate::errors::chain;
use crate::events::{self, Log};
use crate::settings::NatsSettings;

/// First wait between two attempts to connect.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Longest wait between two attempts: the worker is ready within a second of NATS being there.
const LONGEST_DELAY: Duration = Duration::from_millis(500);
/// Wait between two attempts of a worker that starts, while nothing listens where the broker will: such an attempt costs
/// a tenth of a millisecond here and the broker nothing.
const START_DELAY: Duration = Duration::from_millis(20);
/// For how long a start tries that often: broker and worker are started together, and one comes first.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Time between two lines about a broker that is waited for.
const TELL_EVERY: Duration = Duration::from_secs(4);
/// Longest wait for one attempt.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);

/// A connection and what is known of it.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// How it is now.
    pub link: watch::Receiver<Link>,
}

/// State of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether the server is reachable.
    pub up: bool,
    /// How often it became reachable: what was asked for before is forgotten by the server.
    pub generation: u64,
}

impl Connection {
    /// Resolves when the server has done everything that was sent to it on this connection before: it hears of a message
    /// to ourselves. Waits without limit.
    pub async fn round_trip(&self) {
        let inbox = self.client.new_inbox();
        let Ok(mut echo) = self.client.subscribe(inbox.clone()).await else {
            return;
        };
        if self.client.publish(inbox, Bytes::new()).await.is_ok() {
            let _ = echo.next().await;
        }
    }

    /// Waits until the server is reachable, at most `limit`.
    pub async fn wait_up(&self, limit: Duration) -> bool {
        let mut link = self.link.clone();
        matches!(timeout(limit, link.wait_for(|link| link.up)).await, Ok(Ok(_)))
    }

    /// Waits until the server has everything that was sent, at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let _ = timeout(limit, self.client.flush()).await;
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A setting that cannot be used.
    #[error("{0}")]
    Settings(String),
    /// Not reachable within `nats.connect_deadline_ms`.
    #[error("nats.connect_deadline_ms: no connection to {url} within {deadline_ms} ms: {last}")]
    Deadline {
        /// Where to.
        url: String,
        /// The limit.
        deadline_ms: u64,
        /// What the last attempt said.
        last: String,
    },
}

/// Messages of one subscription that wait to be read, as the client library has it.
const UNREAD: usize = 64 * 1024;

/// Connects, trying until it works or `nats.connect_deadline_ms` has passed. `name` tells connections apart in logs
/// and on the server; `on_link` hears of every change.
///
/// # Errors
/// [`ConnectError`]: settings that no attempt can mend, or the deadline.
pub async fn connect(
    settings: &NatsSettings,
    name: &'static str,
    log: &Log,
    on_link: impl Fn(bool) + Send + Sync + 'static,
) -> Result<Connection, ConnectError> {
    let report = {
        let log = log.clone();
        move |event: &Event| log.emit(events::nats_reported(name, &event.to_string()))
    };
    connect_in(
        Manner {
            settings,
            name,
            most_unread: UNREAD,
        },
        log,
        on_link,
        report,
    )
    .await
}

/// How a connection is made.
pub(super) struct Manner<'a> {
    /// Where to, and as whom.
    pub(super) settings: &'a NatsSettings,
    /// See [`connect`].
    pub(super) name: &'static str,
    /// Messages of one subscription that wait to be read; more are dropped.
    pub(super) most_unread: usize,
}

/// As [`connect`]; `report` hears what else there is to say of the connection while it is up.
pub(super) async fn connect_in(
    Manner {
        settings,
        name,
        most_unread,
    }: Manner<'_>,
    log: &Log,
    on_link: impl Fn(bool) + Send + Sync + 'static,
    report: impl Fn(&Event) + Send + Sync + 'static,
) -> Result<Connection, ConnectError> {
    let started = Instant::now();
    let (on_link, report) = (std::sync::Arc::new(on_link), std::sync::Arc::new(report));
    let (link, is_link) = watch::channel(Link::default());
    let link = std::sync::Arc::new(link);
    let cause = Cause::default();
    let mut told: Option<Instant> = None;
    for attempt in 0.. {
        let options = options(settings, name)
            .await?
            .subscription_capacity(most_unread)
            .reconnect_delay_callback({
                let link = link.clone();
                move |attempts| delay_in_library(link.borrow().generation, attempts)
            })
            .event_callback({
                let (log, link) = (log.clone(), link.clone());
                let (on_link, report) = (on_link.clone(), report.clone());
                let (url, cause) = (settings.url.clone(), cause.clone());
                move |event| {
                    // Every attempt to reconnect reports an error of its own; the log hears of them once a minute.
                    if let Event::ClientError(error) = &event
                        && !link.borrow().up
                    {
                        cause.note(error.to_string());
                    }
                    if !note(&event, name, &url, &log, &link, &*on_link) {
                        report(&event);
                    }
                    std::future::ready(())
                }
            });
        let addresses: Vec<String> = settings.url.split(',').map(without_credentials).collect();
        let mut is_refused = false;
        let last = match timeout(ATTEMPT_LIMIT, options.connect(addresses)).await {
            Ok(Ok(client)) => {
                tokio::spawn(tell_of_outages(name, is_link.clone(), cause, log.clone()));
                return Ok(Connection {
                    client,
                    link: is_link,
                });
            }
            Ok(Err(error)) => {
                is_refused = is_refusal(&error);
                chain(&error)
            }
            Err(_) => "no answer".to_owned(),
        };
        let delay = match is_refused && started.elapsed() < START_LIMIT {
            true => START_DELAY,
            false => delay(attempt),
        };
        let deadline = Duration::from_millis(settings.connect_deadline_ms);
        if !deadline.is_zero() && started.elapsed() + delay >= deadline {
            let (url, deadline_ms) = (settings.url.clone(), settings.connect_deadline_ms);
            return Err(ConnectError::Deadline {
                url,
                deadline_ms,
                last,
            });
        }
        // The first line at once, then one every few seconds: waiting is not news.
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            told = Some(Instant::now());
            log.emit(events::nats_waiting(name, &last, whole_ms(delay)));
        }
        tokio::time::sleep(delay).await;
    }
    unreachable!("the loop has no end of its own")
}

/// Notes what becomes of the link; false for an event that somebody else should hear of.
fn note(
    event: &Event,
    name: &'static str,
    url: &str,
    log: &Log,
    link: &watch::Sender<Link>,
    on_link: &(dyn Fn(bool) + Send + Sync),
) -> bool {
    match event {
        Event::Connected => {
            log.emit(events::nats_connected(name, url));
            on_link(true);
            link.send_modify(|link| {
                *link = Link {
                    up: true,
                    generation: link.generation + 1,
                }
            });
        }
        Event::Disconnected => {
            log.emit(events::nats_disconnected(name));
            on_link(false);
            link.send_modify(|link| link.up = false);
        }
        // The cause of the outage; see `outage`.
        Event::ClientError(_) if !link.borrow().up => {}
        _ => return false,
    }
    true
}

async fn options(settings: &NatsSettings, name: &str) -> Result<ConnectOptions, ConnectError> {
    let unreadable = |key: &str, path: &std::path::Path, error: &dyn std::fmt::Display| {
        ConnectError::Settings(format!("{key}: cannot read {}: {error}", path.display()))
    };
    let mut options = ConnectOptions::new()
        .name(format!("caf-worker {name}"))
        .ping_interval(Duration::from_secs(5))
        .request_timeout(Some(Duration::from_millis(settings.request_timeout_ms)))
        .require_tls(settings.tls.required);
    options = match credentials_in(&settings.url) {
        Some((user, Some(password))) => options.user_and_password(user, password),
        Some((token, None)) => options.token(token),
        None => options,
    };
    if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
        options = options.user_and_password(user.clone(), password.expose().to_owned());
    }
    if let Some(token) = &settings.token {
        options = options.token(token.expose().to_owned());
    }
    if let Some(path) = &settings.credentials_file {
        options = options
            .credentials_file(path)
            .await
            .map_err(|error| unreadable("nats.credentials_file", path, &error))?;
    }
    if let Some(path) = &settings.nkey_file {
        let seed =
            std::fs::read_to_string(path).map_err(|error| unreadable("nats.nkey_file", path, &error))?;
        options = options.nkey(seed.trim().to_owned());
    }
    if let Some(path) = &settings.tls.ca_file {
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(cert), Some(key)) = (&settings.tls.cert_file, &settings.tls.key_file) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(options)
}

/// An address of a list as the client library reads it: `nats` where it names no scheme.
fn address_of(text: &str) -> Option<Url> {
    let text = text.trim();
    match text.contains("://") {
        true => Url::parse(text).ok(),
        false => Url::parse(&format!("nats://{text}")).ok(),
    }
}

/// An address as the client library gets it: that writes it to the log as it is, and takes no credentials from it.
fn without_credentials(address: &str) -> String {
    let bare = |mut url: Url| {
        url.set_username("").ok()?;
        url.set_password(None).ok()?;
        Some(url.to_string())
    };
    match address.contains('@') {
        true => address_of(address).and_then(bare).unwrap_or_default(),
        false => address.trim().to_owned(),
    }
}

/// User and password, or a token alone, from the first address that holds some: the client library does not look there.
fn credentials_in(addresses: &str) -> Option<(String, Option<String>)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    addresses.split(',').find_map(|address| {
        let url = address_of(address)?;
        let user = Some(url.username()).filter(|user| !user.is_empty())?;
        Some((decoded(user), url.password().map(decoded)))
    })
}

/// What the client library waits before an attempt: it asks before the first one too, where the wait is ours and over.
fn delay_in_library(connected_before: u64, attempts: usize) -> Duration {
    match connected_before {
        0 => Duration::ZERO,
        _ => delay(u32::try_from(attempts).unwrap_or(u32::MAX)),
    }
}

/// Whether nothing listens at the address: no broker was troubled by the attempt.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut systems = causes.filter_map(|error| error.downcast_ref::<std::io::Error>());
    systems.any(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Doubles up to [`LONGEST_DELAY`]; up to half of it is left to chance, so that a fleet does not come back as one.
pub(super) fn delay(attempt: u32) -> Duration {
    let full = FIRST_DELAY
        .saturating_mul(1 << attempt.min(10))
        .min(LONGEST_DELAY);
    let chance = RandomState::new().hash_one(attempt) % 1024;
    full.mul_f64(0.5 + f64::from(u32::try_from(chance).unwrap_or(0)) / 2048.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_in_an_address_and_decoded() {
        let found = |url| credentials_in(url);
        assert_eq!(found("nats://h:1,tls://h"), None);
        assert_eq!(found("h:4222"), None);
        assert_eq!(
            found("nats://h:1, nats://u:p%40ss@h"),
            Some(("u".into(), Some("p@ss".into())))
        );
        assert_eq!(found("tls://t0ken@h:1"), Some(("t0ken".into(), None)));
        assert_eq!(found("u:p@h:1"), Some(("u".into(), Some("p".into()))));
    }

    #[test]
    fn the_client_library_gets_addresses_without_credentials() {
        for (address, bare) in [
            (" nats://h:1 ", "nats://h:1"),
            ("h:4222", "h:4222"),
            ("nats://u:p%40ss@h:1", "nats://h:1"),
            ("tls://t0ken@h", "tls://h"),
            ("nats://:p@[::1]:4222", "nats://[::1]:4222"),
            ("wss://u:p@h/path", "wss://h/path"),
            ("u:p@h:1", "nats://h:1"),
            ("ws://h ort/@", ""),
        ] {
            assert_eq!(without_credentials(address), bare, "{address}");
        }
    }

    #[test]
    fn the_library_waits_before_it_connects_again_and_not_before_it_connects_at_all() {
        assert_eq!(delay_in_library(0, 1), Duration::ZERO);
        assert_eq!(delay_in_library(0, 3), Duration::ZERO);
        assert!(delay_in_library(1, 1) >= FIRST_DELAY / 2);
    }

    #[test]
    fn a_refusal_is_found_below_what_the_library_says_of_it() {
        use async_nats::{ConnectError, ConnectErrorKind};
        let system = |kind| ConnectError::with_source(ConnectErrorKind::Io, std::io::Error::from(kind));
        assert!(is_refusal(&system(std::io::ErrorKind::ConnectionRefused)));
        assert!(!is_refusal(&system(std::io::ErrorKind::ConnectionReset)));
        assert!(!is_refusal(&ConnectError::new(ConnectErrorKind::Authentication)));
    }

    #[test]
    fn delays_grow_to_the_longest_and_vary() {
        assert!(delay(0) <= FIRST_DELAY);
        let late: Vec<_> = (0..50).map(|_| delay(30)).collect();
        assert!(
            late.iter()
                .all(|delay| *delay >= LONGEST_DELAY / 2 && *delay <= LONGEST_DELAY)
        );
        assert!(late.iter().any(|delay| *delay != late[0]));
    }
}
