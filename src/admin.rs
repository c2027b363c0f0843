//! What the node tells operators who ask it: what it does now ([`status`]), and what became of an assignment
//! ([`explain`]); and what it does for them: it cancels ([`cancel`]).
//!
//! Neighbours: the admin port shows it; it asks health, journal and the fleet's claims. Never slows the
//! pipeline: what it asks of stations is answered within 50 ms or left out. Tells ids, codes and numbers, and the masked
//! text of failures; never payloads, inputs, outputs or secrets.

pub mod cancel;
pub mod explain;
pub mod status;
pub mod wording;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use caf_actors::cancellation::Cancellations;
use caf_actors::journal::Journal;
use caf_actors::nats::cancel::PassOn;
use caf_actors::settings::{DrainSettings, LimitSettings};
use caf_protocol::timestamp::iso_micros;
use serde_json::{Map, Value};

use crate::http::health::Health;
use crate::http::tls::AdminTls;
use crate::settings::Settings;
use crate::telemetry::secrets::Secrets;

/// What only the start knows: the journal that the log feeds, and which features are in force.
#[derive(Clone, Default)]
pub struct Told {
    /// What happens to assignments.
    pub journal: Journal,
    /// Modes of the features, and where their flags came from.
    pub features: Map<String, Value>,
    /// The setting that the slots of each pool come from, by the name of the pool.
    pub slots_keys: BTreeMap<&'static str, String>,
    /// What no answer may hold.
    pub secrets: Secrets,
    /// How the admin port is encrypted, if it is: it was read before anything else.
    pub admin_tls: Option<AdminTls>,
    /// The same of the port of links to approvals.
    pub approval_tls: Option<AdminTls>,
}

/// Everything that is asked. Cheap to clone.
#[derive(Clone)]
pub struct Admin(Arc<Parts>);

struct Parts {
    health: Health,
    journal: Journal,
    features: Map<String, Value>,
    slots_keys: BTreeMap<&'static str, String>,
    limits: LimitSettings,
    drain: DrainSettings,
    stream: String,
    ack_wait_ms: u64,
    cancellations: Cancellations,
    pass_on: PassOn,
    sandbox: bool,
    secrets: Secrets,
}

impl Admin {
    /// For the node with this health page. It is told who can be cancelled, and how all workers hear of it.
    pub fn new(
        settings: &Settings,
        health: Health,
        told: Told,
        (cancellations, pass_on): (Cancellations, PassOn),
    ) -> Self {
        Self(Arc::new(Parts {
            cancellations,
            pass_on,
            health,
            journal: told.journal,
            features: told.features,
            slots_keys: told.slots_keys,
            limits: settings.limits.clone(),
            drain: settings.drain.clone(),
            stream: settings.nats.stream.clone(),
            ack_wait_ms: settings.nats.ack_wait_ms,
            sandbox: settings.worker.sandbox.enabled,
            secrets: told.secrets,
        }))
    }

    /// An answer without secrets.
    pub fn clean(&self, mut body: Value) -> Value {
        self.0.secrets.hide_in(&mut body);
        body
    }
}

/// A point in time as answers have it; nothing for what is beyond the calendar.
fn iso(at_ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at_ms));
    at.map(iso_micros).unwrap_or_default()
}
