use std::path::{Path, PathBuf};

use serde_json::Map;
use uuid::Uuid;

use super::*;
use crate::settings::{BlockSettings, SqlConnectionSettings};
use crate::tests::{context, inputs, run};
use crate::{Extras, OperationLimits, SetupError};

/// A directory of the test's own; removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("caf-sandbox-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&path).expect("creates");
        Self(path)
    }

    fn write(&self, name: &str, content: &Value) {
        std::fs::write(self.0.join(name), content.to_string()).expect("writes");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn built(sandbox: SandboxSettings, root: &Path) -> Result<Rehearsal, SetupError> {
    let mut settings = BlockSettings::default();
    settings.fs.roots = [("data".to_owned(), root.join("data"))].into();
    let mut database = SqlConnectionSettings::new(format!("sqlite://{}", root.join("db").display()));
    database.read_only = false;
    settings.sql.connections.insert("db".to_owned(), database);
    let extras = Extras {
        sandbox,
        ..Extras::default()
    };
    crate::build(&settings, OperationLimits::default(), extras).map(|blocks| blocks.sandbox)
}

fn rehearse(sandbox: &Rehearsal, job_type: &str, id: &str, given: &Value) -> Result<Outputs, Failure> {
    let block = sandbox.registry.get(job_type).expect("is registered");
    let mut context = context();
    id.clone_into(&mut context.assignment_id);
    run(block.prepare(inputs(given.clone()))?, context)
}

/// One job of each kind that would touch something.
fn jobs() -> Vec<(&'static str, Value)> {
    vec![
        (
            "http.request",
            json!({"url": "http://127.0.0.1:9/x", "method": "GET"}),
        ),
        (
            "fs.blob_put",
            json!({"path": "data/a", "content": "grüß", "content_type": "text/plain"}),
        ),
        ("fs.get", json!({"path": "data/a"})),
        ("fs.blob_delete", json!({"path": "data/a"})),
        (
            "sql.query",
            json!({"connection": "db", "query": "SELECT * FROM t WHERE a = ?", "params": [1]}),
        ),
        (
            "sql.query",
            json!({"connection": "db", "query": "INSERT INTO t VALUES (1)"}),
        ),
    ]
}

/// Whether outputs hold what the schema requires, in the types it names, and nothing that it does not know.
fn assert_fits(schema: &Value, outputs: &Outputs, what: &str) {
    let properties = schema["properties"].as_object().expect("has properties");
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(
            outputs.contains_key(required.as_str().unwrap_or_default()),
            "{what} lacks {required}"
        );
    }
    for (key, value) in outputs {
        let property = properties.get(key).unwrap_or_else(|| panic!("{what}: {key}"));
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let types = property["type"].to_string();
        let fits = property.get("type").is_none() || types.contains(kind);
        assert!(fits, "{what}: {key} is {value}, not {types}");
    }
}

#[test]
fn outputs_fit_the_schema_are_marked_and_nothing_is_touched() {
    let place = Place::new();
    let sandbox = built(SandboxSettings::default(), &place.0).expect("builds");
    for (job_type, given) in jobs() {
        let outputs = rehearse(&sandbox, job_type, "a-1", &given).expect(job_type);
        assert_eq!(outputs[MARK], json!(true), "{job_type}");
        let spec = sandbox.registry.get(job_type).expect("is registered").spec();
        assert_fits(spec.outputs.as_value(), &outputs, job_type);
    }
    let touched = std::fs::read_dir(&place.0).expect("lists").count();
    assert_eq!(touched, 0, "neither root nor database was made");
    let put = rehearse(&sandbox, "fs.put", "a-1", &jobs()[1].1).expect("succeeds");
    assert_eq!(
        (&put["size"], &put["content_type"]),
        (&json!(6), &json!("text/plain"))
    );
}

#[test]
fn the_same_job_is_rehearsed_the_same_way_each_time_and_another_seed_another_way() {
    let place = Place::new();
    let with_seed = |seed| {
        let settings = SandboxSettings {
            seed,
            ..SandboxSettings::default()
        };
        built(settings, &place.0).expect("builds")
    };
    let (one, again, other) = (with_seed(1), with_seed(1), with_seed(2));
    for (job_type, given) in jobs()
        .into_iter()
        .filter(|(name, _)| *name == "fs.get" || *name == "http.request")
    {
        let first = rehearse(&one, job_type, "a-1", &given);
        assert_eq!(first, rehearse(&again, job_type, "a-1", &given), "{job_type}");
        assert_ne!(first, rehearse(&other, job_type, "a-1", &given), "{job_type}");
        assert_ne!(first, rehearse(&one, job_type, "a-2", &given), "{job_type}");
    }
}

#[test]
fn inputs_are_checked_as_always_and_what_the_contract_lists_is_denied() {
    let place = Place::new();
    let sandbox = built(SandboxSettings::default(), &place.0).expect("builds");
    for (job_type, given, code) in [
        (
            "http.request",
            json!({"url": "http://h/"}),
            ErrorCode::MissingRequiredField,
        ),
        (
            "http.request",
            json!({"url": "file:///x", "method": "GET"}),
            ErrorCode::PermissionDenied,
        ),
        (
            "http.request",
            json!({"url": "ftp://h/x", "method": "GET"}),
            ErrorCode::PermissionDenied,
        ),
        (
            "fs.put",
            json!({"path": "data/../x", "content": ""}),
            ErrorCode::InvalidInput,
        ),
        (
            "sql.query",
            json!({"query": "DROP TABLE t"}),
            ErrorCode::PermissionDenied,
        ),
        (
            "sql.query",
            json!({"query": "SELECT 1", "connection": "none"}),
            ErrorCode::InvalidInput,
        ),
        ("fail", json!({"error_code": "HTTP_ERROR"}), ErrorCode::HttpError),
    ] {
        let failure = rehearse(&sandbox, job_type, "a-1", &given).expect_err(job_type);
        assert_eq!(failure.code, code, "{job_type} {given}: {failure:?}");
    }
    let echoed = rehearse(&sandbox, "echo", "a-1", &json!({"a": 1})).expect("succeeds");
    assert_eq!(Value::Object(echoed), json!({"a": 1, "sandbox": true}));
}

#[test]
fn failures_come_only_where_a_share_is_set_and_then_in_that_share() {
    let place = Place::new();
    let mut settings = SandboxSettings::default();
    settings.failures.http = 0.05;
    settings.failures.put = 1.0;
    let sandbox = built(settings, &place.0).expect("builds");
    let given = &jobs()[0].1;
    let failed = (0..1_000)
        .filter(|n| rehearse(&sandbox, "http.request", &format!("a-{n}"), given).is_err())
        .count();
    assert!((20..90).contains(&failed), "{failed} of 1000");
    let failure = rehearse(&sandbox, "fs.put", "a-1", &jobs()[1].1).expect_err("always fails");
    assert_eq!(failure.code, ErrorCode::ExecutionFailed);
    assert!(rehearse(&sandbox, "fs.get", "a-1", &jobs()[2].1).is_ok());
}

#[test]
fn a_recorded_answer_comes_before_a_made_up_one() {
    let (place, recorded) = (Place::new(), Place::new());
    recorded.write(
        "a.json",
        &json!({"job_type": "fs.blob_get", "inputs": {"path": "data/a"}, "outputs": {"content": "recorded"}}),
    );
    recorded.write(
        "any.json",
        &json!({"job_type": "sql.query", "error_code": "RESOURCE_UNAVAILABLE", "error": "no room"}),
    );
    let settings = SandboxSettings {
        recordings: Some(recorded.0.clone()),
        ..SandboxSettings::default()
    };
    let sandbox = built(settings.clone(), &place.0).expect("builds");
    let got = rehearse(&sandbox, "fs.get", "a-1", &json!({"path": "data/a"})).expect("succeeds");
    assert_eq!(
        Value::Object(got),
        json!({"content": "recorded", "sandbox": true})
    );
    let other = rehearse(&sandbox, "fs.get", "a-1", &json!({"path": "data/b"})).expect("succeeds");
    assert_ne!(other["content"], json!("recorded"));
    let failure = rehearse(&sandbox, "sql.query", "a-1", &json!({"query": "SELECT 1"})).expect_err("fails");
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (ErrorCode::ResourceUnavailable, "no room")
    );

    recorded.write("b.json", &json!({"job_type": "fs.blob_get", "outcome": 1}));
    let error = built(settings, &place.0).expect_err("is refused").to_string();
    assert!(
        error.contains("worker.sandbox.recordings") && error.contains("b.json"),
        "{error}"
    );
}

#[test]
fn inputs_elsewhere_are_not_fetched_from_files_and_addresses() {
    let place = Place::new();
    let sandbox = built(SandboxSettings::default(), &place.0).expect("builds");
    for reference in ["file:data/a", "http://127.0.0.1:9/x"] {
        let payload = caf_protocol::reference::PayloadRef::parse(reference, None).expect("is well-formed");
        let fetcher = Arc::clone(sandbox.fetchers.find(&payload.location).expect("is known"));
        let fetched = crate::tests::block_on(fetcher.fetch(payload.location, 1_000, context()));
        assert_eq!(fetched.expect_err("is refused").code, ErrorCode::PermissionDenied);
    }
    assert_eq!(
        Map::from_iter([(MARK.to_owned(), json!(true))]),
        marked(Map::new())
    );
}

#[test]
fn settings_that_break_a_rule_are_refused_by_name() {
    let place = Place::new();
    let mut settings = SandboxSettings {
        delay_scale: f64::NAN,
        ..SandboxSettings::default()
    };
    settings.failures.sql = 1.5;
    let error = built(settings, &place.0).expect_err("is refused").to_string();
    assert!(
        error.contains("worker.sandbox.delay_scale") && error.contains("failures.sql"),
        "{error}"
    );
}
