//! SIGHUP: opens the log file anew, reads all sources of the settings again, and puts in force what may change while the
//! node runs.
//!
//! Neighbours: `serve` runs it beside the node; [`reloadable`] says which keys, [`Live`] where their values are used. All
//! or nothing: settings that are wrong anywhere, or files of the certificate that cannot be used, change nothing, neither
//! settings nor certificate. Whatever else was changed is named, and waits for a restart.
//! The environment is that of the start: a process cannot be given another.

use std::sync::Arc;

use caf_actors::events::Log;
use caf_actors::events::admin::certificate_refused;
use caf_actors::events::logging::{setting_needs_restart, settings_refused, settings_reloaded};
use caf_actors::tenants::Tenants;
use caf_blocks::{Providers, TargetRules};
use caf_protocol::secret::vault::Vault;
use serde_json::Value;
use tokio::signal::unix::Signal;
use tokio::sync::oneshot;

use crate::http::tls::{AdminTls, Identity, Unusable};
use crate::ports::of_certificate;
use crate::settings::Settings;
use crate::settings::load::{Loaded, Sources, load};
use crate::settings::named_secrets::vault_entries;
use crate::settings::origin::{SettingsError, key_text};
use crate::settings::reloadable::{self, is_reloadable};
use crate::telemetry::LogControl;
use crate::telemetry::metrics::Metrics;

/// Where the values of reloadable keys are used. Who adds a key adds it here, in `Live::apply` and in [`reloadable`].
pub struct Live {
    /// Levels of the log.
    pub log: LogControl,
    /// Who may send jobs, and how much each may use.
    pub tenants: Tenants,
    /// Which targets jobs may reach over HTTP.
    pub http_targets: TargetRules,
    /// Secrets that jobs may name.
    pub vault: Vault,
    /// Who runs models.
    pub providers: Providers,
    /// Tenants that metrics name, where anything is measured.
    pub metrics: Option<Arc<Metrics>>,
    /// Certificates of ports, whose files may have been exchanged.
    pub certificates: Vec<AdminTls>,
}

impl Live {
    /// Puts these in force: each value at once, for whatever asks for it from now on.
    fn apply(&self, settings: &Settings) -> Result<(), String> {
        // Those that could refuse come first, although settings that were checked are never refused.
        self.http_targets
            .replace(&settings.blocks.http)
            .map_err(|error| error.to_string())?;
        self.providers.replace(&settings.providers).map_err(|broken| {
            broken
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        })?;
        // Hidden before anybody is given them.
        self.log.secrets().learn(settings.secrets());
        self.vault.replace(vault_entries(&settings.secrets));
        self.tenants.replace(settings.tenants.clone());
        self.log.set_levels(settings.log.rules());
        if let Some(metrics) = &self.metrics {
            metrics.allow_tenants(settings.worker.metrics.tenant_label_allowlist.iter().cloned());
        }
        Ok(())
    }
}

/// What the files of each certificate hold now.
type Certificates = Vec<Result<Option<Identity>, Unusable>>;

/// Reads the settings again when it is told to.
pub struct Reloader {
    sources: Sources,
    /// What is in force.
    running: Settings,
    live: Live,
    log: Log,
}

impl Reloader {
    /// For a node that runs with these settings, read from these sources.
    pub fn new(sources: Sources, running: Settings, live: Live, log: Log) -> Self {
        Self {
            sources,
            running,
            live,
            log,
        }
    }

    /// Does so at every hang-up.
    pub async fn run(mut self, mut hangups: Signal) {
        while hangups.recv().await.is_some() {
            self.live.log.reopen();
            if let Some((read, certificates)) = self.read().await {
                self.take_all(read, certificates);
            }
        }
    }

    /// On a thread of its own: a disk that hangs keeps neither the node nor its end.
    async fn read(&self) -> Option<(Result<Loaded, SettingsError>, Certificates)> {
        let (done, is_done) = oneshot::channel();
        let (sources, tls) = (self.sources.clone(), self.live.certificates.clone());
        let thread = std::thread::Builder::new().name("reload".to_owned());
        thread
            .spawn(move || {
                let certificates = tls.iter().map(AdminTls::read_again).collect();
                let _ = done.send((load(&sources), certificates));
            })
            .ok()?;
        is_done.await.ok()
    }

    /// Puts in force all that was read, or says of everything that is wrong why none of it is.
    fn take_all(&mut self, read: Result<Loaded, SettingsError>, certificates: Certificates) {
        let identities: Result<Vec<_>, Unusable> = certificates.into_iter().collect();
        if let Err(unusable) = &identities {
            self.log.emit(certificate_refused(&unusable.to_string()));
        }
        match (read, identities) {
            (Err(error), _) => self.refuse(&error),
            (Ok(_), Err(Unusable { key, file, rule })) => {
                let source = format!("file {}", file.display());
                self.log.emit(settings_refused(&source, &key, &rule, Vec::new()));
            }
            (Ok(loaded), Ok(identities)) => {
                if self.take(&loaded) {
                    self.exchange(identities);
                }
            }
        }
    }

    /// Puts settings in force, and returns whether it did.
    fn take(&mut self, loaded: &Loaded) -> bool {
        let merged = reloadable::merged(&self.running, &loaded.settings);
        if let Err(rule) = self.live.apply(&merged) {
            self.log.emit(settings_refused("", "", &rule, Vec::new()));
            return false;
        }
        let changes = reloadable::changes(&self.running, &loaded.settings);
        let (applied, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(key, _)| is_reloadable(key));
        for (key, _) in &rest {
            let origin = loaded.origin(key).to_string();
            self.log.emit(setting_needs_restart(&key_text(key), &origin));
        }
        let applied: Vec<(String, Value)> = applied
            .iter()
            .map(|(key, value)| (key_text(key), loaded.origin(key).shown(key, value)))
            .collect();
        self.running = merged;
        self.log.emit(settings_reloaded(&applied, rest.len()));
        true
    }

    /// Whoever connects from now on is shown the certificates that were read.
    fn exchange(&self, identities: Vec<Option<Identity>>) {
        for (tls, identity) in self.live.certificates.iter().zip(identities) {
            if let Some(identity) = identity {
                self.log.emit(of_certificate(&identity));
                tls.exchange(identity);
            }
        }
    }

    fn refuse(&self, error: &SettingsError) {
        let mut problems = error.problems.iter();
        let Some(first) = problems.next() else { return };
        let others = problems.map(ToString::to_string).collect();
        let rule = match &first.value {
            Some(value) => format!("{}, found {value}", first.rule),
            None => first.rule.clone(),
        };
        self.log
            .emit(settings_refused(&first.source, &first.key, &rule, others));
    }
}
