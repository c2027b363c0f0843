//! `alerts/`, judged by promtool: rules are valid, each alert comes at its minute, and has a runbook.
//!
//! Neighbours: whether their metrics exist is tried with a working node, in `boards.rs`.

use std::process::{Command, Output};

use caf_testkit::{TempDir, programs};

use crate::deploy::{shipped, text_of};

const RULES: &str = "alerts/worker-alerts.yml";
const TESTS: &str = "alerts/worker-alerts.test.yml";
/// Contract 8.5: name, limit, time, severity.
const CONTRACT: [(&str, &str, &str, &str); 8] = [
    ("WorkerHighTaskErrorRate", "> 0.1", "5m", "warning"),
    ("WorkerHighTaskLatency", "> 2", "5m", "warning"),
    ("WorkerVeryHighTaskLatency", "> 5", "5m", "critical"),
    ("WorkerHighQueueDepth", "> 100", "5m", "warning"),
    ("WorkerCriticalQueueDepth", "> 500", "2m", "critical"),
    ("WorkerUnhealthy", "== 0", "1m", "critical"),
    ("WorkerHighActiveTasks", "> 50", "5m", "warning"),
    ("WorkerHighFlowExecutionDuration", "> 30", "5m", "warning"),
];
/// What a good worker adds.
const OWN: [&str; 6] = [
    "WorkerNotConsuming",
    "WorkerOutboxNotDraining",
    "WorkerLeaseLost",
    "WorkerRestartBudgetLow",
    "WorkerDeadLettersGrowing",
    "WorkerDrainStuck",
];

/// One rule, as text.
struct Rule {
    name: String,
    text: String,
}

impl Rule {
    /// The lines of its expression.
    fn expression(&self) -> &str {
        let (_, rest) = self.text.split_once("        expr:").expect("has an expression");
        let end = rest
            .find("\n        for:")
            .or_else(|| rest.find("\n        labels:"));
        &rest[..end.expect("has labels")]
    }

    fn value(&self, key: &str) -> Option<&str> {
        let line = self.text.lines().find_map(|line| line.trim().strip_prefix(key));
        line.map(|value| value.trim_start_matches(':').trim())
    }
}

/// Every rule of the file, in its order.
fn rules() -> Vec<Rule> {
    let text = text_of(RULES);
    let rules = text.split("      - alert: ").skip(1).map(|text| Rule {
        name: text.lines().next().unwrap_or_default().to_owned(),
        text: text.to_owned(),
    });
    rules.collect()
}

fn promtool(arguments: &[&str], directory: &std::path::Path) -> Output {
    Command::new(programs::prometheus("promtool").expect("is installed"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("can be started")
}

#[track_caller]
fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn rules_are_valid_and_each_alert_fires_at_its_minute_and_not_before() {
    let root = shipped("");
    assert_success(&promtool(&["check", "rules", RULES], &root));
    assert_success(&promtool(&["test", "rules", TESTS], &root));
}

#[test]
fn each_alert_says_how_bad_it_is_and_has_a_runbook() {
    let text = text_of(RULES);
    assert!(text.contains("  - name: worker_alerts\n    interval: 30s\n"));
    let runbooks = text_of("alerts/README.md");
    let rules = rules();
    for Rule { name, .. } in &rules {
        let rule = rules.iter().find(|rule| rule.name == *name).expect("is there");
        assert!(
            ["warning", "critical"].contains(&rule.value("severity").unwrap_or_default()),
            "{name}"
        );
        assert_eq!(rule.value("component"), Some("worker"), "{name}");
        for annotation in ["summary", "description"] {
            assert!(
                rule.value(annotation).is_some_and(|text| !text.is_empty()),
                "{name}"
            );
        }
        let anchor = format!("alerts/README.md#{}", name.to_lowercase());
        assert_eq!(rule.value("runbook"), Some(anchor.as_str()));
        let (_, rest) = runbooks
            .split_once(&format!("\n## {name}\n"))
            .unwrap_or_else(|| panic!("{name}: no runbook"));
        let paragraph = rest.split("\n## ").next().unwrap_or_default();
        // How bad, as the rule says; what to look at; what to do.
        let severity = rule.value("severity").unwrap_or_default();
        assert!(
            paragraph.to_lowercase().contains(&format!("*{severity}, ")),
            "{name}: {paragraph}"
        );
        for part in ["**First look:**", "**Mend:**"] {
            assert!(paragraph.contains(part), "{name}: {paragraph}");
        }
    }
    assert_eq!(runbooks.matches("\n## ").count(), rules.len());
}

#[test]
fn the_alerts_of_the_contract_have_its_limits_and_times() {
    let rules = rules();
    for (rule, (name, limit, time, severity)) in rules.iter().zip(CONTRACT) {
        assert_eq!(
            (rule.name.as_str(), rule.value("for"), rule.value("severity")),
            (name, Some(time), Some(severity))
        );
        assert!(
            rule.expression().trim_end().ends_with(limit),
            "{name}: {}",
            rule.expression()
        );
    }
    for name in OWN {
        assert!(rules.iter().any(|rule| rule.name == name), "{name}");
    }
}

/// The rule with one thing in it changed, each in turn: its time, and each limit a fifth off or turned round.
fn broken(rule: &Rule) -> Vec<String> {
    let mut all = Vec::new();
    match rule.value("for") {
        Some(time) => {
            let minutes: u32 = time.trim_end_matches('m').parse().expect("is in minutes");
            for other in [minutes - 1, minutes + 1] {
                let line = |minutes| format!("        for: {minutes}m\n");
                all.push(rule.text.replace(&line(minutes), &line(other)));
            }
        }
        None => all.push(
            rule.text
                .replace("        labels:\n", "        for: 1m\n        labels:\n"),
        ),
    }
    let expression = rule.expression();
    let words: Vec<_> = expression.split(' ').collect();
    for (at, pair) in words.windows(2).enumerate() {
        let number = pair[1]
            .split(|c: char| !c.is_ascii_digit() && c != '.')
            .next()
            .unwrap_or_default();
        let limit: Option<f64> = number.parse().ok();
        let others = match (pair[0], limit) {
            (">" | ">=" | "<", Some(limit)) if limit > 0.0 => {
                let near = |factor: f64| (pair[0], (limit * factor).to_string());
                vec![near(0.8), near(1.2)]
            }
            (">", Some(_)) => vec![("<=", number.to_owned())],
            ("==", Some(_)) => vec![("!=", number.to_owned())],
            _ => Vec::new(),
        };
        for (sign, limit) in others {
            let mut words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            words[at] = sign.to_owned();
            words[at + 1] = words[at + 1].replacen(number, &limit, 1);
            all.push(rule.text.replacen(expression, &words.join(" "), 1));
        }
    }
    assert!(all.iter().all(|text| *text != rule.text), "{}", rule.name);
    all
}

/// A limit or a time that somebody changes by mistake must not pass.
#[test]
fn no_limit_and_no_time_of_an_alert_can_change_without_its_tests_failing() {
    let directory = TempDir::new("alerts").expect("can be made");
    let (rules_text, tests) = (text_of(RULES), text_of(TESTS));
    let (head, groups) = tests.split_once("tests:\n").expect("has tests");
    let (rules_head, _) = rules_text.split_once("      - alert: ").expect("has rules");
    // All alerts with all their tests take long: of each, its own.
    let groups: Vec<_> = groups.split("  - name: ").skip(1).collect();
    for rule in rules() {
        let own = groups
            .iter()
            .filter(|group| group.contains(&format!("alertname: {}\n", rule.name)));
        let own: Vec<_> = own.map(|group| format!("  - name: {group}")).collect();
        assert!(!own.is_empty(), "{} has no test", rule.name);
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("can be written");
        };
        write("test.yml", &format!("{head}tests:\n{}", own.concat()));
        let test = || promtool(&["test", "rules", "test.yml"], directory.path());
        let with = |text: &str| write("worker-alerts.yml", &format!("{rules_head}      - alert: {text}"));
        with(&rule.text);
        assert_success(&test());
        for text in broken(&rule) {
            with(&text);
            let ran = test();
            let said = said(&ran);
            assert!(
                !ran.status.success() && said.contains("FAILED"),
                "nobody notices:\n{text}\n{said}"
            );
        }
    }
}
