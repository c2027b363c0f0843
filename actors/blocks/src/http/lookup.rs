//! Looks up the addresses of a host name, with bounds on how many look-ups run.
//!
//! Neighbours: `guard` asks and judges what comes. A look-up that nobody waits for any more goes on until the system gives
//! up, and keeps its thread until then: without bounds, names whose servers never answer would take every thread.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most look-ups at a time in the process. Each keeps a thread, for half a minute if no name server answers.
const MAX_RUNNING: usize = 64;
/// Most of them for one tenant, so that no tenant can take all.
const MAX_RUNNING_OF_TENANT: usize = 16;

/// What a name resolves to.
pub(super) type Found = io::Result<Vec<SocketAddr>>;

/// Something that looks up names. Tests put one of their own in its place.
pub(super) type Resolve = Arc<dyn Fn(String, u16, String) -> BoxFuture<'static, Found> + Send + Sync>;

/// By the system, as every other program does: for this host, port and tenant.
pub(super) fn by_system() -> Resolve {
    Arc::new(|host, port, tenant| {
        Box::pin(async move {
            let turn = Turn::take(&tenant).await?;
            let look = tokio::task::spawn_blocking(move || {
                let found = (host.as_str(), port).to_socket_addrs();
                drop(turn);
                found.map(Iterator::collect)
            });
            look.await.map_err(io::Error::other)?
        })
    })
}

/// Look-ups that run, by tenant. Holds no tenant that has none.
#[derive(Default)]
struct Running(Mutex<HashMap<String, Arc<Semaphore>>>);

fn running() -> &'static (Running, Arc<Semaphore>) {
    static ALL: OnceLock<(Running, Arc<Semaphore>)> = OnceLock::new();
    ALL.get_or_init(|| (Running::default(), Arc::new(Semaphore::new(MAX_RUNNING))))
}

/// The right to have one look-up running; given back when dropped.
struct Turn {
    tenant: String,
    of_tenant: Option<OwnedSemaphorePermit>,
    of_all: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// Waits for it.
    async fn take(tenant: &str) -> io::Result<Self> {
        let (by_tenant, all) = running();
        let own = {
            let mut tenants = by_tenant.0.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(MAX_RUNNING_OF_TENANT));
            Arc::clone(tenants.entry(tenant.to_owned()).or_insert_with(new))
        };
        // Made before the wait, so that a wait that is given up cleans up too.
        let mut turn = Self {
            tenant: tenant.to_owned(),
            of_tenant: None,
            of_all: None,
        };
        turn.of_tenant = Some(own.acquire_owned().await.map_err(io::Error::other)?);
        turn.of_all = Some(Arc::clone(all).acquire_owned().await.map_err(io::Error::other)?);
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.of_all = None;
        self.of_tenant = None;
        let mut tenants = running().0.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever else waits or runs holds a clone.
        if tenants
            .get(&self.tenant)
            .is_some_and(|own| Arc::strong_count(own) == 1)
        {
            tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_its_share_of_look_ups_and_leaves_nothing_behind() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("builds");
        runtime.block_on(async {
            let mut turns = Vec::new();
            for _ in 0..MAX_RUNNING_OF_TENANT {
                turns.push(Turn::take("lookup-greedy").await.expect("has room"));
            }
            let mut waiting = Box::pin(Turn::take("lookup-greedy"));
            assert!(
                futures_util::poll!(&mut waiting).is_pending(),
                "its share is taken"
            );
            let other = Turn::take("lookup-other").await.expect("has a share of its own");
            turns.pop();
            let turn = waiting.await.expect("has room again");
            drop((turns, turn, other));
        });
        let tenants = running().0.0.lock().expect("not poisoned");
        assert!(!tenants.contains_key("lookup-greedy") && !tenants.contains_key("lookup-other"));
    }
}
