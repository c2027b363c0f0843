use futures_util::FutureExt;

use super::super::tests::Scratch;
use super::*;

fn mark(name: &str, alone: bool) -> Mark {
    Mark {
        key: AssignmentKey::new("tenant", name),
        alone,
    }
}

/// A copy of the file as a kill at this moment would leave it, in a slot of its own.
fn as_killed(dir: &StateDir, base: &Scratch) -> StateDir {
    let other = StateDir::take(&base.0).unwrap();
    std::fs::copy(dir.path().join(FILE), other.path().join(FILE)).unwrap();
    other
}

#[tokio::test]
async fn marks_that_were_set_are_left_behind_once_and_dropped_ones_are_not() {
    let base = Scratch::new();
    let dir = StateDir::take(&base.0).unwrap();
    let (marks, left) = Marks::open(&dir, 2).unwrap();
    assert!(left.is_empty());
    let first = marks.set(&mark("a", false)).await;
    let _second = marks.set(&mark("b", true)).await;
    // More than there is room for: the file grows.
    drop(first);
    let _third = marks.set(&mark("c", false)).await;
    let _fourth = marks.set(&mark("d", false)).await;
    let killed = as_killed(&dir, &base);
    let (_, left) = Marks::open(&killed, 2).unwrap();
    // In the order of the records: the first was free again.
    assert_eq!(left, [mark("c", false), mark("b", true), mark("d", false)]);
    assert_eq!(Marks::open(&killed, 2).unwrap().1, []);
    assert_eq!(marks.unwritten(), 0);
}

#[tokio::test]
async fn a_record_is_used_again_after_its_mark_is_dropped() {
    let base = Scratch::new();
    let dir = StateDir::take(&base.0).unwrap();
    let (marks, _) = Marks::open(&dir, 1).unwrap();
    for name in ["a", "b", "c"] {
        drop(marks.set(&mark(name, true)).await);
    }
    marks.clear().await;
    let file = std::fs::read(dir.path().join(FILE)).unwrap();
    assert_eq!(file, [0; RECORD_BYTES]);
}

#[test]
fn torn_and_foreign_records_are_ignored() {
    let base = Scratch::new();
    let dir = StateDir::take(&base.0).unwrap();
    let whole = encode(&mark("whole", false));
    let mut torn = encode(&mark("torn", false));
    torn[MAGIC.len() + 20..].fill(0);
    let mut flipped = encode(&mark("flipped", false));
    flipped[FLAG_AT] = 1;
    let foreign = [b'x'; RECORD_BYTES];
    let file = [&torn[..], &foreign, &whole, &flipped, &whole[..50]].concat();
    std::fs::write(dir.path().join(FILE), file).unwrap();
    assert_eq!(Marks::open(&dir, 4).unwrap().1, [mark("whole", false)]);
}

#[tokio::test]
async fn whoever_leaves_of_its_own_will_leaves_no_marks() {
    let base = Scratch::new();
    let dir = StateDir::take(&base.0).unwrap();
    let (marks, _) = Marks::open(&dir, 2).unwrap();
    std::mem::forget(marks.set(&mark("a", false)).await);
    std::mem::forget(marks.set(&mark("b", true)).await);
    marks.clear().await;
    let (_, left) = Marks::open(&dir, 2).unwrap();
    assert_eq!(left, []);
}

#[tokio::test]
async fn a_mark_that_was_given_up_before_it_was_written_is_taken_away_again() {
    let base = Scratch::new();
    let dir = StateDir::take(&base.0).unwrap();
    let (marks, _) = Marks::open(&dir, 1).unwrap();
    drop(marks.set(&mark("a", true)).now_or_never());
    let _next = marks.set(&mark("b", false)).await;
    assert_eq!(
        Marks::open(&as_killed(&dir, &base), 1).unwrap().1,
        [mark("b", false)]
    );
    assert_eq!(marks.writing_for(), Duration::ZERO);
}
