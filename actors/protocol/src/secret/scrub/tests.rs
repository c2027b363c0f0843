//! Whatever a value is written as, it is not in what is left; what is no value stays.

use super::*;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use serde_json::json;

type Writer = fn(&str) -> String;

fn hexed(text: &str, before: &str) -> String {
    text.bytes().map(|byte| format!("{before}{byte:02x}")).collect()
}

fn json_text(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn wrapped(text: &str) -> String {
    let signs: Vec<char> = text.chars().collect();
    let lines: Vec<String> = signs.chunks(7).map(|line| line.iter().collect()).collect();
    lines.join("\r\n")
}

/// Ways to write a text, each on one layer.
const WRITERS: [Writer; 18] = [
    |text| text.to_owned(),
    |text| text.to_ascii_uppercase(),
    |text| BASE64_STANDARD.encode(text),
    |text| BASE64_URL_SAFE_NO_PAD.encode(text),
    |text| BASE64_STANDARD.encode(format!("user:{text}")),
    |text| BASE64_STANDARD.encode(format!("users:{text} and more")),
    |text| wrapped(&BASE64_STANDARD.encode(text)),
    |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string(),
    |text| {
        utf8_percent_encode(text, NON_ALPHANUMERIC)
            .to_string()
            .to_lowercase()
            .replace("%20", "+")
    },
    |text| hexed(text, "%"),
    |text| hexed(text, ""),
    |text| hexed(text, "").to_uppercase(),
    |text| hexed(text, ":"),
    |text| hexed(text, " ").to_uppercase(),
    |text| hexed(text, "-"),
    json_text,
    |text| text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect(),
    |text| text.chars().map(|c| format!("&#x{:x};", u32::from(c))).collect(),
];

#[test]
fn values_are_taken_out_of_utf_16_in_both_orders() {
    let scrubber = Scrubber::new(["pl4nted-\u{20ac}"]);
    for of_unit in [u16::to_le_bytes, u16::to_be_bytes] {
        let bytes = |text: &str| text.encode_utf16().flat_map(of_unit).collect::<Vec<u8>>();
        let told = scrubber.bytes(bytes("key=pl4nted-\u{20ac};"));
        let expected = [bytes("key="), REDACTED.as_bytes().to_vec(), bytes(";")].concat();
        assert_eq!(told, expected);
        // Where it is text, and where its zeros are escaped in JSON.
        let ascii = Scrubber::new(["pl4nted-value"]);
        let text = String::from_utf8(bytes("a pl4nted-value b")).expect("is ASCII");
        for text in [text.clone(), Value::from(text).to_string()] {
            let told = ascii.text(&text);
            assert!(told.contains(REDACTED) && !told.contains('4'), "{told}");
        }
    }
}

/// Ways to write what was written once more.
const WRAPPERS: [Writer; 4] = [
    |text| text.to_owned(),
    json_text,
    |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string(),
    |text| text.replace('&', "&amp;").replace('"', "&quot;"),
];

fn value() -> impl Strategy<Value = String> {
    // Without spaces at the ends, as settings have it; without line breaks, which no header holds.
    "[!-~äß€😀][ -~äß€😀]{6,40}[!-~ä]"
}

proptest! {
    #[test]
    fn a_value_survives_in_none_of_its_forms(
        value in value(), before in "[a-z %\\\\&]{0,9}", after in "[a-z %\\\\&]{0,9}",
        writer in 0..WRITERS.len(), wrapper in 0..WRAPPERS.len(),
    ) {
        let written = WRAPPERS[wrapper](&WRITERS[writer](&value));
        // Where what stands around cannot be taken for a part of the form.
        let text = format!("{before} {written} {after}");
        let scrubber = Scrubber::new([value.as_str()]);
        let clean = scrubber.text(&text);
        prop_assert!(clean.contains(REDACTED), "{text}");
        prop_assert_eq!(clean.matches(REDACTED).count(), 1, "{} became {}", text, clean);
        let left = clean.replace(REDACTED, "").replace("%3D", "").replace("%0D%0A", "").replace('=', "");
        let around = format!("{before}{after}").len() + 2;
        // What base64 had before and behind the value itself stays, as do padding and a last line break.
        let most = around + if (4..6).contains(&writer) { 60 } else { 4 };
        prop_assert!(left.len() <= most, "{} became {}", text, clean);
        let again = scrubber.text(&clean);
        prop_assert_eq!(&again, &clean);
        prop_assert_eq!(String::from_utf8(scrubber.bytes(text.clone().into_bytes())).unwrap(), clean.as_ref());
    }

    #[test]
    fn what_base64_leaves_tells_nothing_of_the_value(value in "[ -~]{8,30}", before in "[a-z]{0,6}", after in "[a-z]{0,6}") {
        let value = value.trim();
        prop_assume!(value.len() >= 8 && !before.contains(value) && !after.contains(value));
        let text = BASE64_STANDARD.encode(format!("{before}{value}{after}"));
        let clean = Scrubber::new([value]).text(&text).into_owned();
        let parts: Vec<&str> = clean.split(REDACTED).collect();
        prop_assert_eq!(parts.len(), 2, "{}", clean);
        // Each side keeps only signs whose six bits are all of what stood beside the value.
        prop_assert!(parts[0].len() <= before.len() * 8 / 6, "{}", clean);
        let all = text.trim_end_matches('=').len();
        let most = all - ((before.len() + value.len()) * 8).div_ceil(6);
        prop_assert!(parts[1].trim_end_matches('=').len() <= most, "{}", clean);
    }

    #[test]
    fn values_that_overlap_leave_nothing(
        stem in "[a-z]{8,12}", more in "[a-z]{1,5}", text in prop::collection::vec(0..5_usize, 1..8),
    ) {
        let long = format!("{stem}{more}");
        let tail = format!("{}{more}{more}", &stem[3..]);
        let parts = [stem.as_str(), &long, &tail, "--", &stem[..3]];
        let text: String = text.into_iter().map(|part| parts[part]).collect();
        let scrubber = Scrubber::new([stem.as_str(), &long, &tail]);
        let clean = scrubber.text(&text);
        for value in [&stem, &long, &tail] {
            prop_assert!(!clean.contains(value.as_str()), "{} became {}", text, clean);
        }
    }

    #[test]
    fn a_text_without_the_value_stays_as_it_is(text in "[ -~\\r\\näß€]{0,200}") {
        let scrubber = Scrubber::new(["\u{1}never in there\u{1}"]);
        let clean = scrubber.text(&text);
        prop_assert_eq!(&clean, &text);
    }

    #[test]
    fn any_bytes_can_be_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..20_usize) {
        let scrubber = Scrubber::new(["%2541\\u0041bc&amp;", "ääääää"]);
        let tail = &"ääääää%2541\\u0041bc&amp;".as_bytes()[cut..];
        let all = [&bytes, tail].concat();
        drop(scrubber.text(&String::from_utf8_lossy(&all)));
        drop(scrubber.bytes(all));
    }
}

#[test]
fn values_are_taken_out_of_keys_numbers_and_nested_texts() {
    let scrubber = Scrubber::new(["12345678", "hunter2hunter2"]);
    let mut value = json!({
        "n": [12_345_678, 1_234_567, 0.12345678, true, null],
        "xhunter2hunter2": 1,
        "yhunter2hunter2": {"a": "aHVudGVyMmh1bnRlcjI="},
        "[REDACTED]": 2,
        "hunter2hunter2": 3,
    });
    scrubber.value(&mut value);
    assert_eq!(
        value,
        json!({
            "n": ["[REDACTED]", 1_234_567, "0.[REDACTED]", true, null],
            "x[REDACTED]": 1, "y[REDACTED]": {"a": "[REDACTED]="}, "[REDACTED]": 2, "[REDACTED]_2": 3,
        })
    );
}

#[test]
fn parts_of_a_value_that_others_take_it_apart_into_are_values() {
    let basic = BASE64_STANDARD.encode("user:hunter2hunter2");
    for (value, text) in [
        ("Bearer hunter2hunter2".to_owned(), "token hunter2hunter2"),
        (format!("Basic {basic}"), "password hunter2hunter2"),
        (basic, "user:hunter2hunter2"),
        (" hunter2hunter2 ".to_owned(), "hunter2hunter2"),
    ] {
        let clean = Scrubber::new([value.as_str()]).text(text).into_owned();
        assert!(!clean.contains("hunter2"), "{clean}");
    }
}

#[test]
fn failures_are_scrubbed_in_all_their_parts() {
    let mut failure = Failure::new(crate::error_code::ErrorCode::HttpError, "hunter2hunter2")
        .with("hunter2hunter2", json!("hunter2hunter2"))
        .internally("hunter2hunter2");
    failure.outputs.insert("body".to_owned(), json!("hunter2hunter2"));
    let scrubber = Scrubber::new(["hunter2hunter2"]);
    let clean = scrubber.outcome(Err(failure)).unwrap_err();
    assert!(!format!("{clean:?}").contains("hunter"), "{clean:?}");
    assert_eq!(clean.outputs["body"], REDACTED);
}

#[test]
fn short_values_and_none_are_left_alone() {
    for scrubber in [Scrubber::default(), Scrubber::new(["short", "", "  abc  "])] {
        assert!(scrubber.is_empty());
        assert_eq!(scrubber.text("short abc"), "short abc");
    }
}

/// `SCRUB_COST=1 cargo test -p caf-protocol --release scrub::tests::what_it_costs -- --nocapture` prints the numbers.
#[test]
fn what_it_costs_to_look_at_a_line_and_a_body() {
    if std::env::var_os("SCRUB_COST").is_none() {
        return;
    }
    let line = "{\"timestamp\":\"2026-01-01T00:00:00.123456Z\",\"level\":\"INFO\",\"message\":\"Step execution completed\"}";
    let body = "a json body with some words, {\"a\": 1}, \\\"escaped\\\"\n".repeat(20_000);
    for count in [0, 1, 20, 200] {
        let values: Vec<String> = (0..count)
            .map(|n| format!("{:032x}", n * 0x9E37_79B9_7F4A_7C15_u128))
            .collect();
        let began = std::time::Instant::now();
        let scrubber = Scrubber::new(values.iter().map(String::as_str));
        let made = began.elapsed();
        let began = std::time::Instant::now();
        for _ in 0..100_000 {
            std::hint::black_box(scrubber.text(std::hint::black_box(line)));
        }
        let of_line = began.elapsed() / 100_000;
        let began = std::time::Instant::now();
        std::hint::black_box(scrubber.text(std::hint::black_box(&body)));
        println!(
            "{count} values: made in {made:?}, a text of {} bytes {of_line:?}, of {} bytes {:?}",
            line.len(),
            body.len(),
            began.elapsed()
        );
    }
}
