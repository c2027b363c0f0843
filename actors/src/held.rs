//! The held permit: what bounds the work that one worker has taken on, in jobs and in bytes.
//!
//! Neighbours: a source reserves permits before it asks for messages; each message takes one along; it returns when
//! the job's last trace is dropped. Knows nothing of pools, whose places are a second permit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::settings::LimitSettings;

/// The permits of one worker. Cheap to clone.
#[derive(Clone)]
pub struct HeldPermits(Arc<Shared>);

struct Shared {
    max_jobs: usize,
    max_bytes: usize,
    jobs: Arc<Semaphore>,
    held_jobs: AtomicUsize,
    held_bytes: AtomicUsize,
    returned: Notify,
    /// Whether anything is let in at all.
    open: watch::Sender<bool>,
}

/// Room for messages that have not arrived yet.
pub struct Reservation {
    permits: OwnedSemaphorePermit,
    shared: Arc<Shared>,
}

/// Room taken by one message. Returns when dropped.
pub struct HeldPermit {
    shared: Arc<Shared>,
    bytes: usize,
    /// Given back after the counts are down, so that nobody sees a free permit without the room behind it.
    permit: Option<OwnedSemaphorePermit>,
}

impl HeldPermits {
    /// All permits, free.
    pub fn new(settings: &LimitSettings) -> Self {
        Self(Arc::new(Shared {
            max_jobs: settings.max_held,
            max_bytes: settings.max_held_bytes,
            jobs: Arc::new(Semaphore::new(settings.max_held)),
            held_jobs: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            returned: Notify::new(),
            open: watch::Sender::new(true),
        }))
    }

    /// Waits for room and reserves what is free, at least one job and at most `wanted`.
    pub async fn reserve(&self, wanted: usize) -> Reservation {
        // The sender lives in `self`: it cannot be gone.
        let _ = self.0.open.subscribe().wait_for(|open| *open).await;
        loop {
            let returned = self.0.returned.notified();
            if self.free_bytes() > 0 {
                break;
            }
            returned.await;
        }
        let jobs = Arc::clone(&self.0.jobs);
        let mut permits = jobs.acquire_owned().await.expect("the semaphore is never closed");
        let more = wanted.saturating_sub(1).min(self.0.jobs.available_permits());
        if let Ok(rest) = Arc::clone(&self.0.jobs).try_acquire_many_owned(u32::try_from(more).unwrap_or(0)) {
            permits.merge(rest);
        }
        Reservation {
            permits,
            shared: Arc::clone(&self.0),
        }
    }

    /// Room beyond the bound, for the few messages that must not wait for others to end.
    pub fn take_extra(&self, bytes: usize) -> HeldPermit {
        self.0.held_jobs.fetch_add(1, SeqCst);
        self.0.held_bytes.fetch_add(bytes, SeqCst);
        HeldPermit {
            shared: Arc::clone(&self.0),
            bytes,
            permit: None,
        }
    }

    /// Waits until no reservations are given.
    pub async fn shut(&self) {
        // The sender lives in `self`: it cannot be gone.
        let _ = self.0.open.subscribe().wait_for(|open| !*open).await;
    }

    /// Whether reservations are given from now on; without room for results nothing is taken on.
    pub fn let_in(&self, open: bool) {
        self.0.open.send_replace(open);
    }

    /// Bytes that may still be taken on.
    pub fn free_bytes(&self) -> usize {
        self.0.max_bytes.saturating_sub(self.0.held_bytes.load(SeqCst))
    }

    /// Waits until more than `bytes` may be taken on, or no job is held.
    pub async fn more_free_than(&self, bytes: usize) {
        loop {
            let returned = self.0.returned.notified();
            if self.free_bytes() > bytes || self.held_jobs() == 0 {
                return;
            }
            returned.await;
        }
    }

    /// Jobs held now.
    pub fn held_jobs(&self) -> usize {
        self.0.held_jobs.load(SeqCst)
    }

    /// Whether no more jobs fit.
    pub fn is_full(&self) -> bool {
        self.held_jobs() >= self.0.max_jobs || self.free_bytes() == 0
    }

    /// Waits until no job is held.
    pub async fn all_returned(&self) {
        loop {
            let returned = self.0.returned.notified();
            if self.held_jobs() == 0 {
                return;
            }
            returned.await;
        }
    }
}

impl Reservation {
    /// How many messages it still has room for.
    pub fn remaining(&self) -> usize {
        self.permits.num_permits()
    }

    /// Takes room for one message of `bytes`; nothing when the reservation is used up.
    pub fn take(&mut self, bytes: usize) -> Option<HeldPermit> {
        let permit = self.permits.split(1)?;
        self.shared.held_jobs.fetch_add(1, SeqCst);
        self.shared.held_bytes.fetch_add(bytes, SeqCst);
        Some(HeldPermit {
            shared: Arc::clone(&self.shared),
            bytes,
            permit: Some(permit),
        })
    }
}

impl Drop for HeldPermit {
    fn drop(&mut self) {
        self.shared.held_jobs.fetch_sub(1, SeqCst);
        self.shared.held_bytes.fetch_sub(self.bytes, SeqCst);
        drop(self.permit.take());
        self.shared.returned.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(max_held: usize, max_held_bytes: usize) -> HeldPermits {
        HeldPermits::new(&LimitSettings {
            max_held,
            max_held_bytes,
            ..LimitSettings::default()
        })
    }

    #[tokio::test]
    async fn a_reservation_takes_what_is_free_and_no_more() {
        let held = permits(3, 100);
        let mut reservation = held.reserve(10).await;
        assert_eq!(reservation.remaining(), 3);
        let job = reservation.take(60).expect("room");
        assert_eq!((held.held_jobs(), held.free_bytes()), (1, 40));
        drop(reservation);
        assert_eq!(held.reserve(10).await.remaining(), 2);
        drop(job);
        assert_eq!((held.held_jobs(), held.free_bytes()), (0, 100));
        held.all_returned().await;
    }

    #[tokio::test]
    async fn without_free_bytes_nothing_is_reserved() {
        let held = permits(3, 100);
        let job = held.reserve(1).await.take(100);
        assert!(held.is_full());
        assert!(held.reserve(1).now_or_never().is_none());
        drop(job);
        assert!(held.reserve(1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn waiting_for_more_room_ends_with_the_first_job_that_gives_some_back() {
        let held = permits(3, 100);
        let mut reservation = held.reserve(3).await;
        let (small, large) = (reservation.take(10), reservation.take(60));
        assert!(held.more_free_than(30).now_or_never().is_none());
        drop(small);
        assert!(held.more_free_than(30).now_or_never().is_some());
        assert!(held.more_free_than(40).now_or_never().is_none());
        drop(large);
        assert!(held.more_free_than(usize::MAX).now_or_never().is_some());
    }

    use futures_util::FutureExt;
}
