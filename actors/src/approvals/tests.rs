use std::sync::Mutex as StdMutex;
use std::time::Duration;

use caf_protocol::approval::{Answer, Question, Way};
use caf_protocol::assignment::Identity;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::keeper::keep;
use super::*;
use crate::claims::record::StoredMessage;
use crate::lease::LeaseToken;
use crate::sink::{Outgoing, PublishError, Published, Verdict};

/// Takes everything, and refuses the first few.
#[derive(Default)]
struct Ears {
    heard: StdMutex<Vec<Outgoing>>,
    deaf_for: StdMutex<usize>,
}

impl Sink for Ears {
    fn publish(&self, message: &Outgoing) -> BoxFuture<'static, Result<Published, PublishError>> {
        let mut deaf_for = self.deaf_for.lock().expect("is whole");
        let result = if *deaf_for > 0 {
            *deaf_for -= 1;
            Err(PublishError::Unconfirmed("away".to_owned()))
        } else {
            self.heard.lock().expect("is whole").push(message.clone());
            Ok(Published::default())
        };
        std::future::ready(result).boxed()
    }

    fn settle(&self, _: LeaseToken, _: Verdict) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }

    fn max_message_bytes(&self) -> usize {
        1024 * 1024
    }
}

impl Ears {
    fn subjects(&self) -> Vec<String> {
        let heard = self.heard.lock().expect("is whole");
        heard.iter().map(|message| message.subject.clone()).collect()
    }
}

fn worker(store: &MemoryStore) -> (Approvals, Arc<Ears>) {
    let ears = Arc::new(Ears::default());
    let approvals = Approvals::new(ApprovalParts {
        store: Arc::new(store.clone()),
        sink: Some(Arc::clone(&ears) as Arc<dyn Sink>),
        answers: Answers::new(&SubjectSettings::default(), "w-1"),
        fleet: None,
        cancellations: Cancellations::off(),
        settings: ApprovalSettings::default(),
        log: Log::discard(),
    });
    (approvals, ears)
}

fn entry(number: u64, timeout_ms: u64, approvers: &[&str]) -> Entry {
    let identity = Identity {
        tenant_id: "acme".to_owned(),
        assignment_id: format!("a{number}"),
        job_type: Some("human.approval".to_owned()),
        ..Identity::default()
    };
    let question = Question {
        approval_type: None,
        description: "go?".to_owned(),
        approvers: approvers.iter().map(|&name| name.to_owned()).collect(),
        timeout: Duration::from_millis(timeout_ms),
    };
    let ack = StoredMessage {
        subject: "ack".to_owned(),
        headers: Vec::new(),
        payload: "{}".to_owned(),
    };
    let now = clock::epoch_ms();
    Entry::new(&identity, &question, (now, now + timeout_ms), now, ack)
}

fn by(name: &str, answer: Answer) -> Decision {
    Decision {
        decision: answer,
        by: name.to_owned(),
        comment: None,
        at: clock::epoch_ms(),
        via: Way::Api,
    }
}

async fn put(store: &MemoryStore, entry: &Entry) -> ApprovalId {
    store.write(entry, 0).await.expect("is new");
    entry.request.approval_id.clone()
}

async fn until_answered(store: &MemoryStore, id: &ApprovalId) -> Entry {
    let answered = async {
        loop {
            let found = store.read(id).await.expect("answers").entry.expect("is there");
            if found.answered.is_some() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), answered)
        .await
        .expect("is answered")
}

#[tokio::test]
async fn the_first_decision_counts_and_only_of_those_who_may() {
    let (approvals, store) = Approvals::in_memory();
    let id = put(&store, &entry(1, 60_000, &["ann", "bob"])).await;
    let stranger = approvals.decide(&id, by("eve", Answer::Approved)).await;
    assert_eq!(stranger, Err(WhyNot::NotAnApprover));
    let decided = approvals
        .decide(&id, by("ann", Answer::Rejected))
        .await
        .expect("counts");
    assert_eq!(decided.standing.word(), "rejected");
    let late = approvals.decide(&id, by("bob", Answer::Approved)).await;
    assert!(matches!(late, Err(WhyNot::Settled(stands)) if *stands == decided));
    let other = ApprovalId::of(caf_protocol::ids::AssignmentKey::new("t", "nobody"));
    assert_eq!(
        approvals.decide(&other, by("ann", Answer::Approved)).await,
        Err(WhyNot::Unknown)
    );
    assert!(matches!(
        approvals.decide(&id, by("", Answer::Approved)).await,
        Err(WhyNot::Invalid(_))
    ));
}

#[tokio::test]
async fn of_all_who_decide_at_once_one_counts() {
    let (approvals, store) = Approvals::in_memory();
    let id = put(&store, &entry(1, 60_000, &[])).await;
    let all = (0..20).map(|n| {
        approvals
            .decide(&id, by(&format!("p{n}"), Answer::Approved))
            .boxed()
    });
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all.iter().filter(|decided| decided.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_decision_after_its_time_is_none_and_the_job_times_out() {
    let (approvals, store) = Approvals::in_memory();
    let id = put(&store, &entry(1, 0, &[])).await;
    let late = approvals.decide(&id, by("ann", Answer::Approved)).await;
    assert!(matches!(late, Err(WhyNot::Settled(stands)) if stands.standing.word() == "expired"));
    let kept = store.read(&id).await.expect("answers").entry.expect("is there");
    assert!(
        kept.result
            .expect("is fixed")
            .payload
            .contains("CANCELLED_BY_TIMEOUT")
    );
}

#[tokio::test]
async fn what_is_decided_is_acknowledged_told_and_answered_in_this_order_until_it_is_heard() {
    let store = MemoryStore::default();
    let (approvals, ears) = worker(&store);
    *ears.deaf_for.lock().expect("is whole") = 1;
    let id = put(&store, &entry(1, 60_000, &[])).await;
    let keeping = tokio::spawn(keep(approvals.clone()));
    approvals
        .decide(&id, by("ann", Answer::Approved))
        .await
        .expect("counts");
    let answered = until_answered(&store, &id).await;
    keeping.abort();
    let result = answered.result.expect("is fixed");
    assert_eq!(
        ears.subjects(),
        ["ack", caf_protocol::approval::DECIDED_SUBJECT, &result.subject]
    );
    let heard = ears
        .heard
        .lock()
        .expect("is whole")
        .last()
        .cloned()
        .expect("was heard");
    assert_eq!(StoredMessage::from(&heard), result);
}

#[tokio::test]
async fn what_a_worker_has_settled_and_left_is_published_by_another_with_the_same_bytes() {
    let store = MemoryStore::default();
    let (dead, unheard) = worker(&store);
    let id = put(&store, &entry(1, 60_000, &[])).await;
    let mut decision = by("ann", Answer::Approved);
    // Long enough ago that others may take over.
    decision.at -= 60_000;
    dead.decide(&id, decision).await.expect("counts");
    assert!(unheard.subjects().is_empty(), "nobody was there to publish it");
    let fixed = store
        .read(&id)
        .await
        .expect("answers")
        .entry
        .expect("is there")
        .result;
    let (heir, ears) = worker(&store);
    let keeping = tokio::spawn(keep(heir));
    let answered = until_answered(&store, &id).await;
    keeping.abort();
    assert_eq!((answered.result, ears.subjects().len()), (fixed, 3));
}

#[tokio::test]
async fn an_entry_is_read_back_as_it_was_written_and_its_page_shows_it() {
    let (approvals, store) = Approvals::in_memory();
    let asked = entry(1, 60_000, &["ann"]);
    let written = serde_json::to_vec(&asked).expect("is plain data");
    assert_eq!(serde_json::from_slice::<Entry>(&written).expect("is read"), asked);
    assert_eq!(
        asked.identity().key().as_str(),
        asked.request.approval_id.as_str()
    );
    let id = put(&store, &asked).await;
    let keeping = tokio::spawn(keep(approvals.clone()));
    let listed = async {
        loop {
            let page = approvals.list(None, 10).await.expect("answers");
            if page.pending == 1 {
                return page;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let page = tokio::time::timeout(Duration::from_secs(30), listed)
        .await
        .expect("is told");
    keeping.abort();
    assert_eq!(page.approvals, [asked.view()]);
    assert_eq!(
        (page.next, approvals.get(&id).await),
        (None, Ok(Some(asked.view())))
    );
}
