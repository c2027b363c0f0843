use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

#[test]
fn only_public_addresses_are_public() {
    for (ip, reason) in [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("10.0.0.1", "private"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("100.127.255.255", "carrier-grade NAT"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("168.63.129.16", "metadata service"),
        ("169.254.169.254", "link-local"),
        ("100.100.100.200", "carrier-grade NAT"),
        ("fd00:ec2::254", "unique local"),
        ("192.0.0.192", "protocol assignments"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.8", "protocol assignments"),
        ("192.0.2.1", "documentation"),
        ("192.88.99.1", "6to4 relay"),
        ("192.168.1.1", "private"),
        ("198.18.0.1", "benchmarking"),
        ("198.19.255.255", "benchmarking"),
        ("198.51.100.1", "documentation"),
        ("203.0.113.1", "documentation"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "IPv4-mapped"),
        ("::ffff:8.8.8.8", "IPv4-mapped"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("::ffff:0:127.0.0.1", "reserved"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("64:ff9b::a9fe:a9fe", "NAT64"),
        ("64:ff9b::a00:1", "NAT64"),
        ("64:ff9b:1::1", "local NAT64"),
        ("64:ff9b:1::808:808", "local NAT64"),
        ("2001:0:0:0:0:0:f7f7:f7f7", "protocol assignments"),
        ("2002:808:808::", "6to4"),
        ("100::1", "reserved"),
        ("2001::1", "protocol assignments"),
        ("2001:2::1", "protocol assignments"),
        ("2001:db8::1", "documentation"),
        ("2002:7f00:1::", "6to4"),
        ("3fff::1", "documentation"),
        ("4000::1", "reserved"),
        ("5f00::1", "reserved"),
        ("fc00::1", "unique local"),
        ("fd12:3456::1", "unique local"),
        ("fe80::1", "link-local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
    ] {
        assert_eq!(refusal(ip.parse().expect(ip)), Some(reason), "{ip}");
    }
    for ip in [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.1",
        "192.167.255.255",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "168.63.129.15",
        "64:ff9b::808:808",
        "2001:200::1",
        "2606:4700:4700::1111",
        "2a00:1450:4001::1",
        "3ffe::1",
    ] {
        assert_eq!(refusal(ip.parse().expect(ip)), None, "{ip}");
    }
}

/// What the standard library says of an IPv4 address, which knows fewer kinds.
fn std_refuses(ip: Ipv4Addr) -> bool {
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_broadcast()
        || ip.is_multicast()
        || ip.is_documentation()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nothing_that_the_standard_library_knows_as_special_is_public(bits: u32, near in 0_usize..12, low: u16) {
        // Half of them near the blocks: at random one hardly ever meets a small one.
        let blocks: [[u8; 2]; 12] = [
            [10, 0], [127, 0], [169, 254], [172, 16], [172, 31], [192, 0], [192, 168], [198, 51], [203, 0],
            [224, 0], [255, 255], [0, 0],
        ];
        let [a, b] = blocks[near];
        let [c, d] = low.to_be_bytes();
        for ip in [Ipv4Addr::from_bits(bits), Ipv4Addr::new(a, b, c, d)] {
            if std_refuses(ip) {
                prop_assert!(refusal(ip.into()).is_some(), "{}", ip);
            }
            // Whatever form of IPv6 holds it, what is not public stays so.
            let [high, low] = [(ip.to_bits() >> 16) as u16, (ip.to_bits() & 0xffff) as u16];
            let forms = [
                ip.to_ipv6_mapped(),
                ip.to_ipv6_compatible(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            ];
            for form in forms {
                if refusal(ip.into()).is_some() {
                    prop_assert!(refusal(form.into()).is_some(), "{}", form);
                }
                prop_assert_eq!(embedded(form.into()), Some(ip), "{}", form);
            }
        }
    }

    #[test]
    fn no_address_of_ipv6_beside_the_public_block_is_public(bits: u128) {
        let ip = Ipv6Addr::from_bits(bits);
        let is_nat64 = ip.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
        if ip.segments()[0] >> 13 != 1 && !is_nat64 {
            prop_assert!(refusal(ip.into()).is_some(), "{}", ip);
        }
        if ip.is_unicast_link_local() || ip.is_unique_local() || ip.is_multicast() || ip.is_loopback() {
            prop_assert!(refusal(ip.into()).is_some(), "{}", ip);
        }
    }
}
