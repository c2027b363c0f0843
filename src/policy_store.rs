//! Asks the store of tenant policies what the pipeline wants to know of it: `GET {url}/tenants/{tenant}/policies/{policy}`.
//!
//! Neighbours: [`caf_actors::tenants`] decides what is asked and when, keeps the answers, and bounds every wait; here the
//! questions are carried out ([`wire`]), told to the log, and what was told is kept on disk for the next process ([`kept`]).
//! Runs beside the pipeline, on the node's main event loop: no job waits in here.

mod kept;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use caf_actors::events::Log;
use caf_actors::events::tenants as events;
use caf_actors::settings::PolicyStoreSettings;
use caf_actors::tenants::{Answer, Question, Tenants};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use self::kept::Keeper;
use self::wire::{Refusal, Wire};

/// Questions that are on their way at once: enough for hundreds of answers a second from a store that takes 50 ms, and few
/// enough for any store.
const MAX_CONCURRENT: usize = 16;
/// Pause between two looks at what is to be measured and kept.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The client.
pub struct PolicyStore {
    tenants: Tenants,
    questions: mpsc::Receiver<Question>,
    keeper: Keeper,
    /// The way to the store, and the settings that it is made of.
    wire: Option<(PolicyStoreSettings, Arc<Wire>)>,
    log: Log,
}

impl PolicyStore {
    /// For these tenants. What an earlier process kept in the file counts from now on.
    pub async fn open(tenants: &Tenants, file: PathBuf, log: &Log) -> Self {
        let keeper = Keeper::new(file);
        let store = tenants.store();
        if store.url.is_some() {
            match keeper.read(&store).await {
                Ok(kept) => tenants.recall(kept, Instant::now()),
                Err(why) => log.emit(events::policies_unreadable(&why)),
            }
        }
        Self {
            questions: tenants.questions(),
            tenants: tenants.clone(),
            keeper,
            wire: None,
            log: log.clone(),
        }
    }

    /// Asks until it is dropped.
    pub async fn run(mut self) {
        let mut asking = FuturesUnordered::new();
        let mut looks = interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                question = self.questions.recv(), if asking.len() < MAX_CONCURRENT => match question {
                    Some(question) => {
                        let (store, wire) = self.wire();
                        let rests = self.tenants.store_rests(Instant::now());
                        asking.push(async move {
                            let answer = match wire {
                                // It waited for its turn while others found that the store is away.
                                _ if rests => Err(Refusal::NotAsked),
                                Ok(wire) => wire.ask(&question.tenant, &store.policy, question.etag.as_deref()).await,
                                Err(why) => Err(Refusal::Away(why)),
                            };
                            (question, store, answer)
                        });
                    }
                    // Somebody else asks from now on.
                    None => return,
                },
                Some((question, store, answer)) = asking.next(), if !asking.is_empty() => {
                    self.hear(&question, &store, answer);
                }
                _ = looks.tick() => self.look(),
            }
        }
    }

    /// The way to the store that is in force: a new one when its settings have changed.
    fn wire(&mut self) -> (PolicyStoreSettings, Result<Arc<Wire>, String>) {
        let store = self.tenants.store();
        if self.wire.as_ref().is_none_or(|(settings, _)| *settings != store) {
            match Wire::new(&store) {
                Ok(wire) => self.wire = Some((store.clone(), Arc::new(wire))),
                Err(error) => {
                    self.wire = None;
                    return (store, Err(error.to_string()));
                }
            }
        }
        let wire = self.wire.as_ref().map(|(_, wire)| Arc::clone(wire));
        (
            store,
            wire.ok_or_else(|| "there is no way to the store".to_owned()),
        )
    }

    fn hear(&self, question: &Question, store: &PolicyStoreSettings, said: Result<Answer, Refusal>) {
        let (answer, why) = match said {
            Ok(answer) => (answer, String::new()),
            Err(Refusal::Away(why)) => (Answer::Away, why),
            Err(Refusal::Unusable(why)) => (Answer::Unusable, why),
            Err(Refusal::NotAsked) => return self.tenants.forgo(question, Instant::now()),
        };
        self.log.measure(|| events::policy_fetched(&answer));
        if answer == Answer::Unusable {
            self.log.emit(events::policy_unusable(&question.tenant, &why));
        }
        match self.tenants.hear(question, answer, store, Instant::now()) {
            Some(true) => self.log.emit(events::store_away(&why)),
            Some(false) => self.log.emit(events::store_back()),
            None => {}
        }
    }

    /// Once a second.
    fn look(&mut self) {
        let store = self.tenants.store();
        if store.url.is_none() {
            return;
        }
        let (is_away, stale) = self.tenants.store_state(Instant::now());
        self.log.measure(|| events::store_state(is_away, stale));
        self.keeper.keep(&store, || self.tenants.take_told());
        if let Some(why) = self.keeper.complaint() {
            self.log.emit(events::policies_unkept(&why));
        }
    }
}
