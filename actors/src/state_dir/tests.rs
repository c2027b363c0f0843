use std::time::{Duration, Instant};

use super::*;

/// A new directory under the system's temporary directory, removed on drop.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("caf-state-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Takes `slot`, which is made when missing, as soon as whoever holds it has let go.
pub(crate) fn take_again(base: &Path, slot: u32) -> StateDir {
    make_dir(&slot_path(base, slot), DirBuilder::new().recursive(true)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(dir) = StateDir::try_take(base, slot).unwrap() {
            return dir;
        }
        assert!(Instant::now() < deadline, "slot {slot} is never free");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn two_workers_never_share_a_slot_and_a_free_one_is_taken_again() {
    let base = Scratch::new();
    let inner = base.0.join("made/on/the/way");
    let first = StateDir::take(&inner).unwrap();
    let second = StateDir::take(&inner).unwrap();
    assert_eq!((first.slot(), second.slot()), (0, 1));
    assert_eq!(second.path(), inner.join("1"));
    let clone = first.clone();
    drop(first);
    assert_eq!(
        StateDir::take(&inner).unwrap().slot(),
        2,
        "a clone holds the slot"
    );
    drop(clone);
    assert_eq!(StateDir::take(&inner).unwrap().slot(), 0);
}

#[test]
fn what_is_no_directory_is_named_with_the_key() {
    let base = Scratch::new();
    let file = base.0.join("file");
    std::fs::write(&file, "x").unwrap();
    let text = StateDir::take(&file).unwrap_err().to_string();
    assert_eq!(
        text,
        format!("worker.state_dir: {} is not a directory", file.display())
    );
    let below = StateDir::take(&file.join("state")).unwrap_err().to_string();
    assert!(
        below.starts_with("worker.state_dir: cannot create") && below.contains("Not a directory"),
        "{below}"
    );
    std::fs::write(base.0.join("0"), "x").unwrap();
    let text = StateDir::take(&base.0).unwrap_err().to_string();
    assert!(text.ends_with("/0 is not a directory"), "{text}");
}

#[test]
fn where_nothing_can_be_written_the_systems_reason_is_told() {
    // Nobody, not even root, can make a directory there.
    let error = StateDir::take(Path::new("/sys/caf-worker-state")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("worker.state_dir: cannot create /sys/caf-worker-state: ")
            && text.contains("os error"),
        "{text}"
    );
}

#[test]
fn when_all_slots_are_taken_the_text_says_so() {
    let base = Scratch::new();
    let taken: Vec<StateDir> = (0..MAX_SLOTS).map(|_| StateDir::take(&base.0).unwrap()).collect();
    assert_eq!(taken.last().map(StateDir::slot), Some(255));
    let text = StateDir::take(&base.0).unwrap_err().to_string();
    assert!(text.contains("all 256 slots"), "{text}");
}

#[test]
fn a_directory_that_lost_its_name_is_noticed_and_one_that_has_it_back_is_as_before() {
    let base = Scratch::new();
    let state = base.0.join("state");
    let dir = StateDir::take(&state).unwrap();
    dir.is_in_place().unwrap();
    std::fs::rename(&state, base.0.join("aside")).unwrap();
    let text = dir.is_in_place().unwrap_err().to_string();
    assert!(
        text.starts_with("worker.state_dir: ")
            && text.contains("/state/0/lock was removed or replaced")
            && text.ends_with("restart the worker"),
        "{text}"
    );
    // Another worker comes and takes the name.
    let other = StateDir::take(&state).unwrap();
    assert_eq!((other.slot(), other.path()), (0, dir.path()));
    assert!(matches!(dir.is_in_place(), Err(StateDirError::Replaced { .. })));
    other.is_in_place().unwrap();
    std::fs::remove_dir_all(&state).unwrap();
    assert!(matches!(other.is_in_place(), Err(StateDirError::Replaced { .. })));
    std::fs::write(&state, "in the way").unwrap();
    assert!(matches!(dir.is_in_place(), Err(StateDirError::Replaced { .. })));
    std::fs::remove_file(&state).unwrap();
    std::fs::rename(base.0.join("aside"), &state).unwrap();
    dir.is_in_place().unwrap();
}
