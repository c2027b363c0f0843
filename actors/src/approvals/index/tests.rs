use caf_protocol::approval::Question;
use caf_protocol::assignment::Identity;

use super::*;
use crate::answers::Answers;
use crate::claims::record::StoredMessage;
use crate::settings::SubjectSettings;

fn entry(tenant: &str, number: u64, until: u64) -> Entry {
    let identity = Identity {
        tenant_id: tenant.to_owned(),
        assignment_id: format!("a{number}"),
        ..Identity::default()
    };
    let question = Question {
        approval_type: None,
        description: "?".to_owned(),
        approvers: Vec::new(),
        timeout: std::time::Duration::from_millis(until),
    };
    let ack = StoredMessage {
        subject: "ack".to_owned(),
        headers: Vec::new(),
        payload: "{}".to_owned(),
    };
    Entry::new(&identity, &question, (number, until), number, ack)
}

fn take(index: &mut Index, entry: &Entry, revision: Revision, due: u64) {
    index.take(entry, revision, due, Cancellable::default);
}

#[test]
fn pages_begin_with_what_is_over_first_and_go_on_where_the_last_ended() {
    let mut index = Index::default();
    let entries: Vec<_> = (0..5).map(|n| entry("t", n, 100 - n)).collect();
    for (entry, revision) in entries.iter().zip(1..) {
        take(&mut index, entry, revision, entry.request.expires_at);
    }
    let id = |n: usize| entries[n].request.approval_id.clone();
    let (first, next) = index.page(None, None, 2);
    assert_eq!(first, [id(4), id(3)]);
    // What is settled meanwhile leaves no gap.
    index.forget(&id(2));
    let (second, next) = index.page(Some("t"), next.as_ref(), 2);
    assert_eq!((second, next), (vec![id(1), id(0)], None));
    assert_eq!((index.pending(), index.oldest()), (4, Some(0)));
}

#[test]
fn no_more_wait_than_may_and_what_is_on_its_way_counts() {
    let mut index = Index::default();
    assert_eq!(index.reserve("a", 3, 2), Ok(()));
    assert_eq!(index.reserve("a", 3, 2), Ok(()));
    assert_eq!(index.reserve("a", 3, 2), Err(Full::Tenant));
    // It waits now, and its room returns.
    take(&mut index, &entry("a", 1, 10), 1, 10);
    index.release("a");
    assert_eq!(index.reserve("a", 3, 2), Err(Full::Tenant));
    assert_eq!(index.reserve("b", 3, 2), Ok(()));
    assert_eq!(index.reserve("c", 3, 2), Err(Full::Fleet));
    index.forget(&entry("a", 1, 10).request.approval_id);
    index.release("a");
    index.release("b");
    assert_eq!(
        (index.pending(), index.of_tenant("a"), index.tenants.len()),
        (0, 0, 0)
    );
}

#[test]
fn what_is_due_is_done_by_one_at_a_time_and_an_older_state_changes_nothing() {
    let mut index = Index::default();
    let answers = Answers::new(&SubjectSettings::default(), "w");
    let asked = entry("t", 1, 50);
    let id = asked.request.approval_id.clone();
    take(&mut index, &asked, 1, 50);
    assert!(index.take_due(49, 9).is_empty());
    assert_eq!(index.take_due(50, 9), std::slice::from_ref(&id));
    assert!(index.take_due(99, 9).is_empty(), "somebody is at it");
    index.hurry(&id, 40);
    assert!(index.take_due(99, 9).is_empty());
    let over = asked.expired(60, &answers).expect("it is over");
    take(&mut index, &over, 2, 70);
    assert_eq!((index.pending(), index.take_due(99, 9).len()), (0, 0));
    // A keeper that is gone is at nothing.
    index.begin_round();
    assert_eq!(index.take_due(0, 9), std::slice::from_ref(&id));
    // Whoever was at it has seen the older state; what came meanwhile is due all the same.
    index.leave(&id, 1_000);
    take(&mut index, &asked, 1, 0);
    assert_eq!(index.pending(), 0);
    assert_eq!(index.take_due(1_000, 9), [id]);
}

#[test]
fn what_the_store_tells_no_longer_is_forgotten_with_the_round() {
    let mut index = Index::default();
    for n in 0..2 {
        take(&mut index, &entry("t", n, 50), n + 1, 50);
    }
    index.begin_round();
    take(&mut index, &entry("t", 1, 50), 2, 50);
    assert_eq!(index.pending(), 2);
    index.end_round();
    assert_eq!(
        (index.pending(), index.of_tenant("t"), index.due.len()),
        (1, 1, 1)
    );
}
