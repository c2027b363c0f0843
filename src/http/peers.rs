//! What is remembered of those who ask the admin port: how many connections each has, how often its token was wrong, and
//! whether it was told of in the log. Pure: the time comes in.
//!
//! Neighbours: `Port` counts connections, [`super::guard`] failed tokens, [`super::audit`] lines. Bounded: beyond so many
//! peers, who was heard of longest ago is forgotten.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Most peers that are remembered: some 100 bytes each.
const MAX_PEERS: usize = 1_024;
/// Most connections of one address at once: so four of them are needed to take all. Loopback is not counted: whoever comes
/// through a tunnel or a proxy has this address, and would be kept out by a stranger of the same machine.
pub const CONNECTIONS_PER_ADDRESS: usize = 16;
/// Wrong tokens of one peer that are answered at once; then one in [`TOKEN_PAUSE`].
const WRONG_TOKENS: u32 = 10;
/// After so long, one more wrong token is forgiven.
const TOKEN_PAUSE: Duration = Duration::from_secs(6);
/// Refusals of one peer that are told of in [`LINES_WINDOW`].
const REFUSALS_TOLD: u32 = 5;
/// Refusals of all peers together that are told of in [`LINES_WINDOW`]: addresses are cheap.
const REFUSALS_TOLD_OF_ALL: u32 = 60;
/// How long such a count runs; and how often a peer that reads is told of.
const LINES_WINDOW: Duration = Duration::from_secs(60);

/// Who is on the other side, as far as it matters for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An address; of IPv6 the network of 64 bits, which one machine usually has to itself.
    Address(IpAddr),
    /// The holder of a certificate, by its fingerprint: a stranger cannot be taken for it, whatever its address.
    Certificate([u8; 32]),
}

impl Peer {
    /// The peer at this address.
    pub fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(ip) => Self::Address(IpAddr::V6((ip.to_bits() & (u128::MAX << 64)).into())),
            ip => Self::Address(ip),
        }
    }
}

/// All that are remembered. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Peers(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    peers: HashMap<Peer, Seen>,
    refusals_told: Window,
}

#[derive(Debug)]
struct Seen {
    last: Instant,
    connections: usize,
    /// Wrong tokens that are not forgiven yet, and since when the last was forgiven.
    wrong: u32,
    forgiven: Instant,
    read_told: Option<Instant>,
    refusals_told: Window,
}

/// A count that begins anew after its time.
#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    count: u32,
}

impl Window {
    fn count(&mut self, now: Instant) -> u32 {
        if self.began.is_none_or(|began| now - began >= LINES_WINDOW) {
            self.began = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.count
    }
}

/// A connection that counts; it does no longer once this is dropped.
#[derive(Debug)]
pub struct Connected {
    peers: Peers,
    peer: Peer,
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(seen) = self.peers.lock().peers.get_mut(&self.peer) {
            seen.connections = seen.connections.saturating_sub(1);
        }
    }
}

impl Peers {
    /// Counts a connection from this address, unless there are too many.
    pub fn connect(&self, address: IpAddr, now: Instant) -> Option<Connected> {
        let peer = Peer::at(address);
        let is_free = address.to_canonical().is_loopback();
        let mut memory = self.lock();
        let seen = memory.seen(peer, now);
        if !is_free && seen.connections >= CONNECTIONS_PER_ADDRESS {
            return None;
        }
        seen.connections += 1;
        drop(memory);
        let peers = self.clone();
        Some(Connected { peers, peer })
    }

    /// How long this peer has to wait before a token of it is looked at; nothing when it need not.
    pub fn must_wait(&self, peer: Peer, now: Instant) -> Option<Duration> {
        let mut memory = self.lock();
        let seen = memory.peers.get_mut(&peer)?;
        seen.forgive(now);
        (seen.wrong >= WRONG_TOKENS).then(|| TOKEN_PAUSE.saturating_sub(now - seen.forgiven))
    }

    /// Notes a wrong token.
    pub fn note_wrong_token(&self, peer: Peer, now: Instant) {
        let mut memory = self.lock();
        let seen = memory.seen(peer, now);
        seen.forgive(now);
        if seen.wrong == 0 {
            seen.forgiven = now;
        }
        seen.wrong += 1;
    }

    /// Whether a question of this peer is told of aloud: the first in a minute.
    pub fn tells_reading(&self, peer: Peer, now: Instant) -> bool {
        let mut memory = self.lock();
        let told = &mut memory.seen(peer, now).read_told;
        let tells = told.is_none_or(|told| now - told >= LINES_WINDOW);
        if tells {
            *told = Some(now);
        }
        tells
    }

    /// Whether a refusal of this peer is told of aloud: a few in a minute, and not many of all peers together.
    pub fn tells_refusal(&self, peer: Peer, now: Instant) -> bool {
        let mut memory = self.lock();
        memory.seen(peer, now).refusals_told.count(now) <= REFUSALS_TOLD
            && memory.refusals_told.count(now) <= REFUSALS_TOLD_OF_ALL
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn seen(&mut self, peer: Peer, now: Instant) -> &mut Seen {
        if !self.peers.contains_key(&peer) && self.peers.len() >= MAX_PEERS {
            // Those that are connected are fewer than there are places.
            let idle = self.peers.iter().filter(|(_, seen)| seen.connections == 0);
            let oldest = idle.min_by_key(|(_, seen)| seen.last).map(|(peer, _)| *peer);
            oldest.map(|peer| self.peers.remove(&peer));
        }
        let seen = self.peers.entry(peer).or_insert_with(|| Seen {
            last: now,
            connections: 0,
            wrong: 0,
            forgiven: now,
            read_told: None,
            refusals_told: Window::default(),
        });
        seen.last = now;
        seen
    }
}

impl Seen {
    /// Forgets what is forgiven by now.
    fn forgive(&mut self, now: Instant) {
        while self.wrong > 0 && now - self.forgiven >= TOKEN_PAUSE {
            self.wrong -= 1;
            self.forgiven += TOKEN_PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(last: u8) -> IpAddr {
        [203, 0, 113, last].into()
    }

    #[test]
    fn one_address_cannot_take_all_connections_and_loopback_is_not_counted() {
        let (peers, now) = (Peers::default(), Instant::now());
        let mut held: Vec<_> = (0..CONNECTIONS_PER_ADDRESS)
            .map(|_| peers.connect(stranger(1), now).expect("is let in"))
            .collect();
        assert!(peers.connect(stranger(1), now).is_none());
        assert!(
            peers.connect(stranger(2), now).is_some(),
            "another address is another peer"
        );
        held.pop();
        assert!(
            peers.connect(stranger(1), now).is_some(),
            "a connection that is over counts no longer"
        );
        let local: Vec<_> = (0..100)
            .map(|_| peers.connect([127, 0, 0, 1].into(), now))
            .collect();
        assert!(local.iter().all(Option::is_some));
    }

    #[test]
    fn who_guesses_tokens_waits_and_is_forgiven_one_at_a_time() {
        let (peers, mut now) = (Peers::default(), Instant::now());
        let peer = Peer::at(stranger(1));
        for _ in 0..WRONG_TOKENS {
            assert_eq!(peers.must_wait(peer, now), None);
            peers.note_wrong_token(peer, now);
        }
        assert_eq!(peers.must_wait(peer, now), Some(TOKEN_PAUSE));
        assert_eq!(peers.must_wait(Peer::at(stranger(2)), now), None);
        assert_eq!(peers.must_wait(Peer::Certificate([1; 32]), now), None);
        now += TOKEN_PAUSE;
        assert_eq!(peers.must_wait(peer, now), None);
        peers.note_wrong_token(peer, now);
        assert_eq!(peers.must_wait(peer, now), Some(TOKEN_PAUSE));
        now += TOKEN_PAUSE * (WRONG_TOKENS + 1);
        peers.note_wrong_token(peer, now);
        assert_eq!(peers.must_wait(peer, now), None, "all are forgiven in the end");
    }

    #[test]
    fn neither_one_stranger_nor_many_fill_the_log_or_the_memory() {
        let (peers, now) = (Peers::default(), Instant::now());
        let told = |peer: Peer, now| (0..100).filter(|_| peers.tells_refusal(peer, now)).count();
        assert_eq!(told(Peer::at(stranger(1)), now), REFUSALS_TOLD as usize);
        let many = (0..10_000u32).map(|n| Peer::at(IpAddr::from(n.to_be_bytes())));
        let told_of_many: usize = many.map(|peer| told(peer, now)).sum();
        assert_eq!(told_of_many, (REFUSALS_TOLD_OF_ALL - REFUSALS_TOLD) as usize);
        assert_eq!(peers.lock().peers.len(), MAX_PEERS);
        assert!(peers.tells_refusal(Peer::at(stranger(9)), now + LINES_WINDOW));
    }

    #[test]
    fn who_reads_is_told_of_once_a_minute() {
        let (peers, now) = (Peers::default(), Instant::now());
        let peer = Peer::at("2001:db8::1".parse().unwrap());
        let neighbour = Peer::at("2001:db8::2".parse().unwrap());
        assert_eq!(peer, neighbour, "one machine has the whole network");
        assert!(peers.tells_reading(peer, now));
        assert!(!peers.tells_reading(neighbour, now + LINES_WINDOW / 2));
        assert!(peers.tells_reading(peer, now + LINES_WINDOW));
    }

    #[test]
    fn a_peer_that_is_connected_is_not_forgotten() {
        let (peers, now) = (Peers::default(), Instant::now());
        let held: Vec<_> = (0..CONNECTIONS_PER_ADDRESS)
            .map(|_| peers.connect(stranger(1), now))
            .collect();
        for n in 0..5_000u32 {
            peers.note_wrong_token(Peer::at(IpAddr::from(n.to_be_bytes())), now);
        }
        assert!(peers.connect(stranger(1), now).is_none());
        drop(held);
        assert!(peers.connect(stranger(1), now).is_some());
    }
}
