//! Threads that run blocks which may block: how many outlive their job, and no more than that.
//!
//! Neighbours: the block worker runs [`crate::block_worker`] attempts through [`Threads::run`]; the health page counts. A
//! thread cannot be stopped from outside: one that is still busy after its job has ended is a stray until it returns.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use caf_protocol::error_code::ErrorCode;
use caf_protocol::limit::OperationLimit;
use caf_protocol::outcome::Failure;
use tokio::time::{Instant, timeout};

/// Most strays: each keeps a thread and what its job had allocated.
const MAX_STRAYS: usize = 32;

/// The threads of one node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Threads {
    strays: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Returned,
    Stray,
}

/// The job's side of a running thread: when it is dropped first, the thread is a stray.
struct Waiting {
    state: Arc<Mutex<State>>,
    strays: Arc<AtomicUsize>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == State::Running {
            *state = State::Stray;
            self.strays.fetch_add(1, SeqCst);
        }
    }
}

/// The thread's side.
struct Returning(Arc<Mutex<State>>, Arc<AtomicUsize>);

impl Drop for Returning {
    fn drop(&mut self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == State::Stray {
            self.1.fetch_sub(1, SeqCst);
        }
        *state = State::Returned;
    }
}

impl Threads {
    /// Threads that are still busy although their job has ended.
    pub fn strays(&self) -> usize {
        self.strays.load(SeqCst)
    }

    /// Whether there are as many strays as may be: no thread is started until one returns.
    pub fn are_exhausted(&self) -> bool {
        self.strays() >= MAX_STRAYS
    }

    /// Runs work on a thread of its own. Dropping the future does not stop the thread. Nothing when the work panicked.
    ///
    /// # Errors
    /// SYSTEM_OVERLOAD when too many threads are strays.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, Failure> {
        if self.are_exhausted() {
            let message = "too many threads are still busy with jobs that ran out of time";
            return Err(Failure::new(ErrorCode::SystemOverload, message));
        }
        let state = Arc::new(Mutex::new(State::Running));
        let _waiting = Waiting {
            state: Arc::clone(&state),
            strays: Arc::clone(&self.strays),
        };
        let returning = Returning(state, Arc::clone(&self.strays));
        let done = tokio::task::spawn_blocking(move || {
            let _returning = returning;
            work()
        });
        Ok(done.await.ok())
    }
}

/// Waits for work, but not longer than it may take. A thread that is stuck in one system call cannot look at its watch:
/// it stays behind as a stray.
///
/// # Errors
/// What the work failed with, or that its limit ran out.
pub async fn within<T>(
    limit: Option<OperationLimit>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(limit) = limit else {
        return work.await;
    };
    let began = Instant::now();
    match timeout(limit.allowed, work).await {
        Ok(done) => done,
        Err(_) => Err(limit.ends_the_job(began.elapsed())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use caf_protocol::limit::{Operation, RanOut};

    use super::*;

    #[tokio::test]
    async fn strays_are_counted_until_they_return_and_at_the_bound_nothing_is_started() {
        let threads = Threads::default();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        for _ in 0..MAX_STRAYS {
            let released = Arc::clone(&released);
            let stuck = threads.run(move || released.lock().expect("not poisoned").recv());
            assert!(
                timeout(Duration::from_millis(1), stuck).await.is_err(),
                "it does not return"
            );
        }
        assert_eq!(threads.strays(), MAX_STRAYS);
        let refused = threads.run(|| ()).await.expect_err("no more");
        assert_eq!(refused.code, ErrorCode::SystemOverload);
        drop(release);
        while threads.strays() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(threads.run(|| 7).await, Ok(Some(7)));
        assert_eq!(threads.run(|| panic!("asked to panic")).await, Ok(None::<()>));
        assert_eq!(threads.strays(), 0);
    }

    #[tokio::test]
    async fn a_thread_that_is_stuck_is_given_up_at_its_limit_and_counted_until_it_returns() {
        let threads = Threads::default();
        let (release, released) = mpsc::channel::<()>();
        let limit = OperationLimit {
            operation: Operation::FsRead,
            allowed: Duration::from_millis(10),
        };
        let stuck = async {
            threads.run(move || released.recv()).await?;
            Ok(())
        };
        let failure = within(Some(limit), stuck).await.expect_err("is given up");
        assert_eq!(
            (failure.code, failure.total_limit),
            (ErrorCode::CancelledByTimeout, true)
        );
        let Some(RanOut::Limit { limit: told, taken }) = failure.ran_out.as_deref().copied() else {
            panic!("{failure:?}");
        };
        assert_eq!(told, limit);
        assert!(taken >= limit.allowed, "{taken:?}");
        assert_eq!(threads.strays(), 1);
        drop(release);
        while threads.strays() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
