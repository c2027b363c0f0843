//! Approvals for people: who lists, looks, decides and hands links out, by the admin port or by a link.
//!
//! Neighbours: [`crate::http::approvals`] (admin port) and [`crate::http::approval_links`] (links) ask the [`Desk`];
//! [`caf_actors::approvals`] keeps what is asked and decides whose decision counts. Never logs what is asked, answered or
//! said of it; texts of strangers leave by [`letter`] or as JSON only.

pub mod form;
pub mod letter;
pub mod link;
pub mod text;

use std::sync::{Arc, OnceLock};

use caf_actors::approvals::{Approvals, Cursor, MAX_PAGE, Page, WhyNot};
use caf_actors::clock;
use caf_actors::events::approval_audit::{Attempted, Made, Outcome, attempted, forged, made};
use caf_actors::events::{Log, warning};
use caf_actors::settings::approval_links::{ApprovalLinkSettings, MIN_KEY_BYTES};
use caf_protocol::approval::{Approval, ApprovalId, Decision, Standing, Way};
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use self::form::{Filled, LinkAsked};
use self::link::{Closed, Key, Link};

/// The path below which links are.
pub const LINK_PATH: &str = "/a/";

/// Where the fleet's key comes from: what is there already, or else this one, which was kept.
pub type SharedKey = Arc<dyn Fn(Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync>;

/// Approvals for people. Cheap to clone.
#[derive(Clone)]
pub struct Desk(Arc<Parts>);

struct Parts {
    enabled: bool,
    settings: ApprovalLinkSettings,
    open: OnceLock<Option<(Approvals, SharedKey)>>,
    key: OnceCell<Key>,
    log: Log,
}

/// Who does something, as the log tells it.
#[derive(Debug, Clone)]
pub struct Person {
    /// The name that counts.
    pub name: String,
    /// By which way.
    pub via: Way,
    /// How that name is known: `certificate`, `link`, `stated`.
    pub named_by: &'static str,
    /// Address of the other side.
    pub peer: String,
    /// Which link it was, if it was one.
    pub link: Option<String>,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Trouble {
    /// Nobody has switched them on.
    #[error("approvals are off: approvals.enabled")]
    Off,
    /// There is nowhere to keep them.
    #[error(
        "approvals are not kept here: they need nats.mode jetstream, idempotency.scope fleet and approvals.bucket"
    )]
    NotKept,
    /// The worker has not reached the store yet.
    #[error("this worker is still starting: the store of approvals is not open yet")]
    Starting,
    /// There is none, or not any more.
    #[error("there is no such approval, or not any more")]
    Unknown,
    /// It was settled before, so.
    #[error("{}", settled_words(.0))]
    Settled(Box<Approval>),
    /// Not a name of its list.
    #[error("{0:?} is not among the approvers of this approval")]
    NotAnApprover(String),
    /// What was sent breaks a rule.
    #[error("{0}")]
    Bad(String),
    /// Links lead nowhere.
    #[error("approvals.links.base_url is not set: links would lead nowhere")]
    NoBase,
    /// The store does not answer.
    #[error("the store of approvals does not answer, so nothing is known for certain; asking again is safe")]
    Silent,
}

/// How it left `pending`, as a sentence.
fn settled_words(approval: &Approval) -> String {
    match &approval.standing {
        Standing::Decided(decision) => format!(
            "it was decided already: {} by {:?}",
            decision.decision.as_str(),
            decision.by
        ),
        Standing::Expired { .. } => "its time was over before anybody decided".to_owned(),
        Standing::Cancelled { .. } => "it was cancelled by whoever asked".to_owned(),
        Standing::Pending => "it is pending".to_owned(),
    }
}

impl From<caf_actors::approvals::store::StoreError> for Trouble {
    fn from(_: caf_actors::approvals::store::StoreError) -> Self {
        Self::Silent
    }
}

/// A link that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Handed {
    /// Where it leads.
    pub url: String,
    /// Until when, in milliseconds since the Unix epoch.
    pub expires_at: u64,
    /// In whose name it decides.
    pub approver: String,
}

/// What a link opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// The link.
    pub link: Link,
    /// Where it leads.
    pub approval: Approval,
}

/// Why a link opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shut {
    /// See [`Closed`]; an approval that is gone counts as forged: nothing is told of it.
    Link(Closed),
    /// The store does not answer.
    Silent,
}

impl Desk {
    /// That knows no approvals yet; never will where they are not enabled.
    pub fn new(enabled: bool, settings: &ApprovalLinkSettings, log: &Log) -> Self {
        if enabled && settings.can_be_overheard() {
            log.emit(warning(
                "approvals.links.base_url is not encrypted: who listens on the way reads links, and decides with them",
            ));
        }
        let key = settings
            .key
            .as_ref()
            .and_then(|key| Key::new(key.expose().as_bytes()));
        Self(Arc::new(Parts {
            enabled,
            settings: settings.clone(),
            open: OnceLock::new(),
            key: OnceCell::new_with(key),
            log: log.clone(),
        }))
    }

    /// From now on these are asked, if any are kept. A key that the settings do not have comes from `shared`, once it is
    /// needed.
    pub fn open(&self, kept: Option<(Approvals, SharedKey)>) {
        // Opened once per life of the node.
        let _ = self.0.open.set(kept);
    }

    fn approvals(&self) -> Result<&(Approvals, SharedKey), Trouble> {
        match self.0.open.get() {
            _ if !self.0.enabled => Err(Trouble::Off),
            Some(kept) => kept.as_ref().ok_or(Trouble::NotKept),
            None => Err(Trouble::Starting),
        }
    }

    async fn key(&self) -> Result<&Key, Trouble> {
        let (_, shared) = self.approvals()?;
        let made = || async {
            let fresh: Vec<u8> = [chance(), chance()].concat();
            let kept = shared(fresh).await.map_err(|_| Trouble::Silent)?;
            Key::new(&kept).ok_or(Trouble::Silent)
        };
        self.0.key.get_or_try_init(made).await
    }

    /// Those that wait, of one tenant or of all, from the page that begins with `from`: [`MAX_PAGE`] at most.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn list(
        &self,
        tenant: Option<&str>,
        from: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, Trouble> {
        let (approvals, _) = self.approvals()?;
        Ok(approvals.list_of(tenant, from, limit.clamp(1, MAX_PAGE)).await?)
    }

    /// One, however it stands.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn show(&self, id: &ApprovalId) -> Result<Approval, Trouble> {
        let (approvals, _) = self.approvals()?;
        approvals.get(id).await?.ok_or(Trouble::Unknown)
    }

    /// Decides, and tells who has, or tried to.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn decide(
        &self,
        id: &ApprovalId,
        filled: Filled,
        person: &Person,
    ) -> Result<Approval, Trouble> {
        let (approvals, _) = self.approvals()?;
        let answer = filled.decision;
        let decision = Decision {
            decision: answer,
            by: person.name.clone(),
            comment: filled.comment,
            at: clock::epoch_ms(),
            via: person.via,
        };
        let decided = approvals.decide(id, decision).await;
        let (outcome, result) = match decided {
            Ok(approval) => (Outcome::Counts, Ok(approval)),
            Err(WhyNot::Unknown) => (Outcome::Unknown, Err(Trouble::Unknown)),
            Err(WhyNot::Settled(approval)) => (Outcome::Settled, Err(Trouble::Settled(approval))),
            Err(WhyNot::NotAnApprover) => (
                Outcome::NotAnApprover,
                Err(Trouble::NotAnApprover(person.name.clone())),
            ),
            Err(WhyNot::Invalid(failure)) => (Outcome::Invalid, Err(Trouble::Bad(failure.message.clone()))),
            Err(WhyNot::Unavailable(_)) => (Outcome::Unavailable, Err(Trouble::Silent)),
        };
        self.0.log.emit(attempted(&Attempted {
            approval_id: id,
            decision: answer,
            outcome,
            name: &person.name,
            via: person.via,
            named_by: person.named_by,
            peer: &person.peer,
            link: person.link.as_deref(),
        }));
        result
    }

    /// Makes a link to an approval that waits, for whoever may decide it.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn hand_out(
        &self,
        id: &ApprovalId,
        asked: LinkAsked,
        maker: &Person,
    ) -> Result<Handed, Trouble> {
        let base = self.0.settings.base_url.as_ref().ok_or(Trouble::NoBase)?;
        let approval = self.show(id).await?;
        let now_ms = clock::epoch_ms();
        if approval.standing != Standing::Pending || approval.request.expires_at <= now_ms {
            return Err(Trouble::Settled(Box::new(approval)));
        }
        let request = &approval.request;
        let approver = match (asked.approver, request.approvers.as_slice()) {
            (Some(name), _) if !request.lets(&name) => return Err(Trouble::NotAnApprover(name)),
            (Some(name), _) => name,
            (None, [only]) => only.clone(),
            (None, []) => String::new(),
            (None, _) => {
                return Err(Trouble::Bad(
                    "approver must be one of its approvers: there are several".to_owned(),
                ));
            }
        };
        let asked_ms = asked
            .expires_in_s
            .map(|secs| now_ms.saturating_add(secs.saturating_mul(1_000)));
        let link = Link {
            approval_id: id.clone(),
            approver,
            // Beyond the approval's own end there is nothing to decide.
            expires_at_ms: asked_ms.unwrap_or(u64::MAX).min(request.expires_at),
            nonce: chance(),
        };
        let text = link.write(self.key().await?);
        let text = text.ok_or_else(|| Trouble::Bad("approver is too long for a link".to_owned()))?;
        self.0.log.emit(made(&Made {
            approval_id: id,
            link: &link.name(),
            approver: &link.decides_as(),
            expires_at_ms: link.expires_at_ms,
            by: &maker.name,
            named_by: maker.named_by,
            peer: &maker.peer,
        }));
        Ok(Handed {
            url: format!("{}{LINK_PATH}{text}", base.trim_end_matches('/')),
            expires_at: link.expires_at_ms,
            approver: link.decides_as(),
        })
    }

    /// Tells that somebody at this address has tried a link that nobody made.
    pub fn tell_forged(&self, peer: &str) {
        self.0.log.emit(forged(peer));
    }

    /// What the last part of a link's address opens. Looking changes nothing: programs that show previews look too.
    ///
    /// # Errors
    /// [`Shut`].
    pub async fn look(&self, text: &str) -> Result<Opened, Shut> {
        let forged = Shut::Link(Closed::Forged);
        let key = self.key().await.map_err(|trouble| match trouble {
            Trouble::Off | Trouble::NotKept => forged,
            _ => Shut::Silent,
        })?;
        let link = Link::read(text, key, clock::epoch_ms()).map_err(Shut::Link)?;
        match self.show(&link.approval_id).await {
            Ok(approval) => Ok(Opened { link, approval }),
            Err(Trouble::Silent | Trouble::Starting) => Err(Shut::Silent),
            Err(_) => Err(forged),
        }
    }
}

/// 16 bytes from the system's source of chance, all but six bits of them.
fn chance() -> [u8; link::NONCE_BYTES] {
    uuid::Uuid::new_v4().into_bytes()
}

/// Two of those make a key: 244 bits of chance.
const _: () = assert!(2 * link::NONCE_BYTES >= MIN_KEY_BYTES);
