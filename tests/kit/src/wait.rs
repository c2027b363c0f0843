//! Waiting for a state, with a deadline. The only place of the tests that sleeps.
//!
//! Neighbours: everything in this crate, and the tests. Never waits for time to pass as such.

use std::time::{Duration, Instant};

/// Time between two looks: short beside anything a test waits for, long beside the cost of a look.
const INTERVAL: Duration = Duration::from_millis(5);

/// Looks again and again until `look` yields something, or nothing once `within` has passed. Looks at least once.
pub fn poll<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "between two looks at a state, on the test's own thread"
        )]
        std::thread::sleep(INTERVAL);
    }
}

/// Waits until `condition` holds. Blocks its thread: in a test that runs the node on this very thread, use
/// [`wait_until_async`].
///
/// # Panics
/// When it does not hold `within` that time; the message says `what` was waited for, and where.
#[track_caller]
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let held = poll(within, || condition().then_some(()));
    assert!(held.is_some(), "waited {within:?} in vain for: {what}");
}

/// As [`wait_until`], letting other tasks of the runtime go on between two looks. Needs a tokio (or actix) runtime.
///
/// # Panics
/// When the condition does not hold `within` that time.
pub async fn wait_until_async(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {within:?} in vain for: {what}");
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_as_soon_as_the_condition_holds() {
        let mut looks = 0;
        wait_until("three looks", Duration::from_secs(5), || {
            looks += 1;
            looks == 3
        });
        assert_eq!(looks, 3);
    }

    #[test]
    #[should_panic(expected = "waited 1ms in vain for: the impossible")]
    fn waiting_in_vain_says_for_what() {
        wait_until("the impossible", Duration::from_millis(1), || false);
    }
}
