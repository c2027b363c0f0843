//! What travels between router and worker, and the contract of a block.
//!
//! Neighbours: `caf-blocks` implements [`block::Block`]; `caf-actors` moves these types from station to
//! station; the node composes both. This crate never does I/O, never reads a clock and never knows actix.
//!
//! In the order a message meets them: [`json`] parses bytes, [`assignment`] reads them leniently, [`block`] is
//! what runs, [`mod@reference`] is where its inputs may be instead, [`limit`] is how long it may take,
//! [`endpoint`] what it talks to, [`model_call`] what it tells of a call of a model, [`outcome`] is how it ended, [`ack`] and [`result`]
//! are the strict answers, [`dead_letter`] is what is kept of an assignment that cannot be helped, [`heartbeat`] tells
//! that the worker lives, [`cancel`] asks for jobs to be stopped, [`discovery`] where it is and how loaded;
//! [`secret`] is what nobody may read; [`trace_context`] is who called and what is passed on.

pub mod ack;
pub mod approval;
pub mod assignment;
pub mod block;
pub mod cancel;
pub mod dead_letter;
pub mod discovery;
pub mod endpoint;
pub mod error_code;
pub mod headers;
pub mod heartbeat;
pub mod ids;
pub mod json;
pub mod limit;
pub mod live;
pub mod model;
pub mod model_call;
pub mod outcome;
pub mod reference;
pub mod result;
pub mod schemas;
pub mod secret;
pub mod timestamp;
pub mod trace_context;

/// The only protocol version that the router accepts in an answer (contract 3.1).
pub const VERSION: &str = "1";

/// `skip_serializing_if` for maps that must not travel empty.
pub(crate) fn is_empty_map(map: &serde_json::Map<String, serde_json::Value>) -> bool {
    map.is_empty()
}
