//! What the fetchers of this crate share: how a failure of a block's own machinery reads when inputs were fetched with it.
//!
//! Neighbours: `http/fetch.rs` and `fs/fetch.rs`. The pipeline names the field, so texts need not.

use caf_protocol::outcome::Failure;
use caf_protocol::reference;

/// A block reports content above a limit as exhausted; inputs above it are the mistake of whoever refers to them. Only
/// failures about a size hold `limit_bytes`.
pub(crate) fn too_large_for_a_payload(failure: Failure, max_bytes: u64) -> Failure {
    if failure.details.contains_key("limit_bytes") {
        reference::too_large(max_bytes)
    } else {
        failure
    }
}
