use proptest::prelude::*;

use super::*;

fn location(text: &str) -> Location {
    PayloadRef::parse(text, None)
        .unwrap_or_else(|refusal| panic!("{text}: {refusal:?}"))
        .location
}

fn object(bucket: &str, key: &str) -> Location {
    let (bucket, key) = (bucket.to_owned(), key.to_owned());
    Location::Object { bucket, key }
}

fn file(path: &str) -> Location {
    let path = path.to_owned();
    Location::File { path }
}

#[test]
fn each_scheme_is_read_and_escapes_are_decoded_once() {
    for (text, expected) in [
        ("nats-obj://inputs/a", object("inputs", "a")),
        ("NATS-OBJ://In_1-x/a/b//c", object("In_1-x", "a/b//c")),
        ("nats-obj://b/a%20b%2Fc?d#e", object("b", "a b/c?d#e")),
        ("nats-obj://b/100%2525", object("b", "100%25")),
        ("nats-obj://b/%C3%BC", object("b", "ü")),
        ("file:data/in/a.json", file("data/in/a.json")),
        ("file:///srv/data/a%20b.json", file("/srv/data/a b.json")),
        ("file:/srv/a.json", file("/srv/a.json")),
        ("file:data/../x", file("data/../x")),
    ] {
        assert_eq!(location(text), expected, "{text}");
    }
    for text in ["http://h/a?b=c", "https://h:8443/", "HTTP://h"] {
        assert_eq!(location(text).scheme(), Scheme::Http, "{text}");
    }
}

#[test]
fn what_cannot_be_resolved_is_refused_with_the_field_and_without_its_value() {
    use ErrorCode as E;
    use RejectReason as R;
    let (unsupported, invalid, secret) = (
        (R::UnsupportedPayloadRef, E::InvalidInput),
        (R::InvalidField, E::InvalidFormat),
        (R::InvalidField, E::InvalidInput),
    );
    let long_key = format!("nats-obj://b/{}", "x".repeat(513));
    let long_bucket = format!("nats-obj://{}/k", "x".repeat(129));
    let long = format!("http://h/{}", "x".repeat(2_048));
    for (text, expected) in [
        ("", unsupported),
        ("objects/1", unsupported),
        ("undefined", unsupported),
        ("s3://bucket/key", unsupported),
        ("ftp://h/x", unsupported),
        ("data:application/json,{}", unsupported),
        ("nats-obj:bucket/key", invalid),
        ("nats-obj://bucket", invalid),
        ("nats-obj://bucket/", invalid),
        ("nats-obj:///key", invalid),
        ("nats-obj://a.b/key", invalid),
        ("nats-obj://b*/key", invalid),
        ("nats-obj://u:hunter2@b/key", invalid),
        ("nats-obj://b/a%2", invalid),
        ("nats-obj://b/a%zz", invalid),
        ("nats-obj://b/%ff", invalid),
        ("nats-obj://b/a%00b", invalid),
        ("nats-obj://b/a b", invalid),
        (&long_key, invalid),
        (&long_bucket, invalid),
        ("file:", invalid),
        ("file://host/a", invalid),
        ("file://", invalid),
        ("file:a\nb", invalid),
        ("http://", invalid),
        ("http://h:99999/", invalid),
        (&long, invalid),
        ("http://u:hunter2@h/x", secret),
        ("https://hunter2@h/x", secret),
    ] {
        let refusal = PayloadRef::parse(text, None).expect_err(text);
        assert_eq!((refusal.reason, refusal.failure.code), expected, "{text}");
        assert_eq!(refusal.failure.details["field"], FIELD, "{text}");
        assert!(!format!("{refusal:?}").contains("hunter2"), "{refusal:?}");
    }
}

#[test]
fn a_hash_is_sixty_four_digits_in_lower_case() {
    assert!(is_sha256(&"0a".repeat(32)));
    for bad in [
        "",
        &"0A".repeat(32),
        &"0a".repeat(31),
        &"0g".repeat(32),
        &"é".repeat(32),
    ] {
        assert!(!is_sha256(bad), "{bad}");
    }
}

#[test]
fn a_node_without_a_fetcher_says_what_it_would_take() {
    let refusal = Fetchers::default()
        .find(&object("b", "k"))
        .map(|_| ())
        .expect_err("has none");
    assert_eq!(refusal.reason, RejectReason::UnsupportedPayloadRef);
    assert!(refusal.failure.message.contains("broker"), "{refusal:?}");
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "((nats-obj|file|https?|[a-z]{0,3}):)?/{0,3}\\PC{0,40}") {
        if let Err(refusal) = PayloadRef::parse(&text, None) {
            prop_assert_eq!(refusal.failure.code.number() / 1000, 1);
        }
    }

    #[test]
    fn every_key_survives_being_written_as_a_reference(key in "[^\\pC]{1,60}") {
        let written: String = key.bytes().map(|b| format!("%{b:02X}")).collect();
        prop_assert_eq!(location(&format!("nats-obj://b/{written}")), object("b", &key));
    }
}
