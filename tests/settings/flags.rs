//! What an operator is told of flags and policies: by a node that starts, by `config flags` and by `config check`.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Place;
use super::scripts::with_policies;

impl Place {
    /// What a node logs that starts here and cannot go on: its address is not one of this machine.
    fn start(&self, environment: &[(&str, &str)]) -> Result<Vec<Value>> {
        let ran = self.run("serve --set http.health_addr=192.0.2.1:9091", environment)?;
        assert_ne!(ran.code, 0, "{ran:?}");
        let lines = ran.answer.lines().chain(ran.complaint.lines());
        lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The one line that says which features are in force.
    fn features(&self, environment: &[(&str, &str)]) -> Result<Value> {
        let lines = self.start(environment)?;
        let is_it = |line: &&Value| line["message"] == "Features in force";
        let found: Vec<_> = lines.iter().filter(is_it).collect();
        assert_eq!(found.len(), 1, "{lines:?}");
        assert_eq!(found[0]["level"], "INFO");
        let mut context = found[0]["context"].clone();
        context
            .as_object_mut()
            .context("is an object")?
            .remove("worker_id");
        Ok(context)
    }
}

#[test]
fn the_log_of_a_node_that_starts_says_which_features_are_in_force_and_why() -> Result<()> {
    let place = with_policies()?;
    assert_eq!(
        place.features(&[])?,
        json!({
            "retry": "cp1", "timeouts": "cp1", "queue": "cp1", "metrics": "cp1", "tracing": "cp1",
            "cancellation": "cp1", "circuit breaker": "cp1", "admission": "wait",
            "sources": {
                "retry": "file config/worker/retry_policy.json",
                "timeouts": "file config/worker/timeout_policy.json",
                "queue": "file config/worker/queue_policy.json",
                "metrics": "default",
                "tracing": "default",
                "cancellation": "default",
                "circuit breaker": "default",
            },
        })
    );
    let on = place.features(&[
        ("CP2_ADVANCED_RETRY_ENABLED", "true"),
        ("WORKER_QUEUE_V2_ENABLED", "1"),
        ("BEAMLINE_METRICS_ENABLED", "true"),
        ("WORKER__WORKER__QUEUE__V2__REJECTION_POLICY", "defer"),
    ])?;
    assert_eq!(
        on,
        json!({
            "retry": "cp2", "timeouts": "cp1", "queue": "cp2", "metrics": "cp2", "tracing": "cp1",
            "cancellation": "cp1", "circuit breaker": "cp1", "admission": "refuse",
            "rejection_policy": "defer",
            "sources": {
                "retry": "env CP2_ADVANCED_RETRY_ENABLED",
                "timeouts": "file config/worker/timeout_policy.json",
                "queue": "env WORKER_QUEUE_V2_ENABLED",
                "metrics": "env BEAMLINE_METRICS_ENABLED",
                "tracing": "default",
                "cancellation": "default",
                "circuit breaker": "default",
            },
        })
    );
    // A flag without a policy is what it was.
    let alone = Place::new()?.features(&[("CP2_ADVANCED_RETRY_ENABLED", "true")])?;
    assert_eq!(
        (&alone["retry"], &alone["sources"]["retry"]),
        (&json!("cp1"), &json!("env CP2_ADVANCED_RETRY_ENABLED"))
    );
    Ok(())
}

#[test]
fn what_is_said_of_flags_in_vain_is_said_by_every_command_that_looks_at_them() -> Result<()> {
    let place = with_policies()?;
    let variables = [
        ("CP2_ADVANCED_RETRIES_ENABLED", "true"),
        ("CP2_QUEUE_MANAGEMENT_ENABLED", "false"),
        ("WORKER_QUEUE_V2_ENABLED", "true"),
        ("WORKER__WORKER__QUEUE__V2__POLICIES__DEFER__ENABLED", "true"),
    ];
    let starts = [
        "WORKER_QUEUE_V2_ENABLED says true and CP2_QUEUE_MANAGEMENT_ENABLED false",
        "CP2_ADVANCED_RETRIES_ENABLED is no flag",
        "worker.queue.v2.policies.defer is enabled and has no effect",
    ];
    let script = place.script("worker/validate_feature_flags.sh", &[], &variables)?;
    let check = place.run("config check", &variables)?;
    place.file("none.jsonl", "")?;
    let exec = place.run("exec none.jsonl", &variables)?;
    let dry = place.run("exec --dry-run none.jsonl", &variables)?;
    assert_eq!((script.code, check.code), (0, 0), "{script:?} {check:?}");
    let start = place.start(&variables)?;
    let details: Vec<_> = start
        .iter()
        .filter_map(|line| line["context"]["detail"].as_str())
        .collect();
    for said in starts {
        assert!(
            script.answer.contains(&format!("[WARN] {said}")),
            "{said}: {script:?}"
        );
        assert!(
            check.complaint.contains(&format!("warning: {said}")),
            "{said}: {check:?}"
        );
        assert!(
            details.iter().any(|detail| detail.starts_with(said)),
            "{said}: {details:?}"
        );
        for ran in [&exec, &dry] {
            assert!(ran.complaint.contains(said), "{said}: {ran:?}");
        }
    }
    Ok(())
}
