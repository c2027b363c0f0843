//! The lease: the worker's hold on a delivery, which the broker takes back unless it is renewed.
//!
//! Neighbours: a source makes one per delivery, the job carries it, the lease keeper renews whatever is in the table,
//! the publisher settles it. Knows no broker: a token is what the edge needs to name the delivery.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Names a delivery to the broker.
pub type LeaseToken = Arc<str>;

/// All leases of this worker. Shared with the lease keeper's thread; cheap to clone.
#[derive(Clone, Default)]
pub struct LeaseTable(Arc<Shared>);

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    tokens: Mutex<HashMap<u64, LeaseToken>>,
    /// How long the broker waits for a renewal, once that is known.
    ack_wait: watch::Sender<Option<Duration>>,
}

/// One delivery that this worker holds. Renewed until dropped.
pub struct Lease {
    id: u64,
    /// Position in the stream: tells a delivery repeated from a copy of the same assignment.
    pub sequence: u64,
    table: LeaseTable,
}

impl LeaseTable {
    /// Holds a delivery.
    pub fn hold(&self, token: LeaseToken, sequence: u64) -> Lease {
        let id = self.0.next.fetch_add(1, Relaxed);
        self.tokens_mut().insert(id, token);
        Lease {
            id,
            sequence,
            table: self.clone(),
        }
    }

    /// The tokens to renew now.
    pub fn tokens(&self) -> Vec<LeaseToken> {
        self.tokens_mut().values().cloned().collect()
    }

    /// The broker takes a delivery back when it has heard nothing for this long.
    pub fn set_ack_wait(&self, ack_wait: Duration) {
        self.0.ack_wait.send_replace(Some(ack_wait));
    }

    /// What [`LeaseTable::set_ack_wait`] said last; nothing before the first time.
    pub fn ack_wait(&self) -> watch::Receiver<Option<Duration>> {
        self.0.ack_wait.subscribe()
    }

    fn tokens_mut(&self) -> MutexGuard<'_, HashMap<u64, LeaseToken>> {
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// What names the newest delivery of this message.
    pub fn token(&self) -> LeaseToken {
        self.table
            .tokens_mut()
            .get(&self.id)
            .cloned()
            .unwrap_or_else(|| Arc::from(""))
    }

    /// The same message was delivered again: from now on the new delivery is renewed and settled.
    pub fn adopt(&self, token: LeaseToken) {
        self.table.tokens_mut().insert(self.id, token);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.table.tokens_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_in_the_table_until_dropped_and_follows_redelivery() {
        let table = LeaseTable::default();
        let lease = table.hold("first".into(), 7);
        lease.adopt("second".into());
        assert_eq!(table.tokens(), [LeaseToken::from("second")]);
        assert_eq!(&*lease.token(), "second");
        drop(lease);
        assert!(table.tokens().is_empty());
    }
}
