use std::sync::Mutex as StdMutex;

use futures_util::FutureExt;

use super::*;

/// One claim, in memory; owners answer with one word.
struct Memory {
    claim: StdMutex<Found>,
    words: StdMutex<Vec<OwnerWord>>,
    waits: bool,
}

impl Memory {
    fn with_words(words: &[OwnerWord], waits: bool) -> Arc<Self> {
        Arc::new(Self {
            claim: StdMutex::default(),
            words: StdMutex::new(words.to_vec()),
            waits,
        })
    }

    fn put(&self, record: ClaimRecord) {
        let mut claim = self.claim.lock().unwrap();
        *claim = Found {
            revision: claim.revision + 1,
            record: Some(record),
        };
    }
}

impl ClaimStore for Memory {
    fn write(
        &self,
        _: &AssignmentKey,
        record: &ClaimRecord,
        expected: Revision,
    ) -> BoxFuture<'static, Result<Revision, StoreError>> {
        let same = self.claim.lock().unwrap().revision == expected;
        if same {
            self.put(record.clone());
        }
        let written = same.then_some(expected + 1).ok_or(StoreError::Conflict);
        std::future::ready(written).boxed()
    }

    fn read(&self, _: &AssignmentKey) -> BoxFuture<'static, Result<Found, StoreError>> {
        std::future::ready(Ok(self.claim.lock().unwrap().clone())).boxed()
    }

    fn ask_owner(&self, _: &str, _: &AssignmentKey) -> BoxFuture<'static, OwnerWord> {
        std::future::ready(self.words.lock().unwrap().remove(0)).boxed()
    }

    fn is_waiting(&self, _: &str, _: u64, _: &AssignmentKey) -> BoxFuture<'static, Result<bool, StoreError>> {
        std::future::ready(Ok(self.waits)).boxed()
    }

    fn result(&self, _: &OutcomeRef) -> BoxFuture<'static, Result<Option<Outgoing>, StoreError>> {
        std::future::ready(Ok(None)).boxed()
    }
}

fn key() -> AssignmentKey {
    AssignmentKey::new("acme", "a")
}

fn fleet(store: &Arc<Memory>, owner: &str) -> Fleet {
    Fleet::new(Arc::clone(store) as Arc<dyn ClaimStore>, owner, owner)
}

async fn taken(fleet: &Fleet) -> FleetClaim {
    let record = ClaimRecord::first(&fleet.claimant("s", 1), 0);
    match fleet.take(&key(), record, 0).await {
        Ok(Taken::Ours(claim)) => claim,
        _ => panic!("it is free"),
    }
}

#[tokio::test]
async fn a_claim_that_was_lost_stays_lost_whoever_asks_next() {
    let store = Memory::with_words(&[], false);
    let claim = taken(&fleet(&store, "a")).await;
    assert_eq!(claim.prove().await, Proof::Ours);
    let mut rival = claim.record().await;
    rival.owner = "b".to_owned();
    store.put(rival.clone());
    for _ in 0..3 {
        assert_eq!(claim.prove().await, Proof::Lost);
    }
    let outcome = OutcomeRef {
        hash: String::new(),
        position: None,
    };
    assert_eq!(claim.finish(outcome).await, Proof::Lost);
    assert_eq!(claim.give_back().await, Proof::Lost);
    assert_eq!(
        store.claim.lock().unwrap().record,
        Some(rival),
        "the rival's claim is as it was"
    );
}

async fn learnt(words: &[OwnerWord], waits: bool) -> Result<Learnt, StoreError> {
    let store = Memory::with_words(words, waits);
    taken(&fleet(&store, "a")).await;
    let found = store.claim.lock().unwrap().clone();
    let other = fleet(&store, "b");
    other.learn(&found, &other.claimant("s", 2), &key()).await
}

#[tokio::test]
async fn silence_counts_only_for_whoever_can_be_asked_itself() {
    use OwnerWord::{Holds, LetGo, Silent};
    let held = |learnt| matches!(learnt, Ok(Learnt::HeldElsewhere { same_message: false }));
    let free = |learnt| matches!(learnt, Ok(Learnt::TakeOver(_)));
    assert!(held(learnt(&[Holds], false).await));
    assert!(free(learnt(&[LetGo], true).await), "it says so itself");
    assert!(free(learnt(&[Silent, LetGo], false).await));
    assert!(
        held(learnt(&[Silent, LetGo], true).await),
        "the original waits and will carry it"
    );
    assert!(matches!(
        learnt(&[Silent, Silent], false).await,
        Err(StoreError::Unavailable(_))
    ));
}
