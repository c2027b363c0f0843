//! What was asked to be cancelled and may still arrive. Pure: every question brings its own time.
//!
//! Neighbours: [`super::Cancellations`] keeps one and asks it about each assignment that arrives. Bounded in number; room is
//! taken from the tenant that has the most, so that nobody makes others' requests be forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use caf_protocol::cancel::Target;
use tokio::time::Instant;

use super::Asked;

/// What is to be cancelled, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) tenant_id: Arc<str>,
    pub(super) target: Target,
}

struct Stone {
    number: u64,
    until: Instant,
    asked: Arc<Asked>,
}

/// Requests by what they asked for. All live equally long, so the oldest are also the first to go.
pub(super) struct Tombstones {
    ttl: Duration,
    max: usize,
    stones: HashMap<Arc<Wanted>, Stone>,
    /// All, oldest first.
    order: BTreeMap<u64, Arc<Wanted>>,
    /// Those of each tenant, oldest first.
    of_tenant: HashMap<Arc<str>, BTreeSet<u64>>,
    /// Tenants by how many they have.
    sizes: BTreeSet<(usize, Arc<str>)>,
    last: u64,
}

impl Tombstones {
    pub(super) fn new(ttl: Duration, max: usize) -> Self {
        Self {
            ttl,
            max,
            stones: HashMap::new(),
            order: BTreeMap::new(),
            of_tenant: HashMap::new(),
            sizes: BTreeSet::new(),
            last: 0,
        }
    }

    /// Leaves one. Asked again, it lives as long as if it were new, and says what was said first.
    pub(super) fn leave(&mut self, wanted: Wanted, asked: Arc<Asked>, now: Instant) {
        self.expire(now);
        let asked = match self.remove(&wanted) {
            Some(earlier) => earlier.asked,
            None => asked,
        };
        while self.stones.len() >= self.max {
            if !self.push_out() {
                return;
            }
        }
        self.last += 1;
        let (number, wanted) = (self.last, Arc::new(wanted));
        self.order.insert(number, Arc::clone(&wanted));
        self.change_tenant(&wanted.tenant_id, |numbers| {
            numbers.insert(number);
        });
        let until = now + self.ttl;
        self.stones.insert(wanted, Stone { number, until, asked });
    }

    /// Takes one away, if it is there.
    pub(super) fn take_away(&mut self, wanted: &Wanted) {
        self.remove(wanted);
    }

    /// The request for any of these of a tenant, if there was one.
    pub(super) fn find<'a>(
        &mut self,
        tenant_id: &str,
        targets: impl Iterator<Item = Target<&'a str>>,
        now: Instant,
    ) -> Option<Arc<Asked>> {
        self.expire(now);
        // Mostly nobody has asked for anything: then nothing is made to look for.
        if self.stones.is_empty() {
            return None;
        }
        let tenant_id: Arc<str> = tenant_id.into();
        let mut stones = targets.filter_map(|target| {
            self.stones.get(&Wanted {
                tenant_id: Arc::clone(&tenant_id),
                target: target.kept(),
            })
        });
        stones.next().map(|stone| Arc::clone(&stone.asked))
    }

    /// The request for exactly this, if there was one, and how much longer it is remembered.
    pub(super) fn look(&mut self, wanted: &Wanted, now: Instant) -> Option<(Arc<Asked>, Duration)> {
        self.expire(now);
        let stone = self.stones.get(wanted)?;
        Some((
            Arc::clone(&stone.asked),
            stone.until.saturating_duration_since(now),
        ))
    }

    /// How many there are.
    pub(super) fn count(&mut self, now: Instant) -> usize {
        self.expire(now);
        self.stones.len()
    }

    fn expire(&mut self, now: Instant) {
        while let Some(oldest) = self.order.first_key_value().map(|(_, oldest)| Arc::clone(oldest)) {
            if self.stones.get(&oldest).is_some_and(|stone| stone.until > now) {
                return;
            }
            self.remove(&oldest);
        }
    }

    /// The oldest of the tenant that has the most goes.
    fn push_out(&mut self) -> bool {
        let Some((_, tenant)) = self.sizes.last() else {
            return false;
        };
        let oldest = self.of_tenant.get(tenant).and_then(BTreeSet::first);
        let Some(wanted) = oldest.and_then(|number| self.order.get(number)).cloned() else {
            return false;
        };
        self.remove(&wanted).is_some()
    }

    fn remove(&mut self, wanted: &Wanted) -> Option<Stone> {
        let stone = self.stones.remove(wanted)?;
        self.order.remove(&stone.number);
        self.change_tenant(&wanted.tenant_id, |numbers| {
            numbers.remove(&stone.number);
        });
        Some(stone)
    }

    fn change_tenant(&mut self, tenant_id: &Arc<str>, change: impl FnOnce(&mut BTreeSet<u64>)) {
        let numbers = self.of_tenant.entry(Arc::clone(tenant_id)).or_default();
        self.sizes.remove(&(numbers.len(), Arc::clone(tenant_id)));
        change(numbers);
        match numbers.len() {
            0 => drop(self.of_tenant.remove(tenant_id)),
            size => drop(self.sizes.insert((size, Arc::clone(tenant_id)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Asker;
    use super::*;

    fn wanted(tenant: &str, id: u64) -> Wanted {
        Wanted {
            tenant_id: tenant.into(),
            target: Target::Assignment(id.to_string()),
        }
    }

    fn asked(reason: &str) -> Arc<Asked> {
        Arc::new(Asked {
            by: Asker::Subject,
            reason: Some(reason.to_owned()),
        })
    }

    fn knows(stones: &mut Tombstones, tenant: &str, id: u64, now: Instant) -> bool {
        let id = id.to_string();
        let targets = [Target::Assignment(id.as_str())].into_iter();
        stones.find(tenant, targets, now).is_some()
    }

    #[test]
    fn one_lives_for_its_time_and_asked_again_for_another() {
        let (ttl, begin) = (Duration::from_secs(10), Instant::now());
        let mut stones = Tombstones::new(ttl, 5);
        stones.leave(wanted("a", 1), asked("first"), begin);
        stones.leave(wanted("a", 2), asked("other"), begin);
        let later = begin + Duration::from_secs(9);
        stones.leave(wanted("a", 1), asked("second"), later);
        assert!(knows(&mut stones, "a", 2, later));
        assert!(!knows(&mut stones, "b", 1, later));
        let found = stones.find("a", [Target::Assignment("1")].into_iter(), begin + ttl);
        assert_eq!(
            found.and_then(|asked| asked.reason.clone()).as_deref(),
            Some("first")
        );
        assert!(!knows(&mut stones, "a", 2, begin + ttl));
        assert_eq!(stones.count(begin + ttl), 1);
        assert_eq!(stones.count(later + ttl), 0);
        assert!(stones.of_tenant.is_empty() && stones.sizes.is_empty());
    }

    #[test]
    fn a_tenant_that_floods_makes_only_its_own_be_forgotten() {
        let now = Instant::now();
        let mut stones = Tombstones::new(Duration::from_secs(10), 10);
        stones.leave(wanted("quiet", 1), asked(""), now);
        for id in 0..1_000 {
            stones.leave(wanted("loud", id), asked(""), now);
        }
        assert_eq!(stones.count(now), 10);
        assert!(knows(&mut stones, "quiet", 1, now));
        assert!(knows(&mut stones, "loud", 999, now));
        assert!(knows(&mut stones, "loud", 991, now));
        assert!(!knows(&mut stones, "loud", 990, now));
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let mut stones = Tombstones::new(Duration::from_secs(10), 0);
        stones.leave(wanted("a", 1), asked(""), Instant::now());
        assert_eq!(stones.count(Instant::now()), 0);
    }

    proptest! {
        #[test]
        fn the_books_agree_and_the_bound_holds(steps in prop::collection::vec((0u8..4, 0u64..12, 0u64..5), 0..300)) {
            let (mut stones, mut now) = (Tombstones::new(Duration::from_secs(20), 8), Instant::now());
            for (tenant, id, passed) in steps {
                now += Duration::from_secs(passed);
                let wanted = wanted(&tenant.to_string(), id);
                if passed == 4 {
                    stones.take_away(&wanted);
                } else {
                    stones.leave(wanted, asked(""), now);
                    prop_assert!(knows(&mut stones, &tenant.to_string(), id, now));
                }
                let count = stones.count(now);
                prop_assert!(count <= 8);
                prop_assert_eq!(stones.order.len(), count);
                prop_assert_eq!(stones.of_tenant.values().map(BTreeSet::len).sum::<usize>(), count);
                prop_assert_eq!(stones.sizes.iter().map(|(size, _)| size).sum::<usize>(), count);
                prop_assert_eq!(stones.sizes.len(), stones.of_tenant.len());
            }
        }
    }
}
