//! Which log lines are written: a level for all of the worker, others for single modules, one for dependencies.
//!
//! Neighbours: [`crate::events::Log`] asks before it writes a line of ours, the node's bridge before it takes one of a
//! dependency; a reload of the settings puts other [`Rules`] in place. A module is named by any part of its path:
//! `caf_actors` is this crate, `nats` everything in its folder, `intake` one station; of several that fit, the one that
//! names the deepest part counts. Dependencies are named by the beginning of their target (`rustls`,
//! `rustls::client`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use caf_protocol::live::Live;

use crate::events::Level;

/// How the names of the worker's crates begin. Their paths are compared without it.
const OWN: &str = "caf_";

/// Dependencies that write what jobs bring (statements, notices of databases, headers) or how they connect at the levels
/// beyond these: whatever the settings say, no more of them is taken.
const CAPS: [(&str, Level); 9] = [
    ("async_nats", Level::Info),
    ("tokio_postgres", Level::Warn),
    ("rusqlite", Level::Warn),
    ("actix_http", Level::Info),
    ("actix_web", Level::Info),
    ("awc", Level::Info),
    ("h2", Level::Info),
    ("hyper", Level::Info),
    ("rustls", Level::Info),
];

/// What is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Lines of ours.
    pub base: Level,
    /// Lines of dependencies; never more than [`Rules::base`].
    pub dependencies: Level,
    /// Of single modules and dependencies, by name.
    pub modules: Vec<(String, Level)>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            base: Level::Info,
            dependencies: Level::Warn,
            modules: Vec::new(),
        }
    }
}

impl Rules {
    /// The level for the lines that arise in a source file of ours.
    fn of_file(&self, file: &str) -> Level {
        let (root, path) = file.rsplit_once("src/").unwrap_or(("", file));
        // Crates lie in folders that have their names; that of the node lies at the root.
        let folder = root.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let own = match folder {
            "actors" | "blocks" | "protocol" => folder,
            _ => "worker",
        };
        let path = path.strip_suffix(".rs").unwrap_or(path);
        self.of_path(|| std::iter::once(own).chain(path.split('/')))
    }

    /// The level for a target: the path of a module, of ours or of a dependency.
    fn of_target(&self, target: &str) -> Level {
        if let Some(path) = target.strip_prefix(OWN) {
            return self.of_path(|| path.split("::"));
        }
        let fits = |name: &str| {
            target
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let named = self.modules.iter().filter(|(name, _)| fits(name));
        let level = named.max_by_key(|(name, _)| name.len()).map(|(_, level)| *level);
        let level = level.unwrap_or(self.dependencies.min(self.base));
        let cap = CAPS.iter().find(|(name, _)| fits(name)).map(|(_, cap)| *cap);
        cap.map_or(level, |cap| level.min(cap))
    }

    fn of_path<'a, P: Iterator<Item = &'a str>>(&self, path: impl Fn() -> P) -> Level {
        let named = self.modules.iter().filter_map(|(name, level)| {
            let depth = end_of(name.strip_prefix(OWN).unwrap_or(name), path())?;
            Some(((depth, name.len()), *level))
        });
        named
            .max_by_key(|(depth, _)| *depth)
            .map_or(self.base, |(_, level)| level)
    }

    /// The loudest level of any line of ours, and the level at which every one is written.
    fn bounds(&self) -> (Level, Level) {
        let all = || {
            let modules = self.modules.iter().map(|(_, level)| *level);
            modules.chain([self.base])
        };
        let (loudest, quietest) = (all().max(), all().min());
        (loudest.unwrap_or(self.base), quietest.unwrap_or(self.base))
    }

    /// The loudest level of any dependency.
    pub fn loudest_dependency(&self) -> Level {
        let modules = self.modules.iter().map(|(_, level)| *level);
        modules.fold(self.dependencies.min(self.base), Level::max)
    }
}

/// Where in the path the name ends, counted in parts, if it is in there.
fn end_of<'a>(name: &str, path: impl Iterator<Item = &'a str>) -> Option<usize> {
    let (mut wanted, mut end) = (name.split("::"), None);
    let mut next = wanted.next();
    for (at, part) in path.enumerate() {
        match next {
            Some(want) if want == part => {
                next = wanted.next();
                end = Some(at + 1);
            }
            // All of the name has been met.
            None => break,
            // It begins again; names of modules do not repeat their own beginning.
            Some(_) => {
                wanted = name.split("::");
                next = wanted.next();
                end = None;
                if next == Some(part) {
                    next = wanted.next();
                    end = Some(at + 1);
                }
            }
        }
    }
    end.filter(|_| next.is_none())
}

/// What is written, now. Cheap to clone; all clones follow a change.
#[derive(Debug, Clone)]
pub struct Levels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rules: Live<Rules>,
    /// No line of ours beyond this is written.
    loudest: AtomicU8,
    /// Every line of ours up to this is written.
    quietest: AtomicU8,
}

impl Levels {
    /// Begins with these.
    pub fn new(rules: Rules) -> Self {
        let levels = Self(Arc::new(Inner {
            rules: Live::default(),
            loudest: AtomicU8::default(),
            quietest: AtomicU8::default(),
        }));
        levels.set(rules);
        levels
    }

    /// What holds now.
    pub fn rules(&self) -> Arc<Rules> {
        self.0.rules.get()
    }

    /// Puts others in place.
    pub fn set(&self, rules: Rules) {
        let (loudest, quietest) = rules.bounds();
        self.0.rules.set(rules);
        self.0.loudest.store(loudest as u8, Ordering::Relaxed);
        self.0.quietest.store(quietest as u8, Ordering::Relaxed);
    }

    /// Whether a line that arises in this source file is written.
    pub fn let_through(&self, level: Level, file: &str) -> bool {
        let asked = level as u8;
        asked <= self.0.quietest.load(Ordering::Relaxed)
            || (asked <= self.0.loudest.load(Ordering::Relaxed) && level <= self.rules().of_file(file))
    }

    /// Whether a line with this target is written.
    pub fn let_target_through(&self, level: Level, target: &str) -> bool {
        level <= self.rules().of_target(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(base: Level, modules: &[(&str, Level)]) -> Rules {
        Rules {
            base,
            modules: modules
                .iter()
                .map(|(name, level)| ((*name).to_owned(), *level))
                .collect(),
            ..Rules::default()
        }
    }

    #[test]
    fn a_module_is_named_by_any_part_of_its_path_and_the_deepest_counts() {
        let rules = rules(
            Level::Info,
            &[
                ("caf_actors", Level::Warn),
                ("nats", Level::Error),
                ("source", Level::Debug),
                ("nats::sink", Level::Info),
            ],
        );
        for (file, level) in [
            ("src/serve.rs", Level::Info),
            ("actors/src/intake.rs", Level::Warn),
            ("/home/x/src/w/actors/src/intake/admission.rs", Level::Warn),
            ("actors/src/nats/streams.rs", Level::Error),
            ("actors/src/nats/source.rs", Level::Debug),
            ("actors/src/nats/source/pull.rs", Level::Debug),
            ("actors/src/nats/sink.rs", Level::Info),
            ("actors/blocks/src/http.rs", Level::Info),
        ] {
            assert_eq!(rules.of_file(file), level, "{file}");
        }
        assert_eq!(rules.of_target("caf_actors::nats::source::pull"), Level::Debug);
    }

    #[test]
    fn half_of_a_name_names_nothing() {
        let rules = rules(
            Level::Info,
            &[("pool", Level::Debug), ("nats::claims", Level::Debug)],
        );
        for file in [
            "actors/src/pools.rs",
            "actors/src/nats.rs",
            "actors/src/claims.rs",
        ] {
            assert_eq!(rules.of_file(file), Level::Info, "{file}");
        }
    }

    #[test]
    fn dependencies_have_a_level_of_their_own_never_above_ours() {
        let named = rules(
            Level::Info,
            &[("quinn", Level::Info), ("quinn::connector", Level::Debug)],
        );
        for (target, level) in [
            ("mio::poll", Level::Warn),
            ("quinn", Level::Info),
            ("quinn::jetstream", Level::Info),
            ("quinn::connector", Level::Debug),
            ("quinn_like", Level::Warn),
            // A station's name is none of a dependency's.
            ("x::quinn", Level::Warn),
        ] {
            assert_eq!(named.of_target(target), level, "{target}");
        }
        assert_eq!(rules(Level::Error, &[]).of_target("mio"), Level::Error);
    }

    #[test]
    fn what_jobs_bring_is_not_taken_from_dependencies_at_any_level() {
        let rules = rules(
            Level::Debug,
            &[
                ("tokio_postgres", Level::Debug),
                ("h2", Level::Debug),
                ("async_nats", Level::Debug),
            ],
        );
        assert_eq!(rules.of_target("async_nats::connector"), Level::Info);
        assert_eq!(rules.of_target("tokio_postgres::query"), Level::Warn);
        assert_eq!(rules.of_target("h2::codec"), Level::Info);
    }

    #[test]
    fn a_change_is_seen_by_all_clones_at_once() {
        let levels = Levels::new(Rules::default());
        let clone = levels.clone();
        assert!(!clone.let_through(Level::Debug, "actors/src/intake.rs"));
        levels.set(rules(Level::Error, &[("intake", Level::Debug)]));
        assert!(clone.let_through(Level::Debug, "actors/src/intake.rs"));
        assert!(!clone.let_through(Level::Warn, "actors/src/pool.rs"));
        assert!(clone.let_through(Level::Error, "actors/src/pool.rs"));
        assert!(!clone.let_target_through(Level::Warn, "mio"));
    }
}
