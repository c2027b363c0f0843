//! The supervisor: starts the parts of the pipeline, re-creates the ones that fail, and gives up when they fail too
//! often.
//!
//! Neighbours: the node's wiring hands it the children, back to front; shutdown stops it first. It never looks at a
//! message. What a failed child lost is delivered again by the broker.

mod budget;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Message, ResponseActFuture, WrapFuture};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::budget::RestartBudget;
use crate::events::{self, Log};
use crate::runtime::{EndReason, Ended, Route};
use crate::settings::SupervisionSettings;

/// Pause before a failed child is re-created, so that a child that fails at once does not spin.
const RESTART_DELAY: Duration = Duration::from_millis(100);

/// Starts one incarnation of a child; the argument is called when it has ended.
pub type StartChild = Box<dyn Fn(Ended) -> BoxFuture<'static, ()> + Send>;

/// One part of the tree.
pub struct Child {
    /// For logs, such as `pool.io`.
    pub name: String,
    /// Whether its work has an end: then it is re-created only after a panic.
    pub may_finish: bool,
    /// Starts it, again and again if need be.
    pub start: StartChild,
}

/// Why the node must leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escalation {
    /// The parts failed too often.
    RestartBudgetSpent,
    /// The lease keeper's thread is gone: held jobs would be delivered to others while they run.
    LeaseKeeperLost,
    /// Messages wait at the broker and none arrives, whatever was built anew.
    ConsumptionStalled,
}

/// From wiring: start this child and watch it. The reply comes when it is connected.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Adopt(pub Child);

/// From a child's thread: it has ended.
#[derive(Message)]
#[rtype(result = "()")]
struct ChildEnded {
    name: String,
    reason: EndReason,
}

/// From shutdown: ends of children are expected from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StopWatching;

/// What is left of the restarts that a node may make. Cheap to clone.
#[derive(Clone)]
pub struct Budget(Arc<Mutex<RestartBudget>>);

impl Budget {
    /// The whole budget.
    pub fn new(settings: &SupervisionSettings) -> Self {
        let window = Duration::from_secs(settings.window_s);
        Self(Arc::new(Mutex::new(RestartBudget::new(
            settings.max_restarts,
            window,
        ))))
    }

    /// Share that is used up within the window: 1 when the next restart ends the node.
    pub fn used(&self, now: Instant) -> f64 {
        self.budget().used(now)
    }

    fn budget(&self) -> MutexGuard<'_, RestartBudget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The supervisor actor.
pub struct Supervisor {
    children: HashMap<String, Child>,
    budget: Budget,
    watching: bool,
    own: Route<ChildEnded>,
    escalations: mpsc::UnboundedSender<Escalation>,
    log: Log,
}

impl Supervisor {
    /// A supervisor without children. `escalations` is told when the node must leave.
    pub fn new(
        settings: &SupervisionSettings,
        escalations: mpsc::UnboundedSender<Escalation>,
        log: Log,
    ) -> Self {
        Self {
            children: HashMap::new(),
            budget: Budget::new(settings),
            watching: true,
            own: Route::default(),
            escalations,
            log,
        }
    }

    /// What is left of its restarts, for whoever looks at the node.
    pub fn budget(&self) -> Budget {
        self.budget.clone()
    }

    /// What is called when the child of this name ends. It may be called on any thread.
    fn ended(&self, name: &str) -> Ended {
        let (own, name) = (self.own.clone(), name.to_owned());
        Box::new(move |reason| drop(own.tell(ChildEnded { name, reason })))
    }

    fn start_child(&self, name: &str) -> BoxFuture<'static, ()> {
        match self.children.get(name) {
            Some(child) => (child.start)(self.ended(name)),
            None => Box::pin(std::future::ready(())),
        }
    }

    fn child_ended(&mut self, name: &str, reason: EndReason, context: &mut Context<Self>) {
        let done =
            reason == EndReason::Finished && self.children.get(name).is_some_and(|child| child.may_finish);
        if !self.watching || done {
            return;
        }
        let (within_budget, restarts) = {
            let mut budget = self.budget.budget();
            (budget.spend(Instant::now()), budget.spent())
        };
        if !within_budget {
            self.watching = false;
            self.log.emit(events::restart_budget_spent(name, restarts));
            let _ = self.escalations.send(Escalation::RestartBudgetSpent);
            return;
        }
        self.log.emit(events::actor_restarted(
            name,
            reason == EndReason::Panicked,
            restarts,
        ));
        let name = name.to_owned();
        context.run_later(RESTART_DELAY, move |supervisor, context| {
            context.spawn(supervisor.start_child(&name).into_actor(supervisor));
        });
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        self.own.connect(&context.address());
    }
}

impl Handler<Adopt> for Supervisor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, Adopt(child): Adopt, _: &mut Self::Context) -> Self::Result {
        let name = child.name.clone();
        self.children.insert(name.clone(), child);
        Box::pin(self.start_child(&name).into_actor(self))
    }
}

impl Handler<ChildEnded> for Supervisor {
    type Result = ();

    fn handle(&mut self, ChildEnded { name, reason }: ChildEnded, context: &mut Self::Context) {
        self.child_ended(&name, reason, context);
    }
}

impl Handler<StopWatching> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: StopWatching, _: &mut Self::Context) {
        self.watching = false;
    }
}
