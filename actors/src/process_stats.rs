//! What this process uses, read from the kernel. Zeros where the kernel does not tell.

use std::time::Instant;

/// Clock ticks per second in `/proc`: fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes per page in `/proc/self/statm` on the platforms that the worker is built for.
const PAGE_BYTES: u64 = 4096;

/// Measures the processor share between two calls.
pub struct ProcessStats {
    last: (Instant, f64),
}

impl ProcessStats {
    /// Begins to measure.
    pub fn start() -> Self {
        Self {
            last: (Instant::now(), cpu_seconds()),
        }
    }

    /// Share of all processors since the last call, 0..1.
    pub fn cpu_share(&mut self) -> f64 {
        let now = (Instant::now(), cpu_seconds());
        let wall = now.0.duration_since(self.last.0).as_secs_f64();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let used = now.1 - self.last.1;
        self.last = now;
        let available = wall * f64::from(u32::try_from(processors).unwrap_or(1));
        if available > 0.0 {
            (used / available).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

/// Resident memory in bytes.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .unwrap_or(0)
        * PAGE_BYTES
}

/// Processor time of this process so far, in the kernel and outside, in seconds.
pub fn cpu_seconds() -> f64 {
    let stat = own_stat();
    (stat_field(&stat, 11) + stat_field(&stat, 12)) / TICKS_PER_SECOND
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_shows_a_share_and_memory() {
        let mut stats = ProcessStats::start();
        let until = Instant::now() + std::time::Duration::from_millis(200);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        assert!(stats.cpu_share() > 0.0);
        assert!(resident_bytes() > 100_000);
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
