//! Hostile assignments: every way to get a field wrong that we could think of, each with the row of the design's
//! table (section 3) that it leaves by.
//!
//! Neighbours: the protocol's tests read them, whole-node tests publish them. Every message that can be answered has
//! an assignment id of its own, so that its answers can be told apart. Judged by the contract, not by the reader.

use serde_json::{Value, json};

/// How a hostile message is to be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expect {
    /// Nobody can be answered: dead letter only.
    Row1,
    /// Answered with a rejection and an error result.
    Row2,
    /// As [`Expect::Row2`], by whoever knows the job types: the message itself reads well.
    Row2ByJobType,
    /// Odd, but it can be run.
    Runs,
}

/// A hostile message.
#[derive(Debug, Clone)]
pub struct Malformed {
    /// What is wrong with it.
    pub name: String,
    /// The message. Some are larger than a broker carries: compare with its largest payload before publishing.
    pub bytes: Vec<u8>,
    /// How it is to be handled.
    pub expect: Expect,
    /// The id that its answers carry; absent in row 1.
    pub assignment_id: Option<String>,
}

/// Every hostile message. The large ones are built here, so the list takes a moment and some 40 MB.
pub fn malformed() -> Vec<Malformed> {
    let mut corpus = Corpus::default();
    documents(&mut corpus);
    nesting_and_size(&mut corpus);
    numbers(&mut corpus);
    assignment_ids(&mut corpus);
    tenants(&mut corpus);
    required_fields(&mut corpus);
    inputs(&mut corpus);
    tolerated_fields(&mut corpus);
    duplicates(&mut corpus);
    envelopes(&mut corpus);
    corpus.messages
}

#[derive(Default)]
struct Corpus {
    messages: Vec<Malformed>,
}

impl Corpus {
    /// A well-formed assignment under an id of its own; the tenant stands in one place only.
    fn base(&self) -> Value {
        json!({
            "version": "1",
            "assignment_id": format!("malformed-{}", self.messages.len()),
            "request_id": "r-1",
            "tenant_id": "acme",
            "executor": {"provider_id": "prov-a", "channel": "nats"},
            "job": {"type": "echo", "payload": {"x": 1}},
            "options": {"priority": 50, "deadline_ms": 30_000, "retry": {"max_attempts": 1, "backoff_ms": 1}},
            "correlation": {},
            "metadata": {},
        })
    }

    fn add(
        &mut self,
        expect: Expect,
        name: impl Into<String>,
        bytes: impl Into<Vec<u8>>,
        id: Option<String>,
    ) {
        let assignment_id = id.filter(|_| expect != Expect::Row1);
        let (name, bytes) = (name.into(), bytes.into());
        self.messages.push(Malformed {
            name,
            bytes,
            expect,
            assignment_id,
        });
    }

    /// Bytes that nobody can be answered for.
    fn raw(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.add(Expect::Row1, name, bytes, None);
    }

    /// The base with a change to its value.
    fn patched(&mut self, expect: Expect, name: impl Into<String>, patch: impl FnOnce(&mut Value)) {
        let mut value = self.base();
        patch(&mut value);
        let id = value["assignment_id"].as_str().map(str::to_owned);
        self.add(expect, name, value.to_string(), id);
    }

    /// The base with a change to its text, for what a value cannot hold.
    fn rewritten(&mut self, expect: Expect, name: &str, from: &str, to: &str) {
        let base = self.base();
        let text = base.to_string();
        assert!(text.contains(from), "{name}: the base does not hold {from}");
        let id = base["assignment_id"].as_str().map(str::to_owned);
        self.add(expect, name, text.replacen(from, to, 1), id);
    }

    /// The base with each of the values in one field, given by its JSON pointer; nothing means: without the field.
    fn field(&mut self, expect: Expect, pointer: &str, values: Vec<Option<Value>>) {
        for value in values {
            let shown = value
                .as_ref()
                .map_or_else(|| "absent".to_owned(), Value::to_string);
            let start: String = shown.chars().take(40).collect();
            let name = match shown.len() {
                length if length > start.len() => format!("{pointer} is {start}… of {length} bytes"),
                _ => format!("{pointer} is {start}"),
            };
            self.patched(expect, name, |base| {
                let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
                let parent = base.pointer_mut(parent).and_then(Value::as_object_mut);
                let parent = parent.unwrap_or_else(|| panic!("the base has no parent of {pointer}"));
                match value {
                    Some(value) => drop(parent.insert(key.to_owned(), value)),
                    None => drop(parent.remove(key)),
                }
            });
        }
    }
}

fn some(values: impl IntoIterator<Item = Value>) -> Vec<Option<Value>> {
    values.into_iter().map(Some).collect()
}

/// Values that are no string, or none that names anything, beside absence.
fn no_name() -> Vec<Option<Value>> {
    let mut values = some([
        json!(null),
        json!(true),
        json!(12),
        json!(-1),
        json!(1.5),
        json!([]),
        json!(["a"]),
        json!({}),
        json!({"id": "a"}),
        json!(""),
        json!("undefined"),
        json!("a\rb"),
        json!("a\nb"),
        json!("a\r\nNats-Msg-Id: b"),
        json!("a\0b"),
        json!("\u{1b}[2J"),
        json!("a\u{7f}"),
        json!("a\u{85}b"),
    ]);
    values.push(None);
    values
}

fn documents(corpus: &mut Corpus) {
    let valid = corpus.base().to_string();
    let utf16: Vec<u8> = valid.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let latin1: Vec<u8> = valid
        .replace("acme", "acm?")
        .bytes()
        .map(|b| if b == b'?' { 0xe9 } else { b })
        .collect();
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("one space", b" ".to_vec()),
        ("a megabyte less a bit of spaces", vec![b' '; 1_000_000]),
        ("zero bytes", vec![0; 64]),
        ("bytes that are no text", vec![0xff, 0xfe, 0x80, 0x81]),
        (
            "compressed bytes",
            vec![0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00],
        ),
        ("protobuf-like bytes", b"\x0a\x03a-1\x12\x04acme".to_vec()),
        ("text in utf-16", utf16),
        ("text in latin-1", latin1),
        (
            "a byte order mark before it",
            [b"\xef\xbb\xbf".as_slice(), valid.as_bytes()].concat(),
        ),
        ("half of it", valid.as_bytes()[..valid.len() / 2].to_vec()),
        (
            "all but its last byte",
            valid.as_bytes()[..valid.len() - 1].to_vec(),
        ),
        ("all but its first byte", valid.as_bytes()[1..].to_vec()),
        ("a word after it", format!("{valid} x").into_bytes()),
        ("a brace after it", format!("{valid}}}").into_bytes()),
        ("a zero byte after it", [valid.as_bytes(), b"\0"].concat()),
        ("two documents", format!("{valid}{valid}").into_bytes()),
        (
            "two documents on two lines",
            format!("{valid}\n{valid}\n").into_bytes(),
        ),
        ("an array of it", format!("[{valid}]").into_bytes()),
        ("it as a string", json!(valid).to_string().into_bytes()),
    ] {
        corpus.raw(name, bytes);
    }
    for text in [
        "null", "true", "7", "-1.5", "\"text\"", "\"\"", "[]", "[[]]", "{", "}", "{}", "{]", "{\"a\"}",
        "{a:1}",
    ] {
        corpus.raw(&format!("the document {text}"), text);
    }
    for (name, to) in [
        ("a trailing comma", "{\"x\":1,}"),
        ("a comment", "{/* x */\"x\":1}"),
        ("single quotes", "{'x':1}"),
        ("a key without quotes", "{x:1}"),
        ("a missing colon", "{\"x\" 1}"),
        ("a raw line feed in a string", "{\"x\":\"a\nb\"}"),
        ("a raw zero byte in a string", "{\"x\":\"a\0b\"}"),
        ("an unknown escape", "{\"x\":\"\\q\"}"),
        ("half a surrogate pair", "{\"x\":\"\\ud800\"}"),
        ("a short unicode escape", "{\"x\":\"\\u12\"}"),
    ] {
        corpus.rewritten(Expect::Row1, name, "{\"x\":1}", to);
    }
    corpus.rewritten(
        Expect::Runs,
        "white space all over",
        "{\"x\":1}",
        "\r\n\t { \"x\" :\n1 } \t",
    );
    corpus.rewritten(
        Expect::Runs,
        "a key in escapes",
        "\"tenant_id\"",
        "\"tenant\\u005fid\"",
    );
}

fn nesting_and_size(corpus: &mut Corpus) {
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let deep = |levels: usize| format!("{{\"x\":{}}}", nested(levels));
    corpus.rewritten(Expect::Runs, "nested 100 levels deep", "{\"x\":1}", &deep(100));
    corpus.rewritten(Expect::Row1, "nested 200 levels deep", "{\"x\":1}", &deep(200));
    corpus.rewritten(
        Expect::Row1,
        "nested 100,000 levels deep",
        "{\"x\":1}",
        &deep(100_000),
    );
    corpus.raw("100,000 open brackets", "[".repeat(100_000));
    corpus.raw("100,000 open objects", "{\"a\":".repeat(100_000));
    let long = "x".repeat(10 * 1024 * 1024);
    corpus.patched(Expect::Runs, "a string of 10 MB", |v| {
        v["job"]["payload"]["x"] = json!(long)
    });
    corpus.patched(Expect::Runs, "a key of 100 kB", |v| {
        v["job"]["payload"][&long[..100_000]] = json!(1)
    });
    corpus.patched(Expect::Row1, "an assignment id of 10 MB", |v| {
        v["assignment_id"] = json!(long)
    });
    corpus.patched(Expect::Runs, "10,000 inputs", |v| {
        for n in 0..10_000 {
            v["job"]["payload"][format!("key-{n}")] = json!(n);
        }
    });
    corpus.patched(Expect::Runs, "1,000 unknown fields", |v| {
        for n in 0..1_000 {
            v[format!("unknown-{n}")] = json!([n]);
        }
    });
    corpus.patched(Expect::Runs, "an input without a name", |v| {
        v["job"]["payload"][""] = json!("")
    });
}

fn numbers(corpus: &mut Corpus) {
    // Valid by the grammar, but larger than any number that can be held: as unreadable as a deep nest.
    for literal in [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "01",
        "0x10",
        "+1",
        ".5",
        "1.",
        "1e",
        "--1",
        "1_000",
    ] {
        corpus.rewritten(
            Expect::Row1,
            &format!("the number {literal}"),
            "{\"x\":1}",
            &format!("{{\"x\":{literal}}}"),
        );
    }
    for literal in [
        "-0",
        "1e308",
        "1e-999",
        "123456789012345678901234567890",
        "-9223372036854775809",
        "0.1e1",
    ] {
        corpus.rewritten(
            Expect::Runs,
            &format!("the number {literal}"),
            "{\"x\":1}",
            &format!("{{\"x\":{literal}}}"),
        );
    }
    corpus.rewritten(
        Expect::Runs,
        "a deadline of 30 digits",
        "30000",
        "123456789012345678901234567890",
    );
    corpus.rewritten(Expect::Row1, "a deadline that is not a number", "30000", "NaN");
}

fn assignment_ids(corpus: &mut Corpus) {
    corpus.field(Expect::Row1, "/assignment_id", no_name());
    let too_long = [
        json!("x".repeat(129)),
        json!("ü".repeat(65)),
        json!("x".repeat(10_000)),
    ];
    corpus.field(Expect::Row1, "/assignment_id", some(too_long));
    let odd = [
        "*",
        ">",
        "a.*.>",
        ".lead",
        "trail.",
        ".",
        "..",
        "../../etc/passwd",
        " ",
        " a ",
        "a b",
        "a\"b",
        "a\\b",
        "%00",
        "$JS.API.STREAM.NAMES",
        "{\"a\":1}",
        "'; DROP TABLE x; --",
        "<script>",
        "ü",
        "試験",
        "👩‍🚀",
        "\u{202e}abc",
        "a\u{200b}b",
        "\u{feff}a",
        "null",
        "UNDEFINED",
        "0",
    ];
    corpus.field(Expect::Runs, "/assignment_id", some(odd.map(Value::from)));
    corpus.field(
        Expect::Runs,
        "/assignment_id",
        some([json!("y".repeat(128)), json!("é".repeat(64))]),
    );
}

fn tenants(corpus: &mut Corpus) {
    corpus.field(Expect::Row1, "/tenant_id", no_name());
    corpus.field(
        Expect::Row1,
        "/tenant_id",
        some([json!("t".repeat(257)), json!("t".repeat(10_000))]),
    );
    let odd = ["*", ">", " t ", ".lead", "a b", "ü", "👩‍🚀", "..", "\u{202e}abc"].map(Value::from);
    corpus.field(Expect::Runs, "/tenant_id", some(odd));
    corpus.field(Expect::Runs, "/tenant_id", some([json!("t".repeat(256))]));
    for tenant in [
        json!(null),
        json!(7),
        json!(""),
        json!("undefined"),
        json!("a\nb"),
    ] {
        corpus.patched(
            Expect::Runs,
            format!("the tenant is {tenant}, the decision knows it"),
            |v| {
                v["tenant_id"] = tenant;
                v["decision"] = json!({"metadata": {"tenant_id": "acme"}});
            },
        );
    }
    corpus.patched(Expect::Row1, "undefined everywhere", |v| {
        *v = json!({
            "version": "undefined", "assignment_id": "undefined", "request_id": "undefined", "tenant_id": "undefined",
            "executor": "undefined", "job": "undefined", "options": "undefined", "correlation": "undefined",
        });
    });
    corpus.patched(
        Expect::Row2,
        "undefined everywhere but in the ids of assignment and tenant",
        |v| {
            for key in [
                "version",
                "request_id",
                "executor",
                "job",
                "options",
                "correlation",
                "metadata",
                "decision",
            ] {
                v[key] = json!("undefined");
            }
        },
    );
}

fn required_fields(corpus: &mut Corpus) {
    let versions = [
        json!(null),
        json!(1),
        json!(1.0),
        json!(true),
        json!([]),
        json!({}),
        json!(""),
        json!("2"),
        json!("1.1"),
        json!(" 1"),
        json!("undefined"),
        json!("1\0"),
        json!("one"),
        json!("-1"),
        json!("9".repeat(10_000)),
    ];
    corpus.field(Expect::Row2, "/version", some(versions));
    corpus.field(Expect::Row2, "/version", vec![None]);
    corpus.field(Expect::Row2, "/request_id", no_name());
    corpus.field(Expect::Row2, "/request_id", some([json!("r".repeat(129))]));
    let no_object = || {
        let mut values = some([
            json!(null),
            json!(false),
            json!(0),
            json!("undefined"),
            json!([]),
            json!([{}]),
            json!({}),
        ]);
        values.push(None);
        values
    };
    corpus.field(Expect::Row2, "/executor", no_object());
    corpus.field(Expect::Row2, "/executor/provider_id", no_name());
    corpus.field(
        Expect::Row2,
        "/executor/provider_id",
        some([json!("p".repeat(10_000))]),
    );
    corpus.field(Expect::Row2, "/job", no_object());
    corpus.field(Expect::Row2, "/job/type", no_name());
    corpus.field(Expect::Row2, "/job/type", some([json!("t".repeat(129))]));
    let unknown = [
        "text.generate",
        "ECHO",
        " echo",
        "echo\u{200b}",
        "*",
        "../echo",
        "ü",
    ]
    .map(Value::from);
    corpus.field(Expect::Row2ByJobType, "/job/type", some(unknown));
}

fn inputs(corpus: &mut Corpus) {
    let no_inputs = [
        json!(true),
        json!(7),
        json!([]),
        json!([1]),
        json!(""),
        json!("undefined"),
        json!("text"),
        json!("[1]"),
        json!("{\"x\":"),
        json!("{\"x\":1,\"x\":2}"),
        json!("{} {}"),
    ];
    corpus.field(Expect::Row2, "/job/payload", some(no_inputs));
    corpus.field(
        Expect::Runs,
        "/job/payload",
        vec![Some(json!(null)), Some(json!({})), Some(json!("{\"x\":1}")), None],
    );
    let references = [
        json!("objects/1"),
        json!(""),
        json!("undefined"),
        json!(7),
        json!({}),
        json!(["a"]),
        json!(false),
    ];
    corpus.field(Expect::Row2, "/job/payload_ref", some(references));
    corpus.patched(Expect::Row2, "inputs of another type", |v| {
        v["job"] = json!({"type": "echo", "inputs": [1]})
    });
}

/// Fields that an assignment may get wrong and still run, by a default or without the field.
fn tolerated_fields(corpus: &mut Corpus) {
    let junk = || {
        let mut values = some([
            json!(null),
            json!(true),
            json!(-1),
            json!("undefined"),
            json!(""),
            json!([[]]),
            json!({"a": null}),
        ]);
        values.push(None);
        values
    };
    for pointer in [
        "/options",
        "/options/priority",
        "/options/deadline_ms",
        "/options/retry",
        "/options/retry/max_attempts",
        "/options/retry/backoff_ms",
        "/correlation",
        "/correlation/trace_id",
        "/correlation/run_id",
        "/metadata",
        "/metadata/step_id",
        "/trace_id",
        "/run_id",
        "/flow_id",
        "/decision",
        "/resources",
        "/retry",
        "/timeout_ms",
        "/idempotency_key",
        "/executor/channel",
        "/executor/endpoint",
    ] {
        corpus.field(Expect::Runs, pointer, junk());
    }
    let deadlines = [
        json!("soon"),
        json!("30000"),
        json!("NaN"),
        json!(1e308),
        json!(29_999.9),
        json!(" 30000 "),
    ];
    corpus.field(Expect::Runs, "/options/deadline_ms", some(deadlines));
    let attempts = [json!(0), json!(1e300), json!("2"), json!("many"), json!(i64::MAX)];
    corpus.field(
        Expect::Runs,
        "/options/retry/max_attempts",
        some(attempts.clone()),
    );
    corpus.field(Expect::Runs, "/options/retry/backoff_ms", some(attempts));
    let traces = [
        json!("tr-1"),
        json!("a\r\nb"),
        json!("x".repeat(10_000)),
        json!("9f3c1a7be24d40c88a61d2f05b7e934"),
        json!(" "),
    ];
    corpus.field(Expect::Runs, "/trace_id", some(traces));
    let ids = [
        json!("run-1"),
        json!("01j8zq4t6m9x2k7v5r3n1b0cde"),
        json!("01J8ZQ4T6M9X2K7V5R3N1B0CDE"),
        json!("a\0b"),
    ];
    corpus.field(Expect::Runs, "/run_id", some(ids));
    corpus.field(
        Expect::Runs,
        "/idempotency_key",
        some([json!("k".repeat(257)), json!("a\r\nb"), json!("*")]),
    );
    corpus.field(
        Expect::Runs,
        "/resources",
        some([json!({"class": "quantum"}), json!({"class": 7}), json!("io")]),
    );
}

fn duplicates(corpus: &mut Corpus) {
    let inputs = "{\"x\":1}";
    corpus.rewritten(
        Expect::Row2,
        "an input twice, the same",
        inputs,
        "{\"x\":1,\"x\":1}",
    );
    corpus.rewritten(
        Expect::Row2,
        "an input twice, another",
        inputs,
        "{\"x\":1,\"x\":2}",
    );
    corpus.rewritten(
        Expect::Row2,
        "an input twice, inside a list",
        inputs,
        "{\"x\":[{\"y\":1,\"y\":2}]}",
    );
    corpus.rewritten(
        Expect::Row2,
        "an input twice, once in escapes",
        inputs,
        "{\"x\":1,\"\\u0078\":2}",
    );
    corpus.rewritten(
        Expect::Row2,
        "the job twice",
        "\"job\":",
        "\"job\":{\"type\":\"sleep\"},\"job\":",
    );
    corpus.rewritten(
        Expect::Row2,
        "the provider twice",
        "\"provider_id\":",
        "\"provider_id\":\"p\",\"provider_id\":",
    );
    corpus.rewritten(
        Expect::Row2,
        "the request twice",
        "\"request_id\":",
        "\"request_id\":\"r-0\",\"request_id\":",
    );
    corpus.rewritten(
        Expect::Row2,
        "the version twice",
        "\"version\":",
        "\"version\":\"2\",\"version\":",
    );
    corpus.rewritten(
        Expect::Row2,
        "the tenant twice, the same",
        "\"tenant_id\":",
        "\"tenant_id\":\"acme\",\"tenant_id\":",
    );
    corpus.rewritten(
        Expect::Row1,
        "the tenant twice, another",
        "\"tenant_id\":",
        "\"tenant_id\":\"evil\",\"tenant_id\":",
    );
    let id = "\"assignment_id\":";
    let same = format!("{id}\"malformed-{}\",{id}", corpus.messages.len());
    corpus.rewritten(Expect::Row2, "the assignment twice, the same", id, &same);
    corpus.rewritten(
        Expect::Row1,
        "the assignment twice, another",
        id,
        &format!("{id}\"a\",{id}"),
    );
    corpus.rewritten(
        Expect::Row1,
        "the assignment twice, the other a number",
        id,
        &format!("{id}7,{id}"),
    );
    corpus.rewritten(
        Expect::Row1,
        "the assignment twice, once in escapes",
        id,
        &format!("\"assignment\\u005fid\":\"a\",{id}"),
    );
    // The reader remembers a bounded number of duplicates: these must not hide the one that matters.
    let many: String = (0..20).map(|n| format!("\"k{n}\":1,\"k{n}\":2,")).collect();
    corpus.rewritten(
        Expect::Row2,
        "twenty other keys twice",
        id,
        &format!("{many}{id}"),
    );
    corpus.rewritten(
        Expect::Row1,
        "the assignment twice after twenty others",
        id,
        &format!("{many}{id}\"a\",{id}"),
    );
    let decision = |tenants: &str| format!("\"decision\":{{\"metadata\":{{{tenants}}}}},\"x\":");
    let one = decision("\"tenant_id\":\"evil\",\"tenant_id\":\"acme\"");
    corpus.rewritten(
        Expect::Row1,
        "the decision's tenant twice, and nowhere else",
        "\"tenant_id\":",
        &one,
    );
    let beside = format!("{one}0,\"tenant_id\":");
    corpus.rewritten(
        Expect::Row2,
        "the decision's tenant twice, beside the tenant",
        "\"tenant_id\":",
        &beside,
    );
    let two = format!(
        "{}0,{}",
        decision("\"tenant_id\":\"evil\""),
        decision("\"tenant_id\":\"acme\"")
    );
    corpus.rewritten(
        Expect::Row1,
        "two decisions with a tenant each, and nowhere else",
        "\"tenant_id\":",
        &two,
    );
}

fn envelopes(corpus: &mut Corpus) {
    let envelope = |data: Value| json!({"version": "v1", "kind": "exec_assign", "data": data});
    for data in [
        json!(null),
        json!(7),
        json!("x"),
        json!([]),
        json!({}),
        json!({"data": {}}),
    ] {
        corpus.raw(&format!("an envelope around {data}"), envelope(data).to_string());
    }
    corpus.patched(Expect::Row1, "an envelope in an envelope", |v| {
        *v = envelope(envelope(v.take()))
    });
    corpus.patched(Expect::Row1, "the ids outside the envelope", |v| {
        v["data"] = json!({"job": {}})
    });
    let last = corpus.messages.len() - 1;
    corpus.messages[last].bytes = corpus.messages[last]
        .bytes
        .strip_prefix(b"{")
        .map(|rest| [b"{\"kind\":\"exec_assign\",".as_slice(), rest].concat())
        .unwrap_or_default();
    let data = corpus.base();
    let id = data["assignment_id"].as_str().map(str::to_owned);
    let mut without_job = data.clone();
    without_job["job"] = json!(null);
    corpus.add(
        Expect::Row2,
        "an envelope without a job",
        envelope(without_job).to_string(),
        id,
    );
    let mut of_version_two = corpus.base();
    of_version_two["version"] = json!("2.0");
    let id = of_version_two["assignment_id"].as_str().map(str::to_owned);
    corpus.add(
        Expect::Row2,
        "an envelope with data of version two",
        envelope(of_version_two).to_string(),
        id,
    );
    let twice = format!(
        "{{\"version\":\"v1\",\"kind\":\"exec_assign\",\"data\":{{\"assignment_id\":\"a\"}},\"data\":{data}}}"
    );
    corpus.raw("an envelope with two different contents", twice);
    let one_id = envelope(data).to_string().replacen(
        "\"assignment_id\":",
        "\"assignment_id\":\"a\",\"assignment_id\":",
        1,
    );
    corpus.raw("an envelope with the assignment twice, another", one_id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn there_are_many_of_each_kind_and_answers_can_be_told_apart() {
        let corpus = malformed();
        let count = |expect: Expect| corpus.iter().filter(|m| m.expect == expect).count();
        assert!(count(Expect::Row1) >= 60, "{}", count(Expect::Row1));
        assert!(count(Expect::Row2) >= 60, "{}", count(Expect::Row2));
        assert!(count(Expect::Runs) >= 60, "{}", count(Expect::Runs));
        let names: HashSet<_> = corpus.iter().map(|m| &m.name).collect();
        assert_eq!(names.len(), corpus.len());
        let answerable: Vec<_> = corpus.iter().filter(|m| m.expect != Expect::Row1).collect();
        let ids: HashSet<_> = answerable
            .iter()
            .filter_map(|m| m.assignment_id.as_ref())
            .collect();
        assert_eq!(ids.len(), answerable.len());
    }

    #[test]
    fn the_message_that_all_others_are_changes_of_is_itself_fine() {
        let base = Corpus::default().base();
        assert_eq!(
            (&base["version"], &base["job"]["type"]),
            (&json!("1"), &json!("echo"))
        );
        assert!(base["assignment_id"].is_string() && base["decision"].is_null());
    }
}
