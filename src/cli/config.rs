//! `config check`, `config flags`, `config show` and `config schema`.
//!
//! What is said of single policy files and flags comes in lines `[INFO]`, `[OK]`, `[WARN]` and `[ERROR]`, the last of
//! which names the worst: `scripts/worker/*` make their exit codes of it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::settings::{complain, with_settings};
use super::{CheckArgs, ConfigCommand, OutputFormat, print};
use crate::exit::Exit;
use crate::settings::catalogue::Catalogue;
use crate::settings::feature::Feature;
use crate::settings::flags::{self, Untold};
use crate::settings::in_force::InForce;
use crate::settings::load::policy_file::PolicyFile;
use crate::settings::load::{self, Loaded, Sources};
use crate::settings::{catalogue, not_yet, show};

/// Answers a question about the settings.
pub fn run(command: ConfigCommand, sources: &Sources, output: OutputFormat) -> Exit {
    match command {
        ConfigCommand::Check(CheckArgs {
            policy: true,
            policy_files,
        }) => check_policies(&sources.working_dir, policy_files, output),
        ConfigCommand::Check(_) => with_settings(sources, output, |loaded| check(loaded, output)),
        ConfigCommand::Flags => tell_flags(sources, output),
        ConfigCommand::Show => with_settings(sources, output, |loaded| show(loaded, output)),
        ConfigCommand::Schema => schema(output),
    }
}

fn check(loaded: &Loaded, output: OutputFormat) -> Exit {
    let in_force = InForce::of(&loaded.settings, &loaded.ranks);
    let warnings = [not_yet::warnings(loaded), in_force.warnings].concat();
    match output {
        OutputFormat::Text => {
            for warning in warnings {
                print::error(&format!("warning: {warning}"));
            }
            print::answer("OK");
        }
        OutputFormat::Json => print::answer(&json!({"ok": true, "warnings": warnings}).to_string()),
    }
    Exit::Ok
}

/// Judges policy files, those of the working directory when none is named.
fn check_policies(working_dir: &Path, files: Vec<PathBuf>, output: OutputFormat) -> Exit {
    let files = match files.is_empty() {
        true => Feature::ALL
            .iter()
            .filter_map(|feature| feature.policy_file())
            .map(PathBuf::from)
            .collect(),
        false => files,
    };
    let catalogue = Catalogue::of_settings();
    let judged: Vec<(PathBuf, PolicyFile)> = files
        .into_iter()
        .map(|path| {
            let file = PolicyFile::judge(catalogue, working_dir, &path);
            (path, file)
        })
        .collect();
    print::answer(&match output {
        OutputFormat::Text => policy_lines(&judged),
        OutputFormat::Json => policy_json(&judged),
    });
    match judged.iter().any(|(_, file)| file.worst().is_some()) {
        true => Exit::Config,
        false => Exit::Ok,
    }
}

fn policy_lines(judged: &[(PathBuf, PolicyFile)]) -> String {
    let mut lines = Vec::new();
    for (path, file) in judged {
        let path = path.display();
        lines.push(match file.feature {
            Some(feature) => format!("[INFO] {path}: {} policy ({})", feature.name(), feature.section()),
            None => format!("[INFO] {path}: neither name nor content tells which policy"),
        });
        for problem in file.problems() {
            lines.push(format!("[ERROR] {path}: {}", problem.finding()));
        }
        if file.worst().is_none() {
            lines.push(format!("[OK] {path}: valid"));
        }
    }
    let worst = judged.iter().filter_map(|(_, file)| file.worst());
    let bad = worst.clone().count();
    if let Some(worst) = worst.min() {
        let worst = worst.as_str();
        lines.push(format!("[ERROR] {bad} of {} files bad: {worst}", judged.len()));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn policy_json(judged: &[(PathBuf, PolicyFile)]) -> String {
    let lines: Vec<_> = judged
        .iter()
        .map(|(path, file)| {
            let problems: Vec<_> = file
                .findings
                .iter()
                .map(|(fault, problem)| {
                    json!({"fault": fault.as_str(), "key": problem.key, "rule": problem.rule, "value": problem.value})
                })
                .collect();
            json!({
                "file": path.display().to_string(),
                "policy": file.feature.map(Feature::name),
                "ok": problems.is_empty(),
                "problems": problems,
            })
        })
        .collect();
    json_lines(&lines)
}

/// Says of each flag what it is and what follows.
fn tell_flags(sources: &Sources, output: OutputFormat) -> Exit {
    let loaded = match load::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => {
            match output {
                OutputFormat::Text => {
                    let lines = error
                        .problems
                        .iter()
                        .map(|problem| format!("[ERROR] {problem}\n"));
                    let last = Untold::of(&error).as_str();
                    print::answer(&format!("{}[ERROR] {last}", lines.collect::<String>()));
                }
                OutputFormat::Json => complain(&error, output),
            }
            return Exit::Config;
        }
    };
    let report = flags::report(&loaded);
    print::answer(&match output {
        OutputFormat::Text => {
            let flags = report.flags.iter().map(|flag| format!("[INFO] {flag}\n"));
            let warnings = report.warnings.iter().map(|text| format!("[WARN] {text}\n"));
            let lines: String = flags.chain(warnings).collect();
            format!("{lines}[OK] the values of all flags are valid")
        }
        OutputFormat::Json => json_lines(&[&report]),
    });
    Exit::Ok
}

fn show(loaded: &Loaded, output: OutputFormat) -> Exit {
    let lines = show::lines(loaded);
    let text = match output {
        OutputFormat::Text => lines.iter().map(|line| format!("{line}\n")).collect(),
        OutputFormat::Json => json_lines(&lines),
    };
    print::answer(&text);
    Exit::Ok
}

fn schema(output: OutputFormat) -> Exit {
    let schema = catalogue::schema();
    print::answer(&match output {
        OutputFormat::Text => format!("{schema:#}"),
        OutputFormat::Json => schema.to_string(),
    });
    Exit::Ok
}

/// One JSON document per line.
pub(super) fn json_lines<T: Serialize>(items: &[T]) -> String {
    items
        .iter()
        .filter_map(|item| serde_json::to_string(item).ok())
        .map(|line| line + "\n")
        .collect()
}
