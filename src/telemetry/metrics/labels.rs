//! Which tenants, runs, flows and steps are named in labels, and how: each name is a series of its own, for whoever stores
//! them too.
//!
//! Neighbours: the registry asks for every sample that carries such ids. By default all of them are empty. Bounds no number:
//! that is the family's business.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use caf_actors::mask::mask_text;
use caf_actors::metrics::{CORRELATION, Metric};
use smol_str::SmolStr;

use super::OVERFLOW;
use crate::settings::metrics::{MAX_LABEL_BYTES, MetricsSettings};
use crate::telemetry::secrets::Secrets;

/// The label that has a list of its own.
pub(super) const TENANT: &str = "tenant_id";

/// What the settings say.
pub(super) struct Shown {
    tenants: RwLock<Arc<HashSet<String>>>,
    is_detailed: bool,
    secrets: Secrets,
}

impl Shown {
    pub(super) fn new(settings: &MetricsSettings) -> Self {
        let shown = Self {
            tenants: RwLock::default(),
            is_detailed: settings.detailed_labels,
            secrets: Secrets::default(),
        };
        shown.allow_tenants(settings.tenant_label_allowlist.iter().cloned());
        shown
    }

    /// Names nobody by a text that holds one of these.
    pub(super) fn hide(&mut self, secrets: Secrets) {
        self.secrets = secrets;
    }

    /// From now on these tenants are named, and the others are one.
    pub(super) fn allow_tenants(&self, tenants: impl IntoIterator<Item = String>) {
        let tenants = tenants.into_iter().filter(|tenant| !tenant.is_empty());
        *self.tenants.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tenants.collect());
    }

    /// Labels as they are shown.
    pub(super) fn of(&self, metric: &Metric, labels: &[SmolStr]) -> Vec<SmolStr> {
        let tenants = self.tenants();
        let named = metric.labels.iter().zip(labels);
        named
            .map(|(name, value)| {
                if CORRELATION.contains(name) {
                    match self.shown(&tenants, name, value) {
                        "" => SmolStr::default(),
                        shown if shown == OVERFLOW => SmolStr::new_static(OVERFLOW),
                        _ => value.clone(),
                    }
                } else {
                    value.clone()
                }
            })
            .collect()
    }

    /// Whether these labels are what would be shown of them: not so when a tenant is no longer named.
    pub(super) fn still_shows(&self, metric: &Metric, labels: &[SmolStr]) -> bool {
        let tenants = self.tenants();
        let mut named = metric.labels.iter().zip(labels);
        named.all(|(name, value)| {
            *name != TENANT || value == OVERFLOW || self.shown(&tenants, name, value) == value
        })
    }

    fn shown<'a>(&self, tenants: &HashSet<String>, name: &str, value: &'a str) -> &'a str {
        let is_named = match name {
            _ if value.is_empty() => return "",
            TENANT if tenants.is_empty() => return "",
            TENANT => tenants.contains(value),
            _ if !self.is_detailed => return "",
            _ => true,
        };
        // Who sends assignments chooses these texts.
        if is_named
            && value.len() <= MAX_LABEL_BYTES
            && mask_text(value) == value
            && !self.secrets.are_in(value)
        {
            value
        } else {
            OVERFLOW
        }
    }

    fn tenants(&self) -> Arc<HashSet<String>> {
        Arc::clone(&self.tenants.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use caf_actors::events::steps::EXECUTIONS;

    use super::*;

    fn shown(tenants: &[&str], detailed_labels: bool, ids: [&str; 4]) -> Vec<SmolStr> {
        let settings = MetricsSettings {
            enabled: true,
            tenant_label_allowlist: tenants.iter().map(|&tenant| tenant.to_owned()).collect(),
            detailed_labels,
        };
        let labels = ["echo", "success"].into_iter().chain(ids);
        let labels: Vec<SmolStr> = labels.map(SmolStr::from).collect();
        Shown::new(&settings).of(&EXECUTIONS, &labels)[2..].to_vec()
    }

    #[test]
    fn by_default_nobody_is_named() {
        assert_eq!(shown(&[], false, ["acme", "r", "f", "s"]), ["", "", "", ""]);
    }

    #[test]
    fn a_listed_tenant_is_named_others_are_one_and_who_has_none_stays_without() {
        assert_eq!(
            shown(&["acme"], false, ["acme", "r", "f", "s"]),
            ["acme", "", "", ""]
        );
        assert_eq!(
            shown(&["acme"], false, ["evil", "r", "f", "s"]),
            ["other", "", "", ""]
        );
        assert_eq!(shown(&["acme"], false, ["", "r", "f", "s"]), ["", "", "", ""]);
    }

    #[test]
    fn detailed_mode_names_runs_flows_and_steps_and_no_tenant() {
        assert_eq!(shown(&[], true, ["acme", "r", "f", ""]), ["", "r", "f", ""]);
    }

    #[test]
    fn what_is_long_or_looks_like_a_secret_is_not_shown() {
        let long = "r".repeat(129);
        let secret = "Bearer abcdefghijklmnop";
        assert_eq!(
            shown(&[secret], true, [secret, &long, "Bearer abcdefghijklmnop", "s"]),
            ["other", "other", "other", "s"]
        );
    }
}
