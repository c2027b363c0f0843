use super::*;
use crate::tests::block_on;

fn guard(allow: &[&str]) -> Guard {
    let allow: Vec<_> = allow.iter().map(|entry| (*entry).to_owned()).collect();
    Guard::new(&allow, Extras::default()).expect("entries are valid")
}

fn addresses(guard: &Guard, url: &str) -> Result<Vec<SocketAddr>, Failure> {
    block_on(guard.addresses(&Url::parse(url).expect("is a URL")))
}

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
        ("169.254.169.254", "link-local"),
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
        ("64:ff9b:1::1", "local NAT64"),
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
        "2001:200::1",
        "2606:4700:4700::1111",
        "2a00:1450:4001::1",
        "3ffe::1",
    ] {
        assert_eq!(refusal(ip.parse().expect(ip)), None, "{ip}");
    }
}

#[test]
fn every_spelling_of_a_loopback_address_is_refused() {
    for url in [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::]/",
        "http://localhost/",
        "http://LOCALHOST/",
        "http://①②⑦.⓪.⓪.①/",
    ] {
        let failure = addresses(&guard(&[]), url).expect_err(url);
        assert_eq!(failure.code, ErrorCode::PermissionDenied, "{url}");
        assert!(
            failure.message.contains("blocks.http.allow_targets"),
            "{url}: {}",
            failure.message
        );
        assert!(
            !failure.message.contains("127"),
            "the address stays inside: {}",
            failure.message
        );
    }
}

#[test]
fn a_public_literal_passes_with_its_port() {
    assert_eq!(
        addresses(&guard(&[]), "https://1.1.1.1/"),
        Ok(vec!["1.1.1.1:443".parse().expect("is one")])
    );
    assert_eq!(
        addresses(&guard(&[]), "http://1.1.1.1:81/"),
        Ok(vec!["1.1.1.1:81".parse().expect("is one")])
    );
}

#[test]
fn entries_let_through_what_they_say_and_nothing_else() {
    for (entry, url, passes) in [
        ("127.0.0.0/8", "http://127.9.9.9/", true),
        ("127.0.0.0/8", "http://10.0.0.1/", false),
        ("127.0.0.0/8", "http://[::ffff:127.0.0.1]/", true),
        ("0.0.0.0/0", "http://169.254.169.254/", true),
        ("0.0.0.0/0", "http://[::1]/", false),
        ("127.0.0.1/32", "http://127.0.0.2/", false),
        ("fd00::/8", "http://[fd00::1]/", true),
        ("fd00::/8", "http://[fc00::1]/", false),
        ("127.0.0.1", "http://127.0.0.1:1234/", true),
        ("127.0.0.1:80", "http://127.0.0.1/", true),
        ("127.0.0.1:80", "http://127.0.0.1:81/", false),
        ("[::1]", "http://[::1]/", true),
        ("::1", "http://[::1]/", true),
        ("[::1]:80", "http://[::1]/", true),
        ("[::1]:80", "http://[::1]:81/", false),
        ("localhost", "http://localhost:9/", true),
        ("LocalHost.", "http://localhost/", true),
        ("localhost", "http://127.0.0.1/", false),
        ("localhost:80", "http://localhost/", true),
        ("localhost:80", "http://localhost:81/", false),
    ] {
        assert_eq!(addresses(&guard(&[entry]), url).is_ok(), passes, "{entry} {url}");
    }
}

#[test]
fn entries_that_say_nothing_are_refused_by_name() {
    for entry in [
        "",
        "10.0.0.0/33",
        "::/129",
        "10.0.0/8",
        "a b",
        "host:port",
        "*.internal",
        "0x7f000001",
        "http://x/",
    ] {
        let error = Guard::new(&[entry.to_owned()], Extras::default()).expect_err(entry);
        assert_eq!(error.key, ALLOW_KEY, "{entry}");
    }
}

#[test]
fn the_nodes_own_health_endpoint_passes_under_both_names() {
    let extras = |address: &str| Extras {
        health_target: Some((
            "health.worker.internal".to_owned(),
            address.parse().expect("is one"),
        )),
        ..Extras::default()
    };
    let guard = Guard::new(&[], extras("0.0.0.0:9091")).expect("builds");
    let own = Ok(vec!["127.0.0.1:9091".parse().expect("is one")]);
    for url in [
        "http://health.worker.internal/_health",
        "http://HEALTH.worker.internal.:1/_health",
        "http://127.0.0.1:9091/_health",
        "http://localhost:9091/_health",
    ] {
        assert_eq!(addresses(&guard, url), own, "{url}");
    }
    for url in [
        "http://127.0.0.1:9093/",
        "http://localhost/",
        "http://127.0.0.2:9091/",
        "http://[::1]:9091/",
    ] {
        assert!(addresses(&guard, url).is_err(), "{url}");
    }
}

#[test]
fn a_name_without_address_is_a_network_error() {
    let failure = addresses(&guard(&[]), "http://no-such-host.invalid/").expect_err("cannot be resolved");
    assert_eq!(failure.code, ErrorCode::NetworkError);
    assert!(!failure.message.contains("no-such-host"), "{}", failure.message);
}
