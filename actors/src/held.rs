//! The held permit: what bounds the work that one worker has taken on, in jobs and in bytes.
//!
//! Neighbours: a source reserves permits before it asks for messages; each message takes one along; it returns when
//! the job's last trace is dropped. Places in a pool are a second permit; how many messages the pools leave room for is
//! asked here, so that every source does the same: what is reserved or held and has neither found its place nor gone
//! another way counts as on its way to each of them.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::pool::room::Room;
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
    /// Told when a permit or a place has returned.
    returned: Arc<Notify>,
    /// The pools, once there are any.
    pools: OnceLock<Room>,
    /// Messages that were asked for, or are here, and may still want a place.
    unplaced: Mutex<usize>,
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
    /// Whether it may still want a place.
    unplaced: bool,
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
            returned: Arc::default(),
            pools: OnceLock::new(),
            unplaced: Mutex::default(),
            open: watch::Sender::new(true),
        }))
    }

    /// From now on no more is reserved than these pools leave room for. The first call counts.
    pub fn mind(&self, pools: Room) {
        let _ = self.0.pools.set(pools);
    }

    /// To be told when a place has returned.
    pub fn returned(&self) -> Arc<Notify> {
        Arc::clone(&self.0.returned)
    }

    /// Waits for room and reserves what is free, at least one job and at most `wanted`.
    pub async fn reserve(&self, wanted: usize) -> Reservation {
        // The sender lives in `self`: it cannot be gone.
        let _ = self.0.open.subscribe().wait_for(|open| *open).await;
        loop {
            let returned = self.0.returned.notified();
            if self.free_bytes() == 0 || self.0.room_left() == 0 {
                returned.await;
                continue;
            }
            let jobs = Arc::clone(&self.0.jobs);
            let mut permits = jobs.acquire_owned().await.expect("the semaphore is never closed");
            // Others may have taken the room meanwhile.
            let expected = self.0.expect(wanted.min(self.0.jobs.available_permits() + 1));
            if expected == 0 {
                continue;
            }
            let more = u32::try_from(expected - 1).unwrap_or(0);
            match Arc::clone(&self.0.jobs).try_acquire_many_owned(more) {
                Ok(rest) => permits.merge(rest),
                Err(_) => self.0.forget(expected - 1),
            }
            return Reservation {
                permits,
                shared: Arc::clone(&self.0),
            };
        }
    }

    /// Room beyond the bound, for the few messages that must not wait for others to end.
    pub fn take_extra(&self, bytes: usize) -> HeldPermit {
        self.0.held_jobs.fetch_add(1, SeqCst);
        self.0.held_bytes.fetch_add(bytes, SeqCst);
        *self.0.unplaced() += 1;
        HeldPermit {
            shared: Arc::clone(&self.0),
            bytes,
            unplaced: true,
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

    /// Jobs that may still be taken on, those that are asked for already among them.
    pub fn free_jobs(&self) -> usize {
        self.0.max_jobs.saturating_sub(self.held_jobs())
    }

    /// Most jobs and most bytes held.
    pub fn most(&self) -> (usize, usize) {
        (self.0.max_jobs, self.0.max_bytes)
    }

    /// Whether no more jobs fit, here or, as far as that keeps us from asking for more, in the pools.
    pub fn is_full(&self) -> bool {
        let pools_full = self.0.pools.get().is_some_and(|pools| pools.left(0) == 0);
        self.held_jobs() >= self.0.max_jobs || self.free_bytes() == 0 || pools_full
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

impl Shared {
    fn unplaced(&self) -> MutexGuard<'_, usize> {
        self.unplaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room_left(&self) -> usize {
        let unplaced = self.unplaced();
        self.pools.get().map_or(usize::MAX, |pools| pools.left(*unplaced))
    }

    /// Counts messages as on their way to the pools, at most as many as there is room for. Returns how many.
    fn expect(&self, wanted: usize) -> usize {
        let mut unplaced = self.unplaced();
        let left = self.pools.get().map_or(usize::MAX, |pools| pools.left(*unplaced));
        let expected = wanted.min(left);
        *unplaced += expected;
        expected
    }

    /// So many do not want a place any more, or have one.
    fn forget(&self, messages: usize) {
        *self.unplaced() -= messages;
        self.returned.notify_waiters();
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
            unplaced: true,
            permit: Some(permit),
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.remaining() > 0 {
            self.shared.forget(self.remaining());
        }
    }
}

impl HeldPermit {
    /// Its message has found its place, or needs none.
    pub fn placed(&mut self) {
        if std::mem::take(&mut self.unplaced) {
            self.shared.forget(1);
        }
    }
}

impl Drop for HeldPermit {
    fn drop(&mut self) {
        self.shared.held_jobs.fetch_sub(1, SeqCst);
        self.shared.held_bytes.fetch_sub(self.bytes, SeqCst);
        drop(self.permit.take());
        self.placed();
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

    /// One pool with a slot and a queue of two.
    fn small_pool(held: &HeldPermits) -> Places {
        let settings = QueuePolicySettings::default();
        let rules = Some(QueueRules::of(&settings, 2));
        Places::new(ResourceClass::Cpu, 1, rules, held.returned(), Log::discard())
    }

    fn take(places: &Places) -> Place {
        match places.admit(Instant::now(), None) {
            Admitted::Taken(taken) => taken.place,
            _ => panic!("there is room"),
        }
    }

    #[tokio::test]
    async fn who_waits_reserves_no_more_than_the_fullest_pool_can_take_and_goes_on_when_a_place_returns() {
        let held = permits(10, 100);
        let places = small_pool(&held);
        held.mind(Room {
            admission: Admission::Wait,
            pools: vec![places.clone(), Places::unbounded(ResourceClass::Io, 1)],
        });
        let mut reservation = held.reserve(10).await;
        assert_eq!(reservation.remaining(), 3);
        assert!(
            held.reserve(1).now_or_never().is_none(),
            "as many are on their way"
        );
        let mut jobs: Vec<_> = (0..3).filter_map(|_| reservation.take(1)).collect();
        assert!(!held.is_full());
        let mut taken: Vec<_> = jobs
            .iter_mut()
            .map(|job| (take(&places), job.placed()).0)
            .collect();
        assert!(held.is_full());
        let mut waiting = std::pin::pin!(held.reserve(10));
        assert!((&mut waiting).now_or_never().is_none(), "the pool is full");
        taken.pop();
        assert_eq!(waiting.now_or_never().expect("a place is back").remaining(), 1);
    }

    #[tokio::test]
    async fn who_refuses_asks_until_every_pool_is_full() {
        let held = permits(10, 100);
        let places = small_pool(&held);
        held.mind(Room {
            admission: Admission::Refuse,
            pools: vec![places.clone()],
        });
        let mut taken = Vec::new();
        for _ in 0..3 {
            assert_eq!(held.reserve(10).await.remaining(), 10);
            taken.push(take(&places));
        }
        assert!(held.reserve(10).now_or_never().is_none());
        taken.pop();
        assert!(held.reserve(10).now_or_never().is_some());
    }

    use caf_protocol::block::ResourceClass;
    use futures_util::FutureExt;
    use tokio::time::Instant;

    use crate::events::Log;
    use crate::pool::policy::QueueRules;
    use crate::pool::room::Admission;
    use crate::pool::{Admitted, Place, Places};
    use crate::settings::policies::QueuePolicySettings;
}
