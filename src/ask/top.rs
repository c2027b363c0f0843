//! `top`: the page of the admin port for a terminal, of 80 columns where its size is not known.
//!
//! Neighbours: [`crate::admin::status`] has the numbers. [`render`] is pure; [`watch`] draws it again and again.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::text::{COLUMNS, clean, column, cut};
use super::{Node, Said, Silence};
use crate::admin::wording::{counted, length};
use crate::cli::print;

/// Width of a bar.
const BAR: usize = 14;
/// Buckets that are drawn: the last five minutes.
const DRAWN: usize = 60;
/// Signs of the curve, from nothing to most.
const CURVE: &[u8] = b" .:-=+*#%@";
/// Failures and jobs that are listed where the height is not known.
const LISTED: usize = 6;

/// What there is to write on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// Columns.
    pub columns: usize,
    /// Lines; nothing where there are as many as one likes.
    pub rows: Option<usize>,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            columns: COLUMNS,
            rows: None,
        }
    }
}

impl Screen {
    /// The terminal at standard output, if it is one.
    pub fn of_terminal() -> Self {
        let size = rustix::termios::tcgetwinsize(std::io::stdout());
        let some = |size: u16| Some(usize::from(size)).filter(|size| *size > 0);
        let (columns, rows) = size.map_or((None, None), |size| (some(size.ws_col), some(size.ws_row)));
        Self {
            columns: columns.unwrap_or(COLUMNS),
            rows,
        }
    }

    /// The same, with as many lines as one likes.
    #[must_use]
    pub fn endless(self) -> Self {
        Self { rows: None, ..self }
    }

    /// Columns beyond the fewest.
    fn spare(self) -> usize {
        self.columns.saturating_sub(COLUMNS)
    }
}

/// Asks the node.
///
/// # Errors
/// [`Silence`].
pub async fn ask(node: &Node) -> Result<Said, Silence> {
    node.ask("/status").await
}

/// Draws until the terminal's user ends it. A node that falls silent is said to be; what was last known stays.
pub async fn watch(node: &Node, first: Said, every: Duration) {
    let mut known = (first.body, Instant::now());
    let mut silence = None;
    loop {
        let size = Screen::of_terminal();
        // The line below the last one stays empty, or all would move up.
        let mut rows = size.rows.map(|rows| rows.saturating_sub(1));
        let mut first = String::new();
        if let Some(why) = &silence {
            let age = u64::try_from(known.1.elapsed().as_millis()).unwrap_or(u64::MAX);
            let said = format!("NO ANSWER, this is {} old: {why}", length(age));
            first = cut(&said, size.columns) + "\n";
            rows = rows.map(|rows| rows.saturating_sub(1));
        }
        let screen = first + &render(&known.0, Screen { rows, ..size });
        // Each line is cleared behind its end, so that nothing flickers.
        print::answer(&format!("\x1b[H{}\x1b[J", screen.replace('\n', "\x1b[K\r\n")));
        tokio::time::sleep(every).await;
        match ask(node).await {
            Ok(said) => (known, silence) = ((said.body, Instant::now()), None),
            Err(why) => silence = Some(why.to_string()),
        }
    }
}

/// The status as lines that fit the screen: what matters most comes first, what does not fit is left out.
pub fn render(status: &Value, screen: Screen) -> String {
    let mut lines = head(status);
    lines.extend(pools(status));
    lines.extend(flow(status));
    lines.extend(upkeep(status));
    let (failed, running_jobs) = (list(&status["failures"]).len(), list(&status["running"]).len());
    let left = screen.rows.map(|rows| rows.saturating_sub(lines.len() + 2));
    let (most_failures, most_jobs) = match left {
        None => (LISTED, LISTED),
        Some(left) => {
            let failures = failed.min(left - running_jobs.min(left / 2));
            (failures, left - failures)
        }
    };
    lines.extend(failures(status, most_failures, screen));
    lines.extend(running(status, most_jobs, screen));
    lines.truncate(screen.rows.unwrap_or(usize::MAX).max(1));
    let cut: Vec<_> = lines.iter().map(|line| cut(line, screen.columns)).collect();
    cut.join("\n") + "\n"
}

fn head(status: &Value) -> Vec<String> {
    let worker = &status["worker"];
    let ready = match status["ready"].as_bool() {
        Some(true) => "ready".to_owned(),
        _ => format!("NOT READY: {}", text(&status["not_ready_because"])),
    };
    let mut lines = vec![
        format!("{}  {}, {ready}", text(&worker["id"]), text(&status["status"])),
        format!(
            "version {}, {}, up {}, at {}",
            text(&worker["version"]),
            text(&worker["mode"]),
            time_of(&worker["uptime_ms"]),
            text(&status["time"]).get(11..19).unwrap_or_default()
        ),
    ];
    let drain = &status["drain"];
    if drain["draining"] == true {
        lines.push(format!(
            "DRAINING for {}: {} left, soft limit in {}, hard limit in {}",
            time_of(&drain["for_ms"]),
            counted(number(&drain["jobs_left"]), "job"),
            time_of(&drain["soft_limit_left_ms"]),
            time_of(&drain["hard_limit_left_ms"])
        ));
    }
    lines.push(String::new());
    lines
}

fn pools(status: &Value) -> Vec<String> {
    let title = format!("{}{}waiting", column("pool", 6), column("slots in use", BAR + 14));
    let pools = list(&status["pools"]).iter().map(|pool| {
        let name = column(&text(&pool["name"]), 6);
        if pool["answers"] != true {
            return format!("{name}does not answer");
        }
        let (used, slots) = (number(&pool["running"]), number(&pool["slots"]));
        let queued = number(&pool["queued"]);
        let bound = pool["max_queue_size"].as_u64();
        // Without a bound nothing says how full it is.
        let queue = match bound {
            Some(bound) => {
                let status = text(&pool["overload_status"]);
                format!("[{}] {queued}/{bound} {status}", bar(queued, bound))
            }
            None => format!("{queued}, no bound"),
        };
        let slots_words = column(&format!("{used}/{slots}"), 11);
        format!("{name}[{}] {slots_words}{queue}", bar(used, slots))
    });
    std::iter::once(title)
        .chain(pools)
        .chain([String::new()])
        .collect()
}

fn bar(part: u64, whole: u64) -> String {
    let width = BAR as u64;
    let filled = part.saturating_mul(width).saturating_add(whole / 2) / whole.max(1);
    let filled = usize::try_from(filled.clamp(u64::from(part > 0), width)).unwrap_or(BAR);
    format!("{}{}", "#".repeat(filled), ".".repeat(BAR - filled))
}

fn flow(status: &Value) -> Vec<String> {
    let totals = &status["totals"];
    let failed = ["error", "timeout", "cancelled", "unreadable"];
    let sum = |of: &Value| failed.iter().map(|key| number(&of[*key])).sum::<u64>();
    let all = |of: &Value| number(&of["success"]) + sum(of) + number(&of["rejected"]);
    let buckets = list(&status["throughput"]["buckets"]);
    let drawn = &buckets[buckets.len().saturating_sub(DRAWN)..];
    let counts: Vec<u64> = drawn.iter().map(all).collect();
    let most = counts.iter().copied().max().unwrap_or_default();
    let curve = counts.iter().map(|count| {
        let steps = CURVE.len() as u64 - 1;
        let step = (count * steps).div_ceil(most.max(1));
        char::from(CURVE[usize::try_from(step.min(steps)).unwrap_or_default()])
    });
    let bucket_s = number(&status["throughput"]["bucket_s"]).max(1);
    // The last one is still being filled.
    let full = &counts[..counts.len().saturating_sub(1)];
    let latest: u64 = full.iter().rev().take(6).sum();
    let last = |key: &str| {
        let known = drawn.iter().rev().find(|bucket| bucket[key].is_number());
        known
            .and_then(|bucket| bucket[key].as_f64())
            .map_or("-".to_owned(), milliseconds)
    };
    vec![
        format!(
            "ended  {}/s now; in all {} success, {} failed, {} refused",
            tenths(latest, 6 * bucket_s),
            number(&totals["success"]),
            sum(totals),
            number(&totals["rejected"])
        ),
        format!(
            "took   p50 {}, p95 {} from first handling to end",
            last("p50_ms"),
            last("p95_ms")
        ),
        format!(
            "       |{}| top {}/s",
            curve.collect::<String>(),
            tenths(most, bucket_s)
        ),
    ]
}

fn upkeep(status: &Value) -> Vec<String> {
    let (source, held, leases) = (&status["consumption"], &status["held"], &status["leases"]);
    let (publisher, outbox) = (&status["publisher"], &status["outbox"]);
    let last = match source["last_delivery_age_ms"].as_u64() {
        Some(age) => format!("last delivery {} ago", length(age)),
        None => "nothing delivered yet".to_owned(),
    };
    let rebuilds = match number(&source["pull_rebuilds"]) {
        0 => String::new(),
        rebuilds => format!(", {}", counted(rebuilds, "rebuild")),
    };
    let connected = match (source["connected"].as_bool(), source["consuming"].as_bool()) {
        (Some(true), Some(true)) => "consuming",
        (Some(true), _) => "connected, NOT CONSUMING",
        _ if source["connecting"] == false => "NOT TRIED YET",
        _ => "NOT CONNECTED",
    };
    let mut lines = vec![
        format!(
            "source {connected} ({}), {last}, {} in all{rebuilds}",
            text(&source["phase"]).replace('_', " "),
            number(&source["deliveries"])
        ),
        format!(
            "held   {}/{} jobs, {}/{} KiB; {} ({} lapsed, {} in all), renewed {} ago",
            number(&held["jobs"]),
            number(&held["max_jobs"]),
            number(&held["bytes"]) / 1024,
            number(&held["max_bytes"]) / 1024,
            counted(number(&leases["held"]), "lease"),
            number(&leases["lapsed"]),
            number(&leases["lapsed_total"]),
            time_of(&leases["oldest_renewal_age_ms"])
        ),
        format!(
            "out    {} unconfirmed, outbox {}, claims {}, {}, {}",
            number(&publisher["unconfirmed"]),
            number(&outbox["entries"]),
            number(&status["claims"]["entries"]),
            counted(number(&status["restarts"]["total"]), "restart"),
            counted(number(&status["stray_threads"]), "stray thread")
        ),
    ];
    lines.extend(breakers(&status["circuit_breakers"]));
    lines.push(String::new());
    lines
}

/// How many circuit breakers are not closed; nothing while all are, or their flag is off.
fn breakers(breakers: &Value) -> Option<String> {
    let kinds = breakers["by_kind"].as_object()?;
    let sum = |state: &str| kinds.values().map(|kind| number(&kind[state])).sum::<u64>();
    let (open, half_open) = (sum("open"), sum("half_open"));
    (open + half_open > 0).then(|| {
        let total = counted(number(&breakers["total"]), "circuit breaker");
        format!("alone  {open} open, {half_open} half-open of {total}")
    })
}

fn failures(status: &Value, most: usize, screen: Screen) -> Vec<String> {
    let failures = list(&status["failures"]);
    let lines = failures.iter().take(most).map(|failure| {
        let count = match number(&failure["count"]) {
            0 | 1 => String::new(),
            count => format!(" x{count}"),
        };
        let code = format!("{}{count}", text(&failure["error_code"]));
        let at = failure["at_ms"].as_u64().unwrap_or_default() / 1000 % 86_400;
        let time = format!("{:02}:{:02}:{:02}", at / 3600, at / 60 % 60, at % 60);
        let who = format!(
            "{} {}",
            or_dash(&failure["assignment_id"]),
            text(&failure["job_type"])
        );
        format!(
            "{time} {} {} {}",
            column(&code, 22),
            column(&who, 24 + screen.spare() / 2),
            text(&failure["message"])
        )
    });
    let title = match failures.len() {
        0 => "failures: none since the start".to_owned(),
        count => format!("failures (latest of {count})"),
    };
    std::iter::once(title).chain(lines).collect()
}

fn running(status: &Value, most: usize, screen: Screen) -> Vec<String> {
    let running = list(&status["running"]);
    let lines = running.iter().take(most).map(|job| {
        let attempt = format!("attempt {}", number(&job["attempt"]));
        let left = format!("{} left", time_of(&job["deadline_left_ms"]));
        let kind = column(&text(&job["job_type"]), 14);
        let id = column(&text(&job["assignment_id"]), 26 + screen.spare());
        format!(
            "{} {kind} {id} {attempt}, {left}",
            column(&time_of(&job["running_ms"]), 13)
        )
    });
    let title = match running.len() {
        0 => "running: nothing".to_owned(),
        count => format!("running (longest of {count})"),
    };
    std::iter::once(title).chain(lines).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn text(value: &Value) -> String {
    clean(value.as_str().unwrap_or("?"))
}

fn or_dash(value: &Value) -> String {
    clean(value.as_str().unwrap_or("-"))
}

fn time_of(value: &Value) -> String {
    value.as_u64().map_or("-".to_owned(), length)
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1_000.0),
    }
}

/// A quotient with one digit after the point.
fn tenths(count: u64, of: u64) -> String {
    let tenths = (count * 10 + of / 2) / of.max(1);
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_line_fits_and_nothing_steers_the_terminal_whatever_the_ids_are() {
        let hostile = "\u{1b}[2J\u{9b}31m<script>\r\n日本語\u{202e}".repeat(20);
        let failure = json!({"at_ms": 1, "assignment_id": hostile, "job_type": hostile, "error_code": "HTTP_ERROR",
                             "count": 3, "message": hostile});
        let job = json!({"assignment_id": hostile, "job_type": hostile, "running_ms": 61_000, "attempt": 2,
                         "deadline_left_ms": 5});
        let status = json!({
            "worker": {"id": hostile, "version": hostile, "mode": hostile, "uptime_ms": 5}, "status": hostile,
            "ready": false, "not_ready_because": hostile, "time": hostile,
            "pools": [{"name": hostile, "answers": true, "running": 3, "slots": 2, "queued": u64::MAX, "max_queue_size": 5,
                       "overload_status": hostile}, {"name": "gpu", "answers": false}],
            "failures": vec![failure; 50], "running": vec![job; 50],
        });
        let screen = render(&status, Screen::default());
        for line in screen.lines() {
            let columns: usize = line.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum();
            assert!(columns <= COLUMNS, "{columns}: {line}");
            assert!(
                !line.chars().any(char::is_control) && !line.contains('\u{202e}'),
                "{line:?}"
            );
        }
        assert!(screen.lines().count() < 35, "{screen}");
        // As many lines as there are, the state of the node first; and as many columns.
        for rows in [1, 2, 10, 20, 24, 40, 60] {
            let (columns, rows) = (120, Some(rows));
            let screen = render(&status, Screen { columns, rows });
            assert_eq!(Some(screen.lines().count()), rows, "{screen}");
            assert!(screen.contains("\\u{1b}"), "{screen}");
        }
        let wide = Screen {
            columns: 120,
            rows: None,
        };
        let longest = |screen: &str| screen.lines().map(str::len).max();
        assert!(longest(&render(&status, wide)) > longest(&screen));
        // Nothing is known, and nothing panics.
        assert!(render(&json!({}), Screen::default()).contains("running: nothing"));
    }

    #[test]
    fn what_is_not_so_is_not_drawn() {
        let status = json!({
            "pools": [{"name": "io", "answers": true, "running": 1, "slots": 2, "queued": 50}],
            "consumption": {"connected": false, "connecting": false, "phase": "preparing"},
            "leases": {"held": 1, "lapsed": 0, "lapsed_total": 4},
            "drain": {"draining": true, "jobs_left": 1},
        });
        let screen = render(&status, Screen::default());
        for words in [
            "50, no bound",
            "source NOT TRIED YET",
            "1 lease (0 lapsed, 4 in all)",
            ": 1 job left,",
            "from first handling to end",
        ] {
            assert!(screen.contains(words), "{words}: {screen}");
        }
    }

    #[test]
    fn bars_show_that_something_is_there_and_never_more_than_all() {
        assert_eq!(bar(0, 10), ".".repeat(BAR));
        assert_eq!(bar(1, 1_000), format!("#{}", ".".repeat(BAR - 1)));
        assert_eq!(bar(20, 10), "#".repeat(BAR));
        assert_eq!(bar(1, 0), "#".repeat(BAR));
    }
}
