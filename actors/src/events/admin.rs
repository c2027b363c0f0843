//! Lines about the admin port: who asked for what, who was kept out, and how long its certificate is good.
//!
//! Neighbours: `src/http/audit.rs` decides how loud each is. Never tells a token, a query or an answer.

use std::time::Duration;

use super::{Event, Level};

/// Longest path that is told, in bytes: an assignment id of the longest kind, percent-encoded, fits.
const MAX_PATH_BYTES: usize = 512;

/// Who asked, as far as that is known.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Its address.
    pub address: String,
    /// Subject and SHA-256 of its certificate, if it has one.
    pub certificate: Option<(String, String)>,
    /// By what it proved who it is: `certificate`, `token`, both joined by `+`, or `nothing`.
    pub proven_by: &'static str,
}

/// What was asked, and what became of it.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// Method.
    pub method: &'a str,
    /// Path, without the query.
    pub path: &'a str,
    /// Status of the answer.
    pub status: u16,
    /// From the end of the request's head to the head of the answer.
    pub taken: Duration,
}

/// How loud the line of a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loudness {
    /// At info.
    Aloud,
    /// At debug.
    Softly,
}

impl Loudness {
    fn level(self) -> Level {
        match self {
            Self::Aloud => Level::Info,
            Self::Softly => Level::Debug,
        }
    }
}

/// A call was answered, or refused.
pub fn called(caller: &Caller, call: &Call<'_>, loudness: Loudness) -> Event {
    let message = if (400..500).contains(&call.status) && call.status != 404 {
        "Admin request refused"
    } else {
        "Admin request"
    };
    let path = call
        .path
        .get(..call.path.floor_char_boundary(MAX_PATH_BYTES))
        .unwrap_or_default();
    of_caller(Event::new(loudness.level(), message), caller)
        .with("method", call.method)
        .with("path", path)
        .with("status", call.status)
        .with(
            "duration_us",
            u64::try_from(call.taken.as_micros()).unwrap_or(u64::MAX),
        )
}

/// A port that tells who was kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// For operators.
    Admin,
    /// Of links to approvals.
    Approvals,
}

/// A connection was closed before anything could be asked.
pub fn kept_out(port: Watched, caller: &Caller, why: &str, loudness: Loudness) -> Event {
    let message = match port {
        Watched::Admin => "Admin connection refused",
        Watched::Approvals => "Approval connection refused",
    };
    of_caller(Event::new(loudness.level(), message), caller).with("reason", why)
}

fn of_caller(event: Event, caller: &Caller) -> Event {
    let event = event
        .with("peer", caller.address.as_str())
        .with("proven_by", caller.proven_by);
    match &caller.certificate {
        None => event,
        Some((subject, fingerprint)) => event
            .with("certificate_subject", subject.as_str())
            .with("certificate_sha256", fingerprint.as_str()),
    }
}

/// The certificate of a port was read, and is in force. `section`: of the settings, that names it; `soon`: it ends within a
/// month.
pub fn certificate_in_force(section: &str, file: &str, not_after: &str, days_left: i64, soon: bool) -> Event {
    let of_admin = section == "http.admin_tls";
    let (level, message) = match (days_left < 0, soon, of_admin) {
        (true, _, true) => (
            Level::Error,
            "The admin port's certificate is over: clients refuse it",
        ),
        (true, _, false) => (
            Level::Error,
            "The approval port's certificate is over: browsers refuse it",
        ),
        (false, true, true) => (Level::Warn, "The admin port's certificate ends soon"),
        (false, true, false) => (Level::Warn, "The approval port's certificate ends soon"),
        (false, false, true) => (Level::Info, "Admin certificate in force"),
        (false, false, false) => (Level::Info, "Approval certificate in force"),
    };
    Event::new(level, message)
        .with("key", format!("{section}.cert_file"))
        .with("file", file)
        .with("not_after", not_after)
        .with("days_left", days_left)
}

/// The files of the port's certificate were read again and cannot be used; the one before stays in force.
pub fn certificate_refused(error: &str) -> Event {
    Event::new(Level::Error, "Admin certificate not exchanged").with("error", error)
}
