//! Headers of a message of a stranger: the trace they name, the replay they claim, and the ids that answers get.

use caf_protocol::headers::{Headers, MAX_REPLAY, message_id};
use caf_protocol::trace_context::{RemoteTrace, SpanContext, TRACEPARENT};

use super::{headers_of, parts};

/// Most of what vendors add to a trace that is passed on, in bytes.
const MAX_STATE_BYTES: usize = 512;

/// A trace that is believed is passed on unchanged and within its bounds; a replay is one that could have been; and message
/// ids are plain, and different for different assignments.
pub fn holds(bytes: &[u8]) {
    let [head, one, other] = parts(bytes);
    let headers = headers_of(head);
    assert!(headers.replay() <= MAX_REPLAY);
    if let Some(trace) = RemoteTrace::of_headers(&headers) {
        let mut again = Headers::default();
        again.push("trace_id", trace.trace_id.to_string());
        let read = RemoteTrace::of_headers(&again).map(|again| again.trace_id);
        assert_eq!(read, Some(trace.trace_id), "the id is written as it is read");
        if let Some(state) = &trace.state {
            // Tabs may stand between members.
            let plain = state
                .bytes()
                .all(|byte| byte == b'\t' || (0x20..0x7f).contains(&byte));
            assert!(plain && state.len() <= MAX_STATE_BYTES, "{state:?}");
        }
    }
    if let Some(context) = headers.get(TRACEPARENT).and_then(SpanContext::from_traceparent) {
        let again = SpanContext::from_traceparent(&context.traceparent());
        assert_eq!(again, Some(context), "a context that is passed on is the same");
    }
    let ids = [one, other].map(String::from_utf8_lossy);
    let named = ids.each_ref().map(|id| message_id(id, headers.replay(), "ack"));
    for name in &named {
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
    }
    assert_eq!(named[0] == named[1], ids[0] == ids[1], "{ids:?}");
    assert_ne!(named[0], message_id(&ids[0], headers.replay(), "result"));
}
