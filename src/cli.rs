//! The command line: what can be asked of the program, and who answers.
//!
//! Neighbours: `main` calls [`run`]; [`settings`] turns options into settings; [`config`] answers `config …`. Nothing
//! here leaves the process or looks at its environment: both are given by and returned to `main`.

pub mod approvals;
mod ask;
pub mod check;
pub mod config;
pub mod dlq;
pub mod print;
mod run;
pub mod settings;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::assignments::Input;
use crate::asyncapi;
use crate::exit::Exit;
use approvals::ApprovalsCommand;
use check::CheckCommand;
use dlq::DlqCommand;
use settings::SettingsArgs;

/// Worker node: takes execution assignments from NATS, runs them as blocks, answers with results.
#[derive(Debug, Parser)]
#[command(name = "caf-worker", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How answers are printed
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// Where settings come from beside the environment.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// What can be asked of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node: take assignments from NATS until told to stop
    Serve,
    /// Run assignments from a file without a broker and print what would be published
    Exec(ExecArgs),
    /// Play the router: publish assignments from a file and print what comes back
    Submit(SubmitArgs),
    /// List, show or replay dead letters: assignments that were given up
    #[command(subcommand)]
    Dlq(Box<DlqCommand>),
    /// Ask a running node what became of an assignment, or what it waits for
    Explain(ask::ExplainArgs),
    /// Ask a running node, and by it all workers, to cancel an assignment, a run or a step
    Cancel(ask::CancelArgs),
    /// List, show or decide what jobs ask people, or make links to hand out; by a running node
    #[command(subcommand)]
    Approvals(Box<ApprovalsCommand>),
    /// Watch a running node: pools, throughput, failures, running jobs
    Top(ask::TopArgs),
    /// Check, show or describe the settings and feature flags
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the AsyncAPI 3.0 document: every subject of a worker with these settings, and what travels on it
    Asyncapi,
    /// Check what a worker said: a log, a health page, any text for secrets
    #[command(subcommand)]
    Check(CheckCommand),
    /// Print a completion script for a shell
    Completions {
        /// Shell to write for
        shell: Shell,
    },
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Run nothing: print one JSON line per assignment with what would happen to it, by the settings and flags in force
    ///
    /// Nothing is fetched, called or written, and no port is opened. Each line tells the verdict (runs, rejected with
    /// reason, unanswerable), pool, effective deadline, every wait of the retry plan, timeouts and queue in force.
    /// Ends with 0 when all assignments would run, else with 1.
    #[arg(long)]
    pub dry_run: bool,
    /// File with one assignment per line (or one document, or an array), or - for lines of standard input
    pub file: Input,
}

/// Arguments of `submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// File with one assignment per line (or one document, or an array), or - for lines of standard input
    pub file: Input,
    /// Longest wait for all results, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout_s: u64,
}

/// What can be asked about the settings.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Say OK, or everything that is wrong with the settings
    Check(CheckArgs),
    /// Print every feature flag, where it comes from, and whether CP1 or CP2 is in force
    Flags,
    /// Print every setting with its value and where it came from
    Show,
    /// Print the JSON Schema of the settings
    Schema,
}

/// Arguments of `config check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Judge policy files only, each by itself: those in config/worker, or the ones named
    #[arg(long)]
    pub policy: bool,
    /// Policy files to judge instead of config/worker/{retry,timeout,queue}_policy.json
    #[arg(value_name = "FILE", requires = "policy")]
    pub policy_files: Vec<PathBuf>,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// JSON lines.
    Json,
}

/// Environment variables, as the process has them.
pub type Environment = Vec<(OsString, OsString)>;

/// Does what the command line asks and says how it ended.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    let exit = match Cli::try_parse_from(args) {
        Ok(cli) => dispatch(cli, environment.into_iter().collect()),
        Err(error) => {
            // Nothing can be done about a closed stream.
            let _ = error.print();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
                _ => Exit::Usage,
            }
        }
    };
    exit.into()
}

fn dispatch(cli: Cli, environment: Environment) -> Exit {
    let sources = cli.settings.sources(environment);
    match cli.command {
        Command::Serve => {
            settings::with_settings(&sources, cli.output, |loaded| run::serve(loaded, &sources))
        }
        Command::Exec(args) => {
            settings::with_settings(&sources, cli.output, |loaded| run::exec(loaded, args))
        }
        Command::Submit(args) => settings::with_settings(&sources, cli.output, |loaded| {
            run::submit(loaded, args, cli.output)
        }),
        Command::Dlq(command) => settings::with_settings(&sources, cli.output, |loaded| {
            run::dlq(loaded, *command, cli.output)
        }),
        Command::Explain(args) => settings::with_settings(&sources, cli.output, |loaded| {
            run::ask(|| ask::explain(args, &loaded.settings.http, cli.output))
        }),
        Command::Cancel(args) => settings::with_settings(&sources, cli.output, |loaded| {
            run::ask(|| ask::cancel(args, &loaded.settings.http, cli.output))
        }),
        Command::Approvals(command) => settings::with_settings(&sources, cli.output, |loaded| {
            run::ask(|| approvals::run(*command, &loaded.settings.http, cli.output))
        }),
        Command::Top(args) => settings::with_settings(&sources, cli.output, |loaded| {
            run::ask(|| ask::top(args, &loaded.settings.http, cli.output))
        }),
        Command::Config(command) => config::run(command, &sources, cli.output),
        Command::Asyncapi => settings::with_settings(&sources, cli.output, |loaded| {
            print::answer(&format!("{:#}", asyncapi::document(&loaded.settings)));
            Exit::Ok
        }),
        Command::Check(command) => check::run(&command, cli.output),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "caf-worker", &mut script);
    print::answer(&String::from_utf8_lossy(&script));
    Exit::Ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_has_one_line_of_help() {
        fn check(command: &clap::Command) {
            for inner in command.get_subcommands() {
                assert!(inner.get_about().is_some(), "{}", inner.get_name());
                check(inner);
            }
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{}", argument.get_id());
            }
        }
        check(&Cli::command());
    }
}
