//! What hostile inputs of blocks must never lead to, one function for each fuzz target. Only in tests and fuzz targets.
//!
//! Neighbours: `fuzz/` of the workspace; its corpus is replayed here.

pub use crate::fs::properties::path_guard;
pub use crate::http::properties::{http_request, url_guard};

#[cfg(test)]
mod tests {
    use caf_testkit::corpus::replay;

    #[test]
    fn every_address_of_the_corpus_keeps_to_the_guard() {
        replay("url_guard", super::url_guard);
    }

    #[test]
    fn every_request_of_the_corpus_is_one_message_and_keeps_its_secrets() {
        replay("http_request", super::http_request);
    }

    #[test]
    fn every_path_of_the_corpus_stays_in_its_root() {
        replay("path_guard", super::path_guard);
    }
}
