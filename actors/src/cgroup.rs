//! What the control group of this process lets it use: in a container the machine's processors and memory are not ours.
//!
//! Neighbours: [`crate::process_stats`] measures against it. Reads both versions of control groups; says nothing where the
//! kernel does not tell. A limit of any group above ours is ours too: the smallest counts.

use std::path::{Component, Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// Which groups this process is in.
const MEMBERSHIP: &str = "/proc/self/cgroup";
/// At this many bytes a limit on memory is none: version 1 writes a number near the largest that fits.
const UNLIMITED_BYTES: u64 = 1 << 60;

/// Limits; nothing where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Processors, as a share of time: 0.5 is half of one.
    pub cpus: Option<f64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// Those of this process now.
    pub fn read() -> Self {
        let membership = std::fs::read_to_string(MEMBERSHIP).unwrap_or_default();
        Self::of(&membership, Path::new(MOUNT))
    }

    /// `membership` as in `/proc/self/cgroup`, groups mounted below `mount`.
    fn of(membership: &str, mount: &Path) -> Self {
        let mut limits = Self::default();
        for line in membership.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let has = |name| controllers.split(',').any(|controller| controller == name);
            for group in groups(&mount.join(controllers), mount, path, controllers.is_empty()) {
                if controllers.is_empty() {
                    limits.note(cpus_of_version_2(&group), number(&group.join("memory.max")));
                }
                if has("cpu") {
                    limits.note(cpus_of_version_1(&group), None);
                }
                if has("memory") {
                    limits.note(None, number(&group.join("memory.limit_in_bytes")));
                }
            }
        }
        limits
    }

    fn note(&mut self, cpus: Option<f64>, memory_bytes: Option<u64>) {
        let memory_bytes = memory_bytes.filter(|bytes| *bytes < UNLIMITED_BYTES);
        self.cpus = self.cpus.into_iter().chain(cpus).reduce(f64::min);
        self.memory_bytes = self.memory_bytes.into_iter().chain(memory_bytes).min();
    }
}

/// The group and all above it. In a container the path may be the one outside, and the mount begins with our group: what
/// does not exist is passed over when it is read.
fn groups(hierarchy: &Path, mount: &Path, path: &str, is_unified: bool) -> Vec<PathBuf> {
    let root = if is_unified { mount } else { hierarchy };
    let below = Path::new(path).components();
    let below: PathBuf = below
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    below.ancestors().map(|group| root.join(group)).collect()
}

/// `max 100000`, or quota and period in microseconds.
fn cpus_of_version_2(group: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(group.join("cpu.max")).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    share(numbers.next()?.ok()?, numbers.next()?.ok()?)
}

/// A quota of -1 is none.
fn cpus_of_version_1(group: &Path) -> Option<f64> {
    let read = |name| {
        std::fs::read_to_string(group.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    share(read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
}

fn share(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of files, removed at the end.
    struct Mount(PathBuf);

    impl Mount {
        fn with(files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("caf-cgroup-{}", uuid::Uuid::new_v4().simple()));
            for (path, content) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().expect("has one")).expect("can be made");
                std::fs::write(path, content).expect("can be written");
            }
            Self(root)
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn limits(cpus: Option<f64>, memory_bytes: Option<u64>) -> Limits {
        Limits { cpus, memory_bytes }
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let mount = Mount::with(&[
            ("pods/one/cpu.max", "max 100000\n"),
            ("pods/one/memory.max", "300\n"),
            ("pods/cpu.max", "250000 100000\n"),
            ("pods/memory.max", "200\n"),
        ]);
        let found = Limits::of("0::/pods/one\n", &mount.0);
        assert_eq!(found, limits(Some(2.5), Some(200)));
    }

    #[test]
    fn in_a_container_the_mount_itself_is_our_group() {
        let mount = Mount::with(&[("cpu.max", "50000 100000\n"), ("memory.max", "max\n")]);
        for path in ["0::/", "0::/docker/outside", "0::/../../sibling"] {
            assert_eq!(Limits::of(path, &mount.0), limits(Some(0.5), None), "{path}");
        }
    }

    #[test]
    fn version_1_has_a_hierarchy_for_each_controller() {
        let mount = Mount::with(&[
            ("cpu,cpuacct/a/cpu.cfs_quota_us", "150000\n"),
            ("cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
            ("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("memory/a/memory.limit_in_bytes", "512\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let found = Limits::of("5:cpu,cpuacct:/a\n4:memory:/a\n1:name=systemd:/\n", &mount.0);
        assert_eq!(found, limits(Some(1.5), Some(512)));
    }

    #[test]
    fn what_cannot_be_read_limits_nothing() {
        let mount = Mount::with(&[("cpu.max", "nonsense"), ("memory.max", "")]);
        for membership in ["0::/", "", "broken", "0:", "0::"] {
            assert_eq!(
                Limits::of(membership, &mount.0),
                Limits::default(),
                "{membership}"
            );
        }
    }
}
