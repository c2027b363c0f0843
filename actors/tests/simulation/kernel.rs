//! Virtual time and the order in which things happen: events by time, tasks that are ready in an order that chance
//! chooses. One step is one event or one poll of one task; nothing happens between steps.
//!
//! Knows nothing of workers and brokers. Tasks are plain futures, woken as in any runtime; there is no thread.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;

use super::dice::Dice;
use super::world::{Sim, World};

/// Microseconds since the simulation began.
pub(crate) type Micros = u64;

pub(crate) const MS: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// Why no lock is ever poisoned.
const UNBROKEN: &str = "no step panics and goes on";

pub(crate) type TaskId = u64;

/// Something that happens at a time.
pub(crate) type Event = Box<dyn FnOnce(&Sim, &mut World) + Send>;

pub(crate) struct Task {
    /// The process that it dies and freezes with; nothing for what is outside of all.
    pub process: Option<usize>,
    future: BoxFuture<'static, ()>,
    waker: Arc<TaskWaker>,
}

struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<TaskId>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, SeqCst) {
            self.ready.lock().expect(UNBROKEN).push(self.id);
        }
    }
}

struct Timer {
    at: Micros,
    order: u64,
    what: What,
}

enum What {
    Wake(Waker),
    Happen(Event),
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Time, tasks and events. A part of the world.
pub(crate) struct Kernel {
    pub now: Micros,
    pub dice: Dice,
    pub steps: u64,
    next: u64,
    timers: BinaryHeap<Reverse<Timer>>,
    tasks: BTreeMap<TaskId, Option<Task>>,
    ready: Arc<Mutex<Vec<TaskId>>>,
    /// Tasks that would run if their process did.
    parked: Vec<TaskId>,
}

/// What a step turned out to be.
pub(crate) enum Turn {
    Event(Event),
    Poll(TaskId, Task),
    Woke,
    Nothing,
}

impl Kernel {
    pub(crate) fn new(dice: Dice) -> Self {
        Self {
            now: 0,
            dice,
            steps: 0,
            next: 0,
            timers: BinaryHeap::new(),
            tasks: BTreeMap::new(),
            ready: Arc::default(),
            parked: Vec::new(),
        }
    }

    pub(crate) fn spawn(
        &mut self,
        process: Option<usize>,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> TaskId {
        self.next += 1;
        let id = self.next;
        let waker = Arc::new(TaskWaker {
            id,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
        });
        Arc::clone(&waker).wake();
        let task = Task {
            process,
            future: Box::pin(future),
            waker,
        };
        self.tasks.insert(id, Some(task));
        id
    }

    pub(crate) fn at(&mut self, at: Micros, event: Event) {
        self.push(at, What::Happen(event));
    }

    pub(crate) fn after(&mut self, delay: Micros, event: Event) {
        self.push(self.now + delay, What::Happen(event));
    }

    fn push(&mut self, at: Micros, what: What) {
        self.next += 1;
        let order = self.next;
        self.timers.push(Reverse(Timer { at, order, what }));
    }

    /// Chooses what happens next. `frozen` tells which processes stand still.
    pub(crate) fn turn(&mut self, frozen: impl Fn(usize) -> bool) -> Turn {
        self.steps += 1;
        loop {
            let id = {
                let mut ready = self.ready.lock().expect(UNBROKEN);
                if ready.is_empty() {
                    break;
                }
                // Tokio's watch channels wake in an order that no seed decides.
                ready.sort_unstable();
                let chosen = self.dice.index(ready.len());
                ready.swap_remove(chosen)
            };
            let Some(slot) = self.tasks.get_mut(&id) else {
                continue;
            };
            let Some(task) = slot else { continue };
            if task.process.is_some_and(&frozen) {
                self.parked.push(id);
                continue;
            }
            task.waker.queued.store(false, SeqCst);
            let task = slot.take().expect("looked at above");
            return Turn::Poll(id, task);
        }
        let Some(Reverse(timer)) = self.timers.pop() else {
            return Turn::Nothing;
        };
        self.now = self.now.max(timer.at);
        match timer.what {
            What::Wake(waker) => {
                waker.wake();
                Turn::Woke
            }
            What::Happen(event) => Turn::Event(event),
        }
    }

    /// Takes a polled task back.
    pub(crate) fn keep(&mut self, id: TaskId, task: Task) {
        if let Some(slot) = self.tasks.get_mut(&id) {
            *slot = Some(task);
        }
    }

    pub(crate) fn finished(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }

    /// Lets the tasks of a process that was stopped run again.
    pub(crate) fn unpark(&mut self) {
        self.ready.lock().expect(UNBROKEN).append(&mut self.parked);
    }

    /// Takes everything away. Dropped by the caller, when nothing is locked.
    pub(crate) fn clear(&mut self) -> Box<dyn std::any::Any + Send> {
        Box::new((std::mem::take(&mut self.timers), std::mem::take(&mut self.tasks)))
    }

    /// Takes all tasks of a process away. They are dropped by the caller, when nothing is locked.
    pub(crate) fn end(&mut self, process: usize) -> Vec<Task> {
        let of_process =
            |task: &Option<Task>| task.as_ref().is_some_and(|task| task.process == Some(process));
        let ids: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|(_, task)| of_process(task))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter()
            .filter_map(|id| self.tasks.remove(&id).flatten())
            .collect()
    }
}

impl Task {
    pub(crate) fn poll(&mut self) -> Poll<()> {
        let waker = Waker::from(Arc::clone(&self.waker));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// Resolves at a time.
pub(crate) struct Sleep {
    sim: Sim,
    at: Micros,
    set: bool,
}

impl Sleep {
    pub(crate) fn until(sim: &Sim, at: Micros) -> Self {
        Self {
            sim: sim.clone(),
            at,
            set: false,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let (at, set) = (self.at, self.set);
        let over = self.sim.with(|world| {
            let kernel = &mut world.kernel;
            if kernel.now >= at {
                return true;
            }
            if !set {
                kernel.push(at, What::Wake(context.waker().clone()));
            }
            false
        });
        self.set = true;
        if over { Poll::Ready(()) } else { Poll::Pending }
    }
}
