//! What kind of address an address is. Pure.
//!
//! Neighbours: `rules` asks. Knows neither names nor settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The prefix under which gateways show all of IPv4 to IPv6 (RFC 6052).
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// Whether the first `prefix` bits agree; never for addresses of two kinds.
pub(super) fn in_range(ip: IpAddr, base: IpAddr, prefix: u8) -> bool {
    match (ip, base) {
        (IpAddr::V4(ip), IpAddr::V4(base)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            ip.to_bits() & mask == base.to_bits() & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(base)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            ip.to_bits() & mask == base.to_bits() & mask
        }
        _ => false,
    }
}

/// IPv4 blocks that are not public, with the reason (IANA special-purpose registry). One more has a public address, and yet
/// stands for the host that asks: the one by which Azure tells its machines about themselves.
const REFUSED_V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "metadata service"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// IPv6 blocks that are not public. What is in none of them must still be in 2000::/3, the only block from which public
/// addresses are given out; the entries outside of it serve the reason.
const REFUSED_V6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "IPv4-mapped"),
    (Ipv6Addr::UNSPECIFIED, 96, "IPv4-compatible"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "local NAT64"),
    (
        Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0),
        23,
        "protocol assignments",
    ),
    (
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
        32,
        "documentation",
    ),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "unique local"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// Why an address is not public; nothing when it is.
pub(super) fn refusal(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(_) => REFUSED_V4
            .iter()
            .find(|(base, prefix, _)| in_range(ip, (*base).into(), *prefix))
            .map(|(_, _, reason)| *reason),
        // In a network without IPv4 a public host has no other address than this one, so the address within decides.
        IpAddr::V6(v6) if in_range(ip, NAT64.into(), 96) => refusal(last_v4(v6).into()).map(|_| "NAT64"),
        IpAddr::V6(v6) => REFUSED_V6
            .iter()
            .find(|(base, prefix, _)| in_range(ip, (*base).into(), *prefix))
            .map(|(_, _, reason)| *reason)
            .or_else(|| (v6.segments()[0] >> 13 != 1).then_some("reserved")),
    }
}

/// The IPv4 address that packets to this IPv6 address may end at: mapped, compatible, NAT64, 6to4 or Teredo.
pub(super) fn embedded(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return None };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _]
        | [0, 0, 0, 0, 0xffff, 0, _, _]
        | [0x64, 0xff9b, 0, 0, 0, 0, _, _]
        | [0x64, 0xff9b, 1, ..] => Some(last_v4(v6)),
        [0x2002, high, low, ..] => Some(v4_of(high, low)),
        // Teredo keeps the address of the client, each bit turned over.
        [0x2001, 0, _, _, _, _, high, low] => Some(v4_of(!high, !low)),
        _ => None,
    }
}

fn last_v4(v6: Ipv6Addr) -> Ipv4Addr {
    let [.., high, low] = v6.segments();
    v4_of(high, low)
}

fn v4_of(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

#[cfg(test)]
mod tests;
