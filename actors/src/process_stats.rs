//! What this process uses, read from the kernel, measured against what it may use.
//!
//! Neighbours: [`crate::vitals`] asks, for heartbeat and discovery, and whoever is scraped. What the kernel does not tell is absent.

use std::time::{Duration, Instant};

use rustix::thread::sched_getaffinity;
use rustix::time::{ClockId, clock_gettime};

use crate::cgroup::Limits;

/// Shortest time between two measurements: a share over less says nothing, and whoever asks often costs nothing.
const SHORTEST_SPAN: Duration = Duration::from_millis(500);

/// Clock ticks per second in `/proc`: fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the process uses, and may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Share of `cpus` over the last half second or more, 0..1.
    pub cpu: f64,
    /// Processors that it may use: those it may run on, or the quota of its control group when that is less.
    pub cpus: f64,
    /// Resident memory in bytes.
    pub mem_bytes: Option<u64>,
    /// Limit of its control group in bytes; nothing without one.
    pub mem_limit_bytes: Option<u64>,
}

/// Measures from one look to the next.
pub struct ProcessStats {
    at: Instant,
    cpu_time: Duration,
    last: Usage,
}

impl ProcessStats {
    /// Begins to measure. Until the first span is over the share is 0.
    pub fn start() -> Self {
        Self {
            at: Instant::now(),
            cpu_time: cpu_time(),
            last: usage(0.0, Limits::read()),
        }
    }

    /// What was measured last, measured anew when that was a while ago.
    pub fn usage(&mut self, now: Instant) -> Usage {
        let span = now.saturating_duration_since(self.at);
        if span >= SHORTEST_SPAN {
            let used = cpu_time();
            let limits = Limits::read();
            self.last = usage(0.0, limits);
            self.last.cpu = share(used.saturating_sub(self.cpu_time), span, self.last.cpus);
            (self.at, self.cpu_time) = (now, used);
        }
        self.last
    }
}

fn usage(cpu: f64, limits: Limits) -> Usage {
    Usage {
        cpu,
        cpus: processors().min(limits.cpus.unwrap_or(f64::INFINITY)),
        mem_bytes: resident_bytes(),
        mem_limit_bytes: limits.memory_bytes,
    }
}

/// Processor time of this process so far, in the kernel and outside, in seconds.
pub fn cpu_seconds() -> f64 {
    cpu_time().as_secs_f64()
}

/// Threads of this process.
pub fn threads() -> f64 {
    stat_field(&own_stat(), 17)
}

/// When this process began, in seconds since the Unix epoch; nothing where the kernel does not say.
pub fn start_time_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    let booted: f64 = booted.trim().parse().ok()?;
    Some(booted + stat_field(&own_stat(), 19) / TICKS_PER_SECOND)
}

/// Files, sockets and the like that this process has open; nothing where the kernel does not say.
pub fn open_files() -> Option<usize> {
    // One of them is the directory that is read here.
    let files = std::fs::read_dir("/proc/self/fd").ok()?;
    Some(files.count().saturating_sub(1))
}

/// How many it may have open; nothing where there is no limit, or the kernel does not say.
pub fn max_open_files() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    soft.split_whitespace().next()?.parse().ok()
}

fn own_stat() -> String {
    std::fs::read_to_string("/proc/self/stat").unwrap_or_default()
}

/// A number of `/proc/self/stat`, counted from the first field after the command name, which may hold spaces.
fn stat_field(stat: &str, index: usize) -> f64 {
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields
        .split_whitespace()
        .nth(index)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0.0)
}

/// Time used of the time that was there.
fn share(used: Duration, span: Duration, cpus: f64) -> f64 {
    let available = span.as_secs_f64() * cpus;
    if available > 0.0 {
        (used.as_secs_f64() / available).clamp(0.0, 1.0)
    } else {
        0.0
    }
}

/// Processors that this process may run on.
fn processors() -> f64 {
    let allowed = sched_getaffinity(None).map_or(1, |set| set.count());
    f64::from(allowed.max(1))
}

/// Processor time of all threads since the process began.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Resident memory; nothing where `/proc` is missing.
pub fn resident_bytes() -> Option<u64> {
    resident_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// From the text of `/proc/self/status`, which counts in kB whatever the size of a page.
fn resident_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_shows_a_share_and_memory() {
        let mut stats = ProcessStats::start();
        let begun = cpu_time();
        while cpu_time() - begun < Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        let usage = stats.usage(stats.at + SHORTEST_SPAN);
        assert!(usage.cpu > 0.0 && usage.cpu <= 1.0, "{usage:?}");
        assert!(usage.mem_bytes > Some(100_000), "{usage:?}");
        assert!(usage.cpus > 0.0, "{usage:?}");
    }

    #[test]
    fn who_asks_again_at_once_gets_the_same_answer() {
        let mut stats = ProcessStats::start();
        let at = stats.at + SHORTEST_SPAN;
        let first = stats.usage(at);
        assert_eq!(stats.usage(at + SHORTEST_SPAN / 2), first);
    }

    #[test]
    fn the_share_is_one_of_what_may_be_used() {
        let second = Duration::from_secs(1);
        assert_eq!(share(second / 2, second, 2.0), 0.25);
        assert_eq!(share(second / 2, second, 0.5), 1.0, "all of half a processor");
        assert_eq!(share(second, second, 0.5), 1.0);
        assert_eq!(share(second, Duration::ZERO, 1.0), 0.0);
    }

    #[test]
    fn memory_that_the_kernel_does_not_tell_is_absent() {
        assert_eq!(resident_in("Name:\tx\nVmRSS:\t    1024 kB\n"), Some(1_048_576));
        for text in ["", "VmRSS:", "VmRSS: kB", "VmRSS: -1 kB", "VmRSS: 5"] {
            assert_eq!(resident_in(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_kernel_tells_of_threads_files_and_the_start() {
        let _file = std::fs::File::open("/proc/self/stat").expect("is there");
        assert!(threads() >= 1.0);
        let files = open_files().expect("is told");
        assert!(files >= 1);
        assert!(max_open_files().expect("is told") >= 1.0);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("is later")
            .as_secs_f64();
        let started = start_time_seconds().expect("is told");
        assert!((now - 86_400.0..=now + 1.0).contains(&started), "{started}");
    }
}
