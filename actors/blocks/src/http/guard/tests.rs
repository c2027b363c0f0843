use super::*;
use crate::tests::block_on;

fn guard(allow: &[&str]) -> Guard {
    Guard::new(&allowing(allow), Extras::default()).expect("entries are valid")
}

fn allowing(allow: &[&str]) -> HttpSettings {
    HttpSettings {
        allow_targets: allow.iter().map(|entry| (*entry).to_owned()).collect(),
        ..HttpSettings::default()
    }
}

fn addresses(guard: &Guard, url: &str) -> Result<Vec<SocketAddr>, Failure> {
    let url = Url::parse(url).expect("is a URL");
    block_on(guard.passage(&url, "acme")).map(|passage| passage.addresses)
}

/// A guard for which every name has these addresses.
fn resolving(allow: &[&str], found: &[&str]) -> Guard {
    let found: Vec<IpAddr> = found
        .iter()
        .map(|ip| ip.parse().expect("is an address"))
        .collect();
    Guard {
        resolve: std::sync::Arc::new(move |_, port, _| {
            let found = found.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
            Box::pin(std::future::ready(Ok(found)))
        }),
        ..guard(allow)
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
        "http://127.0.0.1./",
        "http://%31%32%37.0.0.1/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://127.0.1/",
        "http://[::127.0.0.1]/",
        "http://[0:0:0:0:0:ffff:127.0.0.1]/",
        "http://[64:ff9b::127.0.0.1]/",
        "http:/127.0.0.1/",
        "http:\\\\127.0.0.1\\",
        "http://127.0.0.1#@1.1.1.1/",
        "http://127.0.0.1\\@1.1.1.1/",
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
fn the_nodes_own_health_endpoint_passes_under_both_names() {
    let extras = |address: &str| Extras {
        health_target: Some((
            "health.worker.internal".to_owned(),
            address.parse().expect("is one"),
        )),
        ..Extras::default()
    };
    let guard = Guard::new(&allowing(&[]), extras("0.0.0.0:9091")).expect("builds");
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

#[test]
fn of_a_name_with_addresses_of_both_kinds_only_the_good_ones_are_used() {
    let mixed = ["10.0.0.1", "8.8.8.8", "::1", "8.8.8.8", "2606:4700::1111"];
    let good = ["8.8.8.8:80", "[2606:4700::1111]:80"].map(|text| text.parse().expect("is an address"));
    assert_eq!(
        addresses(&resolving(&[], &mixed), "http://x.example/"),
        Ok(good.to_vec())
    );
    let allowed = addresses(&resolving(&["10.0.0.0/8"], &mixed), "http://x.example/").expect("passes");
    assert_eq!(allowed.len(), 3);
    let bad = resolving(&[], &["169.254.169.254", "fd00:ec2::254"]);
    let failure = addresses(&bad, "http://metadata.google.internal/").expect_err("is denied");
    assert_eq!(failure.code, ErrorCode::PermissionDenied);
    assert_eq!(
        failure.internal.as_deref(),
        Some("169.254.169.254 (link-local), fd00:ec2::254 (unique local)")
    );
    assert!(!failure.message.contains("169"), "{}", failure.message);
}

#[test]
fn a_name_has_one_job_knock_at_few_doors_only() {
    let many: Vec<String> = (1..=200).map(|n| format!("8.8.8.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let tried = addresses(&resolving(&[], &many), "http://x.example/").expect("passes");
    assert_eq!(tried.len(), MAX_ADDRESSES);
}

#[test]
fn rules_that_are_replaced_while_a_name_is_looked_up_hold_for_it() {
    let rules = TargetRules::default();
    let extras = Extras {
        http_targets: rules.clone(),
        ..Extras::default()
    };
    let mut guard = Guard::new(&allowing(&["127.0.0.1"]), extras).expect("builds");
    guard.resolve = std::sync::Arc::new(move |_, port, _| {
        rules.replace(&allowing(&[])).expect("are valid");
        Box::pin(std::future::ready(Ok(vec![SocketAddr::from((
            [127, 0, 0, 1],
            port,
        ))])))
    });
    let failure = addresses(&guard, "http://x.example/").expect_err("is denied");
    assert_eq!(failure.code, ErrorCode::PermissionDenied);
}
