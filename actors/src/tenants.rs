//! Tenants: who may send jobs, and how much of this worker each may use.
//!
//! Neighbours: intake asks whether a tenant may, and takes a [`Share`] of its quotas for each job; pools share their slots
//! by weight; the node's client of the policy store takes [`Question`]s and gives answers. What the operator says may change while the node runs: whoever asks gets what is in force at that moment, and
//! what is held and owed already counts against it. One lock, held for some hash look-ups, never across a wait.

mod accounts;
mod bucket;
pub mod quota;
mod told;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use self::accounts::{Accounts, Used};
pub use self::quota::{Ask, Exceeded, Quota};
pub use self::told::{Answer, FirstAnswer, Kept, Question};
use self::told::{Found, Told};
pub use crate::settings::TenantPolicy;
use crate::settings::{PolicyStoreSettings, TenantSettings};

/// Most questions that wait to be asked: at the store's usual speed a second's worth. Who finds no room asks later.
const MAX_QUESTIONS: usize = 1_024;

/// What is in force for tenants. Cheap to clone; all clones see a change.
#[derive(Clone, Default)]
pub struct Tenants(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    settings: TenantSettings,
    default: Arc<TenantPolicy>,
    overrides: HashMap<String, Arc<TenantPolicy>>,
    accounts: Accounts,
    told: Told,
    /// Where questions go; nothing while nobody asks them.
    questions: Option<mpsc::Sender<Question>>,
}

/// What one job takes of the quotas of its tenant. Returns when dropped; until it is kept, what it has paid returns too.
/// The default one is of nobody and holds nothing.
#[derive(Default)]
#[must_use = "it returns when dropped"]
pub struct Share(Option<Held>);

struct Held {
    tenants: Tenants,
    tenant: Arc<str>,
    used: Used,
    /// Whether what it has paid returns with it.
    refund: bool,
    /// Whether its job has ended: it holds nothing, and what the job still sends is charged.
    ended: bool,
}

impl Tenants {
    /// By these settings, until they are replaced.
    pub fn new(settings: TenantSettings) -> Self {
        let tenants = Self::default();
        tenants.replace(settings);
        tenants
    }

    /// Puts other settings in force.
    pub fn replace(&self, settings: TenantSettings) {
        self.state().replace(settings);
    }

    /// Row 3: whether this tenant may send jobs.
    pub fn is_allowed(&self, tenant_id: &str) -> bool {
        let allowed = &self.state().settings.allowed;
        allowed.is_empty() || allowed.iter().any(|allowed| allowed == tenant_id)
    }

    /// How much this tenant may use.
    pub fn policy(&self, tenant_id: &str) -> Arc<TenantPolicy> {
        self.state().policy(tenant_id)
    }

    /// A job of this tenant has come: has the store asked where that is due. Something to wait for only for the first jobs of
    /// a tenant, and not for longer than the settings say.
    pub fn consult(&self, tenant_id: &str, now: Instant) -> Option<FirstAnswer> {
        let mut state = self.state();
        let State {
            settings,
            told,
            questions,
            ..
        } = &mut *state;
        let (questions, store) = (questions.as_ref()?, &settings.policy_store);
        store.url.as_ref()?;
        match told.look(tenant_id, store, now) {
            Found::Settled => None,
            Found::Wait(wait) => Some(wait),
            Found::Ask(question, wait) => match questions.try_send(question) {
                Ok(()) => wait,
                Err(error) => {
                    told.not_asked(&error.into_inner(), now);
                    None
                }
            },
        }
    }

    /// Questions for the store, from now on. Whoever called this before gets no more.
    pub fn questions(&self) -> mpsc::Receiver<Question> {
        let (sender, receiver) = mpsc::channel(MAX_QUESTIONS);
        self.state().questions = Some(sender);
        receiver
    }

    /// The answer to a question that was put to the store of these settings; it is dropped when another one is in force by
    /// now. Returns whether the store has gone away by it, or come back.
    pub fn hear(
        &self,
        question: &Question,
        answer: Answer,
        asked: &PolicyStoreSettings,
        now: Instant,
    ) -> Option<bool> {
        let mut state = self.state();
        let below = state.by_settings(&question.tenant);
        let State { settings, told, .. } = &mut *state;
        let store = &settings.policy_store;
        if (&store.url, &store.policy) != (&asked.url, &asked.policy) {
            told.not_asked(question, now);
            return None;
        }
        told.hear(question, answer, &below, store, now)
    }

    /// Nobody will ask this question: the next job of its tenant may put it again a little later.
    pub fn forgo(&self, question: &Question, now: Instant) {
        self.state().told.not_asked(question, now);
    }

    /// Where policies are kept, as the settings have it now.
    pub fn store(&self) -> PolicyStoreSettings {
        self.state().settings.policy_store.clone()
    }

    /// Whether nobody is to ask the store at the moment: it is away, and was asked a short time ago.
    pub fn store_rests(&self, now: Instant) -> bool {
        self.state().told.is_resting(now)
    }

    /// Whether the store is away, and how long ago the oldest policy was confirmed that should have been again.
    pub fn store_state(&self, now: Instant) -> (bool, Duration) {
        let state = self.state();
        (state.told.is_away(), state.told.stale(now))
    }

    /// What the store has told, for a later process; nothing when that is what it was the last time.
    pub fn take_told(&self) -> Option<BTreeMap<String, Kept>> {
        self.state().told.take_changed()
    }

    /// What an earlier process was told by the same store.
    pub fn recall(&self, kept: BTreeMap<String, Kept>, now: Instant) {
        let mut state = self.state();
        let most = state.settings.policy_store.max_tenants;
        for (tenant, kept) in kept.into_iter().take(most) {
            let below = state.by_settings(&tenant);
            state.told.recall(&tenant, kept, &below, most, now);
        }
    }

    /// Row 4b: takes a share for a new job of this tenant.
    ///
    /// # Errors
    /// Which quota it would exceed; then nothing is taken.
    pub fn admit(&self, tenant_id: &str, ask: &Ask, now: Instant) -> Result<Share, Exceeded> {
        let mut state = self.state();
        let policy = state.policy(tenant_id);
        let taken = state.accounts.admit(tenant_id, &policy, ask, now)?;
        Ok(Share(Some(Held {
            tenants: self.clone(),
            tenant: taken.tenant,
            used: taken.used,
            refund: !ask.taken_on_before,
            ended: false,
        })))
    }

    /// Tenants that hold something now, or have spent what they have not regained yet.
    pub fn tracked(&self) -> usize {
        self.state().accounts.len()
    }

    /// Jobs of this tenant that wait or run.
    pub fn held(&self, tenant_id: &str) -> usize {
        self.state().accounts.held(tenant_id)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn replace(&mut self, settings: TenantSettings) {
        let overrides = settings.overrides.iter();
        self.overrides = overrides
            .map(|(tenant, policy)| (tenant.clone(), Arc::new(policy.on_top_of(&settings.default))))
            .collect();
        self.default = Arc::new(settings.default.clone());
        let (old, new) = (&self.settings.policy_store, &settings.policy_store);
        if (&old.url, &old.policy) != (&new.url, &new.policy) {
            // Another one has told nothing yet.
            self.told = Told::default();
        }
        self.settings = settings;
        let mut told = std::mem::take(&mut self.told);
        told.revise(self.settings.policy_store.max_tenants, |tenant| {
            self.by_settings(tenant)
        });
        self.told = told;
        let mut accounts = std::mem::take(&mut self.accounts);
        accounts.revise(|tenant| self.policy(tenant));
        self.accounts = accounts;
    }

    fn policy(&self, tenant_id: &str) -> Arc<TenantPolicy> {
        let told = self.told.policy(tenant_id);
        told.unwrap_or_else(|| self.by_settings(tenant_id))
    }

    /// What settings alone say.
    fn by_settings(&self, tenant_id: &str) -> Arc<TenantPolicy> {
        Arc::clone(self.overrides.get(tenant_id).unwrap_or(&self.default))
    }
}

impl Share {
    /// The job is one from now on: what it has paid stays paid.
    pub fn kept(mut self) -> Self {
        if let Some(held) = &mut self.0 {
            held.refund = false;
        }
        self
    }

    /// The job has got its slot.
    pub fn begin(&mut self) {
        if let Some(held) = self.0.as_mut().filter(|held| !held.ended) {
            held.tenants.state().accounts.begin(&held.tenant, &mut held.used);
        }
    }

    /// The job has its outcome: it waits and runs no longer.
    pub fn end(&mut self) {
        if let Some(held) = &mut self.0 {
            held.end();
        }
    }

    /// Inputs that were fetched for the job, in bytes.
    pub fn charge_in(&self, bytes: u64) {
        self.charge((bytes, 0));
    }

    /// What the job publishes, in bytes.
    pub fn charge_out(&self, bytes: u64) {
        self.charge((0, bytes));
    }

    fn charge(&self, bytes: (u64, u64)) {
        if let Some(held) = &self.0 {
            let mut state = held.tenants.state();
            let policy = state.policy(&held.tenant);
            state
                .accounts
                .charge(&held.tenant, &policy, bytes, Instant::now());
        }
    }
}

impl Held {
    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let mut state = self.tenants.state();
            let policy = state.policy(&self.tenant);
            state.accounts.end(&self.tenant, self.used, self.refund, &policy);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Tenants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state().settings.fmt(f)
    }
}

impl PartialEq for Tenants {
    fn eq(&self, other: &Self) -> bool {
        // One after the other: both may be the same.
        let settings = self.state().settings.clone();
        settings == other.state().settings
    }
}

#[cfg(test)]
mod tests;
