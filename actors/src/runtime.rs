//! The thin layer over actix: addresses that survive a restart, and children whose end is noticed.
//!
//! Neighbours: stations hold [`Route`]s; the supervisor starts children through [`spawn_actor`] and [`spawn_task`].
//! This is the only file that makes contexts, arbiters and raw sends; stations only implement `Actor` and `Handler`.
//! No policy here.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Arbiter, ArbiterHandle, Context, Handler, Message, Recipient};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

/// Where messages of one kind go. Stays valid while the actor behind it is re-created: the supervisor connects the
/// new one to the same route. Cheap to clone.
pub struct Route<M: Message + Send + 'static>
where
    M::Result: Send,
{
    target: Arc<RwLock<Option<Recipient<M>>>>,
}

impl<M: Message + Send + 'static> Clone for Route<M>
where
    M::Result: Send,
{
    fn clone(&self) -> Self {
        Self {
            target: Arc::clone(&self.target),
        }
    }
}

impl<M: Message + Send + 'static> Default for Route<M>
where
    M::Result: Send,
{
    fn default() -> Self {
        Self {
            target: Arc::new(RwLock::new(None)),
        }
    }
}

/// Nobody is there to take the message; it comes back.
#[derive(Debug)]
pub struct Undelivered<M>(pub M);

impl<M: Message + Send + 'static> Route<M>
where
    M::Result: Send,
{
    /// Sends all further messages to this actor.
    pub fn connect<A>(&self, address: &Addr<A>)
    where
        A: Actor<Context = Context<A>> + Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = Some(address.clone().recipient());
    }

    fn live(&self) -> Option<Recipient<M>> {
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        target.as_ref().filter(|recipient| recipient.connected()).cloned()
    }

    /// Puts a message into the actor's mailbox. The mailbox has no bound of its own: every message belongs to a held
    /// job, and held permits bound those.
    ///
    /// # Errors
    /// The message, when no actor is there at the moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place for raw sends; held permits are the bound"
    )]
    pub fn tell(&self, message: M) -> Result<(), Undelivered<M>> {
        // Sent under the lock: a mailbox takes a message at once, and a copy of its address would cost an allocation.
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        match target.as_ref().filter(|recipient| recipient.connected()) {
            Some(recipient) => {
                recipient.do_send(message);
                Ok(())
            }
            None => Err(Undelivered(message)),
        }
    }

    /// Sends a message and waits for its reply, at most `limit`. Nothing when nobody answered in time.
    pub async fn ask(&self, message: M, limit: Duration) -> Option<M::Result> {
        let recipient = self.live()?;
        tokio::time::timeout(limit, recipient.send(message))
            .await
            .ok()?
            .ok()
    }
}

/// Why a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// It was stopped, or its work was over.
    Finished,
    /// It panicked.
    Panicked,
}

/// Called once, on the child's thread, when it has ended.
pub type Ended = Box<dyn FnOnce(EndReason) + Send>;

/// Starts an actor on an event loop. `connect` gets its address before it handles its first message.
/// Returns once it is connected.
pub async fn spawn_actor<A>(
    on: &ArbiterHandle,
    make: impl FnOnce() -> A + Send + 'static,
    connect: impl FnOnce(&Addr<A>) + Send + 'static,
    ended: Ended,
) where
    A: Actor<Context = Context<A>>,
{
    let (connected, is_connected) = tokio::sync::oneshot::channel::<()>();
    on.spawn_fn(move || {
        let context = Context::new();
        connect(&actix::AsyncContext::address(&context));
        drop(connected);
        let life = async move { context.into_future(make()).await };
        actix::spawn(watched(life.boxed_local(), ended));
    });
    let _ = is_connected.await;
}

/// Starts a future on an event loop and notices its end, as for an actor.
pub fn spawn_task(
    on: &ArbiterHandle,
    make: impl FnOnce() -> LocalBoxFuture<'static, ()> + Send + 'static,
    ended: Ended,
) {
    on.spawn_fn(move || {
        actix::spawn(watched(async move { make().await }.boxed_local(), ended));
    });
}

async fn watched(life: LocalBoxFuture<'static, ()>, ended: Ended) {
    let reason = match AssertUnwindSafe(life).catch_unwind().await {
        Ok(()) => EndReason::Finished,
        Err(_) => EndReason::Panicked,
    };
    ended(reason);
}

/// An event loop on a thread of its own; ends when dropped.
pub struct EventLoop(Arbiter);

impl EventLoop {
    /// Starts one.
    pub fn start() -> Self {
        Self(Arbiter::new())
    }

    /// Where to spawn.
    pub fn handle(&self) -> ArbiterHandle {
        self.0.handle()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs a future on another event loop and waits for what it yields. Nothing when that loop is gone, or the future
/// panicked.
pub async fn run_on<T: Send + 'static>(
    on: &ArbiterHandle,
    make: impl FnOnce() -> LocalBoxFuture<'static, T> + Send + 'static,
) -> Option<T> {
    let (done, is_done) = tokio::sync::oneshot::channel();
    on.spawn_fn(move || {
        actix::spawn(async move {
            let _ = done.send(make().await);
        });
    });
    is_done.await.ok()
}

#[cfg(test)]
mod tests;
