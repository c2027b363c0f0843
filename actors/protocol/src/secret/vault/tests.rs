//! A value goes to whom it is for and to nobody else, and nobody learns which names there are.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::*;
use crate::ids::Correlation;

fn context(tenant: &str) -> BlockContext {
    BlockContext {
        tenant_id: tenant.to_owned(),
        assignment_id: "a".to_owned(),
        correlation: Correlation::default(),
        deadline: Instant::now() + Duration::from_secs(1),
        attempt: 0,
        model_call: Default::default(),
        cancel: CancellationToken::new(),
    }
}

fn target(url: &str) -> Target {
    match url.strip_prefix("sql:") {
        Some(name) => Target::Connection(name.to_owned()),
        None => Target::of_url(&Url::parse(url).unwrap()).unwrap(),
    }
}

fn named(value: &str, tenants: &[&str], destinations: &[&str]) -> NamedSecret {
    let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let destinations = destinations.iter().map(|text| Destination::parse(text).unwrap());
    NamedSecret::new(
        value.into(),
        owned(tenants),
        owned(&["http.request"]),
        destinations.collect(),
    )
}

#[test]
fn a_destination_covers_what_it_says_and_nothing_beside_it() {
    for (text, covered, others) in [
        (
            "API.example.com",
            ["https://api.example.com/x", "https://api.example.com:8443"],
            ["http://api.example.com", "https://x.api.example.com"],
        ),
        (
            "api.example.com:8443",
            ["https://api.example.com:8443/y?z", "https://API.EXAMPLE.COM:8443"],
            ["https://api.example.com", "http://api.example.com:8443"],
        ),
        (
            "https://api.example.com",
            ["https://api.example.com:443", "https://api.example.com"],
            ["https://api.example.com:8443", "https://api.example.com."],
        ),
        (
            "http://10.0.0.1:8080",
            ["http://10.0.0.1:8080", "http://0x0a000001:8080"],
            ["https://10.0.0.1:8080", "http://10.0.0.1"],
        ),
        (
            "127.0.0.1",
            ["http://127.0.0.1:1", "https://127.0.0.1"],
            ["http://127.0.0.2:1", "postgres://127.0.0.1"],
        ),
        (
            "[::1]",
            ["http://[::1]:80", "https://[0:0::1]:8"],
            ["http://[::2]", "https://[::11]"],
        ),
        (
            "[::1]:8",
            ["http://[::1]:8", "https://[0:0::1]:8"],
            ["http://[::1]:9", "https://[::1]"],
        ),
        (
            "postgres://DB.example.com",
            ["postgres://db.example.com:5432/x", "postgresql://db.example.com"],
            ["https://db.example.com", "sql:db.example.com"],
        ),
        ("sql:main", ["sql:main", "sql:main"], ["sql:Main", "https://main"]),
    ] {
        let destination = Destination::parse(text).expect(text);
        for url in covered {
            assert!(destination.covers(&target(url)), "{text} covers {url}");
        }
        for url in others {
            assert!(!destination.covers(&target(url)), "{text} does not cover {url}");
        }
    }
    for text in [
        "",
        "*",
        "*.example.com",
        "a b",
        "https://",
        "ftp://h",
        "https://h/x",
        "https://h/",
        "h/x",
        "https://u@h",
        "u:p@h",
        "h?x",
        "https://h#x",
        "sql:",
        "sql: x",
        "h:0",
        "h:99999",
        "http:h",
        "::1",
        " h",
    ] {
        assert_eq!(Destination::parse(text), Err(destination::RULE), "{text:?}");
    }
}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Witness for Notes {
    fn saw(&self, asked: &Asked<'_>) {
        let denial = asked.denial.map_or("used", Denial::as_str);
        let line = format!(
            "{:?} {} {} {denial}",
            asked.name, asked.context.tenant_id, asked.target
        );
        self.0.lock().unwrap().push(line);
    }
}

#[test]
fn a_value_is_lent_to_whom_it_is_for_and_all_others_hear_the_same() {
    let notes = Arc::new(Notes::default());
    let vault = Vault::default().with_witness(Arc::clone(&notes) as _);
    vault.replace([
        (
            "mine".to_owned(),
            named("hunter2hunter2", &["acme"], &["h.example"]),
        ),
        ("all".to_owned(), named("hunter3hunter3", &["*"], &["h.example"])),
        ("nobody".to_owned(), named("hunter4hunter4", &[], &["h.example"])),
    ]);
    let ask = |name: &str, tenant: &str, block_type: &str, url: &str| {
        let reference = SecretRef {
            name: name.to_owned(),
            prefix: String::new(),
        };
        let lent = vault.lend(
            (&reference, "headers"),
            (block_type, &context(tenant)),
            &target(url),
        );
        lent.map(|lent| lent.value().expose().to_owned())
    };
    let (http, url) = ("http.request", "https://h.example/x");
    assert_eq!(ask("mine", "acme", http, url), Ok("hunter2hunter2".to_owned()));
    assert_eq!(ask("all", "other", http, url), Ok("hunter3hunter3".to_owned()));
    let denied = [
        ask("mine", "other", http, url),
        ask("mine", "acme", "sql.query", url),
        ask("mine", "acme", http, "https://evil.example"),
        ask("none", "acme", http, url),
        ask("nobody", "acme", http, url),
    ];
    for one in &denied {
        assert_eq!(one, &denied[0]);
        assert_eq!(one.as_ref().unwrap_err().code, ErrorCode::PermissionDenied);
    }
    let notes = notes.0.lock().unwrap();
    let said: Vec<&str> = notes
        .iter()
        .map(|note| note.rsplit_once(' ').unwrap().1)
        .collect();
    assert_eq!(
        said,
        [
            "used",
            "used",
            "tenant",
            "block_type",
            "destination",
            "unknown",
            "tenant"
        ]
    );
    assert_eq!(notes[0], "Some(\"mine\") acme https://h.example:443 used");
    assert!(
        notes[5].starts_with("None"),
        "an unknown name may be a value: {}",
        notes[5]
    );
    assert!(!format!("{vault:?}{notes:?}").contains("hunter"));
}

#[test]
fn what_was_lent_is_kept_when_the_vault_changes_and_is_scrubbed_as_one() {
    let vault = Vault::default();
    let lend = |name: &str| {
        let reference = SecretRef {
            name: name.to_owned(),
            prefix: String::new(),
        };
        vault
            .lend(
                (&reference, "body"),
                ("http.request", &context("t")),
                &target("https://h.example"),
            )
            .unwrap()
    };
    let put = |one: &str, other: &str| {
        vault.replace([
            ("one".to_owned(), named(one, &["*"], &["h.example", "g.example"])),
            ("other".to_owned(), named(other, &["*"], &["h.example"])),
        ]);
    };
    put("abcdefghij", "ghijklmnop");
    let borrowed = Borrowed::from(vec![lend("one"), lend("other")]);
    put("something else", "something more");
    assert_eq!(borrowed.scrubber().text("<abcdefghijklmnop>"), "<[REDACTED]>");
    assert!(
        borrowed.are_for(&target("https://h.example")) && !borrowed.are_for(&target("https://g.example"))
    );
    assert_eq!(lend("one").value().expose(), "something else");
    assert!(Borrowed::default().is_empty() && Borrowed::default().scrubber().is_empty());
}

#[test]
fn values_that_could_not_be_masked_are_refused() {
    for (value, holds) in [
        ("12345678", true),
        ("1234567", false),
        (" 1234567 ", false),
        ("redacted", false),
        ("a\0bcdefgh", false),
        (&"x".repeat(8_192), true),
        (&"x".repeat(8_193), false),
    ] {
        assert_eq!(check_value(value).is_ok(), holds, "{value:?}");
    }
}
