//! A process that is killed at any byte of any write: what was answered is there, and nothing else comes to life.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

/// What happens next to the log.
#[derive(Debug, Clone)]
enum Deed {
    /// So many entries of so many bytes are stored together.
    Store(usize, usize),
    /// The entry at this place of those that live, counted around, is removed.
    Remove(usize),
    /// What lives in the oldest segment is copied.
    Copy,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        5 => (1_usize..3, 0_usize..20).prop_map(|(count, bytes)| Deed::Store(count, bytes)),
        6 => any::<usize>().prop_map(Deed::Remove),
        1 => Just(Deed::Copy),
    ];
    proptest::collection::vec(deed, 20..40)
}

type Content = BTreeMap<EntryId, NewEntry>;

/// What a process finds that comes after one which was killed here.
fn found(slot: &Path) -> Content {
    let (log, _) = Segments::open(slot, false)
        .map_err(|error| error.to_string())
        .unwrap();
    let left = log.left(None, log.next_id(), usize::MAX).unwrap();
    left.into_iter().map(|entry| (entry.id, entry.content)).collect()
}

/// Kills at each byte of the last write, of which the newest segment had `before` bytes when it began: what is found is
/// what was there, or a beginning of what was under way.
fn killed_everywhere(slot: &Path, before: Option<(PathBuf, u64)>, ways: &[Content]) {
    let copy = Scratch::new();
    let (from, to) = (segments::directory_in(slot), segments::directory_in(&copy.0));
    std::fs::create_dir(&to).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(&from)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    let newest = files.pop().unwrap();
    for file in files {
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
    let whole = std::fs::read(&newest).unwrap();
    let begins = before
        .filter(|(file, _)| *file == newest)
        .map_or(0, |(_, bytes)| usize::try_from(bytes).unwrap());
    let file = to.join(newest.file_name().unwrap());
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(found(&copy.0), *ways.last().unwrap());
    let mut reached = 0;
    for end in (begins..whole.len()).rev() {
        // Taken away where not even its header was whole.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .unwrap();
        file.set_len(end as u64).unwrap();
        file.write_all_at(&whole[..end], 0).unwrap();
        let found = found(&copy.0);
        let way = ways.iter().rev().skip(reached).position(|way| *way == found);
        // The less was written the less is found.
        reached += way.unwrap_or_else(|| panic!("at {end} of {}: {found:?}, not {ways:?}", whole.len()));
    }
}

fn newest(slot: &Path) -> Option<(PathBuf, u64)> {
    let files = std::fs::read_dir(segments::directory_in(slot)).unwrap();
    let newest = files.map(|file| file.unwrap().path()).max()?;
    let bytes = std::fs::metadata(&newest).unwrap().len();
    Some((newest, bytes))
}

fn survives(deeds: &[Deed]) {
    let slot = Scratch::new();
    let (mut log, _) = Segments::open(&slot.0, false).unwrap();
    log.segment_bytes = 500;
    // What a successor finds, and what lives for this process.
    let (mut durable, mut lives) = (Content::new(), Content::new());
    for deed in deeds {
        let before = newest(&slot.0);
        match deed {
            Deed::Remove(place) => {
                if let Some(id) = lives.keys().nth(place % lives.len().max(1)).copied() {
                    lives.remove(&id);
                    log.remove([id]);
                }
                continue;
            }
            Deed::Copy => {
                log.copy_to_end().unwrap();
                if newest(&slot.0) != before {
                    killed_everywhere(&slot.0, before, &[durable.clone()]);
                }
                log.drop_dead().unwrap();
                // What was removed may be gone for good, or not yet.
                let left = found(&slot.0);
                durable.retain(|id, _| lives.contains_key(id) || left.contains_key(id));
            }
            Deed::Store(count, bytes) => {
                let entries: Vec<NewEntry> = (0..*count)
                    .map(|n| large(&format!("{}-{n}", lives.len()), *bytes))
                    .collect();
                let mut ways = vec![durable.clone(), lives.clone()];
                let first = log.write(entries.iter()).unwrap();
                for (id, entry) in (first.0..).zip(entries) {
                    lives.insert(EntryId(id), entry);
                    ways.push(lives.clone());
                }
                killed_everywhere(&slot.0, before, &ways);
                log.drop_dead().unwrap();
                durable = lives.clone();
                assert_eq!(found(&slot.0), durable);
            }
        }
        assert_eq!(log.entries(), lives.len() as u64);
    }
    drop(log);
    assert_eq!(found(&slot.0), durable);
}

#[test]
fn whoever_is_killed_at_any_byte_of_any_write_leaves_exactly_what_was_answered() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 3,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&deeds(), |deeds| {
            survives(&deeds);
            Ok(())
        })
        .unwrap();
}
