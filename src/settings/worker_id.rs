//! The name of this worker: as set, else host name and a random suffix. Found once, at start.

use caf_protocol::ids::MAX_ID_BYTES;
use uuid::Uuid;

/// Bytes of the random suffix with its dash.
const SUFFIX_BYTES: usize = 9;

/// The configured name, or a new one made of `host` and eight random digits.
pub fn resolve(configured: Option<&str>, host: Option<&str>) -> String {
    if let Some(id) = configured {
        return id.to_owned();
    }
    let mut host: String = host
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    host.truncate(MAX_ID_BYTES - SUFFIX_BYTES);
    let host = match host.trim_matches('-') {
        "" => "worker",
        name => name,
    };
    let random = Uuid::new_v4().simple().to_string();
    format!("{host}-{}", &random[..SUFFIX_BYTES - 1])
}

/// The name of this host as the system gives it.
pub fn host_name() -> Option<String> {
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
}

/// Whether a configured name can stand in a subject and in a log line.
pub fn is_valid(id: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&id.len())
        && !id
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || matches!(c, '*' | '>'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_without_a_name_gets_a_valid_and_new_one() {
        let long = "x".repeat(300);
        for host in [None, Some(""), Some("a.b c*"), Some("höst"), Some(long.as_str())] {
            let (first, second) = (resolve(None, host), resolve(None, host));
            assert!(is_valid(&first), "{first:?}");
            assert_ne!(first, second);
        }
        assert!(resolve(None, Some("node1.example")).starts_with("node1-example-"));
        assert!(resolve(None, Some("...")).starts_with("worker-"));
    }

    #[test]
    fn a_configured_name_is_kept() {
        assert_eq!(resolve(Some("w 1"), Some("host")), "w 1");
    }

    #[test]
    fn names_that_break_subjects_or_log_lines_are_refused() {
        for bad in ["", "a b", "a\nb", "*", "a>", "\0", &"x".repeat(129)] {
            assert!(!is_valid(bad), "{bad:?}");
        }
        assert!(is_valid("worker_4711") && is_valid("a.b") && is_valid(&"x".repeat(128)));
    }
}
