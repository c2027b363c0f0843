//! What happens when there is too much, or no room.

use super::*;

/// Waits for `holds`, which something else makes true.
async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, wait).await.unwrap();
}

/// Waits until there is room.
async fn room(outbox: &Outbox) {
    outbox
        .room_changes()
        .wait_for(|has_room| *has_room)
        .await
        .unwrap();
}

/// Bytes that the log may have: what a full disk is to it.
async fn allow(outbox: &Outbox, bytes: u64) {
    meddle(outbox, move |log| log.room = Some(bytes)).await.unwrap();
}

#[tokio::test]
async fn above_max_bytes_storing_goes_on_and_only_room_is_gone() {
    let base = Scratch::new();
    let settings = OutboxSettings {
        sync: OutboxSync::None,
        max_bytes: 1024 * 1024,
    };
    let outbox = Outbox::open(&take_again(&base.0, 0), &settings, &Log::discard()).unwrap();
    assert!(outbox.has_room());
    let first = outbox.store(large("a", 900_000)).await.unwrap();
    assert!(outbox.has_room());
    let second = outbox.store(large("b", 900_000)).await.unwrap();
    assert!(!outbox.has_room());
    let third = outbox.store(large("c", 900_000)).await.unwrap();
    assert_eq!(outbox.snapshot().entries, 3);
    let waiting = tokio::spawn({
        let outbox = outbox.clone();
        async move { room(&outbox).await }
    });
    outbox.remove(first);
    outbox.flush().await.unwrap();
    assert!(!outbox.has_room() && !waiting.is_finished());
    outbox.remove(second);
    timeout(SOON, waiting).await.unwrap().unwrap();
    assert!(outbox.has_room());
    outbox.remove(third);
    outbox.flush().await.unwrap();
    assert_eq!(outbox.snapshot().bytes, 0);
    drop(outbox);
    let one_byte = OutboxSettings {
        max_bytes: 1,
        ..settings
    };
    let outbox = Outbox::open(&take_again(&base.0, 0), &one_byte, &Log::discard()).unwrap();
    assert!(outbox.has_room());
}

#[tokio::test]
async fn when_the_disk_is_full_callers_are_told_nothing_is_lost_and_it_recovers_by_itself() {
    let base = Scratch::new();
    let outbox = open(&base.0);
    let mut stored = vec![outbox.store(large("before", 20_000)).await.unwrap()];
    allow(&outbox, 240_000).await;
    let error = loop {
        match outbox.store(large("more", 20_000)).await {
            Ok(id) => stored.push(id),
            Err(error) => break error,
        }
        assert!(stored.len() < 60);
    };
    let text = error.to_string();
    assert!(
        text.starts_with("worker.state_dir: cannot write ") && text.ends_with("no space left on the disk"),
        "{text}"
    );
    assert_eq!(outbox.snapshot().failure, Some(text));
    assert!(!outbox.has_room());
    assert_eq!(outbox.snapshot().entries, stored.len() as u64);
    // Room is made, nothing new comes: it finds out alone.
    allow(&outbox, 40_000_000).await;
    timeout(SOON, room(&outbox)).await.unwrap();
    assert_eq!(outbox.snapshot().failure, None);
    stored.push(outbox.store(large("after", 20_000)).await.unwrap());
    drop(outbox);
    let found = all_left(&open(&base.0)).await;
    assert_eq!(found.iter().map(|entry| entry.id).collect::<Vec<_>>(), stored);
}

#[tokio::test]
async fn one_entry_that_does_not_fit_takes_none_of_its_neighbours_along() {
    let base = Scratch::new();
    let outbox = open(&base.0);
    outbox.store(large("first", 10)).await.unwrap();
    allow(&outbox, 160_000).await;
    let (go, wait) = mpsc::channel::<()>();
    let meddling = meddle(&outbox, move |_| wait.recv().unwrap());
    let small = outbox.store(large("small", 4_000));
    let huge = outbox.store(large("huge", 4_000_000));
    let other = outbox.store(large("other", 4_000));
    go.send(()).unwrap();
    meddling.await.unwrap();
    assert!(small.await.is_ok() && huge.await.is_err() && other.await.is_ok());
    assert_eq!(outbox.snapshot().entries, 3);
}

#[tokio::test]
async fn removals_make_room_on_a_full_disk() {
    let base = Scratch::new();
    let outbox = open(&base.0);
    allow(&outbox, 240_000).await;
    let mut stored = Vec::new();
    while let Ok(id) = outbox.store(large("more", 20_000)).await {
        stored.push(id);
    }
    assert!(!outbox.has_room() && !stored.is_empty());
    for id in stored.drain(..) {
        outbox.remove(id);
    }
    timeout(SOON, room(&outbox)).await.unwrap();
    outbox.store(large("again", 20_000)).await.unwrap();
    assert_eq!(outbox.snapshot().entries, 1);
}

#[tokio::test]
async fn after_a_burst_the_files_shrink_again() {
    let base = Scratch::new();
    let outbox = open(&base.0);
    let burst: Vec<_> = (0..100)
        .map(|n| outbox.store(large(&n.to_string(), 400_000)))
        .collect();
    let mut stored = Vec::new();
    for answer in burst {
        stored.push(answer.await.unwrap());
    }
    let size = || disk_use(outbox.file());
    assert!(size() > 40_000_000);
    let last = stored.pop().unwrap();
    for id in stored {
        outbox.remove(id);
    }
    // The last is in the newest segment.
    until(|| size() < 9_000_000).await;
    outbox.remove(last);
    until(|| size() == 0).await;
    assert_eq!(outbox.snapshot().failure, None);
}

/// Bytes of the files in a directory.
fn disk_use(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().flatten();
    files
        .map(|file| file.metadata().map_or(0, |file| file.len()))
        .sum()
}

#[tokio::test]
async fn entries_that_stay_are_copied_so_that_the_log_stays_in_proportion_to_what_lives() {
    let base = Scratch::new();
    let outbox = open(&base.0);
    let mut kept = Vec::new();
    for n in 0..150 {
        let entry = large(&n.to_string(), 1_000_000);
        let id = outbox.store(entry).await.unwrap();
        // One of each segment.
        if n % 10 == 0 {
            kept.push(id);
        } else {
            outbox.remove(id);
        }
    }
    outbox.flush().await.unwrap();
    let lives = outbox.snapshot().bytes;
    let bound = 2 * lives + segments::SPARE_BYTES + segments::SEGMENT_BYTES;
    until(|| disk_use(outbox.file()) <= bound).await;
    drop(outbox);
    let outbox = open(&base.0);
    let found = all_left(&outbox).await;
    assert_eq!(found.iter().map(|entry| entry.id).collect::<Vec<_>>(), kept);
    for (place, entry) in found.into_iter().enumerate() {
        assert_eq!(entry.content, large(&(place * 10).to_string(), 1_000_000));
    }
}

/// A file system of 24 MiB, where the system lets us have one.
struct SmallDisk(Scratch);

impl SmallDisk {
    fn new() -> Option<Self> {
        let place = Scratch::new();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "none"])
            .arg(&place.0)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then(|| Self(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the writer of a failed test may still have the file.
        let _ = Command::new("umount").arg("-l").arg(&self.0.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_is_really_full_is_survived() {
    // Needs the right to mount; without it `allow` above stands in.
    let Some(disk) = SmallDisk::new() else { return };
    let base = disk.0.0.clone();
    let outbox = Outbox::open(&take_again(&base, 0), &OutboxSettings::default(), &Log::discard()).unwrap();
    let mut stored = Vec::new();
    let error = loop {
        match outbox.store(large("more", 200_000)).await {
            Ok(id) => stored.push(id),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.ends_with("no space left on the disk"), "{error}");
    let last = stored.pop().unwrap();
    for id in stored.drain(..) {
        outbox.remove(id);
    }
    timeout(SOON, room(&outbox)).await.unwrap();
    until(|| outbox.snapshot().entries == 1).await;
    let again = outbox.store(large("again", 200_000)).await.unwrap();
    drop(outbox);
    let dir = take_again(&base, 0);
    let outbox = Outbox::open(&dir, &OutboxSettings::default(), &Log::discard()).unwrap();
    let found: Vec<_> = all_left(&outbox)
        .await
        .into_iter()
        .map(|entry| entry.id)
        .collect();
    assert_eq!(found, [last, again]);
    drop((outbox, dir));

    // A start on a full disk opens what is there and says what is wrong.
    // Waits until the one before has given its reserve up: what fills the disk must find that room.
    let dir = take_again(&base, 0);
    assert!(std::fs::write(base.join("filler"), vec![0; 32 * 1024 * 1024]).is_err());
    let outbox = Outbox::open(&dir, &OutboxSettings::default(), &Log::discard()).unwrap();
    assert!(!outbox.has_room());
    assert_eq!(all_left(&outbox).await.len(), 2);
    std::fs::remove_file(base.join("filler")).unwrap();
    timeout(SOON, room(&outbox)).await.unwrap();
}
