//! How long a message may have waited before it was read: a process that was stopped, or an event loop that was blocked,
//! finds in its socket what was delivered long ago. Pure.
//!
//! Neighbours: the source asks it while a request is open; a lease begins at what it says. Knows no messages.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two looks while nothing arrives.
const GLANCE: Duration = Duration::from_millis(200);
/// A pause between two looks that is no accident of scheduling.
const ABSENCE: Duration = Duration::from_millis(600);
/// For how long after an absence what is read may have waited: emptying a full socket takes less.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Looks at the clock, again and again.
pub(super) struct Attention {
    last: Instant,
    /// From when on nobody looked, and until when what is read may be from that time.
    absence: Option<(Instant, Instant)>,
}

impl Attention {
    /// Begins with a request: what answers it cannot be older.
    pub(super) fn since(now: Instant) -> Self {
        Self {
            last: now,
            absence: None,
        }
    }

    /// When to look again at the latest.
    pub(super) fn next_look(&self) -> Instant {
        self.last + GLANCE
    }

    /// The earliest moment at which what is read at `now` may have been delivered.
    pub(super) fn look(&mut self, now: Instant) -> Instant {
        if now.saturating_duration_since(self.last) > ABSENCE {
            let since = self.absence.filter(|(_, until)| *until > self.last);
            let since = since.map_or(self.last, |(since, _)| since);
            self.absence = Some((since, now + AFTERMATH));
        }
        self.last = now;
        match self.absence {
            Some((since, until)) if now < until => since,
            _ => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_after_an_absence_may_be_as_old_as_that() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut attention = Attention::since(start);
        assert_eq!(attention.next_look(), at(200));
        assert_eq!(attention.look(at(300)), at(300), "a busy moment is none");
        assert_eq!(attention.look(at(5_000)), at(300), "nobody looked since then");
        assert_eq!(attention.look(at(5_001)), at(300), "nor at what else had waited");
        assert_eq!(attention.look(at(5_400)), at(300));
        assert_eq!(attention.look(at(5_900)), at(300));
        assert_eq!(
            attention.look(at(6_100)),
            at(6_100),
            "all that waited has been read"
        );
    }

    #[test]
    fn a_second_absence_before_all_was_read_begins_with_the_first() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut attention = Attention::since(start);
        attention.look(at(5_000));
        assert_eq!(attention.look(at(5_900)), start);
        assert_eq!(
            attention.look(at(6_800)),
            start,
            "also while absences follow each other"
        );
    }
}
