//! Ports for servers that must be told one.
//!
//! Below the range from which the system takes ports for outgoing connections: there, a client that keeps knocking
//! at the port of a stopped server may one day connect to itself, and the server cannot come back.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// First port handed out.
const FIRST: u16 = 15_000;
/// Number of ports to choose from; Linux connects outwards from 32,768 up.
const COUNT: u16 = 17_000;

static NEXT: Mutex<Option<u16>> = Mutex::new(None);

/// A port of 127.0.0.1 on which nobody listens. Handed out once per process; another process could take it before it
/// is used, so a server that finds it taken should ask for another.
///
/// # Panics
/// When every port is taken.
pub fn free_port() -> u16 {
    let mut next = NEXT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let start = next.unwrap_or_else(|| {
        let random = uuid::Uuid::new_v4().into_bytes();
        u16::from_be_bytes([random[0], random[1]]) % COUNT
    });
    for step in 0..COUNT {
        let offset = (start + step) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, FIRST + offset)).is_ok() {
            *next = Some((offset + 1) % COUNT);
            return FIRST + offset;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_not_handed_out_twice() {
        let (first, second) = (free_port(), free_port());
        assert_ne!(first, second);
        TcpListener::bind((Ipv4Addr::LOCALHOST, first)).expect("nobody listens there");
    }
}
