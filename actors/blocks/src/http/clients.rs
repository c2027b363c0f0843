//! The HTTP clients of one thread, and how many connections they keep.
//!
//! Neighbours: [`super`] sends with them; `dial` opens their connections and counts them here. An idle connection is found
//! again only by [`pool_of`], so never by another tenant, for another address, or under other rules than those that let it
//! through.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// Most idle connections of a thread. The client closes an idle connection only when the same server is asked again, so
/// that a job that names ever new ones would leave ever more open.
const MAX_IDLE: usize = 64;

thread_local! {
    /// By block and server, and made for which generation of the rules or settings.
    static CLIENTS: RefCell<HashMap<Owner, (u64, Rc<Clients>)>> = RefCell::default();
    /// Connections that are open, and exchanges that are under way.
    static COUNTS: (Cell<usize>, Cell<usize>) = const { (Cell::new(0), Cell::new(0)) };
}

/// Whose clients: a block's, and of those for servers that settings name, which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    /// Of the block.
    pub(super) block: u64,
    /// Of the server among those of the block; 0 where it has clients for all.
    pub(super) server: usize,
}

/// Clients that keep their idle connections until they are dropped.
pub(super) struct Clients {
    /// For http.
    pub(super) plain: awc::Client,
    /// For https.
    pub(super) secure: awc::Client,
}

/// This thread's clients of this block. They live as long as the thread (a node has one block of this kind), or until the
/// rules change (no open connection may outlive the rule that let it through), or until too many connections lie idle.
pub(super) fn of_thread(owner: Owner, generation: u64, make: impl FnOnce() -> Clients) -> Rc<Clients> {
    let idle = COUNTS.with(|(open, under_way)| open.get().saturating_sub(under_way.get()));
    CLIENTS.with_borrow_mut(|all| match all.get(&owner) {
        Some((made_for, clients)) if *made_for == generation && idle <= MAX_IDLE => Rc::clone(clients),
        _ => {
            // Also those of servers that the settings do not name any more.
            all.retain(|other, (made_for, _)| other.block != owner.block || *made_for == generation);
            let clients = Rc::new(make());
            all.insert(owner, (generation, Rc::clone(&clients)));
            clients
        }
    })
}

/// The name under which a connection is kept for later. Stands before the host in the address that the client gets, so it
/// has digits and letters only, in one case.
pub(super) fn pool_of(tenant: &str, address: SocketAddr, generation: u64) -> String {
    let mut name = String::new();
    let hex = |name: &mut String, bytes: &[u8]| {
        for byte in bytes {
            let _ = write!(name, "{byte:02x}");
        }
        name.push('x');
    };
    hex(&mut name, tenant.as_bytes());
    match address.ip() {
        IpAddr::V4(ip) => hex(&mut name, &ip.octets()),
        IpAddr::V6(ip) => hex(&mut name, &ip.octets()),
    }
    let _ = write!(name, "{}x{generation}", address.port());
    name
}

/// One open connection; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Open(());

impl Open {
    pub(super) fn count() -> Self {
        COUNTS.with(|(open, _)| open.set(open.get() + 1));
        Self(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // A thread that ends drops its clients after its counts.
        let _ = COUNTS.try_with(|(open, _)| open.set(open.get().saturating_sub(1)));
    }
}

/// One exchange that is under way, and has at most one connection in use; counted until it is dropped.
pub(super) struct UnderWay(());

impl UnderWay {
    pub(super) fn count() -> Self {
        COUNTS.with(|(_, under_way)| under_way.set(under_way.get() + 1));
        Self(())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let _ = COUNTS.try_with(|(_, under_way)| under_way.set(under_way.get().saturating_sub(1)));
    }
}

/// Connections of this thread that are open.
#[cfg(test)]
pub(super) fn open_connections() -> usize {
    COUNTS.with(|(open, _)| open.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_apart_by_tenant_address_and_rules() {
        let address = |text: &str| text.parse().expect("is an address");
        let base = pool_of("acme", address("1.2.3.4:80"), 1);
        for other in [
            pool_of("Acme", address("1.2.3.4:80"), 1),
            pool_of("acm", address("1.2.3.4:80"), 1),
            pool_of("acme", address("1.2.3.5:80"), 1),
            pool_of("acme", address("1.2.3.4:8"), 1),
            pool_of("acme", address("[::1.2.3.4]:80"), 1),
            pool_of("acme", address("1.2.3.4:80"), 2),
        ] {
            assert!(!other.eq_ignore_ascii_case(&base), "{other}");
        }
        let odd = pool_of("ü@/:?#\r\n", address("[::1]:80"), u64::MAX);
        assert!(odd.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{odd}");
    }
}
