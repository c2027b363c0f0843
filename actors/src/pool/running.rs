//! How many jobs of each tenant run in this node, and the right to run one more: what `max_running` bounds.
//!
//! Neighbours: pools ask before they start a job, and the right travels with its slot; when it returns, the pools are told
//! that found the tenant at its limit. Owned values, shared across restarts of the pools. Knows nothing of lines and slots;
//! what the limit is says whoever asks, each time, so that a lower one never ends what runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::Message;
use caf_protocol::block::ResourceClass;

use crate::runtime::Route;

/// To a pool: this tenant may have room for one more.
#[derive(Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct RoomForTenant(pub Arc<str>);

/// The jobs that run, by tenant. Cheap to clone.
#[derive(Clone, Default)]
pub struct RunningJobs(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Only tenants with jobs that run: no more than there are slots.
    tenants: Mutex<HashMap<Arc<str>, Count>>,
    doors: [Route<RoomForTenant>; ResourceClass::ALL.len()],
}

struct Count {
    running: usize,
    /// Pools that were refused since one returned.
    refused: [bool; ResourceClass::ALL.len()],
    /// The pool that started the last one: told last, so that the pools of a tenant take turns.
    last: ResourceClass,
}

/// The right to run one job of a tenant. Returns when dropped.
#[must_use = "it returns when dropped"]
pub struct Running {
    tenant: Arc<str>,
    jobs: RunningJobs,
}

impl RunningJobs {
    /// How this pool hears of room.
    pub fn door(&self, class: ResourceClass) -> &Route<RoomForTenant> {
        &self.0.doors[index(class)]
    }

    /// The right to run one more job of this tenant, if it runs less than `max`. A pool that is refused is told when one
    /// returns; a limit that is raised meanwhile it has to see itself.
    pub fn try_run(&self, class: ResourceClass, tenant: &Arc<str>, max: Option<usize>) -> Option<Running> {
        let mut tenants = self.tenants();
        if let Some(count) = tenants.get_mut(tenant) {
            if max.is_some_and(|max| count.running >= max) {
                count.refused[index(class)] = true;
                return None;
            }
            count.running += 1;
            count.last = class;
        } else if max == Some(0) {
            return None;
        } else {
            let count = Count {
                running: 1,
                refused: Default::default(),
                last: class,
            };
            tenants.insert(Arc::clone(tenant), count);
        }
        drop(tenants);
        Some(Running {
            tenant: Arc::clone(tenant),
            jobs: self.clone(),
        })
    }

    /// Jobs of this tenant that run.
    pub fn of(&self, tenant: &str) -> usize {
        self.tenants().get(tenant).map_or(0, |count| count.running)
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<Arc<str>, Count>> {
        self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One has returned. Says which pools to tell, in order.
    fn give_back(&self, tenant: &str) -> Vec<ResourceClass> {
        let mut tenants = self.tenants();
        let Some(count) = tenants.get_mut(tenant) else {
            return Vec::new();
        };
        count.running -= 1;
        let refused = std::mem::take(&mut count.refused);
        let (last, is_over) = (count.last, count.running == 0);
        if is_over {
            tenants.remove(tenant);
        }
        drop(tenants);
        let mut told: Vec<_> = ResourceClass::ALL
            .into_iter()
            .filter(|class| refused[index(*class)])
            .collect();
        told.sort_by_key(|class| *class == last);
        told
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for class in self.jobs.give_back(&self.tenant) {
            // A pool that is being re-created begins with nothing set aside.
            let _ = self
                .jobs
                .door(class)
                .tell(RoomForTenant(Arc::clone(&self.tenant)));
        }
    }
}

fn index(class: ResourceClass) -> usize {
    match class {
        ResourceClass::Cpu => 0,
        ResourceClass::Gpu => 1,
        ResourceClass::Io => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_runs_as_many_as_it_may_in_all_pools_together_and_leaves_no_trace() {
        let jobs = RunningJobs::default();
        let (acme, other): (Arc<str>, Arc<str>) = ("acme".into(), "other".into());
        let first = jobs.try_run(ResourceClass::Cpu, &acme, Some(2)).expect("room");
        let second = jobs.try_run(ResourceClass::Io, &acme, Some(2)).expect("room");
        assert!(jobs.try_run(ResourceClass::Gpu, &acme, Some(2)).is_none());
        let third = jobs.try_run(ResourceClass::Gpu, &acme, None).expect("no limit");
        assert!(jobs.try_run(ResourceClass::Cpu, &other, Some(0)).is_none());
        assert_eq!((jobs.of("acme"), jobs.of("other")), (3, 0));
        drop((first, third));
        assert_eq!(jobs.of("acme"), 1);
        drop(second);
        assert!(jobs.tenants().is_empty());
    }

    #[test]
    fn who_was_refused_is_told_once_and_the_pool_that_started_the_last_one_comes_last() {
        use ResourceClass::{Cpu, Gpu, Io};
        let jobs = RunningJobs::default();
        let acme: Arc<str> = "acme".into();
        let rights = [Io, Cpu].map(|class| jobs.try_run(class, &acme, Some(2)).expect("room"));
        for class in [Cpu, Io] {
            assert!(jobs.try_run(class, &acme, Some(2)).is_none());
        }
        assert_eq!(jobs.give_back("acme"), [Io, Cpu]);
        assert_eq!(jobs.give_back("acme"), []);
        assert!(jobs.try_run(Gpu, &acme, Some(1)).is_some());
        rights.into_iter().for_each(std::mem::forget);
    }
}
