//! Who gets the value of a named secret: listed tenants, for listed block types, towards listed destinations.
//!
//! Neighbours: the node fills a [`Vault`] from its settings and replaces what is in it on reload; blocks ask it in each
//! attempt, with the target that the value is about to be sent to; a [`Witness`] is told of every answer. Values leave as
//! [`Borrowed`], which takes them out of whatever the job returns. No I/O.

mod destination;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

pub use destination::{Destination, RULE as DESTINATION_RULE, Target};

use super::reference::SecretRef;
use super::scrub::Scrubber;
use super::{REDACTED, Secret};
use crate::block::{BlockContext, Outputs};
use crate::error_code::ErrorCode;
use crate::live::Live;
use crate::outcome::Failure;

/// Shortest value in bytes: shorter ones stand in ordinary texts, and could not be taken out of what is shown.
pub const MIN_VALUE_BYTES: usize = 8;
/// Longest value in bytes: a private key or the file of a service account; servers take no longer header.
pub const MAX_VALUE_BYTES: usize = 8 * 1024;
/// What a tenant list says for all of them.
pub const EVERY_TENANT: &str = "*";
/// Job types whose blocks resolve references; `model.call` stands for all that call models.
pub const BLOCK_TYPES: [&str; 3] = ["http.request", "model.call", "sql.query"];

/// The rule that a value breaks, if it breaks one.
///
/// # Errors
/// The rule, without the value.
pub fn check_value(value: &str) -> Result<(), &'static str> {
    if !(MIN_VALUE_BYTES..=MAX_VALUE_BYTES).contains(&value.trim().len()) || value.len() > MAX_VALUE_BYTES {
        return Err(
            "must be 8 to 8192 bytes, not counting spaces around it: a shorter one could not be masked",
        );
    }
    if value.contains('\0') {
        return Err("must not hold a NUL character");
    }
    if REDACTED
        .to_ascii_lowercase()
        .contains(&value.trim().to_ascii_lowercase())
    {
        return Err("must not be a part of what stands in place of masked values");
    }
    Ok(())
}

/// A secret with those whom it is for.
#[derive(Debug)]
pub struct NamedSecret {
    value: Secret,
    scrubber: Scrubber,
    tenants: BTreeSet<String>,
    block_types: BTreeSet<String>,
    destinations: Vec<Destination>,
}

impl NamedSecret {
    /// For these tenants (`*` for every), block types and destinations; an empty list is nobody.
    pub fn new(
        value: Secret,
        tenants: impl IntoIterator<Item = String>,
        block_types: impl IntoIterator<Item = String>,
        destinations: Vec<Destination>,
    ) -> Self {
        Self {
            scrubber: Scrubber::new([value.expose()]),
            value,
            tenants: tenants.into_iter().collect(),
            block_types: block_types.into_iter().collect(),
            destinations,
        }
    }

    fn denial(&self, tenant: &str, block_type: &str, target: &Target) -> Option<Denial> {
        if !self.tenants.contains(tenant) && !self.tenants.contains(EVERY_TENANT) {
            Some(Denial::Tenant)
        } else if !self.block_types.contains(block_type) {
            Some(Denial::BlockType)
        } else if !self.is_for(target) {
            Some(Denial::Destination)
        } else {
            None
        }
    }

    fn is_for(&self, target: &Target) -> bool {
        self.destinations
            .iter()
            .any(|destination| destination.covers(target))
    }
}

/// Why a job does not get a value. For operators; jobs are not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// There is none of this name.
    Unknown,
    /// It is not for this tenant.
    Tenant,
    /// It is not for this block type.
    BlockType,
    /// It is not for this destination.
    Destination,
}

impl Denial {
    /// Lower-case name, as in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Tenant => "tenant",
            Self::BlockType => "block_type",
            Self::Destination => "destination",
        }
    }
}

/// One answer of the vault.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Which secret; nothing when there is none of that name: somebody may have put a value where the name belongs.
    pub name: Option<&'a str>,
    /// Who asked.
    pub context: &'a BlockContext,
    /// For which block type.
    pub block_type: &'a str,
    /// Where the value was to go.
    pub target: &'a Target,
    /// Why it was not given; nothing when it was.
    pub denial: Option<Denial>,
}

/// Is told of every answer. Never blocks.
pub trait Witness: Send + Sync + 'static {
    /// Takes one in.
    fn saw(&self, asked: &Asked<'_>);
}

/// All named secrets of a node. Clones share them. The default one is empty.
#[derive(Clone, Default)]
pub struct Vault {
    named: Live<HashMap<String, Arc<NamedSecret>>>,
    witness: Option<Arc<dyn Witness>>,
}

impl Vault {
    /// Tells every answer to `witness`.
    #[must_use]
    pub fn with_witness(mut self, witness: Arc<dyn Witness>) -> Self {
        self.witness = Some(witness);
        self
    }

    /// Puts these in place of all that were there, for all clones.
    pub fn replace(&self, named: impl IntoIterator<Item = (String, NamedSecret)>) {
        let named = named.into_iter().map(|(name, secret)| (name, Arc::new(secret)));
        self.named.set(named.collect());
    }

    /// The value that `reference`, found in the input `field`, stands for, to be sent to `target`.
    ///
    /// # Errors
    /// PERMISSION_DENIED, the same for a secret that does not exist and for one that is not for this job there.
    pub fn lend(
        &self,
        (reference, field): (&SecretRef, &str),
        (block_type, context): (&str, &BlockContext),
        target: &Target,
    ) -> Result<Lent, Failure> {
        let named = self.named.get();
        let secret = named.get(&reference.name);
        let denial = match secret {
            None => Some(Denial::Unknown),
            Some(secret) => secret.denial(&context.tenant_id, block_type, target),
        };
        if let Some(witness) = &self.witness {
            witness.saw(&Asked {
                name: secret.map(|_| reference.name.as_str()),
                context,
                block_type,
                target,
                denial,
            });
        }
        match (secret, denial) {
            (Some(secret), None) => Ok(Lent(Arc::clone(secret))),
            _ => Err(Failure::of_field(
                ErrorCode::PermissionDenied,
                field,
                "names a secret that is not for this job",
            )),
        }
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.named.get().keys()).finish()
    }
}

/// A value in the hands of a job.
#[derive(Debug, Clone)]
pub struct Lent(Arc<NamedSecret>);

impl Lent {
    /// The value.
    pub fn value(&self) -> &Secret {
        &self.0.value
    }
}

/// All values in the hands of a job. Empty for one that names none; then it costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Borrowed {
    lent: Vec<Lent>,
    scrubber: Scrubber,
}

impl From<Vec<Lent>> for Borrowed {
    fn from(lent: Vec<Lent>) -> Self {
        let scrubber = match lent.as_slice() {
            [] => Scrubber::default(),
            [one] => one.0.scrubber.clone(),
            // Together: of two that overlap, one after the other would leave a part.
            all => Scrubber::new(all.iter().map(|lent| lent.value().expose())),
        };
        Self { lent, scrubber }
    }
}

impl Borrowed {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lent.is_empty()
    }

    /// Whether all of them may be sent there as well.
    pub fn are_for(&self, target: &Target) -> bool {
        self.lent.iter().all(|lent| lent.0.is_for(target))
    }

    /// Finds them.
    pub fn scrubber(&self) -> &Scrubber {
        &self.scrubber
    }

    /// What an attempt returned, without them.
    ///
    /// # Errors
    /// The failure that was given, without them.
    pub fn scrub(&self, outcome: Result<Outputs, Failure>) -> Result<Outputs, Failure> {
        self.scrubber.outcome(outcome)
    }
}

#[cfg(test)]
mod tests;
