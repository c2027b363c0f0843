//! `explain`, `top` and `cancel`: their arguments, and what becomes of the answers.
//!
//! Neighbours: [`crate::ask`] asks the node and writes the text.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use caf_protocol::cancel::{CancelRequest, Target};
use clap::Args;

use super::{OutputFormat, print};
use crate::ask::{self, Node, Silence, text};
use crate::exit::Exit;
use crate::http::tls::client_config;
use crate::settings::HttpSettings;

/// Which node is asked.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Address of the node's admin port, such as http://127.0.0.1:9093; else where http.admin_addr puts it
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// PEM file with the authorities of an https address; else http.admin_client.ca_file, else the public ones
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate to show; else http.admin_client.cert_file
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// PEM file with its key; else http.admin_client.key_file
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Id of the assignment
    pub assignment_id: String,
    /// Whose it is; needed where the node asks the fleet about an assignment that it does not know
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print once and end; so it does where standard output is no terminal, and with --output json
    #[arg(long)]
    pub once: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 2, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub interval_s: u64,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `cancel`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub struct CancelArgs {
    /// Id of the assignment
    #[arg(group = "target")]
    pub assignment_id: Option<String>,
    /// Cancel all jobs of this run instead
    #[arg(long, group = "target", value_name = "RUN")]
    pub run: Option<String>,
    /// Cancel all jobs of this step instead
    #[arg(long, group = "target", value_name = "STEP")]
    pub step: Option<String>,
    /// Whose jobs
    #[arg(long, value_name = "TENANT")]
    pub tenant: String,
    /// Why, for the results and the log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

impl CancelArgs {
    /// The request, by the rules that the node has for it.
    fn request(&self) -> Result<CancelRequest, String> {
        let targets = [
            self.assignment_id.clone().map(Target::Assignment),
            self.run.clone().map(Target::Run),
            self.step.clone().map(Target::Step),
        ];
        let target = targets.into_iter().flatten().next();
        let request = CancelRequest {
            tenant_id: self.tenant.clone(),
            target: target.ok_or("an assignment id, --run or --step is needed")?,
            reason: self.reason.clone(),
        };
        CancelRequest::read(&request.write()).map_err(|failure| failure.message)
    }
}

/// Which node, from arguments and settings.
///
/// # Errors
/// That the command line makes no sense.
pub(super) fn node(args: &NodeArgs, settings: &HttpSettings) -> Result<Node, Exit> {
    let address = ask::address(args.admin.as_deref(), settings).map_err(|problem| {
        print::error(&problem);
        Exit::Usage
    })?;
    let mut files = settings.admin_client.clone();
    files.ca_file = args.ca_file.clone().or(files.ca_file);
    if args.cert.is_some() {
        (files.cert_file, files.key_file) = (args.cert.clone(), args.key.clone());
    }
    let tls = client_config(&files).map_err(|unusable| {
        print::error(&unusable.to_string());
        Exit::Config
    })?;
    Ok(Node::new(address, settings.admin_token.clone(), tls))
}

/// Explains an assignment: 0 when somebody knows it, 1 when nobody does.
pub(super) async fn explain(args: ExplainArgs, settings: &HttpSettings, output: OutputFormat) -> Exit {
    if args.assignment_id.is_empty() {
        print::error("the assignment id is empty");
        return Exit::Usage;
    }
    let node = match node(&args.node, settings) {
        Ok(node) => node,
        Err(exit) => return exit,
    };
    match ask::explain::ask(&node, &args.assignment_id, args.tenant.as_deref()).await {
        Ok(said) => {
            print::answer(&match output {
                OutputFormat::Text => ask::explain::render(&said.body),
                OutputFormat::Json => text::clean_json(&said.body.to_string()),
            });
            match said.status {
                200 => Exit::Ok,
                _ => Exit::SomeFailed,
            }
        }
        Err(silence) => complain(&silence),
    }
}

/// Cancels jobs: 0 when they were told to stop or will be when they arrive, 1 when what was asked for has ended before, or not
/// every worker was told.
pub(super) async fn cancel(args: CancelArgs, settings: &HttpSettings, output: OutputFormat) -> Exit {
    let request = match args.request() {
        Ok(request) => request,
        Err(problem) => {
            print::error(&problem);
            return Exit::Usage;
        }
    };
    let node = match node(&args.node, settings) {
        Ok(node) => node,
        Err(exit) => return exit,
    };
    match ask::cancel::ask(&node, &request).await {
        Ok(said) if said.status == 200 => {
            print::answer(&match output {
                OutputFormat::Text => ask::cancel::render(&request, &said.body),
                OutputFormat::Json => text::clean_json(&said.body.to_string()),
            });
            match said.body["outcome"] != "finished" && said.body["passed_on"] == true {
                true => Exit::Ok,
                false => Exit::SomeFailed,
            }
        }
        Ok(said) => {
            print::error(&text::clean(
                said.body["error"].as_str().unwrap_or("it does not cancel"),
            ));
            Exit::Config
        }
        Err(silence) => complain(&silence),
    }
}

/// Shows what the node does, once or until told to stop.
pub(super) async fn top(args: TopArgs, settings: &HttpSettings, output: OutputFormat) -> Exit {
    let node = match node(&args.node, settings) {
        Ok(node) => node,
        Err(exit) => return exit,
    };
    let said = match ask::top::ask(&node).await {
        Ok(said) if said.status == 200 => said,
        Ok(_) => {
            print::error("something else answers there: it has no /status");
            return Exit::Unavailable;
        }
        Err(silence) => return complain(&silence),
    };
    match output {
        OutputFormat::Json => print::answer(&text::clean_json(&said.body.to_string())),
        OutputFormat::Text if args.once || !std::io::stdout().is_terminal() => {
            let screen = ask::top::Screen::of_terminal().endless();
            print::answer(&ask::top::render(&said.body, screen));
        }
        OutputFormat::Text => {
            ask::top::watch(&node, said, Duration::from_secs(args.interval_s)).await;
        }
    }
    Exit::Ok
}

/// Says why there is no answer.
pub(super) fn complain(silence: &Silence) -> Exit {
    print::error(&silence.to_string());
    match silence {
        Silence::NoAnswer(..) => Exit::Unavailable,
        Silence::Token(_) => Exit::Config,
        Silence::Refused(..) => Exit::Usage,
    }
}
