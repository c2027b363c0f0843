//! The store of claims, as a process reaches it through its network. As `nats/claim_store.rs` and the lease keeper.

use caf_actors::claims::fleet::{ClaimStore, Found, Revision, StoreError};
use caf_actors::claims::record::{ClaimRecord, OutcomeRef, OwnerWord};
use caf_actors::sink::Outgoing;
use caf_protocol::ids::AssignmentKey;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::kernel::{Event, MS, Micros};
use super::world::{KEEPER, MAIN, Sim, World};

/// How often an owner is asked before its silence counts.
const OWNER_TRIES: u32 = 4;
/// How long each question waits, and the pause after one that nobody heard.
const OWNER_PATIENCE: Micros = 600 * MS;

pub(crate) struct Edge {
    sim: Sim,
    process: usize,
    limit: Micros,
}

impl Edge {
    pub(crate) fn new(sim: &Sim, process: usize, limit: Micros) -> Self {
        Self {
            sim: sim.clone(),
            process,
            limit,
        }
    }

    fn call<T: Send + 'static>(
        &self,
        handle: impl FnOnce(&mut World) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (sim, process, limit) = (self.sim.clone(), self.process, self.limit);
        async move {
            if sim.limit(limit, sim.until_up()).await.is_none() {
                return Err(StoreError::Unavailable("away".to_owned()));
            }
            let answer = sim
                .request(process, MAIN, limit, move |_, world| handle(world))
                .await;
            answer.unwrap_or_else(|| Err(StoreError::Unavailable("no answer in time".to_owned())))
        }
        .boxed()
    }
}

impl ClaimStore for Edge {
    fn write(
        &self,
        key: &AssignmentKey,
        record: &ClaimRecord,
        expected: Revision,
    ) -> BoxFuture<'static, Result<Revision, StoreError>> {
        let body = serde_json::to_vec(record).expect("a record holds only strings and numbers");
        let (key, process) = (key.as_str().to_owned(), self.process);
        self.call(move |world| world.write_claim(process, &key, &body, expected))
    }

    fn read(&self, key: &AssignmentKey) -> BoxFuture<'static, Result<Found, StoreError>> {
        let key = key.as_str().to_owned();
        self.call(move |world| Ok(world.broker.read(&key)))
    }

    fn ask_owner(&self, owner: &str, key: &AssignmentKey) -> BoxFuture<'static, OwnerWord> {
        let (sim, from, owner, key) = (self.sim.clone(), self.process, owner.to_owned(), key.clone());
        async move {
            for _ in 0..OWNER_TRIES {
                match ask_once(&sim, from, &owner, &key).await {
                    Some(Some(true)) => return OwnerWord::Holds,
                    Some(Some(false)) => return OwnerWord::LetGo,
                    Some(None) => sim.sleep(OWNER_PATIENCE).await,
                    None => {}
                }
            }
            sim.with(|world| {
                world.audit.count("owner silent");
                world.note(|| format!("process {from} hears nothing of {owner}"));
            });
            OwnerWord::Silent
        }
        .boxed()
    }

    fn is_waiting(
        &self,
        _: &str,
        sequence: u64,
        _: &AssignmentKey,
    ) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.call(move |world| Ok(world.broker.messages.contains_key(&sequence)))
    }

    fn result(&self, outcome: &OutcomeRef) -> BoxFuture<'static, Result<Option<Outgoing>, StoreError>> {
        let outcome = outcome.clone();
        self.call(move |world| Ok(world.broker.result(&outcome)))
    }
}

/// Nothing for no answer in time; within, nothing for nobody who listens.
async fn ask_once(sim: &Sim, from: usize, owner: &str, key: &AssignmentKey) -> Option<Option<bool>> {
    let (answer, answered) = oneshot::channel();
    let (owner, key) = (owner.to_owned(), key.clone());
    sim.with(|world| {
        world.send(
            from,
            MAIN,
            Box::new(move |_, world| {
                match world
                    .process_named(&owner)
                    .filter(|id| world.processes[*id].alive)
                {
                    Some(id) => world.deliver(id, question(id, from, key, answer)),
                    None => world.deliver(from, tell(answer, None)),
                }
            }),
        );
    });
    let heard = async {
        match answered.await {
            Ok(word) => word,
            Err(_) => std::future::pending().await,
        }
    };
    sim.limit(OWNER_PATIENCE, heard).await
}

fn tell(answer: oneshot::Sender<Option<bool>>, word: Option<bool>) -> Event {
    Box::new(move |_, _| {
        let _ = answer.send(word);
    })
}

/// Answered by the lease keeper of the process, as soon as that runs.
fn question(id: usize, from: usize, key: AssignmentKey, answer: oneshot::Sender<Option<bool>>) -> Event {
    Box::new(move |sim, world| {
        if world.processes[id].frozen {
            let again = question(id, from, key, answer);
            return world.processes[id].inbox.push(again);
        }
        let Some(node) = world.processes[id].node.clone() else {
            return;
        };
        let holds = node.claims.is_held(&key);
        let _ = sim;
        if !holds {
            world.let_go(id, &key);
        }
        world.note(|| {
            format!(
                "process {id} says to {from} whether it holds {}: {holds}",
                &key.as_str()[..6]
            )
        });
        world.send(
            id,
            KEEPER,
            Box::new(move |_, world| world.deliver(from, tell(answer, Some(holds)))),
        );
    })
}
