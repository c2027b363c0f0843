//! What `deploy/kubernetes` ships, held against the schemas of Kubernetes and KEDA and against the program.
//!
//! Neighbours: `deploy.rs`, which shares how settings are shown. No cluster is involved: what a cluster would give a pod
//! (its name, a Secret) is given here by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use caf_testkit::TempDir;
use caf_testkit::programs::deploy_checker;
use caf_worker::settings::Settings;
use serde_json::Value;

use crate::deploy::{
    MARGIN_S, assert_all_are_settings, assert_flags_have_their_policies, run, shipped, shown_settings,
    text_of,
};
use crate::support::Node;

/// Versions of Kubernetes whose schemas the manifests must satisfy: the oldest with all that they use as a matter of
/// course, and the newest that the checker knows.
const VERSIONS: [&str; 2] = ["1.31", "1.37"];
/// What Kubernetes itself knows.
const CORE: [&str; 4] = ["configmap", "service", "statefulset", "poddisruptionbudget"];
/// Prints the documents of a YAML file as one JSON array.
const YAML_TO_JSON: &str =
    "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";

fn path(name: &str) -> String {
    format!("deploy/kubernetes/{name}.yaml")
}

/// The only document of a manifest.
fn manifest(name: &str) -> Value {
    let python = deploy_checker("python").expect("is installed");
    let (code, said) = run(Command::new(python)
        .args(["-c", YAML_TO_JSON])
        .arg(shipped(&path(name))));
    assert_eq!(code, Some(0), "{said}");
    let documents: Vec<Value> = serde_json::from_str(&said).expect("is JSON");
    let [document] = &documents[..] else {
        panic!("{name}: {} documents", documents.len());
    };
    document.clone()
}

fn at<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document
        .pointer(pointer)
        .unwrap_or_else(|| panic!("no {pointer} in {document}"))
}

/// The only container of the pods.
fn container(stateful_set: &Value) -> Value {
    let containers = at(stateful_set, "/spec/template/spec/containers");
    assert_eq!(containers.as_array().map(Vec::len), Some(1));
    containers[0].clone()
}

/// The environment of a pod named `caf-worker-0` that has its Secret.
fn pod_environment() -> BTreeMap<String, String> {
    let variables = at(&container(&manifest("statefulset")), "/env").clone();
    let value = |variable: &Value| match (&variable["value"], &variable["valueFrom"]) {
        (Value::String(text), _) => text.clone(),
        (_, from) if from["fieldRef"]["fieldPath"] == "metadata.name" => "caf-worker-0".to_owned(),
        (_, from) if from["secretKeyRef"]["name"].is_string() => "from-the-secret".to_owned(),
        _ => panic!("{variable}"),
    };
    let variables = variables.as_array().expect("is a list").iter();
    variables
        .map(|variable| {
            (
                variable["name"].as_str().expect("is text").to_owned(),
                value(variable),
            )
        })
        .collect()
}

/// Every setting of a pod with value and source.
fn pod_settings() -> BTreeMap<String, Value> {
    let file = at(&manifest("configmap"), "/data/worker.toml")
        .as_str()
        .expect("is text")
        .to_owned();
    let environment = pod_environment();
    let shown = shown_settings(&environment, &file);
    assert_all_are_settings(&environment, &shown);
    shown
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    value
        .as_u64()
        .or(text)
        .unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn kubernetes_accepts_every_manifest_and_knows_every_field() {
    let checker = deploy_checker("kubernetes-validate").expect("is installed");
    for version in VERSIONS {
        let files = CORE.map(|name| shipped(&path(name)));
        let (code, said) = run(Command::new(&checker)
            .args(["--strict", "-k", version])
            .args(files));
        let passed = said.lines().filter(|line| line.contains(" passed ")).count();
        assert!(code == Some(0) && passed == CORE.len(), "{code:?}: {said}");
    }
}

#[test]
fn keda_accepts_its_object() {
    let schema =
        serde_json::from_str(&text_of("tests/fixtures/deploy/scaled_object.schema.json")).expect("is JSON");
    let schema = jsonschema::validator_for(&schema).expect("is a schema");
    let object = manifest("scaledobject");
    let errors: Vec<_> = schema
        .iter_errors(&object)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn the_kustomization_names_every_manifest_that_needs_nothing_but_kubernetes() {
    let kustomization = manifest("kustomization");
    let resources = at(&kustomization, "/resources")
        .as_array()
        .expect("is a list")
        .clone();
    assert_eq!(resources, CORE.map(|name| Value::from(format!("{name}.yaml"))));
    let files = std::fs::read_dir(shipped("deploy/kubernetes"))
        .expect("can be listed")
        .flatten();
    let files: BTreeSet<_> = files.map(|file| file.file_name().display().to_string()).collect();
    let others = ["kustomization", "scaledobject"];
    let known = CORE.into_iter().chain(others).map(|name| format!("{name}.yaml"));
    assert_eq!(files, known.collect());

    // One image under one name, of this version.
    let image = format!("caf-worker:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(container(&manifest("statefulset"))["image"], image.as_str());
    let renamed = at(&kustomization, "/images/0");
    assert_eq!(
        (&renamed["name"], &renamed["newTag"]),
        (&"caf-worker".into(), &env!("CARGO_PKG_VERSION").into())
    );
    assert!(text_of("deploy/Dockerfile").contains(&format!("-t {image} .")));
}

#[test]
fn the_settings_of_a_pod_are_known_and_good_and_hold_no_credential() {
    let shown = pod_settings();
    assert_eq!(shown["worker.id"]["value"], "caf-worker-0");
    assert_eq!(shown["nats.user"]["source"], "env WORKER__NATS__USER");
    for name in CORE.into_iter().chain(["kustomization", "scaledobject"]) {
        assert_ne!(manifest(name)["kind"], "Secret", "{name}");
    }
    // A variable with a value in the manifest is nothing that the program masks.
    let variables = container(&manifest("statefulset"))["env"]
        .as_array()
        .expect("is a list")
        .clone();
    for variable in variables.iter().filter(|variable| variable["value"].is_string()) {
        let source = format!("env {}", variable["name"].as_str().expect("is text"));
        let setting = shown
            .values()
            .find(|setting| setting["source"] == source.as_str())
            .expect("is a setting");
        assert_eq!(setting["value"], variable["value"]);
    }
}

#[test]
fn pods_start_the_worker_with_the_mounted_settings_and_keep_what_it_keeps() {
    let set = manifest("statefulset");
    let container = container(&set);
    let mounts = container["volumeMounts"].as_array().expect("is a list");
    let mounted = |name: &str| {
        let mount = mounts
            .iter()
            .find(|mount| mount["name"] == name)
            .expect("is mounted");
        mount["mountPath"].as_str().expect("is text").to_owned()
    };
    assert_eq!(
        at(&set, "/spec/template/spec/volumes/0/configMap/name"),
        at(&manifest("configmap"), "/metadata/name")
    );
    let file = format!("{}/worker.toml", mounted("settings"));
    let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).expect("are texts");
    assert_eq!(arguments[0], "serve");
    assert_eq!(arguments.last(), Some(&format!("--config={file}")));
    let own = TempDir::new("configmap").expect("can be made");
    let own_file = own.path().join("worker.toml");
    let settings = manifest("configmap")["data"]["worker.toml"].clone();
    std::fs::write(&own_file, settings.as_str().expect("is text")).expect("can be written");
    assert_flags_have_their_policies(&arguments, Some(&own_file));
    assert_eq!(at(&set, "/spec/volumeClaimTemplates/0/metadata/name"), "state");
    let shown = pod_settings();
    for key in ["worker.state_dir", "blocks.fs.roots.data"] {
        let path = shown[key]["value"].as_str().expect("is text").to_owned();
        // Below and not at the mount: the root of a new file system may hold more than ours.
        assert!(
            path.starts_with(&format!("{}/", mounted("state"))),
            "{key}: {path}"
        );
    }
    let user = text_of("deploy/Dockerfile");
    let user = user
        .lines()
        .find_map(|line| line.strip_prefix("USER "))
        .expect("has a user");
    let pod = at(&set, "/spec/template/spec/securityContext");
    assert_eq!(format!("{}:{}", pod["runAsUser"], pod["runAsGroup"]), user);
    assert_eq!(
        (&pod["runAsNonRoot"], &pod["fsGroup"]),
        (&true.into(), &pod["runAsGroup"])
    );
    let own = &container["securityContext"];
    assert_eq!(
        (&own["readOnlyRootFilesystem"], &own["allowPrivilegeEscalation"]),
        (&true.into(), &false.into())
    );
    assert_eq!(own["capabilities"], serde_json::json!({"drop": ["ALL"]}));
    for name in ["service", "poddisruptionbudget"] {
        let manifest = manifest(name);
        let selector = manifest["spec"]["selector"]
            .get("matchLabels")
            .unwrap_or(&manifest["spec"]["selector"]);
        assert_eq!(selector, at(&set, "/spec/template/metadata/labels"), "{name}");
    }
    assert_eq!(
        at(&set, "/spec/serviceName"),
        at(&manifest("service"), "/metadata/name")
    );
}

#[test]
fn the_grace_period_is_longer_than_a_drain() {
    let grace_s = number(at(
        &manifest("statefulset"),
        "/spec/template/spec/terminationGracePeriodSeconds",
    ));
    let defaults = Settings::default().drain.hard_s;
    for hard_s in [number(&pod_settings()["drain.hard_s"]["value"]), defaults] {
        assert!(
            grace_s >= hard_s + MARGIN_S,
            "{grace_s} s for a drain of {hard_s} s"
        );
    }
}

#[test]
fn keda_looks_at_the_consumer_that_the_workers_share_and_starts_no_more_than_it_serves() {
    let scaled = manifest("scaledobject");
    let trigger = at(&scaled, "/spec/triggers/0/metadata");
    let shown = pod_settings();
    assert_eq!(
        (&trigger["stream"], &trigger["consumer"]),
        (&shown["nats.stream"]["value"], &shown["nats.durable"]["value"])
    );
    let defaults = Settings::default().nats;
    assert_eq!(
        (trigger["stream"].as_str(), trigger["consumer"].as_str()),
        (Some(defaults.stream.as_str()), Some(defaults.durable.as_str()))
    );
    let monitored = trigger["natsServerMonitoringEndpoint"]
        .as_str()
        .and_then(|text| text.split(':').next());
    let connected = pod_environment()["NATS_URL"].replace("nats://", "");
    assert_eq!(monitored, connected.split(':').next());

    let held = number(&shown["limits.max_held"]["value"]);
    let workers = number(at(&scaled, "/spec/maxReplicaCount"));
    assert!(
        workers * held <= number(&shown["nats.max_ack_pending"]["value"]),
        "{workers} workers hold {held} each"
    );
    assert!(
        number(&trigger["lagThreshold"]) >= held,
        "a worker has taken what another is started for"
    );

    let target = at(&scaled, "/spec/scaleTargetRef");
    let set = manifest("statefulset");
    assert_eq!(
        (&target["kind"], &target["name"]),
        (&set["kind"], at(&set, "/metadata/name"))
    );
    assert!(
        set["spec"].get("replicas").is_none(),
        "an apply would undo what KEDA has set"
    );
}

#[test]
fn pods_are_measured_at_the_port_that_prometheus_is_told() {
    let (set, shown) = (manifest("statefulset"), pod_settings());
    let port = number(at(&container(&set), "/ports/1/containerPort"));
    // Off as shipped, like every CP2 feature; the line that switches it on is there.
    assert_eq!(shown["worker.metrics.enabled"]["value"], false);
    assert!(text_of(&path("configmap")).contains("#[worker.metrics]\n    #enabled = true\n"));
    assert_eq!(
        shown["http.metrics_addr"]["value"],
        format!("0.0.0.0:{port}").as_str()
    );
    let service = manifest("service");
    assert_eq!(number(at(&service, "/spec/ports/1/port")), port);
    assert_eq!(
        at(&service, "/spec/ports/1/targetPort"),
        at(&container(&set), "/ports/1/name")
    );
    let annotation = format!("#  prometheus.io/port: \"{port}\"\n");
    assert!(text_of(&path("statefulset")).contains(&annotation));
}

#[test]
fn a_worker_answers_the_probes_of_its_pod_at_the_port_that_is_named() {
    let container = container(&manifest("statefulset"));
    let port = number(at(&container, "/ports/0/containerPort"));
    let address = &pod_settings()["http.health_addr"];
    assert_eq!(address["value"], Settings::default().http.health_addr.as_str());
    assert!(
        address["value"]
            .as_str()
            .is_some_and(|text| text == format!("0.0.0.0:{port}")),
        "{address}"
    );
    assert_eq!(number(at(&manifest("service"), "/spec/ports/0/port")), port);

    let mut node = Node::start();
    for (probe, wanted) in [
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ] {
        let asked = at(&container, &format!("/{probe}/httpGet"));
        assert_eq!(
            (&asked["path"], &asked["port"]),
            (&wanted.into(), at(&container, "/ports/0/name")),
            "{probe}"
        );
        assert_eq!(node.worker.get(wanted).expect("answers").status, 200, "{probe}");
    }
}
