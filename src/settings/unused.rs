//! What is said of tenants in vain: of those that `tenants.allowed` does not let in, and bursts of what has no rate.
//!
//! Neighbours: [`super::not_yet`] prints the warnings. Never an error: a list may be shortened for a day, and what is
//! said of a tenant that is away harms nobody.

use caf_protocol::secret::vault::EVERY_TENANT;

use super::load::Loaded;
use super::origin::{KeyPath, Origin, key_text};

/// One sentence for each key without effect.
pub fn warnings(loaded: &Loaded) -> Vec<String> {
    let mut told = of_strangers(loaded);
    told.extend(of_bursts(loaded));
    told
}

/// A dotted key and names of the operator's choice below it.
fn path(section: &str, names: &[&str]) -> KeyPath {
    let names = names.iter().copied();
    section.split('.').chain(names).map(str::to_owned).collect()
}

/// The key and where it, or what stands first inside of it, came from.
fn told(loaded: &Loaded, key: &[String]) -> String {
    let inside = loaded.origins.iter().find(|(inner, _)| inner.starts_with(key));
    let origin = inside.map_or(&Origin::Default, |(_, origin)| origin);
    format!("{} ({origin})", key_text(key))
}

fn of_strangers(loaded: &Loaded) -> Vec<String> {
    let settings = &loaded.settings;
    let allowed = &settings.tenants.allowed;
    if allowed.is_empty() {
        return Vec::new();
    }
    let is_stranger = |tenant: &&String| !allowed.contains(tenant);
    let overrides = settings.tenants.overrides.keys().filter(is_stranger);
    let rules = settings.blocks.http.tenants.keys().filter(is_stranger);
    let sections = overrides
        .map(|tenant| path("tenants.overrides", &[tenant]))
        .chain(rules.map(|tenant| path("blocks.http.tenants", &[tenant])));
    let mut found: Vec<String> = sections
        .map(|key| {
            let key = told(loaded, &key);
            format!("{key} has no effect: tenants.allowed does not name this tenant")
        })
        .collect();
    for (name, secret) in &settings.secrets {
        let named = secret.tenants.iter().filter(|tenant| *tenant != EVERY_TENANT);
        let key = path("secrets", &[name, "tenants"]);
        found.extend(named.filter(is_stranger).map(|tenant| {
            let key = told(loaded, &key);
            format!("{key} names {tenant:?} in vain: tenants.allowed does not name this tenant")
        }));
    }
    found
}

/// A policy store may give the rate to what is said of a burst here.
fn of_bursts(loaded: &Loaded) -> Vec<String> {
    let tenants = &loaded.settings.tenants;
    if tenants.policy_store.url.is_some() {
        return Vec::new();
    }
    let default = &tenants.default;
    let a_rate_follows = tenants.overrides.values().any(|own| own.rate_per_s.is_some());
    let in_default = (default.burst.is_some() && default.rate_per_s.is_none() && !a_rate_follows)
        .then(|| path("tenants.default", &["burst"]));
    let in_overrides = tenants.overrides.iter().filter(|(_, own)| {
        let policy = own.on_top_of(default);
        own.burst.is_some() && policy.rate_per_s.is_none()
    });
    let in_overrides = in_overrides.map(|(tenant, _)| path("tenants.overrides", &[tenant, "burst"]));
    let keys = in_default.into_iter().chain(in_overrides);
    keys.map(|key| format!("{} has no effect without rate_per_s", told(loaded, &key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::load::{SetKey, Sources, load};
    use super::*;

    fn warnings_of(options: &[(&str, &str)]) -> Vec<String> {
        let dir = caf_testkit::TempDir::new("unused").expect("can be made");
        let options = options
            .iter()
            .map(|(key, text)| SetKey::Key((*key).to_owned(), (*text).to_owned()));
        let sources = Sources {
            working_dir: dir.path().to_owned(),
            command_line: options.collect(),
            ..Sources::default()
        };
        warnings(&load(&sources).expect("loads"))
    }

    #[test]
    fn what_is_said_of_tenants_that_nobody_lets_in_is_told() {
        let of_tenants = [
            ("tenants.overrides.acme.weight", "2"),
            ("tenants.overrides.acne.weight", "2"),
            ("blocks.http.tenants.acne.deny_targets", "h"),
            ("secrets.api.value", "hunter2hunter2"),
            ("secrets.api.tenants", "*,acme,acne"),
        ];
        assert_eq!(warnings_of(&of_tenants), Vec::<String>::new());
        let listed = [&of_tenants[..], &[("tenants.allowed", "acme")]].concat();
        let why = "tenants.allowed does not name this tenant";
        assert_eq!(
            warnings_of(&listed),
            [
                format!("tenants.overrides.acne (command line) has no effect: {why}"),
                format!("blocks.http.tenants.acne (command line) has no effect: {why}"),
                format!("secrets.api.tenants (command line) names \"acne\" in vain: {why}"),
            ]
        );
    }

    #[test]
    fn a_burst_without_a_rate_is_told_unless_another_source_gives_the_rate() {
        let said = |key: &str| format!("{key} (command line) has no effect without rate_per_s");
        let default = ("tenants.default.burst", "5");
        let own = ("tenants.overrides.a.burst", "5");
        assert_eq!(warnings_of(&[default]), [said(default.0)]);
        assert_eq!(warnings_of(&[own]), [said(own.0)]);
        for rate in [
            ("tenants.default.rate_per_s", "1"),
            ("tenants.overrides.a.rate_per_s", "1"),
            ("tenants.policy_store.url", "http://h"),
        ] {
            assert_eq!(
                warnings_of(&[default, own, rate]),
                Vec::<String>::new(),
                "{rate:?}"
            );
        }
    }
}
