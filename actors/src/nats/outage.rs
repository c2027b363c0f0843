//! Says again and again that a connection which was there is away, since when, and why it does not come back.
//!
//! Neighbours: `connection` runs it beside each connection and notes what its attempts report. It never touches the
//! connection: reconnects are the client library's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::connection::Link;
use crate::clock::whole_ms;
use crate::events::{self, Log};

/// How long a connection is away until it is said once more: a broker that restarts is back before.
const FIRST: Duration = Duration::from_secs(10);
/// Between two lines after that.
const AGAIN: Duration = Duration::from_secs(60);

/// What the last attempt to reconnect reported. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Cause(Arc<Mutex<Option<String>>>);

impl Cause {
    pub(super) fn note(&self, error: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn text(&self) -> String {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        noted.unwrap_or_else(|| "no attempt has ended yet".to_owned())
    }
}

/// Tells of every outage of the connection `name`, until it is dropped. The time before it was first there is not told here.
pub(super) async fn tell_of_outages(
    name: &'static str,
    mut link: watch::Receiver<Link>,
    cause: Cause,
    log: Log,
) {
    let is_away = |link: &Link| link.generation > 0 && !link.up;
    while link.wait_for(is_away).await.is_ok() {
        let since = Instant::now();
        let mut pause = FIRST;
        // Ends with the outage, or with the connection.
        while timeout(pause, link.wait_for(|link| link.up)).await.is_err() {
            log.emit(events::nats_away(name, &cause.text(), whole_ms(since.elapsed())));
            pause = AGAIN;
        }
        cause.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Event, Observer};

    #[derive(Default)]
    struct Lines(Mutex<Vec<(u64, String)>>);

    impl Observer for Lines {
        fn observe(&self, event: &Event) {
            assert_eq!(event.message(), "Waiting for NATS");
            let away = event.field("away_ms").and_then(crate::events::Word::as_u64);
            let error = event.field("error").and_then(crate::events::Word::as_str);
            let line = (away.unwrap(), error.unwrap().to_owned());
            self.0.lock().unwrap().push(line);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_after_ten_seconds_and_then_each_minute_with_its_last_cause() {
        let (link, is_link) = watch::channel(Link::default());
        let (lines, cause) = (Arc::new(Lines::default()), Cause::default());
        let log = Log::discard().with_observer(lines.clone());
        let telling = tokio::spawn(tell_of_outages("pipeline", is_link, cause.clone(), log));
        let set = |up, generation| link.send_replace(Link { up, generation });
        let pass = |seconds| tokio::time::sleep(Duration::from_secs(seconds));

        pass(100).await;
        set(true, 1);
        pass(100).await;
        set(false, 1);
        pass(9).await;
        set(true, 2);
        pass(100).await;
        assert!(
            lines.0.lock().unwrap().is_empty(),
            "not there yet, there, or away for a moment"
        );

        set(false, 2);
        pass(11).await;
        cause.note("Connection refused".to_owned());
        pass(120).await;
        set(true, 3);
        pass(100).await;
        let told = std::mem::take(&mut *lines.0.lock().unwrap());
        let seconds: Vec<u64> = told.iter().map(|(away, _)| away / 1000).collect();
        assert_eq!(seconds, [10, 70, 130]);
        assert!(told[2].1.contains("Connection refused"), "{told:?}");

        drop(link);
        telling.await.unwrap();
    }
}
