//! The waiting line of a pool: tenants take turns by their weights, within a tenant the urgent go first, and nobody waits
//! past a deadline. Pure: the caller brings the time and says what a tenant may.
//!
//! Neighbours: the pool puts jobs in and takes out whose turn it is; the simulation drives the same line. Knows neither
//! slots nor settings.
//!
//! **Between tenants** deficit round robin, with jobs as the cost: how long a job will take is not known before it has run,
//! and a tenant could lie about bytes. Whose turn it is starts as many jobs as its weight, one after the other, then goes to
//! the back. Whoever comes with nothing waiting, or may start nothing, goes to the back too and with nothing saved: nobody
//! gains a turn by leaving and coming again. So before the `k`-th job of a tenant of weight `w` at most
//! `k − 1 + ⌈k / w⌉ · Σ w_i` others start, the sum over the other tenants that wait meanwhile.
//!
//! **Within a tenant** a job gains one point of priority in each [`Ageing`] step. All gain alike, so the order never
//! changes: at any time `p + (t − a) / step` is largest where `a + (MAX_PRIORITY − p) · step` is smallest, and that is the
//! rank. With equal priorities it is the order of arrival; who comes more than `(MAX_PRIORITY − p) · step` later never
//! goes first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use caf_protocol::assignment::MAX_PRIORITY;
use tokio::time::Instant;

/// In how much time a waiting job gains one point of priority; with nothing only the arrival counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ageing(pub Duration);

impl Ageing {
    /// The time that stands for a job in the order of its tenant: when one of the highest priority would have to come to
    /// have its turn.
    fn rank(self, priority: u8, since: Instant) -> Instant {
        since + self.0 * u32::from(MAX_PRIORITY.saturating_sub(priority))
    }
}

/// An item that comes to the line.
pub struct Newcomer<'a, T> {
    /// Whose it is.
    pub tenant: &'a str,
    /// 0 to [`MAX_PRIORITY`], the higher the sooner; among the items of its tenant only.
    pub priority: u8,
    /// Since when it waits: not before those that came earlier.
    pub since: Instant,
    /// When it gives up.
    pub deadline: Instant,
    /// What waits.
    pub item: T,
}

/// An item that has left the line.
pub struct Waiting<T> {
    /// Since when it waited.
    pub since: Instant,
    /// For how much of that its tenant could start nothing, whatever slots were free.
    pub limited: Duration,
    /// What waited.
    pub item: T,
    deadline: Instant,
    tenant: Arc<str>,
    place: Place,
}

/// How long an item waited, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// For a slot.
    pub slot: Duration,
    /// For its tenant to run less than it may.
    pub limit: Duration,
}

impl<T> Waiting<T> {
    /// How long it waited until `now`.
    pub fn waited(&self, now: Instant) -> Waited {
        let all = now.saturating_duration_since(self.since);
        let limit = self.limited.min(all);
        Waited {
            slot: all - limit,
            limit,
        }
    }

    /// The item, and its turn without it.
    pub fn split(self) -> (T, Waiting<()>) {
        let turn = Waiting {
            since: self.since,
            limited: self.limited,
            item: (),
            deadline: self.deadline,
            tenant: self.tenant,
            place: self.place,
        };
        (self.item, turn)
    }
}

impl Waiting<()> {
    /// The item again that was split from it.
    pub fn with<T>(self, item: T) -> Waiting<T> {
        Waiting {
            since: self.since,
            limited: self.limited,
            item,
            deadline: self.deadline,
            tenant: self.tenant,
            place: self.place,
        }
    }
}

/// Where an item stands among those of its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: Instant,
    arrival: u64,
}

struct Kept<T> {
    tenant: Arc<str>,
    rank: Instant,
    since: Instant,
    deadline: Instant,
    /// For how long its tenant had been set aside when it came.
    limited_before: Duration,
    item: T,
}

/// The items of one tenant; there is none without items.
#[derive(Default)]
struct Queue {
    order: BTreeSet<Place>,
    /// Its turn; nothing while it is set aside.
    turn: Option<i64>,
    /// Jobs that it may still start in this turn; 0 before the turn has begun.
    deficit: u32,
    /// Since when it is set aside.
    aside_since: Option<Instant>,
    /// For how long it was set aside before.
    aside: Duration,
}

impl Queue {
    fn limited(&self, now: Instant) -> Duration {
        let since = |since| now.saturating_duration_since(since);
        self.aside + self.aside_since.map(since).unwrap_or_default()
    }
}

/// What a tenant may whose turn it is.
pub struct Turn<R> {
    /// Jobs that it may start in one turn; 0 counts as 1.
    pub weight: u32,
    /// The right to start this one.
    pub right: R,
}

/// Where an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Items of its tenant that go first.
    pub before: usize,
    /// Items of its tenant, itself included.
    pub of_tenant: usize,
    /// Tenants that wait, its own included.
    pub tenants: usize,
    /// Whether its tenant could start nothing when its turn came last.
    pub aside: bool,
}

/// A line of items. Every operation costs the logarithm of what waits.
pub struct Line<T> {
    ageing: Ageing,
    /// By arrival: the first waits longest.
    items: BTreeMap<u64, Kept<T>>,
    tenants: HashMap<Arc<str>, Queue>,
    /// Whose turn is when; those that are set aside have none.
    turns: BTreeMap<i64, Arc<str>>,
    deadlines: BTreeSet<(Instant, u64)>,
    next_arrival: u64,
    next_turn: i64,
}

impl<T> Line<T> {
    /// An empty one.
    pub fn new(ageing: Ageing) -> Self {
        Self {
            ageing,
            items: BTreeMap::new(),
            tenants: HashMap::new(),
            turns: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_arrival: 0,
            next_turn: 0,
        }
    }

    /// Takes an item in.
    pub fn push(&mut self, newcomer: Newcomer<'_, T>) {
        let Newcomer {
            tenant,
            priority,
            since,
            deadline,
            item,
        } = newcomer;
        let place = Place {
            rank: self.ageing.rank(priority, since),
            arrival: self.next_arrival,
        };
        self.next_arrival += 1;
        let known = self
            .tenants
            .get_key_value(tenant)
            .map(|(known, _)| Arc::clone(known));
        let tenant = known.unwrap_or_else(|| {
            let (turn, tenant) = (self.next_turn, Arc::<str>::from(tenant));
            self.next_turn += 1;
            self.open(&tenant, turn);
            tenant
        });
        self.insert(tenant, place, since, deadline, item);
    }

    /// Gives an item its turn back, and its tenant what it had used of it.
    pub fn push_front(&mut self, waiting: Waiting<T>) {
        let Waiting {
            since,
            deadline,
            item,
            tenant,
            place,
            ..
        } = waiting;
        let front = self
            .turns
            .first_key_value()
            .map_or(self.next_turn, |(turn, _)| turn - 1);
        match self.tenants.get_mut(&tenant) {
            None => self.open(&tenant, front),
            Some(queue) => {
                if let Some(turn) = queue.turn.replace(front) {
                    self.turns.remove(&turn);
                }
                queue.aside_since = None;
                self.turns.insert(front, Arc::clone(&tenant));
            }
        }
        if let Some(queue) = self.tenants.get_mut(&tenant) {
            queue.deficit = queue.deficit.saturating_add(1);
        }
        self.next_turn = self.next_turn.max(front + 1);
        self.insert(tenant, place, since, deadline, item);
    }

    /// Takes out whose turn it is. `enter` is asked for the tenant whose turn it is; one that may start nothing is set
    /// aside until [`Line::readmit`].
    pub fn pop_next<R>(
        &mut self,
        now: Instant,
        mut enter: impl FnMut(&Arc<str>) -> Option<Turn<R>>,
    ) -> Option<(Waiting<T>, R)> {
        loop {
            let (&turn, tenant) = self.turns.first_key_value()?;
            let tenant = Arc::clone(tenant);
            let Some(Turn { weight, right }) = enter(&tenant) else {
                self.set_aside(&tenant, turn, now);
                continue;
            };
            let queue = self.tenants.get_mut(&tenant)?;
            let weight = weight.max(1);
            // The weight may have been lowered since the turn began.
            let deficit = match queue.deficit {
                0 => weight,
                left => left.min(weight),
            };
            queue.deficit = deficit - 1;
            if queue.deficit == 0 {
                self.turns.remove(&turn);
                queue.turn = Some(self.next_turn);
                self.turns.insert(self.next_turn, Arc::clone(&tenant));
                self.next_turn += 1;
            }
            let first = *queue.order.first()?;
            return Some((self.remove(first.arrival, now)?, right));
        }
    }

    /// Takes out the one that waits longest, whose turn it ever may be.
    pub fn pop_oldest(&mut self, now: Instant) -> Option<Waiting<T>> {
        let (&arrival, _) = self.items.first_key_value()?;
        self.remove(arrival, now)
    }

    /// Since when the one waits that waits longest.
    pub fn oldest(&self) -> Option<Instant> {
        self.items.first_key_value().map(|(_, first)| first.since)
    }

    /// Takes out everything that gives up at `now` or before, those that wait longest first.
    pub fn take_expired(&mut self, now: Instant) -> Vec<Waiting<T>> {
        let mut arrivals = Vec::new();
        while let Some(&(deadline, arrival)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            arrivals.push(arrival);
        }
        arrivals.sort_unstable();
        let expired = arrivals
            .into_iter()
            .filter_map(|arrival| self.remove(arrival, now));
        expired.collect()
    }

    /// Takes out every item that fits, those that wait longest first. Looks at all of them.
    pub fn take_where(&mut self, now: Instant, mut fits: impl FnMut(&T) -> bool) -> Vec<Waiting<T>> {
        let fitting = self.items.iter().filter(|(_, kept)| fits(&kept.item));
        let arrivals: Vec<u64> = fitting.map(|(&arrival, _)| arrival).collect();
        let taken = arrivals
            .into_iter()
            .filter_map(|arrival| self.remove(arrival, now));
        taken.collect()
    }

    /// When the first gives up.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Lets a tenant that was set aside have turns again, from the back.
    pub fn readmit(&mut self, tenant: &str, now: Instant) {
        let Some((tenant, queue)) = self.tenants.get_key_value(tenant) else {
            return;
        };
        if queue.turn.is_some() {
            return;
        }
        let tenant = Arc::clone(tenant);
        if let Some(queue) = self.tenants.get_mut(&tenant) {
            queue.aside = queue.limited(now);
            queue.aside_since = None;
            queue.turn = Some(self.next_turn);
            self.turns.insert(self.next_turn, tenant);
            self.next_turn += 1;
        }
    }

    /// Lets all have turns again that were set aside.
    pub fn readmit_all(&mut self, now: Instant) {
        let aside = self.tenants.iter().filter(|(_, queue)| queue.turn.is_none());
        let mut aside: Vec<_> = aside
            .map(|(tenant, queue)| (queue.aside_since, Arc::clone(tenant)))
            .collect();
        aside.sort_unstable();
        for (_, tenant) in aside {
            self.readmit(&tenant, now);
        }
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Tenants that have something waiting.
    pub fn tenants(&self) -> usize {
        self.tenants.len()
    }

    /// Those of them that are set aside.
    pub fn tenants_aside(&self) -> usize {
        self.tenants.len() - self.turns.len()
    }

    /// Where the item of this tenant stands that fits. Looks at what is before it.
    pub fn find(&self, tenant: &str, mut fits: impl FnMut(&T) -> bool) -> Option<Standing> {
        let queue = self.tenants.get(tenant)?;
        let is_it = |place: &Place| {
            self.items
                .get(&place.arrival)
                .is_some_and(|kept| fits(&kept.item))
        };
        Some(Standing {
            before: queue.order.iter().position(is_it)?,
            of_tenant: queue.order.len(),
            tenants: self.tenants.len(),
            aside: queue.turn.is_none(),
        })
    }

    /// Since when each waits, and when it gives up.
    #[cfg(test)]
    pub(super) fn waits(&self) -> impl Iterator<Item = (Instant, Instant)> {
        self.items.values().map(|kept| (kept.since, kept.deadline))
    }

    fn open(&mut self, tenant: &Arc<str>, turn: i64) {
        let queue = Queue {
            turn: Some(turn),
            ..Queue::default()
        };
        self.tenants.insert(Arc::clone(tenant), queue);
        self.turns.insert(turn, Arc::clone(tenant));
    }

    fn set_aside(&mut self, tenant: &Arc<str>, turn: i64, now: Instant) {
        self.turns.remove(&turn);
        if let Some(queue) = self.tenants.get_mut(tenant) {
            queue.turn = None;
            queue.deficit = 0;
            queue.aside_since = Some(now);
        }
    }

    fn insert(&mut self, tenant: Arc<str>, place: Place, since: Instant, deadline: Instant, item: T) {
        let Some(queue) = self.tenants.get_mut(&tenant) else {
            return;
        };
        queue.order.insert(place);
        let limited_before = queue.limited(since);
        self.deadlines.insert((deadline, place.arrival));
        let kept = Kept {
            tenant,
            rank: place.rank,
            since,
            deadline,
            limited_before,
            item,
        };
        self.items.insert(place.arrival, kept);
    }

    /// Takes an item out, and its tenant if that was its last.
    fn remove(&mut self, arrival: u64, now: Instant) -> Option<Waiting<T>> {
        let kept = self.items.remove(&arrival)?;
        self.deadlines.remove(&(kept.deadline, arrival));
        let place = Place {
            rank: kept.rank,
            arrival,
        };
        let mut limited = Duration::ZERO;
        if let Some(queue) = self.tenants.get_mut(&kept.tenant) {
            limited = queue.limited(now).saturating_sub(kept.limited_before);
            queue.order.remove(&place);
            if queue.order.is_empty() {
                if let Some(turn) = queue.turn {
                    self.turns.remove(&turn);
                }
                self.tenants.remove(&kept.tenant);
            }
        }
        Some(Waiting {
            since: kept.since,
            deadline: kept.deadline,
            limited,
            item: kept.item,
            tenant: kept.tenant,
            place,
        })
    }
}

#[cfg(test)]
mod tests;
