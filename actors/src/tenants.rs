//! Tenants: who may send jobs, and how much of this worker each may use.
//!
//! Neighbours: intake asks whether a tenant may; pools share their slots by weight. What the operator says may change
//! while the node runs: whoever asks gets what is in force at that moment.

use std::sync::Arc;

use caf_protocol::live::Live;

pub use crate::settings::TenantPolicy;
use crate::settings::TenantSettings;

/// What is in force for tenants. Cheap to clone; all clones see a change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tenants {
    settings: Live<TenantSettings>,
}

impl Tenants {
    /// By these settings, until they are replaced.
    pub fn new(settings: TenantSettings) -> Self {
        Self {
            settings: Live::new(settings),
        }
    }

    /// Puts other settings in force.
    pub fn replace(&self, settings: TenantSettings) {
        self.settings.set(settings);
    }

    /// Row 3: whether this tenant may send jobs.
    pub fn is_allowed(&self, tenant_id: &str) -> bool {
        let settings = self.settings.get();
        settings.allowed.is_empty() || settings.allowed.iter().any(|allowed| allowed == tenant_id)
    }

    /// How much this tenant may use.
    pub fn policy(&self, _tenant_id: &str) -> Arc<TenantPolicy> {
        Arc::new(self.settings.get().default.clone())
    }
}
