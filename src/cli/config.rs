//! `config check`, `config show` and `config schema`.

use serde::Serialize;
use serde_json::json;

use super::settings::with_settings;
use super::{ConfigCommand, OutputFormat, print};
use crate::exit::Exit;
use crate::settings::in_force::InForce;
use crate::settings::load::{Loaded, Sources};
use crate::settings::{catalogue, not_yet, show};

/// Answers a question about the settings.
pub fn run(command: ConfigCommand, sources: &Sources, output: OutputFormat) -> Exit {
    match command {
        ConfigCommand::Check => with_settings(sources, output, |loaded| check(loaded, output)),
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
