//! `approvals list`, `show`, `decide` and `link`: their arguments, and what becomes of the answers.
//!
//! Neighbours: [`crate::ask::approvals`] asks the node and writes the text; `super::ask` knows which node.

use caf_protocol::approval::{Answer, ApprovalId};
use clap::{Args, Subcommand, ValueEnum};

use super::ask::{NodeArgs, complain, node};
use super::{OutputFormat, print};
use crate::ask::approvals::{self, render, render_link, render_list};
use crate::ask::{Said, Silence, text};
use crate::exit::Exit;
use crate::settings::HttpSettings;

/// What can be asked about approvals.
#[derive(Debug, Subcommand)]
pub enum ApprovalsCommand {
    /// List what waits for people, what is over soonest first
    List(ListArgs),
    /// Show all of one, however it stands
    Show {
        /// Which one, as listed
        #[arg(value_name = "ID", value_parser = id)]
        id: ApprovalId,
        /// Which node.
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Decide one: the first decision counts
    Decide(DecideArgs),
    /// Make a link with which one person decides, once, without an account
    Link(LinkArgs),
}

/// Arguments of `approvals list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this tenant
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// Where to go on, as the list before said
    #[arg(long, value_name = "CURSOR")]
    pub cursor: Option<String>,
    /// Most to list
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: u32,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `approvals decide`.
#[derive(Debug, Args)]
pub struct DecideArgs {
    /// Which one, as listed
    #[arg(value_name = "ID", value_parser = id)]
    pub id: ApprovalId,
    /// What is decided
    #[arg(value_enum)]
    pub decision: Verdict,
    /// Who decides; not needed with a client certificate, whose name counts
    #[arg(long, value_name = "NAME")]
    pub approver: Option<String>,
    /// Why, for whoever asked
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `approvals link`.
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// Which one, as listed
    #[arg(value_name = "ID", value_parser = id)]
    pub id: ApprovalId,
    /// In whose name the link decides; needed where several may
    #[arg(long, value_name = "NAME")]
    pub approver: Option<String>,
    /// Seconds until the link is over; else, and at the latest, when the approval is
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub expires_in_s: Option<u64>,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verdict {
    /// Go ahead.
    Approved,
    /// Do not.
    Rejected,
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Approved => Self::Approved,
            Verdict::Rejected => Self::Rejected,
        }
    }
}

fn id(digits: &str) -> Result<ApprovalId, &'static str> {
    ApprovalId::try_from(digits.to_owned())
}

/// Asks, decides or has a link made: 0 when that was done, 1 when there is no such approval or it was settled before.
pub(super) async fn run(command: ApprovalsCommand, settings: &HttpSettings, output: OutputFormat) -> Exit {
    let (ApprovalsCommand::List(ListArgs { node: args, .. })
    | ApprovalsCommand::Show { node: args, .. }
    | ApprovalsCommand::Decide(DecideArgs { node: args, .. })
    | ApprovalsCommand::Link(LinkArgs { node: args, .. })) = &command;
    let node = match node(args, settings) {
        Ok(node) => node,
        Err(exit) => return exit,
    };
    match command {
        ApprovalsCommand::List(args) => {
            let said =
                approvals::list(&node, args.tenant.as_deref(), args.cursor.as_deref(), args.limit).await;
            tell(said, output, render_list)
        }
        ApprovalsCommand::Show { id, .. } => {
            let said = approvals::show(&node, id.as_str()).await;
            tell(said, output, render)
        }
        ApprovalsCommand::Decide(args) => {
            let words = (args.approver.as_deref(), args.comment.as_deref());
            let said = approvals::decide(&node, args.id.as_str(), args.decision.into(), words).await;
            tell(said, output, |body| {
                approvals::standing(&body["standing"], &body["now"])
            })
        }
        ApprovalsCommand::Link(args) => {
            let approver = args.approver.as_deref();
            let said = approvals::link(&node, args.id.as_str(), approver, args.expires_in_s).await;
            tell(said, output, render_link)
        }
    }
}

fn tell(
    said: Result<Said, Silence>,
    output: OutputFormat,
    render: impl FnOnce(&serde_json::Value) -> String,
) -> Exit {
    match said {
        Ok(Said { status: 200, body }) => {
            print::answer(&match output {
                OutputFormat::Text => render(&body),
                OutputFormat::Json => text::clean_json(&body.to_string()),
            });
            Exit::Ok
        }
        Ok(said) => {
            print::error(&text::clean(
                said.body["error"].as_str().unwrap_or("no reason given"),
            ));
            Exit::SomeFailed
        }
        Err(silence) => complain(&silence),
    }
}
