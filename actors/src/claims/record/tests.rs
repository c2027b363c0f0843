use super::*;

fn claimant(owner: &str, sequence: u64) -> Claimant {
    Claimant {
        owner: owner.to_owned(),
        worker_id: format!("worker of {owner}"),
        stream: "caf-stream".to_owned(),
        sequence,
    }
}

fn running(owner: &str) -> ClaimRecord {
    ClaimRecord::first(&claimant(owner, 7), 1_000)
}

fn taken(judgement: Judgement) -> ClaimRecord {
    match judgement {
        Judgement::TakeOver(record) => *record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_claim_of_another_process_is_taken_over_only_when_it_does_not_say_that_it_works_on_it() {
    let record = running("a");
    let judge = |sequence, word| record.judge(&claimant("b", sequence), word);
    assert_eq!(judge(7, OwnerWord::NotAsked), Judgement::AskOwner);
    let held = |same_message| Judgement::HeldElsewhere { same_message };
    assert_eq!(judge(7, OwnerWord::Holds), held(true));
    assert_eq!(judge(8, OwnerWord::Holds), held(false));
    for word in [OwnerWord::Silent, OwnerWord::LetGo] {
        let next = taken(judge(7, word));
        assert_eq!((next.owner.as_str(), next.attempt), ("b", 2));
        assert_eq!(next.history[0].worker_id, "worker of a");
        assert_eq!(
            next.first_start_ms, 1_000,
            "the deadline counts from the first start"
        );
    }
}

#[test]
fn what_was_given_back_is_taken_over_without_asking_and_is_no_attempt() {
    let given_back = ClaimRecord {
        state: ClaimState::Interrupted,
        ack: Some(StoredMessage {
            subject: "ack".to_owned(),
            headers: Vec::new(),
            payload: "{}".to_owned(),
        }),
        ..running("a")
    };
    let next = taken(given_back.judge(&claimant("b", 7), OwnerWord::NotAsked));
    assert_eq!((next.attempt, next.state), (1, ClaimState::Running));
    assert!(next.history[0].given_back);
}

#[test]
fn what_was_only_deferred_keeps_its_first_start_and_leaves_no_trace_of_an_attempt() {
    let mut deferred = running("a");
    deferred.defer();
    let mut next = taken(deferred.judge(&claimant("b", 7), OwnerWord::NotAsked));
    next.defer();
    let next = taken(next.judge(&claimant("c", 7), OwnerWord::NotAsked));
    assert_eq!((next.attempt, next.first_start_ms), (1, 1_000));
    assert_eq!((next.history, next.ack), (Vec::new(), None));
}

#[test]
fn what_this_process_lost_with_an_actor_is_taken_on_again_as_another_attempt() {
    let next = taken(running("a").judge(&claimant("a", 7), OwnerWord::NotAsked));
    assert_eq!(next.attempt, 2);
}

#[test]
fn what_is_finished_is_never_taken_over() {
    let outcome = Some(OutcomeRef {
        hash: "00".to_owned(),
        position: Some(("caf-results".to_owned(), 3)),
    });
    let finished = ClaimRecord {
        state: ClaimState::Finished,
        outcome: outcome.clone(),
        ..running("a")
    };
    for owner in ["a", "b"] {
        let judged = |sequence| finished.judge(&claimant(owner, sequence), OwnerWord::Silent);
        assert_eq!(judged(8), Judgement::Finished(outcome.clone()), "asked again");
        assert_eq!(judged(7), Judgement::Finished(None), "the broker was not told");
    }
    assert_eq!(after_conflict(Some(&finished), "a"), AfterConflict::Lost);
}

#[test]
fn a_writer_goes_on_while_the_claim_is_its_own_or_gone_and_not_otherwise() {
    let mut own = running("a");
    own.note_death(false);
    assert_eq!(
        after_conflict(Some(&own), "a"),
        AfterConflict::WriteOnTop(Box::new(own.clone())),
        "a death was noted by somebody else meanwhile"
    );
    assert_eq!(after_conflict(None, "a"), AfterConflict::WriteAnew);
    assert_eq!(after_conflict(Some(&own), "b"), AfterConflict::Lost);
}

#[test]
fn a_stored_result_is_published_by_the_heir_unless_it_was_answered_or_runs_elsewhere() {
    let record = running("dead");
    assert_eq!(record.inherit("dead", "heir"), Inheritance::Publish);
    assert_eq!(running("other").inherit("dead", "heir"), Inheritance::TakenOver);
    assert_eq!(
        running("heir").inherit("dead", "heir"),
        Inheritance::Publish,
        "taken over by the heir before it was told that this was published"
    );
    let inherited = ClaimRecord {
        heir_of: Some("dead".to_owned()),
        ..running("dead heir")
    };
    assert_eq!(
        inherited.inherit("dead", "heir"),
        Inheritance::Publish,
        "the heir before died over it"
    );
    let again = taken(inherited.judge(&claimant("other", 7), OwnerWord::Silent));
    assert_eq!(
        again.inherit("dead", "heir"),
        Inheritance::TakenOver,
        "it runs again: that answer counts"
    );
    let finished = ClaimRecord {
        state: ClaimState::Finished,
        ..record
    };
    assert_eq!(finished.inherit("dead", "heir"), Inheritance::AnsweredBefore);
}

#[test]
fn only_a_job_that_died_alone_is_quarantined() {
    let rule = QuarantineRule {
        max_deaths: 3,
        max_attempts: 10,
    };
    let mut record = running("a");
    assert!(!rule.runs_alone(&record));
    record.note_death(false);
    assert!(!rule.runs_alone(&record));
    record.note_death(false);
    assert!(rule.runs_alone(&record) && !rule.is_quarantined(&record));
    let mut neighbour = record.clone();
    neighbour.note_death(false);
    assert!(!rule.is_quarantined(&neighbour), "it never died alone");
    record.note_death(true);
    assert!(rule.is_quarantined(&record));
}

#[test]
fn attempts_end_with_the_limit_and_history_stays_short() {
    let rule = QuarantineRule {
        max_deaths: 3,
        max_attempts: 20,
    };
    let mut record = running("a");
    for n in 0..20 {
        assert!(!rule.is_exhausted(&record));
        record = taken(record.judge(&claimant(&format!("{n}"), 7), OwnerWord::Silent));
    }
    assert!(rule.is_exhausted(&record));
    assert_eq!(record.history.len(), MAX_HISTORY);
    assert_eq!(record.history.last().map(|past| past.attempt), Some(20));
}

#[test]
fn a_message_survives_its_stay_in_a_record_byte_for_byte() {
    let mut headers = Headers::default();
    headers.push("Nats-Msg-Id", "a.ack");
    let message = Outgoing {
        subject: "s".to_owned(),
        headers,
        payload: Bytes::from_static("{\"ü\":1}".as_bytes()),
    };
    let text = serde_json::to_string(&StoredMessage::from(&message)).expect("json");
    let back: StoredMessage = serde_json::from_str(&text).expect("json");
    assert_eq!(Outgoing::from(back), message);
}
