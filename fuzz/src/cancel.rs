//! A request to cancel: the last token of its subject, 0xFF, what was sent, 0xFF, an assignment that may be meant.

use caf_protocol::assignment::{Reading, read};
use caf_protocol::cancel::{CancelRequest, MAX_REASON_BYTES, Target, tenant_of_token, tenant_token};
use caf_protocol::headers::Headers;
use caf_protocol::ids::{MAX_ID_BYTES, MAX_TENANT_BYTES, is_usable};

use super::parts;

/// A tenant has one token and a token one tenant; a request is read as it is written, and a refusal names its field; and what
/// a request means is never a job of which it does not name id and tenant.
pub fn holds(bytes: &[u8]) {
    let [token, request, assignment] = parts(bytes);
    if let Ok(token) = std::str::from_utf8(token) {
        if let Some(tenant) = tenant_of_token(token) {
            assert!(is_usable(&tenant, MAX_TENANT_BYTES));
            assert_eq!(tenant_token(&tenant), token, "each tenant has one token only");
        }
        let of_text = tenant_token(token);
        assert!(
            of_text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
            "{of_text} would be more than one token, or a wildcard"
        );
    }
    let request = match CancelRequest::read(request) {
        Ok(request) => request,
        Err(failure) => {
            let field = failure.details["field"].as_str().unwrap_or_default();
            assert!(
                !field.is_empty() && failure.message.starts_with(field),
                "{}",
                failure.message
            );
            assert!(failure.message.len() < 200, "{}", failure.message);
            return;
        }
    };
    assert_eq!(CancelRequest::read(&request.write()), Ok(request.clone()));
    assert!(is_usable(&request.tenant_id, MAX_TENANT_BYTES) && is_usable(request.target.id(), MAX_ID_BYTES));
    assert!(
        request
            .reason
            .as_ref()
            .is_none_or(|reason| is_usable(reason, MAX_REASON_BYTES))
    );
    if let Reading::Valid(job) = read(assignment, &Headers::default()) {
        let means = Target::all_of(&job.identity).any(|target| target == request.target.lent());
        let raw = &job.identity.correlation.raw;
        let id = Some(request.target.id());
        let named = match &request.target {
            Target::Assignment(_) => Some(job.identity.assignment_id.as_str()) == id,
            Target::Run(_) => raw.run_id.as_deref() == id,
            Target::Step(_) => raw.step_id.as_deref() == id,
        };
        assert_eq!(means, named, "{:?} and {:?}", request.target, job.identity);
    }
}
