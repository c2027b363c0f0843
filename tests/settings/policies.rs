//! The policy files: what is shipped, what is refused, and that the node and the validator refuse the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use caf_protocol::block::ResourceClass;
use caf_worker::settings::Settings;
use caf_worker::settings::catalogue::Catalogue;
use caf_worker::settings::feature::Feature;
use caf_worker::settings::in_force::{InForce, PoolSize};
use caf_worker::settings::load::{Loaded, Sources, load};
use caf_worker::settings::origin::key_text;
use serde_json::{Value, json};

use super::{Place, Ran, policy_file};

/// Contract 7.2, 7.3 and 4.2, in the order of [`Feature::WITH_POLICY`].
const CONTRACT: [&str; 3] = [
    r#"{"worker":{"retries":{"v2":{
  "enabled": false,
  "default_policy": {"max_attempts":3,"base_delay_ms":100,"max_delay_ms":30000,"jitter_type":"full","exponential_base":2.0,"retry_budget_ms":30000},
  "error_classification": {
    "validation_errors":   {"retryable": false, "max_attempts": 0},
    "execution_errors":    {"retryable": {"resource_unavailable":true,"execution_failed":false,"permission_denied":false,"quota_exceeded":false}, "max_attempts": 3},
    "network_errors":      {"retryable": {"network_error":true,"connection_timeout":true,"http_error":"conditional"}, "max_attempts": 5,
      "http_status_mapping": {"4xx":{"retryable":false,"exceptions":{"408":true,"429":true}},"5xx":{"retryable":true}}},
    "system_errors":       {"retryable": {"internal_error":false,"system_overload":true}, "max_attempts": 3},
    "cancellation_errors": {"retryable": false, "max_attempts": 0}},
  "block_policies": {
    "http": {"max_attempts":5,"base_delay_ms":200,"max_delay_ms":10000,"jitter_type":"equal",
             "error_overrides": {"429":{"max_attempts":3,"base_delay_ms":1000,"max_delay_ms":60000,"jitter_type":"equal"}}},
    "fs":   {"max_attempts":3,"base_delay_ms":100,"max_delay_ms":5000,"jitter_type":"full"},
    "sql":  {"max_attempts":3,"base_delay_ms":150,"max_delay_ms":10000,"jitter_type":"full"}}
}}}}"#,
    r#"{"worker":{"timeouts":{"v2":{
  "enabled": false,
  "fs_operations":   {"read_timeout_ms":5000,"write_timeout_ms":10000,"delete_timeout_ms":5000},
  "http_connection": {"connect_timeout_ms":5000,"read_timeout_ms":30000},
  "retry_budget":    {"total_timeout_ms":30000,"enforce_across_retries":true}
}}}}"#,
    r#"{"worker":{"queue":{"v2":{
  "enabled": false,
  "max_queue_size": 1000,
  "rejection_policy": "reject_new",
  "overload_thresholds": {"degraded": 0.5, "overloaded": 0.8, "critical": 1.0},
  "policies": {
    "reject_new": {"enabled": true, "default": true},
    "drop_oldest": {"enabled": false, "max_drop_age_ms": 60000},
    "defer": {"enabled": false, "max_defer_time_ms": 30000},
    "degrade": {"enabled": false, "degradation_levels": {
      "light":  {"skip_retries": false, "reduce_timeout": false},
      "medium": {"skip_retries": true, "reduce_timeout": true, "timeout_reduction_factor": 0.8},
      "heavy":  {"skip_retries": true, "reduce_timeout": true, "timeout_reduction_factor": 0.5, "skip_circuit_breaker": true}}}},
  "resource_pools": {
    "cpu": {"max_queue_size": 1000, "max_concurrency": 10},
    "gpu": {"max_queue_size": 100,  "max_concurrency": 2},
    "io":  {"max_queue_size": 500,  "max_concurrency": 20}}
}}}}"#,
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn shipped(feature: Feature) -> Result<Value> {
    let text = std::fs::read_to_string(root().join(policy_file(feature)))?;
    Ok(serde_json::from_str(&text)?)
}

/// What the shipped files say, with these beside them.
fn load_shipped(files: &[&str]) -> Result<Loaded> {
    Ok(load(&Sources {
        working_dir: root(),
        files: files.iter().map(Path::new).map(Path::to_owned).collect(),
        ..Sources::default()
    })?)
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}

/// Takes what stands at `key`, dotted, out of a document.
fn remove(document: &mut Value, key: &str) -> Result<()> {
    let (section, name) = key.rsplit_once('.').context("has a section")?;
    let section = document.pointer_mut(&pointer(section)).context("is there")?;
    let removed = section.as_object_mut().context("is an object")?.remove(name);
    ensure!(removed.is_some(), "{key} is not there");
    Ok(())
}

fn set(document: &mut Value, key: &str, value: Value) -> Result<()> {
    *document.pointer_mut(&pointer(key)).context("is there")? = value;
    Ok(())
}

#[test]
fn the_shipped_policy_files_hold_the_contracts_numbers_and_the_built_in_ones_are_the_same() -> Result<()> {
    for (feature, contract) in Feature::WITH_POLICY.into_iter().zip(CONTRACT) {
        let contract: Value = serde_json::from_str(contract)?;
        assert_eq!(shipped(feature)?, contract, "{}", policy_file(feature));
    }
    // What has no default: numbers of single blocks, pools and categories.
    let mut loaded = load_shipped(&[])?.settings;
    let categories = &mut loaded.worker.retries.v2.error_classification;
    for max_attempts in [
        &mut categories.validation_errors.max_attempts,
        &mut categories.execution_errors.max_attempts,
        &mut categories.network_errors.max_attempts,
        &mut categories.system_errors.max_attempts,
        &mut categories.cancellation_errors.max_attempts,
    ] {
        assert!(max_attempts.take().is_some());
    }
    loaded.worker.retries.v2.block_policies.clear();
    loaded.worker.queue.v2.resource_pools = Default::default();
    assert_eq!(loaded, Settings::default());
    Ok(())
}

#[test]
fn the_shipped_policy_files_show_every_name_that_policies_have() -> Result<()> {
    let shown: BTreeSet<String> = load_shipped(&[])?
        .origins
        .keys()
        .map(|key| key_text(key))
        .collect();
    let sections: BTreeSet<&str> = shown.iter().flat_map(|key| key.split('.')).collect();
    for key in Catalogue::of_settings().keys() {
        let text = key_text(key);
        if !Feature::WITH_POLICY
            .iter()
            .any(|feature| text.starts_with(feature.section()))
        {
            continue;
        }
        // A name counts wherever the file shows it: `exponential_base` of a block means what it means by default.
        let missing: Vec<_> = key
            .iter()
            .filter(|name| *name != "*" && !sections.contains(name.as_str()))
            .collect();
        assert!(missing.is_empty(), "{text}: no file shows {missing:?}");
    }
    Ok(())
}

#[test]
fn the_shipped_flags_are_off_and_the_production_profile_switches_all_on() -> Result<()> {
    let off = load_shipped(&[])?;
    let baseline = InForce::of(&off.settings, &off.ranks);
    let production = load_shipped(&["config/production.toml"])?;
    let full = InForce::of(&production.settings, &production.ranks);
    for feature in Feature::WITH_POLICY {
        assert!(!baseline.has(feature) && full.has(feature), "{feature:?}");
    }
    assert!(baseline.warnings.is_empty() && full.warnings.is_empty());
    let size = |slots, queue| PoolSize { slots, queue };
    let sizes = |in_force: &InForce| ResourceClass::ALL.map(|class| in_force.pool(class));
    assert_eq!(sizes(&baseline), [size(4, None), size(1, None), size(8, None)]);
    assert_eq!(
        sizes(&full),
        [size(10, Some(1000)), size(2, Some(100)), size(20, Some(500))]
    );
    Ok(())
}

/// The shipped file of a feature, changed.
fn changed(feature: Feature, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<String> {
    let mut document = shipped(feature)?;
    change(&mut document)?;
    Ok(document.to_string())
}

/// Bad policy files, one mistake each: whose, text, exit code of the script, and what is said.
pub(super) fn bad_files() -> Result<Vec<(Feature, String, i32, String)>> {
    use Feature::{Queue, Retry, Timeouts};
    let mut cases = Vec::new();
    let mut add = |feature, text: &str, code, says: &str| {
        cases.push((feature, text.to_owned(), code, says.to_owned()));
    };
    for feature in Feature::WITH_POLICY {
        let section = feature.section();
        add(feature, "", 1, "is empty");
        add(
            feature,
            "{\"worker\": ",
            1,
            "is not JSON: EOF while parsing a value at line 1",
        );
        add(feature, "{} {}", 1, "is not JSON: trailing characters");
        add(feature, &"[".repeat(100_000), 1, "is not JSON: recursion limit");
        add(
            feature,
            "[]",
            2,
            &format!("must be an object that holds {section}"),
        );
        add(feature, "null", 2, "must be an object");
        add(feature, "{}", 2, &format!("{section}: is missing"));
        let area = section.split('.').nth(1).context("has an area")?;
        let inner = shipped(feature)?["worker"][area]["v2"].clone();
        let flat = json!({"worker": {area: inner}}).to_string();
        add(feature, &flat, 2, &format!("{section}: is missing"));
        let bare = json!({area: {"v2": inner}}).to_string();
        add(
            feature,
            &bare,
            2,
            ": unknown section; the nearest known one is worker.",
        );
        let beside = changed(feature, |document| {
            document["nats"] = json!({"url": "nats://h"});
            Ok(())
        })?;
        add(feature, &beside, 2, "nats.url: does not belong here");
        for key in feature.required() {
            let key = key_text(&key);
            let text = changed(feature, |document| remove(document, &key))?;
            add(feature, &text, 3, &format!("{key}: is missing"));
            let text = changed(feature, |document| set(document, &key, json!({"x": 1})))?;
            add(feature, &text, 2, &format!("{key}: must be"));
            let text = changed(feature, |document| set(document, &key, Value::Null))?;
            add(feature, &text, 2, &format!("{key}: must be"));
        }
    }
    for (feature, key, value, says) in [
        (
            Retry,
            "default_policy.max_attempts",
            json!("3"),
            "must be a whole number",
        ),
        (
            Retry,
            "default_policy.max_attempts",
            json!(101),
            "must be a whole number from 0 to 100, found 101",
        ),
        (
            Retry,
            "default_policy.max_attempts",
            json!(4_294_967_296_u64),
            "must be a whole number from 0 to 100, found 4294967296",
        ),
        (
            Retry,
            "default_policy.max_delay_ms",
            json!(u64::MAX),
            "default_policy.max_delay_ms: must be a whole number",
        ),
        (
            Retry,
            "default_policy.exponential_base",
            json!(0.5),
            "must be from 1 to 10, found 0.5",
        ),
        (
            Retry,
            "default_policy.jitter_type",
            json!("some"),
            "must be one of none, full, equal",
        ),
        (
            Retry,
            "default_policy.retry_budget_ms",
            json!(0),
            "must be a whole number from 1 to 3600000, found 0",
        ),
        (
            Retry,
            "error_classification.network_errors.retryable.http_error",
            json!("sometimes"),
            "must be true or false or conditional, found \"sometimes\"",
        ),
        (
            Retry,
            "error_classification.network_errors.http_status_mapping.4xx.exceptions",
            json!({"503": true}),
            "exceptions.503: must be a status of 4xx",
        ),
        (
            Retry,
            "error_classification.validation_errors.retryable",
            json!(true),
            "must be false",
        ),
        (
            Retry,
            "block_policies.http.error_overrides",
            json!({"NETWORK": {"max_attempts": 1}}),
            "error_overrides.NETWORK: must be an HTTP status",
        ),
        (
            Retry,
            "block_policies.http.error_overrides",
            json!({"399": {"max_attempts": 1}}),
            "error_overrides.399: must be an HTTP status from 400 to 599",
        ),
        (
            Retry,
            "block_policies.http.error_overrides",
            json!({"600": {"max_attempts": 1}}),
            "must be an HTTP status from 400 to 599",
        ),
        (
            Retry,
            "block_policies.http",
            json!({"max_attemps": 3}),
            "unknown key; the nearest known one is worker.retries.v2.block_policies.http.max_attempts",
        ),
        (
            Timeouts,
            "fs_operations.read_timeout_ms",
            json!(0),
            "must be a whole number from 1 to 3600000, found 0",
        ),
        (
            Timeouts,
            "http_connection",
            json!([]),
            "http_connection: must be a table",
        ),
        (
            Queue,
            "max_queue_size",
            json!(0),
            "must be a whole number from 1 to 1000000, found 0",
        ),
        (
            Queue,
            "max_queue_size",
            json!(-1),
            "must be a whole number from 1 to 1000000, found -1",
        ),
        (
            Queue,
            "rejection_policy",
            json!("drop"),
            "must be one of reject_new, drop_oldest, defer, degrade",
        ),
        (
            Queue,
            "overload_thresholds.degraded",
            json!(0.9),
            "must not exceed overloaded",
        ),
        (
            Queue,
            "overload_thresholds.critical",
            json!(1.5),
            "must be above 0 and at most 1, found 1.5",
        ),
        (
            Queue,
            "resource_pools.gpu.max_concurrency",
            json!(0),
            "must be a whole number from 1 to 1024, found 0",
        ),
        (
            Queue,
            "resource_pools",
            json!({"tpu": {"max_concurrency": 1}}),
            "unknown section; the nearest known one is",
        ),
    ] {
        let key = format!("{}.{key}", feature.section());
        let text = changed(feature, |document| set(document, &key, value))?;
        add(feature, &text, 2, says);
    }
    let twice = shipped(Queue)?.to_string();
    let twice = twice.replacen("\"enabled\":false", "\"enabled\":false,\"enabled\":false", 1);
    add(Queue, &twice, 2, "is given twice");
    Ok(cases)
}

#[test]
fn the_node_refuses_exactly_the_policy_files_that_the_validator_refuses() -> Result<()> {
    let place = Place::new()?;
    let fault = |code| match code {
        1 => "bad JSON",
        2 => "structure mismatch",
        _ => "missing required field",
    };
    for (feature, text, code, says) in bad_files()? {
        let file = policy_file(feature);
        place.file(file, &text)?;
        let judged = place.run(&format!("config check --policy {file}"), &[])?;
        let start: String = text.chars().take(300).collect();
        assert_eq!(
            (judged.code, judged.complaint.as_str()),
            (78, ""),
            "{says}: {start}"
        );
        let wrong = |line: &&str| line.starts_with(&format!("[ERROR] {file}: ")) && line.contains(&says);
        let last = format!("[ERROR] 1 of 1 files bad: {}", fault(code));
        assert!(
            judged.answer.lines().any(|line| wrong(&line)) && judged.answer.lines().last() == Some(&last),
            "{says}, {last}: {start}\n{}",
            judged.answer
        );
        let node = place.run("config check", &[])?;
        assert_eq!(node.code, 78, "{says}: {start}");
        let errors = judged
            .answer
            .lines()
            .filter_map(|line| line.strip_prefix("[ERROR] "));
        let mut told: Vec<String> = errors
            .filter(|line| *line != &last["[ERROR] ".len()..])
            .map(|line| format!("file {line}"))
            .collect();
        let mut refused: Vec<String> = node.complaint.lines().map(str::to_owned).collect();
        told.sort();
        refused.sort();
        assert_eq!(refused, told);
        std::fs::remove_file(place.0.join(file))?;
    }
    for feature in Feature::WITH_POLICY {
        place.file(policy_file(feature), &shipped(feature)?.to_string())?;
    }
    for command in ["config check --policy", "config check"] {
        let ran = place.run(command, &[])?;
        assert_eq!((ran.code, ran.complaint.as_str()), (0, ""), "{command}: {ran:?}");
    }
    Ok(())
}

#[test]
fn a_policy_file_may_leave_out_what_has_a_default_and_other_sources_may_say_single_things() -> Result<()> {
    let place = Place::new()?;
    for feature in Feature::WITH_POLICY {
        let mut least = json!({});
        for key in feature.required() {
            let mut here = &mut least;
            for name in &key {
                here = &mut here[name.as_str()];
            }
            *here = shipped(feature)?
                .pointer(&format!("/{}", key.join("/")))
                .context("is there")?
                .clone();
        }
        place.file(policy_file(feature), &least.to_string())?;
    }
    place.file(
        "part.json",
        r#"{"worker": {"retries": {"v2": {"default_policy": {"max_attempts": 7}}}}}"#,
    )?;
    let ran = place.run(
        "config show --config part.json",
        &[("WORKER__WORKER__QUEUE__V2__OVERLOAD_THRESHOLDS__DEGRADED", "0.25")],
    )?;
    assert_eq!((ran.code, ran.complaint.as_str()), (0, ""));
    for (key, shown) in [
        (
            "worker.retries.v2.default_policy.max_attempts",
            "7  # file part.json",
        ),
        (
            "worker.retries.v2.default_policy.base_delay_ms",
            "100  # file config/worker/retry_policy.json",
        ),
        (
            "worker.retries.v2.default_policy.jitter_type",
            "\"full\"  # default",
        ),
        ("worker.retries.v2.block_policies", "{}  # default"),
        (
            "worker.queue.v2.overload_thresholds.degraded",
            "0.25  # env WORKER__WORKER__QUEUE__V2__OVERLOAD_THRESHOLDS__DEGRADED",
        ),
        (
            "worker.queue.v2.resource_pools.cpu.max_queue_size",
            "(unset)  # default",
        ),
    ] {
        assert_eq!(ran.line(key)?, format!("{key} = {shown}"));
    }
    Ok(())
}

#[test]
fn a_file_without_a_telling_name_is_judged_by_what_it_holds() -> Result<()> {
    let place = Place::new()?;
    let answer = |text: &str| -> Result<(i32, String)> {
        place.file("my.settings", text)?;
        let Ran { code, answer, .. } = place.run("config check --policy my.settings", &[])?;
        Ok((code, answer))
    };
    for feature in Feature::WITH_POLICY {
        let (code, said) = answer(&shipped(feature)?.to_string())?;
        let expected = format!(
            "[INFO] my.settings: {} policy ({})\n[OK] my.settings: valid\n",
            feature.name(),
            feature.section()
        );
        assert_eq!((code, said), (0, expected));
    }
    for (text, says) in [
        (
            "{}",
            "must hold worker.retries.v2 or worker.timeouts.v2 or worker.queue.v2",
        ),
        (
            r#"{"worker": {"retris": {}}}"#,
            "worker.retris: unknown section; the nearest known one is worker.retries",
        ),
        (
            r#"{"worker": {"retries": {"v2": {}}, "queue": {"v2": {}}}}"#,
            "must hold one policy, not worker.retries.v2 and worker.queue.v2",
        ),
        (
            r#"{"worker": {"queue": {"v1": {}}}}"#,
            "worker.queue.v1: unknown section; the nearest known one is worker.queue.v2",
        ),
    ] {
        let (code, said) = answer(text)?;
        assert!(code == 78 && said.contains(says), "{text}: {said}");
        assert!(
            said.ends_with("1 of 1 files bad: structure mismatch\n"),
            "{text}: {said}"
        );
    }
    // The name counts before the content.
    place.file("queue_policy.json", &shipped(Feature::Retry)?.to_string())?;
    let ran = place.run("config check --policy queue_policy.json", &[])?;
    assert!(
        ran.answer.contains("worker.queue.v2: is missing")
            && ran
                .answer
                .contains("worker.retries.v2.enabled: does not belong here"),
        "{}",
        ran.answer
    );
    Ok(())
}

#[test]
fn verdicts_on_policy_files_and_flags_can_be_had_as_json() -> Result<()> {
    let place = Place::new()?;
    place.file(policy_file(Feature::Retry), &shipped(Feature::Retry)?.to_string())?;
    place.file("q.json", r#"{"worker": {"queue": {"v2": {"enabled": 1}}}}"#)?;
    let ran = place.run(
        "config check --output json --policy config/worker/retry_policy.json q.json",
        &[],
    )?;
    assert_eq!(ran.code, 78);
    let lines: Vec<Value> = ran
        .answer
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    assert_eq!(
        lines[0],
        json!({"file": "config/worker/retry_policy.json", "policy": "retry", "ok": true, "problems": []})
    );
    assert_eq!(
        lines[1]["problems"][0],
        json!({"fault": "structure mismatch", "key": "worker.queue.v2.enabled", "rule": "must be true or false", "value": "1"})
    );
    assert_eq!(lines[1]["problems"][1]["fault"], "missing required field");

    let flags = ["CP2_ADVANCED_RETRY_ENABLED", "CP2_QUEUE_MANAGEMENT_ENABLED"].map(|name| (name, "yes"));
    let ran = place.run("config flags --output json", &flags)?;
    assert_eq!(ran.code, 0, "{ran:?}");
    let report: Value = serde_json::from_str(&ran.answer)?;
    let told: Vec<_> = report["flags"]
        .as_array()
        .context("is a list")?
        .iter()
        .map(|flag| {
            (
                flag["feature"].clone(),
                flag["enabled"].clone(),
                flag["mode"].clone(),
            )
        })
        .collect();
    let flag = |name: &str, is_on: bool, mode: &str| (json!(name), json!(is_on), json!(mode));
    assert_eq!(
        told,
        [
            flag("retry", true, "CP2 mode"),
            flag("timeouts", false, "CP1 baseline"),
            flag("queue", true, "CP1 baseline"),
            flag("metrics", false, "CP1 baseline"),
            flag("tracing", false, "CP1 baseline"),
            flag("cancellation", false, "CP1 baseline"),
            flag("circuit breaker", false, "CP1 baseline"),
        ]
    );
    assert_eq!(report["flags"][0]["source"], "env CP2_ADVANCED_RETRY_ENABLED");
    assert_eq!(report["warnings"].as_array().map(Vec::len), Some(2), "{report}");
    Ok(())
}

#[test]
fn the_schema_knows_the_shipped_policies() -> Result<()> {
    let ran = Place::new()?.run("config schema", &[])?;
    let schema = jsonschema::validator_for(&serde_json::from_str(&ran.answer)?)?;
    for feature in Feature::WITH_POLICY {
        assert!(schema.is_valid(&shipped(feature)?), "{feature:?}");
    }
    for bad in [
        r#"{"worker": {"retries": {"v2": {"error_classification": {"network_errors": {"retryable": {"http_error": "maybe"}}}}}}}"#,
        r#"{"worker": {"queue": {"v2": {"rejection_policy": "drop"}}}}"#,
        r#"{"worker": {"timeouts": {"v2": {"fs": {}}}}}"#,
    ] {
        assert!(!schema.is_valid(&serde_json::from_str(bad)?), "{bad}");
    }
    Ok(())
}

#[test]
fn files_may_begin_with_a_byte_order_mark() -> Result<()> {
    let place = Place::new()?;
    for feature in Feature::WITH_POLICY {
        place.file(policy_file(feature), &format!("\u{feff}{}", shipped(feature)?))?;
    }
    place.file("a.toml", "\u{feff}[limits]\nmax_held = 7\n")?;
    place.file("b.json", "\u{feff}{\"nats\": {\"max_deliver\": 8}}")?;
    assert_eq!(place.run("config check --policy", &[])?.code, 0);
    let ran = place.run("config show --config a.toml --config b.json", &[])?;
    assert_eq!(ran.line("limits.max_held")?, "limits.max_held = 7  # file a.toml");
    assert_eq!(
        ran.line("nats.max_deliver")?,
        "nats.max_deliver = 8  # file b.json"
    );
    Ok(())
}
