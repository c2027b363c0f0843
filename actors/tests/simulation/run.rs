//! One run: a seed from its first step to its rest.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use caf_protocol::ids::AssignmentKey;
use tokio::time::Instant;

use super::audit::Audit;
use super::broker::Broker;
use super::dice::Dice;
use super::kernel::{Kernel, MS, Micros, Turn};
use super::scenario::{Fault, HEALED_AT, OVER_AT, Scenario};
use super::world::{Disk, Sim, World};

/// Most steps: far above what any run needs.
const MOST_STEPS: u64 = 400_000;

/// What came of a seed.
pub(crate) struct Report {
    pub failure: Option<String>,
    pub counts: BTreeMap<&'static str, u64>,
    pub steps: u64,
    pub trace: Vec<String>,
}

/// Runs a seed. With `traced`, what happens is written down.
pub(crate) fn run(seed: u64, traced: bool) -> Report {
    let mut dice = Dice::new(seed);
    let scenario = Arc::new(Scenario::draw(&mut dice));
    let sim = Sim::new(World {
        kernel: Kernel::new(dice),
        audit: Audit::new(&scenario),
        broker: Broker::new(),
        processes: Vec::new(),
        hosts: (0..scenario.workers).map(|_| vec![Disk::default()]).collect(),
        trace: traced.then(VecDeque::new),
        failure: None,
        doomed: Vec::new(),
        leaving: Vec::new(),
        garbage: Vec::new(),
        healed: false,
        wounds: 0,
        start: Instant::now(),
        scenario,
    });
    sim.with(|world| world.set_up(&sim));
    let ended = catch_unwind(AssertUnwindSafe(|| while step(&sim) {}));
    if ended.is_err() {
        return Report {
            failure: Some("a step panicked".to_owned()),
            counts: BTreeMap::new(),
            steps: 0,
            trace: Vec::new(),
        };
    }
    let (report, garbage) = sim.with(|world| {
        let report = Report {
            failure: world.failure.take(),
            counts: std::mem::take(&mut world.audit.counts),
            steps: world.kernel.steps,
            trace: world.trace.take().map(Vec::from).unwrap_or_default(),
        };
        (report, world.tear_down())
    });
    drop(garbage);
    report
}

/// One step, and what must hold after it. False when the run is over.
fn step(sim: &Sim) -> bool {
    let turn = sim.with(|world| {
        let World {
            kernel, processes, ..
        } = world;
        kernel.turn(|process| processes[process].frozen)
    });
    match turn {
        Turn::Event(event) => sim.with(|world| event(sim, world)),
        Turn::Poll(id, mut task) => match task.poll() {
            Poll::Ready(()) => sim.with(|world| world.kernel.finished(id)),
            Poll::Pending => sim.with(|world| {
                let process = task.process;
                world.kernel.keep(id, task);
                let one_in = world.scenario.kill_one_in;
                if let Some(process) = process
                    && one_in > 0
                    && !world.healed
                    && world.kernel.dice.one_in(one_in)
                {
                    world.audit.count("fault: killed between two steps");
                    world.doomed.push(process);
                }
            }),
        },
        Turn::Woke => {}
        Turn::Nothing => sim.with(|world| world.fail("nothing is left to happen".to_owned())),
    }
    let (goes_on, garbage) = sim.with(|world| {
        for process in std::mem::take(&mut world.doomed) {
            world.end_process(process, true);
        }
        for process in std::mem::take(&mut world.leaving) {
            world.end_process(process, false);
        }
        (world.goes_on(), std::mem::take(&mut world.garbage))
    });
    drop(garbage);
    goes_on
}

impl World {
    fn set_up(&mut self, sim: &Sim) {
        for worker in 0..self.scenario.workers {
            self.start_process(sim, worker);
        }
        let scenario = Arc::clone(&self.scenario);
        for line in scenario.describe() {
            self.note(|| line);
        }
        for (number, spec) in scenario.specs.iter().enumerate() {
            for at in &spec.sent {
                self.kernel
                    .at(*at, Box::new(move |_, world| world.submit(number)));
            }
        }
        for (number, spec) in scenario.specs.iter().enumerate() {
            if let Some(at) = spec.decided {
                self.kernel
                    .at(at, Box::new(move |_, world| world.request_decision(number)));
            }
        }
        for (at, fault) in &scenario.faults {
            let fault = *fault;
            self.kernel
                .at(*at, Box::new(move |sim, world| world.happen(sim, fault)));
        }
        for (at, spec) in &scenario.cancels {
            let spec = *spec;
            self.kernel
                .at(*at, Box::new(move |_, world| world.request_to_cancel(spec)));
        }
        let heal_at = if scenario.is_calm { 20_001 * MS } else { HEALED_AT };
        self.kernel.at(heal_at, Box::new(|_, world| world.healed = true));
    }

    fn goes_on(&mut self) -> bool {
        if self.failure.is_some() {
            return false;
        }
        if self.is_over() {
            self.check_rest();
            return false;
        }
        if self.kernel.now > OVER_AT || self.kernel.steps > MOST_STEPS {
            let waiting: Vec<_> = self
                .broker
                .messages
                .iter()
                .map(|(at, message)| (*at, message.spec))
                .collect();
            let kept = self.hosts.iter().flatten().filter(|disk| !disk.outbox.is_empty());
            let kept: Vec<_> = kept.map(|disk| (disk.locked_by, disk.outbox.len())).collect();
            let nodes = self.processes.iter().filter_map(|process| process.node.as_ref());
            let busy: Vec<_> = nodes.filter(|node| !node.is_idle()).map(|node| node.id).collect();
            self.fail(format!(
                "stuck: messages and assignments not answered: {waiting:?}, outboxes by owner: {kept:?}, busy \
                 processes: {busy:?}, to send: {}, wounds: {}",
                self.audit.to_submit, self.wounds
            ));
        }
        self.failure.is_none()
    }

    /// The process that a worker is now.
    fn process_of(&self, worker: usize) -> Option<usize> {
        self.processes
            .iter()
            .rposition(|process| process.worker == worker && process.alive)
    }

    fn happen(&mut self, sim: &Sim, fault: Fault) {
        match fault {
            Fault::Kill { worker } => {
                let Some(process) = self.process_of(worker) else {
                    return;
                };
                self.audit.count("fault: killed");
                self.doomed.push(process);
            }
            Fault::Freeze { worker, lasts } => {
                let Some(process) = self.process_of(worker).filter(|id| !self.processes[*id].frozen) else {
                    return;
                };
                self.audit.count("fault: frozen");
                self.note(|| format!("process {process} is stopped for {} ms", lasts / MS));
                self.processes[process].frozen = true;
                self.until_healed(lasts, move |world| world.thaw(process));
            }
            Fault::Cut {
                worker,
                lasts,
                survives,
            } => {
                let Some(process) = self
                    .process_of(worker)
                    .filter(|id| self.processes[*id].cut.is_none())
                else {
                    return;
                };
                self.audit.count("fault: cut off");
                self.note(|| {
                    format!(
                        "process {process} is cut off for {} ms, survives: {survives}",
                        lasts / MS
                    )
                });
                self.processes[process].cut = Some(survives);
                self.until_healed(lasts, move |world| {
                    world.note(|| format!("process {process} is connected again"));
                    world.mend(process);
                });
            }
            Fault::BrokerAway { lasts } if self.broker.up => {
                self.audit.count("fault: broker away");
                self.note(|| format!("the broker goes away for {} ms", lasts / MS));
                self.broker.up = false;
                self.broker.generation += 1;
                self.broker.up_watch.send_replace(false);
                self.broker.drop_all_pulls();
                let lost = self.drop_stashes();
                self.garbage.push(Box::new(lost));
                self.until_healed(lasts, |world| {
                    world.note(|| "the broker is back".to_owned());
                    world.broker.up = true;
                    world.broker.was_away_at = Some(world.kernel.now);
                    world.broker.up_watch.send_replace(true);
                });
            }
            Fault::BrokerAway { .. } => {}
            Fault::Drain { worker, surge } => {
                let Some(process) = self.process_of(worker) else {
                    return;
                };
                let Some(node) = self.processes[process].node.clone() else {
                    return;
                };
                self.audit.count("fault: drained");
                self.note(|| format!("process {process} drains"));
                self.kernel.spawn(Some(process), node.drain());
                if surge {
                    self.start_process(sim, worker);
                }
            }
            Fault::SlowKeeper { worker, lasts } => {
                let Some(process) = self.process_of(worker) else {
                    return;
                };
                self.audit.count("fault: slow renewals");
                self.processes[process].slow_keeper = true;
                self.until_healed(lasts, move |world| {
                    world.processes[process].slow_keeper = false;
                    world.processes[process].unreachable_at = Some(world.kernel.now);
                });
            }
        }
    }

    /// Somebody asks all workers to cancel an assignment: a plain message, which reaches who can be reached now.
    fn request_to_cancel(&mut self, spec: usize) {
        if !self.broker.up {
            return;
        }
        let nodes: Vec<_> = self
            .processes
            .iter()
            .filter(|process| process.alive)
            .filter_map(|process| process.node.clone())
            .collect();
        for node in nodes {
            let id = node.id;
            let hear = move |_: &Sim, world: &mut World| {
                world.kernel.spawn(Some(id), async move { node.hear(spec) });
            };
            self.deliver(id, Box::new(hear));
        }
    }

    fn until_healed(&mut self, lasts: Micros, heal: impl FnOnce(&mut World) + Send + 'static) {
        self.wounds += 1;
        let at = (self.kernel.now + lasts).min(HEALED_AT);
        self.kernel.at(
            at,
            Box::new(move |_, world| {
                world.wounds -= 1;
                heal(world);
            }),
        );
    }

    fn thaw(&mut self, process: usize) {
        let now = self.kernel.now;
        self.note(|| format!("process {process} goes on"));
        let thawed = &mut self.processes[process];
        thawed.frozen = false;
        (thawed.unreachable_at, thawed.thawed_at) = (Some(now), Some(now));
        for event in std::mem::take(&mut thawed.inbox) {
            self.kernel.after(0, event);
        }
        self.kernel.unpark();
    }

    /// A process is gone, with everything in its memory. `killed`: without a word.
    fn end_process(&mut self, id: usize, killed: bool) {
        if !self.processes[id].alive {
            return;
        }
        self.note(|| format!("process {id} {}", if killed { "is killed" } else { "leaves" }));
        let tasks = self.kernel.end(id);
        let process = &mut self.processes[id];
        process.alive = false;
        process.unreachable_at = Some(self.kernel.now);
        let node = process.node.take();
        let lost: Box<dyn Any + Send> = Box::new((tasks, node, std::mem::take(&mut process.inbox)));
        self.garbage.push(lost);
        self.broker.drop_pulls_of(id);
        self.process_ended(id);
        for disk in self
            .hosts
            .iter_mut()
            .flatten()
            .filter(|disk| disk.locked_by == Some(id))
        {
            disk.locked_by = None;
        }
        let disk = self.disk(id);
        if killed {
            let marks: Vec<(AssignmentKey, bool)> = disk
                .marks
                .values()
                .map(|mark| (mark.key.clone(), mark.alone))
                .collect();
            self.died_with(&marks);
        } else {
            disk.marks.clear();
        }
        let worker = self.processes[id].worker;
        let delay = self.kernel.dice.range(100, 5_000) * MS;
        self.wounds += 1;
        self.kernel.after(
            delay,
            Box::new(move |sim, world| {
                world.wounds -= 1;
                if world.process_of(worker).is_none() {
                    world.start_process(sim, worker);
                }
            }),
        );
    }

    /// Takes everything out that refers to the world, which would keep itself alive otherwise.
    fn tear_down(&mut self) -> Box<dyn Any + Send> {
        let everything = self.kernel.clear();
        let processes = std::mem::take(&mut self.processes);
        let garbage = std::mem::take(&mut self.garbage);
        self.broker.drop_all_pulls();
        Box::new((everything, processes, garbage))
    }
}
