//! `serve`, `exec`, `submit` and `dlq`: opens the log, starts the event loop, and turns what went wrong into an exit code.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_rt::SystemRunner;
use caf_actors::errors::chain;
use caf_actors::events::secrets::Audit;
use caf_actors::events::{self, Log};
use caf_actors::journal::Journal;
use caf_blocks::{Extras, Providers};
use caf_protocol::block::ResourceClass;
use caf_protocol::secret::vault::Vault;

use super::dlq::DlqCommand;
use super::{ExecArgs, OutputFormat, SubmitArgs, print};
use crate::admin::Told;
use crate::assignments::Input;
use crate::exit::Exit;
use crate::http::tls::AdminTls;
use crate::reload::{Live, Reloader};
use crate::settings::in_force::InForce;
use crate::settings::load::{Loaded, Sources};
use crate::settings::named_secrets::vault_entries;
use crate::settings::origin::Origin;
use crate::settings::{LogLevel, LogSettings, Settings, flags, not_yet, worker_id};
use crate::signals::{Signals, hangups};
use crate::submit::Show;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::secrets::Secrets;
use crate::telemetry::{self, LogControl, Opened, Streams};
use crate::wiring::operation_limits;
use crate::{dlq as dlq_command, exec as exec_command, serve as serve_command, submit as submit_command};

/// Name of the file in `worker.state_dir` for warnings and errors that nobody took.
const UNWRITTEN: &str = "log-unwritten.jsonl";

/// Runs the node.
pub(super) fn serve(loaded: &Loaded, sources: &Sources) -> Exit {
    let settings = &loaded.settings;
    // First of all: until somebody listens, a hang-up ends the process.
    let system = actix_rt::System::new();
    let hangups = match system.block_on(async { hangups() }) {
        Ok(hangups) => hangups,
        Err(error) => return complain(&error),
    };
    let in_force = InForce::of(settings, &loaded.ranks);
    with_log(settings, &settings.log, Streams::Split, |log, control| {
        let metrics = in_force
            .metrics
            .then(|| Arc::new(Metrics::new(&settings.worker.metrics).hiding(control.secrets().clone())));
        let metered = metrics.iter().cloned();
        let log = &metered.fold(log.clone(), |log, metrics| {
            control.measure(Arc::clone(&metrics) as _);
            log.with_meter(metrics)
        });
        let tls = AdminTls::new(&settings.http.admin_tls)
            .and_then(|admin| Ok((admin, AdminTls::of_approvals(&settings.http.approval_tls)?)));
        let (admin_tls, approval_tls) = match tls {
            Ok(tls) => tls,
            Err(unusable) => {
                log.emit(events::fatal(&unusable.to_string()));
                return complain(&unusable);
            }
        };
        let told = Told {
            journal: Journal::default(),
            admin_tls: admin_tls.clone(),
            approval_tls: approval_tls.clone(),
            features: flags::for_log(loaded, &in_force),
            slots_keys: ResourceClass::ALL
                .map(|class| (class.as_str(), in_force.slots_key(class).to_owned()))
                .into(),
            secrets: control.secrets().clone(),
        };
        let log = &log.clone().with_observer(Arc::new(told.journal.clone()));
        keep_unwritten(settings, control, log);
        log.emit(events::features_in_force(told.features.clone()));
        for warning in not_yet::warnings(loaded).iter().chain(&in_force.warnings) {
            log.emit(events::warning(warning));
        }
        let extras = Extras {
            sandbox: settings.worker.sandbox.clone(),
            approvals: settings.approvals.enabled,
            vault: vault(settings, log),
            providers: providers(settings),
            ..Extras::default()
        };
        let live = Live {
            log: control.clone(),
            tenants: in_force.tenants.clone(),
            http_targets: extras.http_targets.clone(),
            vault: extras.vault.clone(),
            providers: extras.providers.clone(),
            metrics: metrics.clone(),
            certificates: [admin_tls, approval_tls].into_iter().flatten().collect(),
        };
        match caf_blocks::build(&settings.blocks, operation_limits(&in_force), extras) {
            Ok(blocks) => on(&system, log, async {
                let reloader = Reloader::new(sources.clone(), settings.clone(), live, log.clone());
                actix_rt::spawn(reloader.run(hangups));
                serve_command::run(
                    settings,
                    &in_force,
                    blocks,
                    Signals::listen()?,
                    (log, metrics),
                    told,
                )
                .await
            }),
            Err(error) => complain(&error),
        }
    })
}

/// The secrets that jobs may name; every use is told to the log.
fn vault(settings: &Settings, log: &Log) -> Vault {
    let vault = Vault::default().with_witness(Arc::new(Audit::new(log.clone())));
    vault.replace(vault_entries(&settings.secrets));
    vault
}

/// Who runs models.
fn providers(settings: &Settings) -> Providers {
    let providers = Providers::default();
    providers
        .replace(&settings.providers)
        .expect("settings that were loaded keep the rules");
    providers
}

/// Says where the log leaves what nobody takes, and whether an earlier process did so. On a thread of its own: the disk
/// may hang.
fn keep_unwritten(settings: &Settings, control: &LogControl, log: &Log) {
    let path = settings.worker.state_dir.join(UNWRITTEN);
    control.leave_at(path.clone());
    let log = log.clone();
    let thread = std::thread::Builder::new().name("log.left".to_owned());
    // Without a thread it is not said.
    let _ = thread.spawn(move || {
        if let Ok(found) = std::fs::metadata(&path) {
            let path = path.display().to_string();
            log.emit(events::logging::unwritten_lines_found(&path, found.len()));
        }
    });
}

/// Runs assignments without a broker, or says what would happen to them.
pub(super) fn exec(loaded: &Loaded, args: ExecArgs) -> Exit {
    let settings = &loaded.settings;
    let input = args.file;
    if let Err(problem) = input.check() {
        print::error(&problem);
        return Exit::Usage;
    }
    if args.dry_run {
        return dry_run(loaded, input);
    }
    // What succeeds is in the printed results; the log speaks up for failures only.
    let quiet = quiet(loaded);
    let in_force = InForce::without_broker(settings, &loaded.ranks);
    with_log(settings, &quiet, Streams::StandardError, |log, _| {
        for warning in loaded.flag_warnings.iter().chain(&in_force.warnings) {
            log.emit(events::warning(warning));
        }
        let blocks = |health| {
            let extras = Extras {
                health_target: Some((exec_command::HEALTH_HOST.to_owned(), health)),
                sandbox: settings.worker.sandbox.clone(),
                approvals: settings.approvals.enabled,
                vault: vault(settings, log),
                providers: providers(settings),
                ..Extras::default()
            };
            caf_blocks::build(&settings.blocks, operation_limits(&in_force), extras)
        };
        on_event_loop(log, async {
            exec_command::run(settings, &in_force, input, blocks, Signals::listen()?, log).await
        })
    })
}

fn dry_run(loaded: &Loaded, input: Input) -> Exit {
    let settings = &loaded.settings;
    let in_force = InForce::of(settings, &loaded.ranks);
    // A log file would be touched.
    let log = LogSettings {
        file: None,
        ..quiet(loaded)
    };
    with_log(settings, &log, Streams::StandardError, |log, _| {
        for warning in loaded.flag_warnings.iter().chain(&in_force.warnings) {
            log.emit(events::warning(warning));
        }
        let extras = Extras {
            sandbox: settings.worker.sandbox.clone(),
            providers: providers(settings),
            approvals: settings.approvals.enabled,
            ..Extras::default()
        };
        match caf_blocks::build(&settings.blocks, operation_limits(&in_force), extras) {
            Ok(blocks) => match exec_command::dry_run::run(settings, &in_force, input, blocks) {
                Ok(exit) => exit,
                Err(error) => {
                    log.emit(events::fatal(&format!("{error:#}")));
                    Exit::Internal
                }
            },
            Err(error) => complain(&error),
        }
    })
}

/// Plays the router.
pub(super) fn submit(loaded: &Loaded, args: SubmitArgs, output: OutputFormat) -> Exit {
    let settings = &loaded.settings;
    if let Err(problem) = args.file.check() {
        print::error(&problem);
        return Exit::Usage;
    }
    let limit = Duration::from_secs(args.timeout_s);
    with_log(settings, &quiet(loaded), Streams::StandardError, |log, _| {
        let submitting = submit_command::run(settings, args.file, limit, show(output), log);
        on_event_loop(log, submitting)
    })
}

/// Looks at dead letters, or sends their assignments again.
pub(super) fn dlq(loaded: &Loaded, command: DlqCommand, output: OutputFormat) -> Exit {
    let settings = &loaded.settings;
    let task = match command.into_task(SystemTime::now()) {
        Ok(task) => task,
        Err(problem) => {
            print::error(&problem);
            return Exit::Usage;
        }
    };
    with_log(settings, &quiet(loaded), Streams::StandardError, |log, _| {
        on_event_loop(log, dlq_command::run(settings, task, show(output), log))
    })
}

/// Asks a running node.
pub(super) fn ask<F: Future<Output = Exit>>(question: impl FnOnce() -> F) -> Exit {
    actix_rt::System::new().block_on(async { question().await })
}

fn show(output: OutputFormat) -> Show {
    match output {
        OutputFormat::Text => Show::Text,
        OutputFormat::Json => Show::Json,
    }
}

/// The log settings of a command whose answer is on standard output: warnings and above, unless the level was asked for
/// on the command line or in the environment. Files speak to the node.
fn quiet(loaded: &Loaded) -> LogSettings {
    let mut log = loaded.settings.log.clone();
    let origin = loaded.origin(&["log".to_owned(), "level".to_owned()]);
    if matches!(origin, Origin::Default | Origin::File(_)) {
        log.level = LogLevel::Warn;
    }
    log
}

fn with_log(
    settings: &Settings,
    log: &LogSettings,
    streams: Streams,
    run: impl FnOnce(&Log, &LogControl) -> Exit,
) -> Exit {
    let worker_id = worker_id::resolve(settings.worker.id.as_deref(), worker_id::host_name().as_deref());
    match telemetry::open(log, Secrets::new(settings.secrets()), streams, &worker_id) {
        // The last lines are written when `flush` is dropped.
        Ok(Opened {
            logger,
            control,
            flush,
        }) => {
            control.hear_dependencies();
            let log = Log::new(logger, &worker_id).with_levels(control.levels().clone());
            log_panics(&log, &control);
            let exit = run(&log, &control);
            drop(flush);
            exit
        }
        Err(error) => complain(&error),
    }
}

/// A panic is one line of the log like any other, but waited for: it may be the last. Its text stays out of it: it may quote
/// what a job brought.
fn log_panics(log: &Log, control: &LogControl) {
    let (log, control) = (log.clone(), AssertUnwindSafe(control.clone()));
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        log.emit(events::panicked(&place, thread.name().unwrap_or_default()));
        control.flush_briefly();
    }));
}

fn complain(error: &dyn std::error::Error) -> Exit {
    print::error(&chain(error));
    Exit::Config
}

fn on_event_loop(log: &Log, command: impl Future<Output = anyhow::Result<Exit>>) -> Exit {
    on(&actix_rt::System::new(), log, command)
}

fn on(system: &SystemRunner, log: &Log, command: impl Future<Output = anyhow::Result<Exit>>) -> Exit {
    match system.block_on(command) {
        Ok(exit) => exit,
        Err(error) => {
            log.emit(events::fatal(&format!("{error:#}")));
            Exit::Internal
        }
    }
}
