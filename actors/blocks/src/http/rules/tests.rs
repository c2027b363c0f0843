use super::*;
use crate::settings::HttpTenantSettings;

fn list(entries: &[&str]) -> Vec<String> {
    entries.iter().map(|entry| (*entry).to_owned()).collect()
}

fn judge(settings: &HttpSettings, tenant: &str, name: Option<&str>, address: &str) -> Result<(), Refusal> {
    let address = address.parse().expect("is an address with port");
    let rules = Rules::new(settings).expect("are rules");
    rules.judge(Asked {
        tenant,
        name,
        address,
    })
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
        "*",
        "*.",
        "*.*",
        "a.*",
        "*a.example",
        "*.10.0.0.1",
        ":80",
        "a.example:70000",
        "0x7f000001",
        "http://x/",
    ] {
        let settings = HttpSettings {
            deny_targets: list(&[entry]),
            ..HttpSettings::default()
        };
        let error = Rules::new(&settings).expect_err(entry);
        assert_eq!(error.key, ["blocks", "http", "deny_targets"], "{entry}");
        assert!(!is_target(entry), "{entry}");
    }
}

#[test]
fn what_is_denied_stays_so_under_every_form_of_its_address() {
    let settings = HttpSettings {
        allow_targets: list(&["0.0.0.0/0", "::/0", "bad.example"]),
        deny_targets: list(&[
            "8.8.8.0/24",
            "9.9.9.9:443",
            "bad.example",
            "*.evil.example",
            "2606::/16",
        ]),
        ..HttpSettings::default()
    };
    let denied = Err(Refusal::Denied("blocks.http.deny_targets"));
    for (name, address, expected) in [
        (None, "8.8.8.8:80", denied),
        (None, "8.8.9.8:80", Ok(())),
        (None, "9.9.9.9:443", denied),
        (None, "9.9.9.9:80", Ok(())),
        (None, "[::ffff:8.8.8.8]:80", denied),
        (None, "[::8.8.8.8]:80", denied),
        (None, "[64:ff9b::8.8.8.8]:80", denied),
        (None, "[2002:808:808::1]:80", denied),
        (None, "[2001:0:1:2:3:4:f7f7:f7f7]:80", denied),
        (None, "[2606:4700::1]:80", denied),
        (Some("bad.example"), "1.1.1.1:80", denied),
        (Some("not-bad.example"), "1.1.1.1:80", Ok(())),
        (Some("a.evil.example"), "1.1.1.1:80", denied),
        (Some("a.b.evil.example"), "1.1.1.1:80", denied),
        (Some("evil.example"), "1.1.1.1:80", Ok(())),
        (Some("notevil.example"), "1.1.1.1:80", Ok(())),
        (Some("fine.example"), "8.8.8.8:80", denied),
    ] {
        assert_eq!(
            judge(&settings, "acme", name, address),
            expected,
            "{name:?} {address}"
        );
    }
}

#[test]
fn a_list_of_the_only_targets_narrows_and_lets_nothing_further_through() {
    let settings = HttpSettings {
        only_targets: list(&["*.example.com", "10.0.0.1", "1.1.1.1:443"]),
        ..HttpSettings::default()
    };
    let not_listed = Err(Refusal::NotListed("blocks.http.only_targets"));
    for (name, address, expected) in [
        (Some("a.example.com"), "8.8.8.8:443", Ok(())),
        (Some("a.example.org"), "8.8.8.8:443", not_listed),
        (
            Some("a.example.com"),
            "10.0.0.2:80",
            Err(Refusal::NotPublic("private")),
        ),
        (None, "10.0.0.1:80", Err(Refusal::NotPublic("private"))),
        (None, "1.1.1.1:443", Ok(())),
        (None, "1.1.1.1:80", not_listed),
        (None, "8.8.8.8:443", not_listed),
    ] {
        assert_eq!(
            judge(&settings, "acme", name, address),
            expected,
            "{name:?} {address}"
        );
    }
}

#[test]
fn a_tenant_has_rules_of_its_own_beside_those_for_all() {
    let own = |allow: &[&str], deny: &[&str], only: &[&str]| HttpTenantSettings {
        allow_targets: list(allow),
        deny_targets: list(deny),
        only_targets: list(only),
    };
    let mut settings = HttpSettings {
        deny_targets: list(&["10.9.0.0/16"]),
        ..HttpSettings::default()
    };
    settings
        .tenants
        .insert("wide".to_owned(), own(&["10.0.0.0/8"], &["10.1.0.0/16"], &[]));
    settings
        .tenants
        .insert("narrow".to_owned(), own(&[], &[], &["1.1.1.1"]));
    for (tenant, address, expected) in [
        ("wide", "10.0.0.1:80", Ok(())),
        (
            "wide",
            "10.1.0.1:80",
            Err(Refusal::Denied("blocks.http.tenants.*.deny_targets")),
        ),
        (
            "wide",
            "10.9.0.1:80",
            Err(Refusal::Denied("blocks.http.deny_targets")),
        ),
        ("wide", "8.8.8.8:80", Ok(())),
        ("narrow", "1.1.1.1:80", Ok(())),
        (
            "narrow",
            "8.8.8.8:80",
            Err(Refusal::NotListed("blocks.http.tenants.*.only_targets")),
        ),
        (
            "narrow",
            "10.0.0.1:80",
            Err(Refusal::NotListed("blocks.http.tenants.*.only_targets")),
        ),
        ("other", "10.0.0.1:80", Err(Refusal::NotPublic("private"))),
        ("Wide", "10.0.0.1:80", Err(Refusal::NotPublic("private"))),
        ("other", "8.8.8.8:80", Ok(())),
    ] {
        assert_eq!(
            judge(&settings, tenant, None, address),
            expected,
            "{tenant} {address}"
        );
    }
}

#[test]
fn ports_of_other_services_are_refused_unless_an_entry_names_them() {
    let settings = HttpSettings {
        allow_targets: list(&["10.0.0.0/8", "192.168.0.1", "192.168.0.2:6379", "mail.example:25"]),
        ..HttpSettings::default()
    };
    let refused = Err(Refusal::Port("blocks.http.deny_ports"));
    for (name, address, expected) in [
        (None, "1.1.1.1:25", refused),
        (None, "1.1.1.1:22", refused),
        (None, "1.1.1.1:6379", refused),
        (None, "1.1.1.1:11211", refused),
        (None, "1.1.1.1:80", Ok(())),
        (None, "1.1.1.1:8080", Ok(())),
        (None, "1.1.1.1:9200", Ok(())),
        (None, "10.0.0.1:6379", refused),
        (None, "192.168.0.1:6379", refused),
        (None, "192.168.0.2:6379", Ok(())),
        (Some("mail.example"), "1.1.1.1:25", Ok(())),
        (Some("mail.example"), "1.1.1.1:22", refused),
    ] {
        assert_eq!(
            judge(&settings, "acme", name, address),
            expected,
            "{name:?} {address}"
        );
    }
    let only = HttpSettings {
        only_ports: vec![443],
        deny_ports: Vec::new(),
        ..settings
    };
    let refused = Err(Refusal::Port("blocks.http.only_ports"));
    for (address, expected) in [
        ("1.1.1.1:443", Ok(())),
        ("1.1.1.1:80", refused),
        ("192.168.0.2:6379", Ok(())),
    ] {
        assert_eq!(judge(&only, "acme", None, address), expected, "{address}");
    }
}

#[test]
fn what_a_caller_is_told_names_a_key_and_no_fault_of_the_other_side() {
    for refusal in [
        Refusal::Denied("blocks.http.deny_targets"),
        Refusal::NotListed("blocks.http.only_targets"),
        Refusal::Port("blocks.http.deny_ports"),
        Refusal::NotPublic("private"),
    ] {
        let rule = refusal.rule();
        assert!(rule.contains("blocks.http."), "{rule}");
        assert!(!caf_protocol::outcome::trips_breaker(&rule), "{rule}");
    }
}
