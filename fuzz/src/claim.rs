//! A record that somebody wrote into the bucket of claims.

use caf_actors::claims::record::{ClaimRecord, ClaimState, Claimant, Judgement, OwnerWord};

/// What is taken over is ours, running and no older attempt than before; a finished one is never run again; and what is
/// written is read as the same.
pub fn holds(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<ClaimRecord>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&record).expect("a record is JSON");
    assert_eq!(
        serde_json::from_slice::<ClaimRecord>(&written).expect("is read again"),
        record
    );
    let claimant = Claimant {
        owner: "us".to_owned(),
        worker_id: "w-us".to_owned(),
        stream: "caf-stream".to_owned(),
        sequence: 7,
    };
    for word in [
        OwnerWord::NotAsked,
        OwnerWord::Holds,
        OwnerWord::LetGo,
        OwnerWord::Silent,
    ] {
        let judgement = record.judge(&claimant, word);
        if record.state == ClaimState::Finished {
            assert!(matches!(judgement, Judgement::Finished(_)), "{judgement:?}");
        }
        if let Judgement::TakeOver(ours) = judgement {
            assert_eq!(ours.owner, "us");
            assert_eq!(ours.state, ClaimState::Running);
            assert!(ours.attempt >= record.attempt);
            assert_eq!(
                ours.first_start_ms, record.first_start_ms,
                "the deadline counts from the first start"
            );
            assert_eq!(
                ours.ack, record.ack,
                "an acknowledgement that is fixed stays as it is"
            );
        }
    }
    let _ = record.inherit("them", "us");
    let mut died = record.clone();
    died.note_death(true);
    assert!(died.deaths >= record.deaths);
}
