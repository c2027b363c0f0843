//! Which environment variables mean which keys: `WORKER__SECTION__KEY` for every key, and the plain names that
//! deployments use already (contract 7.1, 10.2).
//!
//! Neighbours: [`super::load`] hands the variables in; nothing here looks at the process's environment. `WORKER__…`
//! beats plain names. An empty `WORKER__…` puts the key back to its default; an empty plain name counts as not set,
//! except for flags, where empty means off.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use caf_protocol::error_code::ErrorCode;
use serde_json::Value;

use super::log::Directives;
use super::origin::{KeyPath, Origin, Problem, secret_behind_file};
use super::sources::{Entry, Reader};

mod flags;
mod otel;

pub use otel::of_tracing;

/// Prefix of the names that exist for every key.
const PREFIX: &str = "WORKER__";

/// Plain names and their keys. Of two for one key the later one wins.
const PLAIN: [(&str, &str); 15] = [
    ("NATS_URL", "nats.url"),
    ("CAF_ASSIGN_SUBJECT", "nats.subjects.assign"),
    ("CAF_RESULT_SUBJECT", "nats.subjects.result"),
    ("CAF_HEARTBEAT_SUBJECT", "nats.subjects.heartbeat"),
    ("CAF_HEARTBEAT_INTERVAL_MS", "worker.heartbeat_interval_ms"),
    ("NATS_MAX_DELIVER", "nats.max_deliver"),
    ("NATS_ACK_WAIT_MS", "nats.ack_wait_ms"),
    ("RESOURCE_POOL_CPU", "pools.cpu.max_concurrency"),
    ("WORKER_CPU_POOL_SIZE", "pools.cpu.max_concurrency"),
    ("RESOURCE_POOL_GPU", "pools.gpu.max_concurrency"),
    ("WORKER_GPU_POOL_SIZE", "pools.gpu.max_concurrency"),
    ("WORKER_IO_POOL_SIZE", "pools.io.max_concurrency"),
    (
        "METRICS_TENANT_LABEL_ALLOWLIST",
        "worker.metrics.tenant_label_allowlist",
    ),
    ("WORKER_SANDBOX_MODE", "worker.sandbox.enabled"),
    ("DATABASE_URL", "blocks.sql.connections.default.url"),
];

/// What the name of a variable ends in that gives the path of a file in place of a secret.
const FILE_SUFFIX: &str = "_FILE";

/// Levels of the log, for all and for modules, the stronger one last. The first belongs to other programs too and may
/// hold filters that only they know; what cannot be read of it is left out.
const LOG_DIRECTIVES: [&str; 2] = ["RUST_LOG", "LOG_LEVEL"];

/// Base address: health one port above, metrics two.
const PROMETHEUS_ENDPOINT: &str = "PROMETHEUS_ENDPOINT";

/// The variables that may matter, by name.
pub type Variables = BTreeMap<String, String>;

/// Reads the plain names.
pub fn plain(reader: &mut Reader<'_>, variables: &Variables) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (name, key) in PLAIN {
        entries.extend(plain_or_file(reader, variables, (name, key)));
    }
    for name in LOG_DIRECTIVES {
        if let Some(text) = variables.get(name) {
            entries.extend(directives(reader, name, text));
        }
    }
    if let Some(base) = variables.get(PROMETHEUS_ENDPOINT).filter(|text| !text.is_empty()) {
        let origin = Origin::Environment(PROMETHEUS_ENDPOINT.to_owned());
        entries.extend(endpoints(reader, base, &origin));
    }
    entries.extend(flags::read(reader, variables));
    entries
}

/// The value of a plain name, or of the file that the same name with `_FILE` gives, where the key may hold a secret.
fn plain_or_file<'a>(
    reader: &mut Reader<'_>,
    variables: &'a Variables,
    (name, key): (&str, &str),
) -> Option<Entry> {
    // Other programs' variables may hold spaces for nothing.
    let trimmed = |text: &'a String| {
        if otel::is_name(name) {
            text.trim()
        } else {
            text.as_str()
        }
    };
    let given = |name: &str| variables.get(name).map(trimmed).filter(|text| !text.is_empty());
    let file_name = format!("{name}{FILE_SUFFIX}");
    let file = given(&file_name).filter(|_| may_be_file(&file_name));
    match (given(name), file) {
        (Some(_), Some(_)) => {
            let rule = format!("is given by env {name} too: only one of them may be set");
            reader.reject(&split(key), rule, &Value::Null, &Origin::Environment(file_name));
            None
        }
        (Some(text), None) => reader.text(split(key), text, Origin::Environment(name.to_owned())),
        (None, Some(path)) => reader.from_file(split(key), path, Origin::Environment(file_name)),
        (None, None) => None,
    }
}

/// Whether a name is a plain one with `_FILE` at its end, and its key may hold a secret.
fn may_be_file(name: &str) -> bool {
    let all = PLAIN.iter().chain(&otel::NAMES);
    let key = name
        .strip_suffix(FILE_SUFFIX)
        .and_then(|name| all.clone().find(|(known, _)| *known == name));
    key.is_some_and(|(_, key)| secret_behind_file(&split(&format!("{key}_file"))).is_some())
}

fn directives(reader: &mut Reader<'_>, name: &str, text: &str) -> Vec<Entry> {
    let origin = Origin::Environment(name.to_owned());
    let Directives {
        level,
        modules,
        unreadable,
    } = Directives::read(text, name == "LOG_LEVEL");
    if name == "LOG_LEVEL"
        && let Some(part) = unreadable.first()
    {
        let rule = "must be one of error, warn, info, debug, alone or with levels of modules as in info,intake=debug";
        reader.reject(&split("log.level"), rule, &Value::from(part.as_str()), &origin);
        return Vec::new();
    }
    let level = level.map(|level| (split("log.level"), level));
    let modules = modules.into_iter().map(|(module, level)| {
        let mut key = split("log.levels");
        key.push(module);
        (key, level)
    });
    let entries = level.into_iter().chain(modules);
    entries
        .map(|(key, level)| Entry {
            key,
            value: Some(Value::from(level)),
            origin: origin.clone(),
        })
        .collect()
}

/// Reads `WORKER__SECTION__KEY`; names in maps are lower-cased, but codes of errors.
pub fn prefixed(reader: &mut Reader<'_>, variables: &Variables) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (name, text) in variables.iter().filter(|(name, _)| is_prefixed(name)) {
        let origin = Origin::Environment(name.clone());
        let key: KeyPath = name[PREFIX.len()..]
            .split("__")
            .map(str::to_ascii_lowercase)
            .collect();
        let key = with_codes(key);
        let meant = reader.key_of(&key);
        let is_twin = |entry: &&Entry| entry.key == meant && (meant == key || entry.value.is_some());
        if let Some(twin) = entries.iter().find(is_twin) {
            let rule = match meant == key {
                true => format!("is given by {} too, in another case", twin.origin),
                false => format!("is given by {} too: only one of them may be set", twin.origin),
            };
            reader.reject(&meant, rule, &Value::Null, &origin);
            continue;
        }
        entries.extend(reader.text(key, text, origin));
    }
    entries
}

/// The key with codes of errors, which name entries of `error_overrides`, in their own form.
fn with_codes(mut key: KeyPath) -> KeyPath {
    let map = key.iter().position(|segment| segment == "error_overrides");
    if let Some(name) = map.and_then(|map| key.get_mut(map + 1)) {
        let codes = ErrorCode::ALL.iter().map(|code| code.as_str());
        if let Some(code) = codes.into_iter().find(|code| code.eq_ignore_ascii_case(name)) {
            *name = code.to_owned();
        }
    }
    key
}

/// Keeps the variables that may matter; reports those among them that are not text.
pub fn collect(
    reader: &mut Reader<'_>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Variables {
    let mut variables = Variables::new();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| is_known(name)) else {
            // Not ours, but perhaps meant for us; what its value says matters only if it is text.
            if let (Some(name), Ok(text)) = (name.to_str(), value.into_string())
                && flags::looks_like_one(name)
            {
                variables.insert(name.to_owned(), text);
            }
            continue;
        };
        match value.into_string() {
            Ok(text) => {
                variables.insert(name.to_owned(), text);
            }
            // Another program's, as long as traces are off.
            Err(_) if otel::is_name(name) || name.starts_with("OTEL_") => {}
            Err(_) if behind_file(name).is_some() && !may_be_file(name) => {}
            Err(_) => {
                let origin = Origin::Environment(name.to_owned());
                reader
                    .problems
                    .push(Problem::of_key(&origin, &[], "is not UTF-8"));
            }
        }
    }
    variables
}

/// What to say of variables that are flags, or look like it, and of files that nobody reads.
pub fn warnings(variables: &Variables) -> Vec<String> {
    let files = variables.keys().filter_map(|name| {
        let of = behind_file(name).filter(|_| !may_be_file(name))?;
        Some(format!(
            "{name} has no effect: only what may be a secret can be given as a file, and {of} is none"
        ))
    });
    flags::warnings(variables).into_iter().chain(files).collect()
}

/// The plain name that this one gives a file for, whether that is read or not.
fn behind_file(name: &str) -> Option<&str> {
    name.strip_suffix(FILE_SUFFIX).filter(|name| {
        let mut plain = PLAIN.iter().chain(&otel::NAMES);
        plain.any(|(known, _)| known == name)
            || *name == PROMETHEUS_ENDPOINT
            || *name == "LOG_LEVEL"
            || flags::is_name(name)
    })
}

/// The two endpoints above a base address.
pub fn endpoints(reader: &mut Reader<'_>, base: &str, origin: &Origin) -> Vec<Entry> {
    let keys = ["http.health_addr", "http.metrics_addr"].map(split);
    let Some(base_address) = base_address(base) else {
        let rule = "must be set by a base address such as 0.0.0.0:9090 with a port up to 65533";
        for key in &keys {
            reader.reject(key, rule, &Value::from(base), origin);
        }
        return Vec::new();
    };
    keys.into_iter()
        .zip(1..)
        .map(|(key, above)| {
            let mut address = base_address;
            if address.port() != 0 {
                address.set_port(address.port() + above);
            }
            Entry {
                key,
                value: Some(Value::from(address.to_string())),
                origin: origin.clone(),
            }
        })
        .collect()
}

/// A key from its dotted form.
pub fn split(key: &str) -> KeyPath {
    key.split('.').map(str::to_owned).collect()
}

/// Reads `host:port` with an optional scheme and path. A missing host means all addresses.
fn base_address(text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    let text = text.strip_prefix("http://").unwrap_or(text);
    let text = text.split('/').next()?;
    let address = text.parse().ok().or_else(|| {
        let (host, port) = text.rsplit_once(':')?;
        let ip = match host {
            "" => Ipv4Addr::UNSPECIFIED,
            "localhost" => Ipv4Addr::LOCALHOST,
            _ => return None,
        };
        Some(SocketAddr::new(IpAddr::V4(ip), port.parse().ok()?))
    })?;
    (address.port() <= u16::MAX - 2).then_some(address)
}

fn is_prefixed(name: &str) -> bool {
    name.get(..PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

fn is_known(name: &str) -> bool {
    is_prefixed(name)
        || name == PROMETHEUS_ENDPOINT
        || LOG_DIRECTIVES.contains(&name)
        || PLAIN.iter().any(|(plain, _)| *plain == name)
        || otel::is_name(name)
        || behind_file(name).is_some()
        || flags::is_name(name)
}

#[cfg(test)]
mod tests;
