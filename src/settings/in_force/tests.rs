use std::path::PathBuf;

use super::*;
use crate::settings::load::{Loaded, SetKey, Sources, load};

/// A directory of its own, removed at the end; with the shipped policy files where asked for.
struct Dir(PathBuf);

impl Dir {
    fn empty() -> Self {
        let path = std::env::temp_dir().join(format!("caf-in-force-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(path.join("config/worker")).unwrap();
        Self(path)
    }

    fn with_policies() -> Self {
        let dir = Self::empty();
        for file in Feature::WITH_POLICY
            .iter()
            .filter_map(|feature| feature.policy_file())
        {
            dir.file(file, &shipped(file));
        }
        dir
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn load(&self, files: &[&str], environment: &[(&str, &str)], options: &[(&str, &str)]) -> Loaded {
        let sources = Sources {
            working_dir: self.0.clone(),
            files: files.iter().map(PathBuf::from).collect(),
            environment: environment
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            command_line: options
                .iter()
                .map(|(key, value)| SetKey::Key((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        load(&sources).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shipped(name: &str) -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn in_force(loaded: &Loaded) -> InForce {
    InForce::of(&loaded.settings, &loaded.ranks)
}

fn on(in_force: &InForce) -> Vec<Feature> {
    let is_on = |feature: &Feature| in_force.has(*feature);
    Feature::ALL.into_iter().filter(is_on).collect()
}

#[test]
fn with_all_flags_off_nothing_is_in_force_whatever_the_policies_say() {
    for dir in [Dir::empty(), Dir::with_policies()] {
        let loaded = dir.load(&[], &[("WORKER__POOLS__CPU__MAX_QUEUE_SIZE", "5")], &[]);
        let found = in_force(&loaded);
        assert_eq!(on(&found), []);
        assert_eq!((found.warnings.len(), found.admission), (0, Admission::Wait));
        for class in ResourceClass::ALL {
            let slots = loaded.settings.pools.get(class).max_concurrency;
            assert_eq!(found.pool(class), PoolSize { slots, queue: None });
        }
    }
}

#[test]
fn every_documented_name_switches_its_feature_on_alone_with_every_true_word() {
    let dir = Dir::with_policies();
    for feature in Feature::ALL {
        let prefixed = format!("WORKER__{}", feature.flag_key().to_uppercase().replace('.', "__"));
        for name in feature.variables().iter().copied().chain([prefixed.as_str()]) {
            for word in ["true", "TRUE", "True", "1", "yes", "YES"] {
                let found = in_force(&dir.load(&[], &[(name, word)], &[]));
                assert_eq!(on(&found), [feature], "{name}={word}");
                assert_eq!(found.warnings, Vec::<String>::new());
            }
        }
        let found = in_force(&dir.load(&[], &[], &[(&feature.flag_key(), "true")]));
        assert_eq!(on(&found), [feature]);
    }
}

#[test]
fn a_flag_alone_changes_only_what_is_its_own() {
    let dir = Dir::with_policies();
    let baseline = in_force(&dir.load(&[], &[], &[]));
    for feature in [Feature::Retry, Feature::Timeouts] {
        let mut found = in_force(&dir.load(&[], &[(feature.variables()[0], "1")], &[]));
        assert_ne!(found, baseline);
        (found.retry, found.timeouts) = (None, None);
        assert_eq!(found, baseline, "{feature:?}");
    }
    let found = in_force(&dir.load(&[], &[("CP2_QUEUE_MANAGEMENT_ENABLED", "1")], &[]));
    assert_eq!((found.retry, found.timeouts), (None, None));
    assert_eq!(found.admission, Admission::Refuse);
    let sizes = ResourceClass::ALL.map(|class| found.pools[class as usize]);
    let size = |slots, queue| PoolSize {
        slots,
        queue: Some(queue),
    };
    assert_eq!(sizes, [size(10, 1000), size(2, 100), size(20, 500)]);
}

#[test]
fn a_flag_that_is_on_without_a_policy_warns_and_changes_nothing() {
    let dir = Dir::empty();
    let baseline = in_force(&dir.load(&[], &[], &[]));
    for feature in Feature::WITH_POLICY {
        let mut found = in_force(&dir.load(&[], &[(feature.variables()[0], "true")], &[]));
        let [warning] = &found.warnings[..] else {
            panic!("{:?}", found.warnings)
        };
        for part in [&feature.flag_key(), feature.policy_file().unwrap(), "CP1"] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        found.warnings.clear();
        assert_eq!(found, baseline);
    }
    // The policy of another feature is none of its own.
    let dir = Dir::empty();
    let retry = Feature::Retry.policy_file().unwrap();
    dir.file(retry, &shipped(retry));
    let all = Feature::WITH_POLICY.map(|feature| (feature.variables()[0], "true"));
    let found = in_force(&dir.load(&[], &all, &[]));
    assert_eq!((on(&found), found.warnings.len()), (vec![Feature::Retry], 2));
}

#[test]
fn variables_alone_configure_a_feature() {
    let dir = Dir::empty();
    let found = in_force(&dir.load(
        &[],
        &[
            ("CP2_ADVANCED_RETRY_ENABLED", "true"),
            ("WORKER__WORKER__RETRIES__V2__DEFAULT_POLICY__MAX_ATTEMPTS", "5"),
            ("CP2_COMPLETE_TIMEOUT_ENABLED", "true"),
            (
                "WORKER__WORKER__TIMEOUTS__V2__FS_OPERATIONS__READ_TIMEOUT_MS",
                "70",
            ),
            ("CP2_QUEUE_MANAGEMENT_ENABLED", "true"),
            ("WORKER__POOLS__GPU__MAX_QUEUE_SIZE", "3"),
        ],
        &[],
    ));
    assert_eq!(found.warnings, Vec::<String>::new());
    let retry = found.retry.clone().unwrap();
    assert_eq!(
        (
            retry.default_policy.max_attempts,
            retry.default_policy.base_delay_ms
        ),
        (5, 100)
    );
    let limits = found.timeouts.clone().unwrap().fs_operations;
    assert_eq!((limits.read_timeout_ms, limits.write_timeout_ms), (70, 10_000));
    let size = |class| (found.pool(class).slots, found.pool(class).queue);
    assert_eq!(
        (size(ResourceClass::Gpu), size(ResourceClass::Io)),
        ((1, Some(3)), (8, Some(1000)))
    );
}

#[test]
fn variables_reach_every_entry_of_the_maps() {
    let dir = Dir::with_policies();
    let http = "WORKER__WORKER__RETRIES__V2__BLOCK_POLICIES__HTTP";
    let category = "WORKER__WORKER__RETRIES__V2__ERROR_CLASSIFICATION__NETWORK_ERRORS";
    let environment = [
        ("CP2_ADVANCED_RETRY_ENABLED".to_owned(), "yes"),
        (format!("{http}__ERROR_OVERRIDES__429__MAX_ATTEMPTS"), "9"),
        (
            format!("{http}__ERROR_OVERRIDES__NETWORK_ERROR__BASE_DELAY_MS"),
            "7",
        ),
        (format!("{http}__JITTER_TYPE"), "none"),
        (
            format!("{category}__HTTP_STATUS_MAPPING__4XX__EXCEPTIONS__425"),
            "true",
        ),
        (format!("{category}__RETRYABLE__HTTP_ERROR"), "No"),
    ];
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    let retry = in_force(&dir.load(&[], &environment, &[])).retry.unwrap();
    let http = &retry.block_policies["http"];
    let of_429 = &http.error_overrides["429"];
    assert_eq!((of_429.max_attempts, of_429.base_delay_ms), (Some(9), Some(1000)));
    assert_eq!(http.error_overrides["NETWORK_ERROR"].base_delay_ms, Some(7));
    assert_eq!(
        (http.jitter_type, http.max_attempts),
        (Some(caf_actors::settings::policies::Jitter::None), Some(5))
    );
    let network = &retry.error_classification.network_errors;
    let exceptions: Vec<_> = network
        .http_status_mapping
        .client
        .exceptions
        .keys()
        .cloned()
        .collect();
    assert_eq!(exceptions, ["408", "425", "429"]);
    assert_eq!(
        network.retryable.http_error,
        caf_actors::settings::policies::HttpErrorRule::Flag(false)
    );
}

#[test]
fn the_environment_switches_off_what_a_file_switched_on() {
    let dir = Dir::with_policies();
    dir.file("production.toml", &shipped("config/production.toml"));
    let files = ["production.toml"];
    let all = in_force(&dir.load(&files, &[], &[]));
    assert_eq!(on(&all), Feature::ALL);
    for feature in Feature::ALL {
        for word in ["false", "FALSE", "0", "no", ""] {
            let off: Vec<_> = feature.variables().iter().map(|name| (*name, word)).collect();
            let found = in_force(&dir.load(&files, &off, &[]));
            assert!(!found.has(feature), "{feature:?}={word}");
            assert_eq!(on(&found).len(), Feature::ALL.len() - 1);
        }
    }
}

#[test]
fn a_flag_that_the_policy_file_overrules_is_said() {
    let dir = Dir::with_policies();
    dir.file(
        "config/worker.toml",
        "[worker.retries.v2]\nenabled = true\n[worker.queue.v2]\nenabled = true",
    );
    let warned =
        |environment: &[(&str, &str)]| crate::settings::not_yet::warnings(&dir.load(&[], environment, &[]));
    let of = |key: &str, file: &str| {
        format!("{key} (file config/worker.toml) has no effect: file {file} comes later and says false")
    };
    let retry = of("worker.retries.v2.enabled", "config/worker/retry_policy.json");
    let queue = of("worker.queue.v2.enabled", "config/worker/queue_policy.json");
    assert_eq!(warned(&[]), [retry.clone(), queue]);
    // Whoever speaks in the environment means it.
    let queue_off = ("CP2_QUEUE_MANAGEMENT_ENABLED", "false");
    assert_eq!(warned(&[queue_off]), [retry]);
    assert_eq!(
        warned(&[queue_off, ("CP2_ADVANCED_RETRY_ENABLED", "1")]),
        Vec::<String>::new()
    );
}

#[test]
fn the_strongest_source_sizes_a_pool_and_of_equals_the_most_specific() {
    let dir = Dir::with_policies();
    let flag = ("CP2_QUEUE_MANAGEMENT_ENABLED", "1");
    // The policy file comes after config/worker.toml.
    dir.file(
        "config/worker.toml",
        "[pools.cpu]\nmax_concurrency = 6\nmax_queue_size = 61",
    );
    dir.file(
        "own.toml",
        "[pools.cpu]\nmax_concurrency = 7\nmax_queue_size = 71",
    );
    dir.file(
        "both.toml",
        "[pools.cpu]\nmax_queue_size = 81\n[worker.queue.v2]\nmax_queue_size = 82",
    );
    dir.file(
        "all.toml",
        "[pools.cpu]\nmax_queue_size = 91\n[worker.queue.v2]\nmax_queue_size = 92\n\
         resource_pools.cpu.max_queue_size = 93",
    );
    let slots = ("WORKER_CPU_POOL_SIZE", "3");
    let all_queues = ("WORKER__WORKER__QUEUE__V2__MAX_QUEUE_SIZE", "31");
    let one_queue = ("WORKER__POOLS__CPU__MAX_QUEUE_SIZE", "32");
    let option = ("pools.cpu.max_concurrency", "2");
    type Named<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&[&str], Named<'_>, Named<'_>, usize, usize); 9] = [
        (&[], &[], &[], 10, 1000),
        (&["own.toml"], &[], &[], 7, 71),
        (&["both.toml"], &[], &[], 10, 81),
        (&["all.toml"], &[], &[], 10, 93),
        (&["all.toml", "own.toml"], &[], &[], 7, 71),
        (&[], &[slots], &[], 3, 1000),
        (&["own.toml"], &[slots, all_queues], &[], 3, 31),
        (&[], &[all_queues, one_queue], &[], 10, 32),
        (&["own.toml"], &[slots, all_queues], &[option], 2, 31),
    ];
    for (files, environment, options, slots, queue) in cases {
        let environment = [environment, &[flag]].concat();
        let found = in_force(&dir.load(files, &environment, options));
        assert_eq!(
            found.pool(ResourceClass::Cpu),
            PoolSize {
                slots,
                queue: Some(queue)
            },
            "{files:?} {environment:?} {options:?}"
        );
    }
    let found = in_force(&dir.load(&[], &[flag, all_queues], &[]));
    let queues = ResourceClass::ALL.map(|class| found.pool(class).queue);
    assert_eq!(queues, [Some(31); 3]);
    // Without the flag the policy sizes nothing.
    let found = in_force(&dir.load(&["own.toml"], &[], &[]));
    assert_eq!(
        found.pool(ResourceClass::Cpu),
        PoolSize {
            slots: 7,
            queue: None
        }
    );
}

#[test]
fn an_admission_that_is_set_stands_whatever_the_flag() {
    let dir = Dir::with_policies();
    for (flag, set, expected) in [
        ("0", "", Admission::Wait),
        ("1", "", Admission::Refuse),
        ("0", "refuse", Admission::Refuse),
        ("1", "wait", Admission::Wait),
    ] {
        let environment = [
            ("CP2_QUEUE_MANAGEMENT_ENABLED", flag),
            ("WORKER__QUEUE__ADMISSION", set),
        ];
        assert_eq!(in_force(&dir.load(&[], &environment, &[])).admission, expected);
    }
}

#[test]
fn a_block_policy_of_a_family_that_no_block_has_is_said() {
    let dir = Dir::empty();
    let warned = |flag: &str| {
        dir.file(
            "own.toml",
            "[worker.retries.v2.block_policies]\nhttp.max_attempts = 2\nhtp.max_attempts = 2\n\
             HTTP.max_attempts = 2\n\"http.request\".max_attempts = 2\necho.max_attempts = 2",
        );
        let found = in_force(&dir.load(&["own.toml"], &[("CP2_ADVANCED_RETRY_ENABLED", flag)], &[]));
        found.warnings
    };
    let of = |name: &str| {
        format!(
            "worker.retries.v2.block_policies.{name} has no effect: no block is of that family; the families are ai, \
             chat, completion, echo, embedding, fail, fs, http, sleep, sql, text (the job type up to its first dot)"
        )
    };
    assert_eq!(warned("1"), [of("HTTP"), of("htp"), of("\"http.request\"")]);
    assert_eq!(warned("0"), Vec::<String>::new());
}

#[test]
fn a_rejection_policy_that_is_enabled_and_does_not_count_is_said() {
    let dir = Dir::with_policies();
    let warned = |settings: &str| {
        dir.file("own.toml", &format!("[worker.queue.v2]\n{settings}"));
        in_force(&dir.load(&["own.toml"], &[("CP2_QUEUE_MANAGEMENT_ENABLED", "1")], &[])).warnings
    };
    let of = |name: &str, counts: &str, why: &str| {
        format!(
            "worker.queue.v2.policies.{name} is enabled and has no effect: {counts} counts, because {why}; \
             worker.queue.v2.rejection_policy = {name} would choose it"
        )
    };
    let drop_oldest = "policies.drop_oldest.enabled = true\n";
    let both = "policies.reject_new.default = false\npolicies.defer.enabled = true\n";
    assert_eq!(
        warned(drop_oldest),
        [of(
            "drop_oldest",
            "reject_new",
            "policies.reject_new is enabled and the default"
        )]
    );
    assert_eq!(
        warned(&format!("{drop_oldest}rejection_policy = \"degrade\"")),
        [of("drop_oldest", "degrade", "rejection_policy names it")]
    );
    assert_eq!(
        warned(&format!("{drop_oldest}{both}")),
        [of(
            "defer",
            "drop_oldest",
            "of those that are enabled it comes first"
        )]
    );
    for counts in [both, "rejection_policy = \"defer\""] {
        assert_eq!(warned(counts), Vec::<String>::new());
    }
}

#[test]
fn who_waits_for_room_sends_nothing_away() {
    let dir = Dir::with_policies();
    let queue = ("CP2_QUEUE_MANAGEMENT_ENABLED", "true");
    for policy in ["drop_oldest", "defer"] {
        let named = ("WORKER__WORKER__QUEUE__V2__REJECTION_POLICY", policy);
        let refusing = in_force(&dir.load(&[], &[queue, named], &[]));
        assert_eq!(refusing.warnings, Vec::<String>::new());
        assert_eq!(Policy::chosen(refusing.queue.as_ref().unwrap()).as_str(), policy);
        let waits = ("WORKER__QUEUE__ADMISSION", "wait");
        let waiting = in_force(&dir.load(&[], &[queue, named, waits], &[]));
        assert_eq!(Policy::chosen(waiting.queue.as_ref().unwrap()), Policy::RejectNew);
        assert!(waiting.warnings[0].contains(&format!("{policy} has no effect with queue.admission = wait")));
    }
}

#[test]
fn without_a_broker_bounded_queues_are_waited_for_unless_the_settings_say_otherwise() {
    let dir = Dir::with_policies();
    let queue = ("CP2_QUEUE_MANAGEMENT_ENABLED", "true");
    let admission = |environment: &[(&str, &str)]| {
        let loaded = dir.load(&[], environment, &[]);
        InForce::without_broker(&loaded.settings, &loaded.ranks).admission
    };
    assert_eq!(admission(&[queue]), Admission::Wait);
    assert_eq!(
        admission(&[queue, ("WORKER__QUEUE__ADMISSION", "refuse")]),
        Admission::Refuse
    );
}

#[test]
fn the_setting_that_slots_come_from_is_known_and_another_one_that_was_given_is_warned_of() {
    let dir = Dir::empty();
    let options = [
        ("worker.queue.v2.enabled", "true"),
        ("worker.queue.v2.resource_pools.io.max_concurrency", "3"),
        ("pools.io.max_concurrency", "5"),
        ("pools.cpu.max_concurrency", "2"),
    ];
    let on = in_force(&dir.load(&[], &[], &options));
    assert_eq!(on.pool(ResourceClass::Io).slots, 3);
    assert_eq!(
        on.slots_key(ResourceClass::Io),
        "worker.queue.v2.resource_pools.io.max_concurrency"
    );
    assert_eq!(on.slots_key(ResourceClass::Cpu), "pools.cpu.max_concurrency");
    assert_eq!(
        on.warnings,
        ["pools.io.max_concurrency is given and has no effect: \
          worker.queue.v2.resource_pools.io.max_concurrency = 3 is in force"]
    );
    let off = in_force(&dir.load(&[], &[], &options[1..]));
    assert_eq!(off.slots_key(ResourceClass::Io), "pools.io.max_concurrency");
    assert!(off.warnings.is_empty(), "{:?}", off.warnings);
}
