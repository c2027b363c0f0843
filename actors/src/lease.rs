//! The lease: the worker's hold on a delivery, which the broker takes back unless it is renewed.
//!
//! Neighbours: a source makes one per delivery, the job carries it, the lease keeper renews whatever is in the table,
//! the publisher settles it. A lease that was not renewed in time lapses for good: whoever got the delivery since would
//! be hit by anything said about it. Only a new delivery of the same message makes it valid again, and then it does not
//! vouch for the assignment until the claim has: others may have had it in between. Knows no broker: a token is what the
//! edge needs to name the delivery.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::whole_ms;

/// Names a delivery to the broker.
pub type LeaseToken = Arc<str>;

/// The last part of the ack wait in which a lease is not trusted any more: one tenth, for the way of a message to the
/// broker and for clocks that run at different speed.
const MARGIN_PART: u32 = 10;

/// All leases of this worker. Shared with the lease keeper's thread; cheap to clone.
#[derive(Clone, Default)]
pub struct LeaseTable(Arc<Shared>);

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    terms: Mutex<HashMap<u64, SharedTerm, RandomState>>,
    /// Deliveries that lapsed so far.
    lapsed: AtomicU64,
    /// How long the broker waits for a renewal, once that is known.
    ack_wait: watch::Sender<Option<Duration>>,
}

/// A term, for the table and for whoever holds the delivery: asked several times for each message, so that it is not
/// looked for each time.
type SharedTerm = Arc<Mutex<Term>>;

fn locked(term: &SharedTerm) -> MutexGuard<'_, Term> {
    term.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is held from the broker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct LeaseSnapshot {
    /// Deliveries that are held, lapsed ones included.
    pub held: usize,
    /// Those of them that the broker may have given to others.
    pub lapsed: usize,
    /// Deliveries that lapsed since the start, as far as anybody has noticed.
    pub lapsed_total: u64,
    /// Milliseconds since the renewal, or the arrival, that counts for the delivery that was renewed longest ago.
    pub oldest_renewal_age_ms: u64,
    /// How long the broker waits for a renewal, in milliseconds; nothing until that is known.
    pub ack_wait_ms: Option<u64>,
}

/// One delivery that this worker holds. Renewed until dropped.
pub struct Lease {
    id: u64,
    term: SharedTerm,
    /// Position in the stream: tells a delivery repeated from a copy of the same assignment.
    pub sequence: u64,
    /// How often the broker has delivered the message, this time included; 0 where it is not known.
    pub deliveries: u64,
    table: LeaseTable,
}

/// What is known of the newest delivery. Pure: every question brings its own time.
#[derive(Debug, Clone)]
pub struct Term {
    token: LeaseToken,
    /// When the last renewal was sent that the broker confirmed; before the first, when the delivery arrived.
    renewed: Instant,
    lapsed: bool,
    /// Whether an earlier delivery of the message had lapsed, and the claim has not been proven since.
    broken: bool,
}

impl Term {
    /// A delivery that arrived now.
    pub fn new(token: LeaseToken, now: Instant) -> Self {
        Self {
            token,
            renewed: now,
            lapsed: false,
            broken: false,
        }
    }

    /// The message was delivered again to the same worker, now.
    pub fn followed_by(mut self, token: LeaseToken, now: Instant, ack_wait: Duration) -> Self {
        let broken = self.broken || !self.is_valid(now, ack_wait);
        Self {
            broken,
            ..Self::new(token, now)
        }
    }

    /// Whether the assignment is still ours for certain: nobody else can have had the message since it was claimed.
    pub fn vouches(&mut self, now: Instant, ack_wait: Duration) -> bool {
        self.is_valid(now, ack_wait) && !self.broken
    }

    /// The claim was proven while this was the delivery.
    pub fn proven(&mut self) {
        self.broken = false;
    }

    /// Whether the delivery is still ours for certain. Once it is not, it never is again.
    pub fn is_valid(&mut self, now: Instant, ack_wait: Duration) -> bool {
        self.lapsed |= now >= self.renewed + (ack_wait - ack_wait / MARGIN_PART);
        !self.lapsed
    }

    /// The broker has confirmed a renewal that was sent at `sent`. It does not bring a lapsed term back.
    pub fn renewed_at(&mut self, sent: Instant) {
        self.renewed = self.renewed.max(sent);
    }
}

impl LeaseTable {
    /// Holds a delivery that arrived at `now`.
    pub fn hold(&self, token: LeaseToken, sequence: u64, deliveries: u64, now: Instant) -> Lease {
        let id = self.0.next.fetch_add(1, Relaxed);
        let term = Arc::new(Mutex::new(Term::new(token, now)));
        self.terms().insert(id, Arc::clone(&term));
        Lease {
            id,
            term,
            sequence,
            deliveries,
            table: self.clone(),
        }
    }

    /// The leases to renew now: number and token. Lapsed ones are not among them.
    pub fn renewable(&self, now: Instant) -> Vec<(u64, LeaseToken)> {
        let ack_wait = self.patience();
        let terms = self.terms();
        let renewable = |(id, term): (&u64, &SharedTerm)| {
            let mut term = locked(term);
            self.is_valid(&mut term, now, ack_wait)
                .then(|| (*id, Arc::clone(&term.token)))
        };
        terms.iter().filter_map(renewable).collect()
    }

    /// The broker has confirmed renewals of these leases that were sent at `sent`.
    pub fn renewed(&self, renewed: &[(u64, LeaseToken)], sent: Instant) {
        let terms = self.terms();
        for (id, token) in renewed {
            if let Some(mut term) = terms.get(id).map(locked).filter(|term| term.token == *token) {
                term.renewed_at(sent);
            }
        }
    }

    /// What is held now, and what has lapsed.
    pub fn snapshot(&self, now: Instant) -> LeaseSnapshot {
        let ack_wait = self.patience();
        let terms = self.terms();
        let mut snapshot = LeaseSnapshot::default();
        for term in terms.values() {
            let mut term = locked(term);
            snapshot.held += 1;
            snapshot.lapsed += usize::from(!self.is_valid(&mut term, now, ack_wait));
            let age_ms = whole_ms(now.saturating_duration_since(term.renewed));
            snapshot.oldest_renewal_age_ms = snapshot.oldest_renewal_age_ms.max(age_ms);
        }
        drop(terms);
        snapshot.lapsed_total = self.0.lapsed.load(Relaxed);
        snapshot.ack_wait_ms = self.0.ack_wait.borrow().map(whole_ms);
        snapshot
    }

    /// [`Term::is_valid`]; counts those that are found to be no more.
    fn is_valid(&self, term: &mut Term, now: Instant, ack_wait: Duration) -> bool {
        let had_lapsed = term.lapsed;
        let is_valid = term.is_valid(now, ack_wait);
        if !is_valid && !had_lapsed {
            self.0.lapsed.fetch_add(1, Relaxed);
        }
        is_valid
    }

    /// The broker takes a delivery back when it has heard nothing for this long.
    pub fn set_ack_wait(&self, ack_wait: Duration) {
        self.0.ack_wait.send_replace(Some(ack_wait));
    }

    /// What [`LeaseTable::set_ack_wait`] said last; nothing before the first time.
    pub fn ack_wait(&self) -> watch::Receiver<Option<Duration>> {
        self.0.ack_wait.subscribe()
    }

    /// Until it is known how long the broker waits, nothing was delivered that could lapse.
    fn patience(&self) -> Duration {
        self.0.ack_wait.borrow().unwrap_or(Duration::from_secs(3600))
    }

    fn terms(&self) -> MutexGuard<'_, HashMap<u64, SharedTerm, RandomState>> {
        self.0.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// What names the newest delivery to the broker; nothing when the lease has lapsed: then nothing may be said.
    pub fn token(&self, now: Instant) -> Option<LeaseToken> {
        let mut term = locked(&self.term);
        let is_valid = self.table.is_valid(&mut term, now, self.table.patience());
        is_valid.then(|| Arc::clone(&term.token))
    }

    /// Whether the delivery is still ours for certain.
    pub fn is_valid(&self, now: Instant) -> bool {
        self.token(now).is_some()
    }

    /// Whether the assignment is still ours for certain, without asking its claim.
    pub fn vouches(&self, now: Instant) -> bool {
        let ack_wait = self.table.patience();
        let mut term = locked(&self.term);
        self.table.is_valid(&mut term, now, ack_wait);
        term.vouches(now, ack_wait)
    }

    /// The claim was proven, from beginning to end of the question while `token` named the delivery.
    pub fn proven(&self, token: &LeaseToken) {
        let mut term = locked(&self.term);
        if term.token == *token {
            term.proven();
        }
    }

    /// The same message was delivered again, to us: from now on the new delivery is renewed and settled.
    pub fn adopt(&self, token: LeaseToken, now: Instant) {
        let ack_wait = self.table.patience();
        let mut term = locked(&self.term);
        self.table.is_valid(&mut term, now, ack_wait);
        *term = term.clone().followed_by(token, now, ack_wait);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.table.terms().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACK_WAIT: Duration = Duration::from_secs(10);

    fn table() -> LeaseTable {
        let table = LeaseTable::default();
        table.set_ack_wait(ACK_WAIT);
        table
    }

    fn tokens(table: &LeaseTable, now: Instant) -> Vec<String> {
        let renewable = table.renewable(now);
        renewable.iter().map(|(_, token)| token.to_string()).collect()
    }

    #[test]
    fn a_lease_is_in_the_table_until_dropped_and_follows_redelivery() {
        let (table, now) = (table(), Instant::now());
        let lease = table.hold("first".into(), 7, 1, now);
        lease.adopt("second".into(), now);
        assert_eq!(tokens(&table, now), ["second"]);
        assert_eq!(lease.token(now).as_deref(), Some("second"));
        drop(lease);
        assert!(table.renewable(now).is_empty());
    }

    #[test]
    fn a_lease_lapses_for_good_shortly_before_the_broker_would_take_it_back() {
        let (table, start) = (table(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let lease = table.hold("first".into(), 7, 1, start);
        assert!(lease.is_valid(at(8_999)));
        let renewable = table.renewable(at(5_000));
        table.renewed(&renewable, at(5_000));
        assert!(
            lease.is_valid(at(13_999)),
            "counted from the renewal that was confirmed"
        );
        assert!(!lease.is_valid(at(14_000)));
        table.renewed(&renewable, at(14_000));
        assert!(
            !lease.is_valid(at(14_001)),
            "a late confirmation does not bring it back"
        );
        assert_eq!(
            (lease.token(at(14_001)), tokens(&table, at(14_001))),
            (None, vec![])
        );
        lease.adopt("second".into(), at(20_000));
        assert!(lease.is_valid(at(28_999)));
    }

    #[test]
    fn a_lease_that_lapsed_before_it_was_delivered_again_vouches_only_after_the_claim_has() {
        let (table, start) = (table(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        let lease = table.hold("first".into(), 7, 1, start);
        lease.adopt("second".into(), at(5));
        assert!(
            lease.vouches(at(5)),
            "delivered again in time: nobody else had it"
        );
        lease.adopt("third".into(), at(20));
        assert!(lease.is_valid(at(20)) && !lease.vouches(at(20)));
        lease.adopt("fourth".into(), at(21));
        assert!(!lease.vouches(at(21)), "still not proven");
        lease.proven(&"third".into());
        assert!(!lease.vouches(at(21)), "proven for an earlier delivery");
        lease.proven(&"fourth".into());
        assert!(lease.vouches(at(21)));
    }

    #[test]
    fn operators_see_how_many_are_held_how_old_the_oldest_renewal_is_and_each_lapse_once() {
        let (table, start) = (table(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        let snapshot = |s| table.snapshot(at(s));
        let age_ms = |s| snapshot(s).oldest_renewal_age_ms;
        let seen = |s| (snapshot(s).held, age_ms(s), snapshot(s).lapsed_total);
        assert_eq!(seen(0), (0, 0, 0));
        let first = table.hold("first".into(), 7, 1, start);
        let second = table.hold("second".into(), 8, 1, at(4));
        assert_eq!(seen(6), (2, 6_000, 0));
        table.renewed(&table.renewable(at(6)), at(6));
        assert_eq!(seen(7).1, 1_000);
        assert!(!first.is_valid(at(15)) && !first.vouches(at(15)) && table.renewable(at(15)).is_empty());
        assert_eq!((seen(15).2, snapshot(15).lapsed), (2, 2));
        drop((first, second));
        assert_eq!(seen(15), (0, 0, 2));
    }

    #[test]
    fn a_renewal_of_an_earlier_delivery_does_not_count_for_a_later_one() {
        let (table, start) = (table(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        let lease = table.hold("first".into(), 7, 1, start);
        let earlier = table.renewable(start);
        lease.adopt("second".into(), at(1));
        table.renewed(&earlier, at(8));
        assert!(!lease.is_valid(at(10)));
    }
}
