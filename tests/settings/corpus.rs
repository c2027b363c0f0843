//! What the fuzz targets assert, held for every input of their corpus by an ordinary build.
//!
//! Neighbours: `fuzz/src` has the properties; those of the blocks are replayed in `actors/blocks`.

use caf_testkit::corpus::replay;

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "there it is a crate")]
mod fuzz;

#[test]
fn every_assignment_of_the_corpus_is_read_alike_and_answered_as_the_router_takes_it() {
    replay("assignment", fuzz::assignment::holds);
}

#[test]
fn every_header_of_the_corpus_is_passed_on_unchanged_or_not_at_all() {
    replay("headers", fuzz::headers::holds);
}

#[test]
fn every_reference_of_the_corpus_has_one_meaning_or_is_refused() {
    replay("payload_ref", fuzz::payload_ref::holds);
}

#[test]
fn every_claim_of_the_corpus_is_judged_without_forgetting_what_was_promised() {
    replay("claim", fuzz::claim::holds);
}

#[test]
fn every_dead_letter_of_the_corpus_gives_back_what_arrived_or_nothing() {
    replay("dead_letter", fuzz::dead_letter::holds);
}

#[test]
fn every_setting_of_the_corpus_keeps_the_rules_or_names_its_key() {
    replay("settings", fuzz::settings::holds);
}

#[test]
fn every_policy_file_of_the_corpus_is_judged_alike_by_check_and_start() {
    replay("policy_file", fuzz::policy_file::holds);
}

#[test]
fn every_request_to_cancel_of_the_corpus_is_for_one_tenant_and_what_it_names() {
    replay("cancel", fuzz::cancel::holds);
}

#[test]
fn every_tenant_policy_of_the_corpus_keeps_the_rules_or_names_its_key() {
    replay("tenant_policy", fuzz::tenant_policy::holds);
}
