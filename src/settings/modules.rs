//! Names that `log.levels` and `LOG_LEVEL` can set a level for, to find one that is misspelt.
//!
//! Neighbours: [`super::not_yet`] prints the warnings; [`caf_actors::levels`] says what a name covers. Never an error: a
//! library may be named by a target that is not its crate's.

use super::environment::split;
use super::load::Loaded;
use super::origin::Origin;

/// Every file and folder of the sources of the worker, and its crates.
const MODULES: &str = "\
    abandoned accounts ack actors address admin admin_tls admission advice answer answers approval \
    approval_audit approval_link_key approval_links approval_store approvals ask assignment assignments \
    asyncapi attacks attention audit auditor background backoff bench block block_worker blocks body book \
    bounded bounds breakers bucket buckets budget call cancel cancellation catalogue cgroup chance changes \
    check circuit_breaker claim_store claims classification cli clients clock config confirmations \
    connection consumption contract cost counts course cut dead_letter dead_letters decision decode \
    deferrals delete delivery dependencies destination dial direct discovery disk_wait dlq dry_run earlier \
    echo endpoint endpoints ends entry environment error_code errors event event_loop events examples exec \
    exec_assignment exit explain fail family feature fetch fields flags fleet floor flow fold forbidden form \
    forms fs functions get guard happenings headers health heartbeat held hostile http human ids in_force \
    index inputs intake job journal json keeper kept kind labels lane layers lease lease_keeper leftovers \
    letter levels limit limits line link live load log logging login lookup machine made marks mask messages \
    metrics model model_call models modules named_secrets nats not_yet notes numbers objects opening origin \
    otel otlp outage outbox outcome output pace params parking path payload peers places plan policies \
    policy policy_file policy_store pool ports postgres preparation preview print process_stats properties \
    protocol provider providers publisher pull put queue quota record recordings redirects reference refusal \
    reload reloadable replay replays request reserve result retry retry_after room roots router_side rows \
    rules run running runtime sampler sandbox schemas scrub secret secret_files secrets segments select \
    sending serve settings shortening show shrinking shutdown signals sink sleep slots source sources span \
    spans spill sql sqlite sse state state_dir statement status steps store stream streams submit supervisor \
    sync_plan telemetry tenants text threads timeouts timestamp tls tokens told tombstones top trace \
    trace_context traces tracing trust unescape unused usage validate vault view vitals waiting watch \
    watchdog window wire wiring word wording words worker worker_id writer writing";
/// Names the libraries.
const LOCK: &str = include_str!("../../Cargo.lock");
/// A variable that speaks to other programs too.
const SHARED: &str = "RUST_LOG";

/// One sentence for each level of what is neither a module of the worker nor a library in it.
pub fn warnings(loaded: &Loaded) -> Vec<String> {
    let names = loaded.settings.log.levels.keys();
    let told = names.filter_map(|name| {
        let nearest = nearest(name)?;
        let mut key = split("log.levels");
        key.push(name.clone());
        let origin = loaded.origin(&key);
        if matches!(&origin, Origin::Environment(variable) if variable == SHARED) {
            return None;
        }
        Some(format!(
            "log.levels.{name} ({origin}): no module of the worker and no library has this name; the nearest module is {nearest}"
        ))
    });
    told.collect()
}

/// The module that an unknown name is most like; nothing for a known one.
fn nearest(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_");
    let own = name.strip_prefix("caf_").unwrap_or(&name);
    let mut unknown = own
        .split("::")
        .filter(|part| !modules().any(|known| known == *part));
    let first = unknown.next()?;
    if name.split("::").next().is_some_and(is_library) {
        return None;
    }
    modules().min_by_key(|known| strsim::damerau_levenshtein(first, known))
}

fn modules() -> impl Iterator<Item = &'static str> {
    MODULES.split_whitespace()
}

fn is_library(name: &str) -> bool {
    let crates = LOCK.lines().filter_map(|line| line.strip_prefix("name = \""));
    crates
        .filter_map(|rest| rest.strip_suffix('"'))
        .any(|known| known.replace('-', "_") == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_list_has_every_module_of_the_sources_and_no_other() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found: BTreeSet<String> = ["worker", "actors", "blocks", "protocol"]
            .map(str::to_owned)
            .into();
        for folder in ["src", "actors/src", "actors/blocks/src", "actors/protocol/src"] {
            walk(&root.join(folder), &mut found);
        }
        let listed: BTreeSet<String> = modules().map(str::to_owned).collect();
        assert_eq!(listed, found);
    }

    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if path.is_dir() {
                walk(&path, found);
            }
            if (path.is_dir() || path.extension().is_some_and(|ext| ext == "rs"))
                && !["lib", "main", "tests"].contains(&name)
            {
                found.insert(name.to_owned());
            }
        }
    }

    #[test]
    fn an_unknown_name_is_told_the_nearest_and_modules_and_libraries_are_known() {
        assert_eq!(nearest("intak"), Some("intake"));
        assert_eq!(nearest("nats::sorce"), Some("source"));
        assert_eq!(nearest("caf_actor"), Some("actors"));
        for known in [
            "intake",
            "nats::sink",
            "caf_actors",
            "caf_worker::serve",
            "async_nats",
            "async-nats",
            "rustls::client",
        ] {
            assert_eq!(nearest(known), None, "{known}");
        }
    }
}
