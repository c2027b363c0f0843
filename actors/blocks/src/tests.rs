//! What the tests of all blocks share, and the tests of the registry.

mod endpoints;
mod payload;

use std::sync::Arc;
use std::time::Duration;

use caf_protocol::block::{BlockContext, CancellationToken, Inputs, Outputs, Task};
use caf_protocol::ids::Correlation;
use caf_protocol::outcome::Failure;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::settings::SqlConnectionSettings;

/// Inputs from a JSON object.
pub(crate) fn inputs(value: Value) -> Inputs {
    value.as_object().cloned().expect("is an object")
}

/// A context with half a minute left.
pub(crate) fn context() -> BlockContext {
    context_for(Duration::from_secs(30))
}

/// A context with this much time left.
pub(crate) fn context_for(left: Duration) -> BlockContext {
    BlockContext {
        tenant_id: "acme".to_owned(),
        assignment_id: "a-1".to_owned(),
        correlation: Correlation::default(),
        deadline: Instant::now() + left,
        attempt: 0,
        model_call: Default::default(),
        cancel: CancellationToken::new(),
    }
}

/// Runs a future as the node does: on a thread with an actix system.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    actix_rt::System::new().block_on(future)
}

/// Runs one attempt.
pub(crate) fn run(task: Arc<dyn Task>, context: BlockContext) -> Result<Outputs, Failure> {
    block_on(task.run(context))
}

#[test]
fn every_job_type_is_registered_and_describes_itself() {
    let registry = build(
        &BlockSettings::default(),
        OperationLimits::default(),
        Extras::default(),
    )
    .expect("builds")
    .registry;
    let types = [
        "echo",
        "fail",
        "fs.blob_delete",
        "fs.blob_get",
        "fs.blob_put",
        "fs.delete",
        "fs.get",
        "fs.put",
        "http.request",
        "sleep",
        "sql.query",
    ];
    assert_eq!(registry.job_types(), types);
    for block in registry.blocks() {
        let spec = block.spec();
        let job_type = spec.job_types[0];
        assert_eq!(
            spec.inputs.get("type"),
            Some(&Value::from("object")),
            "{job_type}"
        );
        assert_eq!(
            spec.outputs.get("type"),
            Some(&Value::from("object")),
            "{job_type}"
        );
    }
}

#[test]
fn a_setting_that_breaks_its_rule_stops_the_start_without_showing_credentials() {
    let mut settings = BlockSettings::default();
    settings.http.allow_targets = vec!["10.0.0.0/33".to_owned()];
    let error = build(&settings, OperationLimits::default(), Extras::default())
        .expect_err("is refused")
        .to_string();
    assert!(
        error.starts_with("blocks.http.allow_targets.0: ") && error.ends_with("10.0.0.0/33"),
        "{error}"
    );

    for url in [
        "mysql://u:hunter2@h/x",
        "postgres://u:hunter2@h:port/x",
        "hunter2",
    ] {
        let mut settings = BlockSettings::default();
        let connections = &mut settings.sql.connections;
        connections.insert("main".to_owned(), SqlConnectionSettings::new(url));
        let error = build(&settings, OperationLimits::default(), Extras::default()).expect_err("is refused");
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("blocks.sql.connections.main.url") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}

/// What each block declares is on file in `schemas/`, for readers without a Rust compiler. `UPDATE_SCHEMAS=1` writes it.
#[test]
fn the_declarations_on_file_are_current() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let update = std::env::var_os("UPDATE_SCHEMAS").is_some_and(|value| value == "1");
    let registry = build(
        &BlockSettings::default(),
        OperationLimits::default(),
        Extras::default(),
    )
    .expect("builds")
    .registry;
    let mut files = std::collections::BTreeSet::new();
    for block in registry.blocks() {
        let spec = block.spec();
        let declared = json!({
            "job_types": spec.job_types,
            "resource_class": spec.class,
            "repeatable": spec.repeatable,
            "inputs": spec.inputs,
            "outputs": spec.outputs,
        });
        let name = format!("{}.json", spec.job_types[0]);
        let (path, generated) = (directory.join(&name), format!("{declared:#}\n"));
        if update {
            std::fs::write(&path, &generated).expect("can be written");
        }
        let on_file = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            on_file == generated,
            "{name} is out of date: run this test with UPDATE_SCHEMAS=1"
        );
        files.insert(name);
    }
    let present = std::fs::read_dir(&directory).expect("is there").flatten();
    let present: std::collections::BTreeSet<_> = present
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(present, files);
}
