//! What a process used, as the kernel counts it. Pure but for reading /proc.
//!
//! Neighbours: generator and comparison ask it. Works on Linux only, as the node does.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// Clock ticks per second of /proc/pid/stat: fixed on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;

/// A process at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Processor time so far, user and system, all threads, in seconds. Counted in steps of 10 ms.
    pub cpu_s: f64,
    /// Most memory ever resident, in KiB.
    pub peak_kib: u64,
    /// Memory resident now, in KiB.
    pub resident_kib: u64,
    /// That part of it which is no file: heap and stacks, in KiB.
    pub anonymous_kib: u64,
}

/// Reads it.
///
/// # Errors
/// When there is no such process, or no /proc.
pub fn usage(pid: u32) -> Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    parse(&read("stat")?, &read("status")?).with_context(|| format!("/proc/{pid} is not as expected"))
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name before may hold anything, also blanks and brackets.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Usage {
        cpu_s: (ticks(11)? + ticks(12)?) / TICKS_PER_S,
        peak_kib: kib("VmHWM:")?,
        resident_kib: kib("VmRSS:")?,
        anonymous_kib: kib("RssAnon:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_whatever_the_name_of_the_process() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 2 0 1 1 1";
        let status = "Name:\ta\nVmHWM:\t    3000 kB\nVmRSS:\t    2000 kB\nRssAnon:\t    1000 kB\n";
        let expected = Usage {
            cpu_s: 3.0,
            peak_kib: 3000,
            resident_kib: 2000,
            anonymous_kib: 1000,
        };
        assert_eq!(parse(stat, status), Some(expected));
        assert_eq!(parse("", status), None);
    }

    #[test]
    fn this_process_uses_something_and_one_that_is_gone_is_an_error() {
        assert!(usage(std::process::id()).is_ok_and(|usage| usage.peak_kib > 0));
        assert!(usage(u32::MAX).is_err());
    }
}
