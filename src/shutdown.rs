//! Drains the tree, front to back: stop asking, give back what has not started, wait for what runs, then leave.
//!
//! Neighbours: the mirror of `wiring`; `serve` and `exec` call it. Leases are renewed throughout: the lease keeper is
//! stopped by the caller, afterwards.

use std::time::Duration;

use caf_actors::pool::EmptyLine;
use caf_actors::supervisor::StopWatching;
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::exit::Exit;
use crate::settings::Settings;
use crate::signals::Signals;
use crate::wiring::Tree;

/// How long a pool may take to say that its line is empty.
const POOL_LIMIT: Duration = Duration::from_secs(1);

/// How assignments came in: decides what becomes of those that have not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// From a stream: what is handed back is delivered to another worker, or to this one's successor.
    AtLeastOnce,
    /// Once only: what has not started by the soft limit is answered with an overload.
    AtMostOnce,
}

/// The feeding edge: told to stop, and tells when nothing more will arrive.
pub struct Feed {
    /// Becomes true to stop it.
    pub stop: watch::Sender<bool>,
    /// Becomes true when it has stopped.
    pub stopped: watch::Receiver<bool>,
}

/// Drains the tree. A second signal cancels what runs, a third leaves at once. Returns 0, or the code for work that
/// was still held at the hard limit.
pub async fn drain(
    tree: &Tree,
    feed: &Feed,
    guarantee: Guarantee,
    settings: &Settings,
    signals: &mut Signals,
) -> Exit {
    let start = Instant::now();
    let (soft, hard) = (start + settings.drain.soft(), start + settings.drain.hard());
    tree.status.start_draining();
    feed.stop.send_replace(true);
    let mut stopped = feed.stopped.clone();
    // The broker may be away, and with it the word that the pull is released: a second signal is heard here too.
    let patient = tokio::select! {
        _ = timeout_at(soft, stopped.wait_for(|stopped| *stopped)) => true,
        () = signals.next() => false,
    };
    if guarantee == Guarantee::AtLeastOnce {
        empty_lines(tree, EmptyLine::HandBack).await;
    }
    let all_returned: BoxFuture<'_, ()> = Box::pin(tree.status.held().all_returned());
    let finished = patient
        && tokio::select! {
            () = all_returned => true,
            () = tokio::time::sleep_until(soft) => false,
            () = signals.next() => false,
        };
    if !finished {
        if guarantee == Guarantee::AtMostOnce {
            empty_lines(tree, EmptyLine::Refuse).await;
        }
        tree.cancel_all.cancel();
        tokio::select! {
            _ = timeout_at(hard, tree.status.held().all_returned()) => {}
            () = signals.next() => {}
        }
    }
    let _ = tree.supervisor.send(StopWatching).await;
    if tree.status.held().held_jobs() == 0 {
        Exit::Ok
    } else {
        Exit::DrainTimedOut
    }
}

async fn empty_lines(tree: &Tree, how: EmptyLine) {
    let asked = tree.pools.iter().map(|pool| pool.empty.ask(how, POOL_LIMIT));
    let _ = timeout(POOL_LIMIT, join_all(asked)).await;
}
