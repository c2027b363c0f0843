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

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command name may hold spaces; the fields of interest come after its closing bracket.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
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
}
