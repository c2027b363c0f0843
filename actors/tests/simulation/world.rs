//! Everything there is: time, the broker, processes with their network and their disks, and who keeps watch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caf_actors::outbox::NewEntry;
use caf_actors::state_dir::marks::Mark;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::audit::Audit;
use super::broker::Broker;
use super::kernel::{Event, Kernel, MS, Micros, Sleep};
use super::node::Node;
use super::scenario::Scenario;

/// The pipeline's connection of a process.
pub(crate) const MAIN: usize = 0;
/// The lease keeper's.
pub(crate) const KEEPER: usize = 1;

/// The world, shared by all that lives in it.
#[derive(Clone)]
pub(crate) struct Sim(Arc<Mutex<World>>);

pub(crate) struct World {
    pub kernel: Kernel,
    pub scenario: Arc<Scenario>,
    pub broker: Broker,
    pub processes: Vec<Process>,
    /// Slots of each host's state directory.
    pub hosts: Vec<Vec<Disk>>,
    pub audit: Audit,
    pub trace: Option<VecDeque<String>>,
    pub failure: Option<String>,
    /// Processes that end after this step.
    pub doomed: Vec<usize>,
    /// Processes that have drained.
    pub leaving: Vec<usize>,
    /// What is dropped after this step, when nothing is locked.
    pub garbage: Vec<Box<dyn std::any::Any + Send>>,
    pub healed: bool,
    /// Faults that have not ended yet.
    pub wounds: usize,
    pub start: Instant,
}

/// A slot of a state directory. What is in it survives processes.
#[derive(Default)]
pub(crate) struct Disk {
    pub locked_by: Option<usize>,
    pub outbox: BTreeMap<u64, NewEntry>,
    pub marks: BTreeMap<u64, Mark>,
    pub next: u64,
}

pub(crate) struct Process {
    pub worker: usize,
    pub owner: String,
    pub node: Option<Arc<Node>>,
    pub alive: bool,
    pub frozen: bool,
    /// Cut off; whether what is on its way arrives afterwards.
    pub cut: Option<bool>,
    stash: Vec<(bool, Event)>,
    /// What was asked while it stood still.
    pub inbox: Vec<Event>,
    last_arrival: [Micros; 2],
    pub slow_keeper: bool,
    /// When it could last not be reached.
    pub unreachable_at: Option<Micros>,
    pub thawed_at: Option<Micros>,
    pub host: usize,
    pub slot: usize,
}

impl Sim {
    pub(crate) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut World) -> R) -> R {
        look(&mut self.0.lock().expect("a step that panicked was the last"))
    }

    pub(crate) fn now(&self) -> Micros {
        self.with(|world| world.kernel.now)
    }

    pub(crate) fn instant(&self) -> Instant {
        self.with(|world| world.instant())
    }

    pub(crate) async fn sleep(&self, lasts: Micros) {
        Sleep::until(self, self.now() + lasts).await;
    }

    pub(crate) async fn sleep_for(&self, lasts: Duration) {
        self.sleep(micros(lasts)).await;
    }

    pub(crate) async fn sleep_until(&self, at: Instant) {
        let at = self.with(|world| micros(at.saturating_duration_since(world.start)));
        Sleep::until(self, at).await;
    }

    /// A moment in which anything may happen in between.
    pub(crate) async fn moment(&self) {
        let lasts = self.with(|world| world.kernel.dice.range(0, 2_000));
        self.sleep(lasts).await;
    }

    /// As tokio does it: what is ready at the same time as the limit counts.
    pub(crate) async fn limit<T>(&self, lasts: Micros, work: impl Future<Output = T>) -> Option<T> {
        let sleep = Sleep::until(self, self.now() + lasts);
        tokio::select! {
            biased;
            done = work => Some(done),
            () = sleep => None,
        }
    }

    pub(crate) async fn limit_at<T>(&self, at: Instant, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.sleep_until(at) => None,
        }
    }

    /// Waits until the broker can be reached as far as the client library knows: it sees a broker that is gone, not a
    /// line that is cut.
    pub(crate) async fn until_up(&self) {
        let mut up = self.with(|world| world.broker.up_watch.subscribe());
        let _ = up.wait_for(|up| *up).await;
    }

    /// Sends something to the broker and waits for what comes back.
    pub(crate) async fn request<T: Send + 'static>(
        &self,
        from: usize,
        line: usize,
        limit: Micros,
        handle: impl FnOnce(&Sim, &mut World) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.with(|world| {
            world.send(
                from,
                line,
                Box::new(move |sim, world| {
                    let value = handle(sim, world);
                    world.reply(from, answer, value);
                }),
            );
        });
        let heard = async {
            match answered.await {
                Ok(value) => value,
                Err(_) => std::future::pending().await,
            }
        };
        self.limit(limit, heard).await
    }
}

pub(crate) fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).expect("less than an age")
}

impl World {
    pub(crate) fn instant(&self) -> Instant {
        self.start + Duration::from_micros(self.kernel.now)
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let now = self.kernel.now;
        if let Some(trace) = &mut self.trace {
            if trace.len() >= 4_000 {
                trace.pop_front();
            }
            trace.push_back(format!(
                "{:>4}.{:06} {}",
                now / 1_000_000,
                now % 1_000_000,
                line()
            ));
        }
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.note(|| format!("FAILED: {why}"));
        self.failure.get_or_insert(why);
    }

    fn latency(&mut self) -> Micros {
        if self.kernel.dice.one_in(50) {
            self.kernel.dice.range(10, 300) * MS
        } else {
            self.kernel.dice.range(100, 3_000)
        }
    }

    /// From a process to the broker, in the order sent.
    pub(crate) fn send(&mut self, from: usize, line: usize, event: Event) {
        let mut arrival = self.kernel.now + self.latency();
        if line == KEEPER && self.processes[from].slow_keeper {
            arrival += self.kernel.dice.range(0, 6_000) * MS;
        }
        let process = &mut self.processes[from];
        let arrival = arrival.max(process.last_arrival[line] + 1);
        process.last_arrival[line] = arrival;
        let generation = self.broker.generation;
        let arrive: Event = Box::new(move |sim, world| {
            if !world.broker.up || world.broker.generation != generation {
                return;
            }
            let process = &mut world.processes[from];
            match process.cut {
                None => event(sim, world),
                Some(true) if process.alive => process.stash.push((true, event)),
                Some(_) => {}
            }
        });
        self.kernel.at(arrival, arrive);
    }

    /// From the broker to a process.
    pub(crate) fn deliver(&mut self, to: usize, event: Event) {
        let delay = self.latency();
        let generation = self.broker.generation;
        self.kernel.after(
            delay,
            Box::new(move |sim, world| {
                let process = &mut world.processes[to];
                if !process.alive || world.broker.generation != generation {
                    return;
                }
                match process.cut {
                    None => event(sim, world),
                    Some(true) => process.stash.push((false, event)),
                    Some(false) => {}
                }
            }),
        );
    }

    fn reply<T: Send + 'static>(&mut self, to: usize, answer: oneshot::Sender<T>, value: T) {
        let one_in = self.scenario.lose_one_in;
        if one_in > 0 && !self.healed && self.kernel.dice.one_in(one_in) {
            self.audit.count("fault: reply lost");
            self.note(|| format!("a reply to process {to} is lost"));
            return;
        }
        self.deliver(
            to,
            Box::new(move |_, _| {
                let _ = answer.send(value);
            }),
        );
    }

    /// What was on its way when the line was cut.
    pub(crate) fn mend(&mut self, process: usize) {
        let now = self.kernel.now;
        let mended = &mut self.processes[process];
        mended.cut = None;
        mended.unreachable_at = Some(now);
        for (to_broker, event) in std::mem::take(&mut mended.stash) {
            if to_broker {
                self.send(process, MAIN, event);
            } else {
                self.deliver(process, event);
            }
        }
    }

    pub(crate) fn drop_stashes(&mut self) -> Vec<Event> {
        let stashes = self
            .processes
            .iter_mut()
            .map(|process| std::mem::take(&mut process.stash));
        stashes.flatten().map(|(_, event)| event).collect()
    }

    /// Whether a process could not be reached at some time since then.
    pub(crate) fn was_unreachable_since(&self, process: usize, since: Micros) -> bool {
        let process = &self.processes[process];
        let is_now = !process.alive
            || process.frozen
            || process.cut.is_some()
            || process.slow_keeper
            || !self.broker.up;
        is_now
            || process.unreachable_at.is_some_and(|at| at >= since)
            || self.broker.was_away_at.is_some_and(|at| at >= since)
    }

    pub(crate) fn disk(&mut self, process: usize) -> &mut Disk {
        let (host, slot) = (self.processes[process].host, self.processes[process].slot);
        &mut self.hosts[host][slot]
    }

    pub(crate) fn process_named(&self, owner: &str) -> Option<usize> {
        self.processes.iter().position(|process| process.owner == owner)
    }

    /// A new process of a worker. It takes the first free slot of its host.
    pub(crate) fn start_process(&mut self, sim: &Sim, worker: usize) {
        let id = self.processes.len();
        let host = if self.scenario.share_a_host { 0 } else { worker };
        let disks = &mut self.hosts[host];
        let slot = disks
            .iter()
            .position(|disk| disk.locked_by.is_none())
            .unwrap_or_else(|| {
                disks.push(Disk::default());
                disks.len() - 1
            });
        disks[slot].locked_by = Some(id);
        let owner = format!("p{id}");
        self.note(|| format!("process {id} of worker {worker} starts, slot {host}/{slot}"));
        self.processes.push(Process {
            worker,
            owner: owner.clone(),
            node: None,
            alive: true,
            frozen: false,
            cut: None,
            stash: Vec::new(),
            inbox: Vec::new(),
            last_arrival: [0; 2],
            slow_keeper: false,
            unreachable_at: None,
            thawed_at: None,
            host,
            slot,
        });
        let node = Arc::new(Node::new(sim, self, id, worker, &owner));
        self.processes[id].node = Some(Arc::clone(&node));
        node.start(self);
    }
}
