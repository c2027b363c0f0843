use std::time::Duration;

use bytes::Bytes;

use super::*;

fn claims(max_entries: usize, memory_bytes: usize) -> Claims {
    Claims::new(
        &IdempotencySettings {
            max_entries,
            memory_bytes,
            ..IdempotencySettings::default()
        },
        None,
    )
}

fn key(id: &str) -> AssignmentKey {
    AssignmentKey::new("acme", id)
}

fn answer(size: usize) -> Arc<Outgoing> {
    Arc::new(Outgoing {
        subject: "s".into(),
        headers: Default::default(),
        payload: Bytes::from(vec![b'x'; size]),
    })
}

fn is_finished(claims: &Claims, id: &str, now: Instant) -> bool {
    matches!(claims.look(&key(id), now), Standing::Finished(_))
}

#[tokio::test]
async fn an_assignment_is_new_then_held_then_finished() {
    let (claims, now) = (claims(10, 10_000), Instant::now());
    assert!(matches!(claims.look(&key("a"), now), Standing::New));
    let claim = claims.take(key("a"), None, now);
    claim.record_result(&answer(10));
    assert!(
        matches!(claims.look(&key("a"), now), Standing::Held(None)),
        "not answered before it is confirmed"
    );
    drop(claim);
    assert!(is_finished(&claims, "a", now));
}

#[tokio::test]
async fn a_claim_dropped_without_a_result_keeps_its_first_start_and_its_ack() {
    let (claims, now) = (claims(10, 10_000), Instant::now());
    let claim = claims.take(key("a"), None, now);
    claim.record_ack(&answer(3));
    drop(claim);
    let later = now + Duration::from_secs(5);
    let Standing::Interrupted { first_start, ack } = claims.look(&key("a"), later) else {
        panic!()
    };
    assert_eq!((first_start, ack), (now, Some(answer(3))));
    let again = claims.take(key("a"), None, later);
    again.record_result(&answer(10));
    drop(again);
    assert_eq!(
        claims.size(),
        (1, OVERHEAD_BYTES + 10),
        "counted once, and without the acknowledgement, which nobody asks for any more"
    );
}

#[tokio::test]
async fn the_oldest_finished_go_first_when_entries_or_bytes_run_out() {
    let (claims, now) = (claims(3, 3 * OVERHEAD_BYTES + 100), Instant::now());
    for id in ["a", "b", "c", "d"] {
        claims.take(key(id), None, now).record_result(&answer(10));
    }
    assert_eq!(
        ["a", "b", "d"].map(|id| is_finished(&claims, id, now)),
        [false, true, true]
    );
    claims.take(key("big"), None, now).record_result(&answer(90));
    assert_eq!(
        ["c", "d", "big"].map(|id| is_finished(&claims, id, now)),
        [false, true, true]
    );
    assert_eq!(claims.size(), (2, 2 * OVERHEAD_BYTES + 100));
}

#[tokio::test]
async fn finished_assignments_are_forgotten_after_the_ttl() {
    let (claims, now) = (claims(10, 10_000), Instant::now());
    claims.take(key("a"), None, now).record_result(&answer(10));
    let hour = Duration::from_secs(3600);
    assert!(is_finished(&claims, "a", now + hour - Duration::from_secs(1)));
    assert!(!is_finished(&claims, "a", now + hour + Duration::from_secs(5)));
    assert_eq!(claims.size(), (0, 0));
}

#[tokio::test]
async fn a_claim_that_is_forgotten_leaves_nothing_behind() {
    let (claims, now) = (claims(10, 10_000), Instant::now());
    let claim = claims.take(key("a"), None, now);
    claim.record_ack(&answer(3));
    claim.record_result(&answer(10));
    assert!(claims.is_held(&key("a")));
    claim.forget();
    assert!(matches!(claims.look(&key("a"), now), Standing::New));
    assert!(!claims.is_held(&key("a")));
    assert_eq!(claims.size(), (0, 0));
}

#[tokio::test]
async fn the_window_that_is_really_covered_shrinks_when_the_oldest_are_pushed_out() {
    tokio::time::pause();
    let claims = claims(2, 10_000);
    let minute = Duration::from_secs(60);
    let finish = |name| drop(claims.take(key(name), None, Instant::now()));
    let window = || claims.snapshot(Instant::now()).idempotency_window_s;
    finish("a");
    tokio::time::advance(minute).await;
    finish("b");
    assert_eq!(window(), 3_600);
    tokio::time::advance(minute).await;
    finish("c");
    assert_eq!(
        (window(), claims.snapshot(Instant::now()).entries),
        (120, 2),
        "since a"
    );
    finish("d");
    assert_eq!(window(), 60, "since b");
    tokio::time::advance(Duration::from_secs(7_200)).await;
    assert_eq!(window(), 3_600, "nothing was pushed out for so long");
}

#[tokio::test]
async fn an_answer_is_known_for_the_message_that_was_answered_and_no_other() {
    let (claims, now) = (claims(10, 10_000), Instant::now());
    let (this, other) = ((Arc::from("s"), 1), (Arc::from("s"), 2));
    let claim = claims.take(key("a"), None, now);
    claim.record_result(&answer(3));
    assert!(
        !claims.is_answered(&key("a"), Some(&this)),
        "written, not confirmed"
    );
    claim.note_answered(Some(&this));
    drop(claim);
    assert!(claims.is_answered(&key("a"), Some(&this)));
    assert!(!claims.is_answered(&key("a"), Some(&other)));
    assert!(!claims.is_answered(&key("a"), None));
    let again = claims.take(key("a"), None, now);
    again.suppress();
    assert_eq!(claims.snapshot(now).results_suppressed, 1);
    assert!(!claims.is_answered(&key("a"), Some(&this)));
}
