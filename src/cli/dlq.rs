//! `dlq list`, `dlq show` and `dlq replay`: their arguments, and what they ask for.
//!
//! Neighbours: [`crate::dlq`] does it. Times are points or ages; an age counts back from the given now.

use std::time::{Duration, SystemTime};

use caf_protocol::headers::MAX_REPLAY;
use clap::{Args, Subcommand};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::dlq::select::Filter;
use crate::dlq::{ReplayTask, Task, Which};

/// What can be asked about dead letters.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters, oldest first
    List(ListArgs),
    /// Show all of one dead letter
    Show {
        /// Sequence of the letter, as listed
        #[arg(value_name = "SEQ")]
        sequence: u64,
    },
    /// Send assignments of dead letters again: each runs and is answered once more, under message ids of its own
    Replay(ReplayArgs),
}

/// Arguments of `dlq list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Most letters to list; the newest count
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    /// Which letters.
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// Arguments of `dlq replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Sequences of the letters, as listed; or say which by the options, or --all
    #[arg(value_name = "SEQ", conflicts_with_all = ["filter", "all"])]
    pub sequences: Vec<u64>,
    /// All letters; of each assignment the last
    #[arg(long)]
    pub all: bool,
    /// Print what would be sent and send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Also letters that were replayed already: each runs once more, as the next replay
    #[arg(long)]
    pub again: bool,
    /// Most letters to replay in one run; what is skipped or refused does not count
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max: u32,
    /// Most replays of one assignment
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REPLAY)))]
    pub max_replays: u32,
    /// Which letters; after everything else, because the heading stays.
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// Which letters are meant. Options that are given must all fit.
#[derive(Debug, Default, Args)]
#[group(id = "filter", multiple = true)]
#[command(next_help_heading = "Filter")]
pub struct FilterArgs {
    /// Letters of this tenant
    #[arg(long, value_name = "ID")]
    pub tenant: Option<String>,
    /// Letters of this assignment
    #[arg(long, value_name = "ID")]
    pub assignment: Option<String>,
    /// Letters with this reason, e.g. execution_failed
    #[arg(long, value_name = "WORD")]
    pub reason: Option<String>,
    /// Letters with this error code, e.g. HTTP_ERROR
    #[arg(long, value_name = "CODE")]
    pub error_code: Option<String>,
    /// Letters of this job type
    #[arg(long, value_name = "TYPE")]
    pub job_type: Option<String>,
    /// Letters that this worker wrote or attempted
    #[arg(long, value_name = "ID")]
    pub worker: Option<String>,
    /// Letters stored at this time or later: RFC 3339, or an age such as 90s, 15m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = When::parse)]
    pub since: Option<When>,
    /// Letters stored before this time
    #[arg(long, value_name = "TIME", value_parser = When::parse)]
    pub until: Option<When>,
    /// Letters after this sequence
    #[arg(long, value_name = "SEQ")]
    pub after: Option<u64>,
}

/// A time as it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// A point.
    At(SystemTime),
    /// So long ago.
    Ago(Duration),
}

impl When {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(at.into()));
        }
        let unit = match text.as_bytes().last() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3_600,
            Some(b'd') => 24 * 3_600,
            _ => 0,
        };
        let count = text.get(..text.len().saturating_sub(1)).unwrap_or_default();
        let seconds = count
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit));
        match seconds {
            Some(seconds) if unit > 0 && count.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Self::Ago(Duration::from_secs(seconds)))
            }
            _ => Err(
                "must be a time such as 2026-01-31T12:00:00Z, or an age such as 90s, 15m, 2h or 7d"
                    .to_owned(),
            ),
        }
    }

    /// The point; ages beyond the beginning of time are the beginning.
    fn point(self, now: SystemTime) -> SystemTime {
        match self {
            Self::At(at) => at,
            Self::Ago(age) => {
                let point = now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
                point.max(SystemTime::UNIX_EPOCH)
            }
        }
    }
}

impl FilterArgs {
    fn into_filter(self, now: SystemTime) -> Filter {
        Filter {
            tenant: self.tenant,
            assignment: self.assignment,
            reason: self.reason,
            error_code: self.error_code,
            job_type: self.job_type,
            worker: self.worker,
            since: self.since.map(|when| when.point(now)),
            until: self.until.map(|when| when.point(now)),
            after: self.after,
        }
    }
}

impl DlqCommand {
    /// What is asked for.
    ///
    /// # Errors
    /// What is wrong with the arguments.
    pub fn into_task(self, now: SystemTime) -> Result<Task, String> {
        match self {
            Self::List(args) => Ok(Task::List(args.filter.into_filter(now), args.limit as usize)),
            Self::Show { sequence } => Ok(Task::Show(sequence)),
            Self::Replay(args) => args.into_task(now).map(Task::Replay),
        }
    }
}

impl ReplayArgs {
    fn into_task(self, now: SystemTime) -> Result<ReplayTask, String> {
        let max = self.max as usize;
        let filter = self.filter.into_filter(now);
        let which = if !self.sequences.is_empty() {
            let mut sequences = self.sequences;
            sequences.sort_unstable();
            sequences.dedup();
            if sequences.len() > max {
                return Err(format!(
                    "{} letters are named and --max is {max}",
                    sequences.len()
                ));
            }
            Which::Sequences(sequences)
        } else if self.all || filter != Filter::default() {
            Which::Matching(filter)
        } else {
            return Err("say which letters: by SEQ, by a filter such as --tenant, or --all".to_owned());
        };
        Ok(ReplayTask {
            which,
            dry_run: self.dry_run,
            again: self.again,
            max,
            max_replays: self.max_replays,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_points_or_ages() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let seconds = |text| {
            let point = When::parse(text).map(|when| when.point(now));
            point.map(|point| {
                point
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .expect("after")
                    .as_secs()
            })
        };
        assert_eq!(seconds("90s"), Ok(999_910));
        assert_eq!(seconds("15m"), Ok(999_100));
        assert_eq!(seconds("2h"), Ok(992_800));
        assert_eq!(seconds("1d"), Ok(913_600));
        assert_eq!(seconds("99999d"), Ok(0));
        assert_eq!(seconds("1970-01-02T00:00:00Z"), Ok(86_400));
        assert_eq!(seconds("1970-01-02T02:00:00+02:00"), Ok(86_400));
        for bad in [
            "",
            "s",
            "5",
            "5w",
            "-5m",
            "+5m",
            "1.5h",
            "yesterday",
            "2026-01-01",
            "18446744073709551615d",
            "5ü",
        ] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
