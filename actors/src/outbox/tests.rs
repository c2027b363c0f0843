use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use caf_protocol::headers::Headers;
use tokio::time::timeout;

use super::*;
use crate::settings::OutboxSync;
use crate::state_dir::marks::{Mark, Marks};
use crate::state_dir::tests::{Scratch, take_again};

mod cost;
mod cut;
mod form;
mod limits;

const SOON: Duration = Duration::from_secs(20);

fn settings(sync: OutboxSync) -> OutboxSettings {
    OutboxSettings {
        sync,
        ..OutboxSettings::default()
    }
}

fn open_in(dir: &StateDir) -> Outbox {
    Outbox::open(dir, &settings(OutboxSync::None), &Log::discard()).unwrap()
}

fn open(base: &Path) -> Outbox {
    open_in(&take_again(base, 0))
}

fn message(subject: &str, payload: impl Into<Bytes>) -> Arc<Outgoing> {
    let mut headers = Headers::default();
    headers.push("Nats-Msg-Id", format!("{subject}.result"));
    headers.push("Twice", " ü\"\\ ");
    headers.push("Twice", "");
    Arc::new(Outgoing {
        subject: subject.to_owned(),
        headers,
        payload: payload.into(),
    })
}

fn entry(name: &str, messages: Vec<Arc<Outgoing>>) -> NewEntry {
    NewEntry {
        key: AssignmentKey::new("tenant", name),
        owner: "worker-1".to_owned(),
        position: None,
        messages,
        stored_at_ms: 1,
    }
}

fn large(name: &str, bytes: usize) -> NewEntry {
    entry(name, vec![message(name, vec![7; bytes])])
}

async fn all_left(outbox: &Outbox) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map(|entry: &Entry| entry.id);
        let page = outbox.left_behind(after, 3).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

#[tokio::test]
async fn what_is_stored_is_left_behind_byte_for_byte_in_order_and_what_is_removed_is_not() {
    let base = Scratch::new();
    let outbox = open(&base.0);
    let mut stored = Vec::new();
    for n in 0..8_u8 {
        let all_bytes: Vec<u8> = (0..=255).collect();
        let messages = vec![message("result", all_bytes), message("dlq", vec![n])];
        let mut entry = entry(&format!("a{n}"), messages);
        entry.position = (n > 0).then(|| ("caf-stream".into(), u64::MAX - u64::from(n)));
        entry.stored_at_ms = u64::from(n);
        stored.push((outbox.store(entry.clone()).await.unwrap(), entry));
    }
    assert!(all_left(&outbox).await.is_empty(), "its own are not left behind");
    let (gone, _) = stored.remove(4);
    outbox.remove(gone);
    outbox.remove(gone);
    outbox.flush().await.unwrap();
    assert_eq!(outbox.oldest_stored_at_ms(), Some(0));
    outbox.remove(stored.remove(0).0);
    outbox.flush().await.unwrap();
    let before = outbox.snapshot();
    assert_eq!((before.entries, before.failure.as_deref()), (6, None));
    assert_eq!(outbox.oldest_stored_at_ms(), Some(1));
    drop(outbox);

    let outbox = open(&base.0);
    assert_eq!(outbox.oldest_stored_at_ms(), Some(1));
    let found: Vec<_> = all_left(&outbox)
        .await
        .into_iter()
        .map(|entry| (entry.id, entry.content))
        .collect();
    assert_eq!(found, stored);
    let after = outbox.snapshot();
    assert_eq!((after.entries, after.bytes), (before.entries, before.bytes));
    for (id, _) in stored {
        outbox.remove(id);
    }
    outbox.flush().await.unwrap();
    assert_eq!((outbox.snapshot().entries, outbox.snapshot().bytes), (0, 0));
    assert_eq!(outbox.oldest_stored_at_ms(), None);
    drop(outbox);
    assert!(all_left(&open(&base.0)).await.is_empty());
}

#[tokio::test]
async fn a_thousand_stored_at_once_are_written_together_and_each_caller_hears() {
    let base = Scratch::new();
    let dir = take_again(&base.0, 0);
    let outbox = Outbox::open(&dir, &settings(OutboxSync::Always), &Log::discard()).unwrap();
    // The writer waits until all of them do.
    let (go, wait) = mpsc::channel::<()>();
    let meddling = meddle(&outbox, move |_| wait.recv().unwrap());
    let waiting: Vec<_> = (0..1_000)
        .map(|n| outbox.store(large(&n.to_string(), 100)))
        .collect();
    go.send(()).unwrap();
    meddling.await.unwrap();
    let mut ids = Vec::new();
    for answer in waiting {
        ids.push(answer.await.unwrap());
    }
    assert!(ids.is_sorted_by(|a, b| a < b));
    assert_eq!(outbox.snapshot().entries, 1_000);
    let syncs = outbox.snapshot().syncs;
    assert!(
        syncs <= 4,
        "{syncs} times forced to disk for one batch, and at most what tidying needs"
    );
}

/// Runs something on the writer's log, in its turn.
fn meddle(
    outbox: &Outbox,
    change: impl FnOnce(&mut Segments) + Send + 'static,
) -> impl Future<Output = Result<(), OutboxError>> {
    let (reply, answer) = oneshot::channel();
    outbox.order(Order::Meddle(Box::new(change), reply));
    outbox.answer(answer)
}

#[tokio::test]
async fn only_a_slot_that_nobody_uses_and_that_holds_entries_is_taken_over() {
    let base = Scratch::new();
    let dirs: Vec<StateDir> = (0..5).map(|_| StateDir::take(&base.0).unwrap()).collect();
    // 0 is ours, 1 holds one, 2 is empty, 3 holds one and lives, 4 cannot be read.
    for slot in [1, 2, 3] {
        let outbox = open_in(&dirs[slot]);
        let id = outbox.store(large("a", 10)).await.unwrap();
        if slot == 2 {
            outbox.remove(id);
            outbox.flush().await.unwrap();
        }
    }
    std::fs::create_dir(segments::directory_in(dirs[4].path())).unwrap();
    std::fs::write(segment(&dirs[4], 1), vec![b'x'; 9_000]).unwrap();
    let mut dirs = dirs.into_iter();
    let own = dirs.next().unwrap();
    drop((dirs.next(), dirs.next()));
    let _living = dirs.next();
    drop(dirs);
    // Wait until the writers of 1 and 2 have let go.
    drop((take_again(&base.0, 1), take_again(&base.0, 2)));

    let taken = StateDir::take_left_behind(&base.0, own.slot());
    assert_eq!(taken.iter().map(StateDir::slot).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(all_left(&open_in(&taken[0])).await.len(), 1);
}

/// The file of a segment.
fn segment(dir: &StateDir, number: u64) -> PathBuf {
    segments::directory_in(dir.path()).join(format!("{number:010}.log"))
}

fn open_error(dir: &StateDir) -> OutboxError {
    Outbox::open(dir, &OutboxSettings::default(), &Log::discard())
        .map(|_| ())
        .unwrap_err()
}

#[tokio::test]
async fn a_file_of_something_else_is_told_apart_and_left_as_it_is() {
    let base = Scratch::new();
    let dir = take_again(&base.0, 0);
    let file = segment(&dir, 1);
    let folder = segments::directory_in(dir.path());
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&file, vec![b'x'; 9_000]).unwrap();
    let error = open_error(&dir);
    assert!(matches!(error, OutboxError::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with("worker.state_dir: ") && text.contains("outbox/0000000001.log"),
        "{text}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), vec![b'x'; 9_000]);

    let mut later = Vec::new();
    record::Header::new(1, EntryId(1), 7).put(&mut later);
    later[8] = 9;
    std::fs::write(&file, &later).unwrap();
    let error = open_error(&dir);
    assert!(
        matches!(
            error,
            OutboxError::OtherVersion {
                found: 9,
                known: 2,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), later);

    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    let error = open_error(&dir);
    assert!(matches!(error, OutboxError::CannotOpen { .. }), "{error}");
}

#[tokio::test]
async fn results_in_a_database_of_the_version_before_are_not_forgotten() {
    let base = Scratch::new();
    let dir = take_again(&base.0, 0);
    let file = dir.path().join("outbox.sqlite");
    let database = rusqlite::Connection::open(&file).unwrap();
    let tables = "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA user_version = 1;
         CREATE TABLE entries (id INTEGER PRIMARY KEY, owner TEXT NOT NULL) STRICT;
         CREATE TABLE messages (id INTEGER PRIMARY KEY, subject TEXT NOT NULL) STRICT;
         INSERT INTO entries VALUES (1, 'worker-1');";
    database.execute_batch(tables).unwrap();
    // A commit that was not moved into the database yet.
    let told = |error: OutboxError| {
        let text = error.to_string();
        assert!(
            matches!(error, OutboxError::OtherVersion { found: 1, .. }),
            "{text}"
        );
        assert!(
            text.contains("outbox.sqlite")
                && text.contains("the version that wrote it publishes what is in it"),
            "{text}"
        );
    };
    told(open_error(&dir));
    assert!(exists_in(dir.path()) && may_hold_entries(&dir));
    database.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    told(open_error(&dir));
    database.execute_batch("DELETE FROM entries").unwrap();
    database.close().unwrap();
    drop(open_in(&dir));
    assert!(file.is_file(), "it is left as it is");
}

/// A log of fifty entries of 3,000 bytes, nobody having it open.
async fn fifty(base: &Scratch) -> StateDir {
    let outbox = open(&base.0);
    for n in 0..50 {
        outbox.store(large(&n.to_string(), 3_000)).await.unwrap();
    }
    drop(outbox);
    take_again(&base.0, 0)
}

#[tokio::test]
async fn a_damaged_byte_is_found_when_the_outbox_is_opened_and_nothing_is_changed() {
    let base = Scratch::new();
    let dir = fifty(&base).await;
    let file = segment(&dir, 1);
    let whole = std::fs::read(&file).unwrap();
    for at in [20, 40, 45, 5_000, whole.len() - 4_000] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&file, &bytes).unwrap();
        let error = open_error(&dir);
        assert!(matches!(error, OutboxError::Damaged { .. }), "{at}: {error}");
        assert!(may_hold_entries(&dir));
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
    }
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(open_in(&dir).snapshot().entries, 50);
}

/// What was told in the log.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn log(&self) -> Log {
        Log::new(slog::Logger::root(self.clone(), slog::o!()), "worker-1")
    }

    fn messages(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl slog::Drain for Seen {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.0.lock().unwrap().push(record.msg().to_string());
        Ok(())
    }
}

#[tokio::test]
async fn an_end_that_was_not_finished_is_cut_off_and_told() {
    let base = Scratch::new();
    let dir = fifty(&base).await;
    let file = segment(&dir, 1);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 1_000]).unwrap();
    let seen = Seen::default();
    let outbox = Outbox::open(&dir, &settings(OutboxSync::None), &seen.log()).unwrap();
    assert_eq!(all_left(&outbox).await.len(), 49);
    let told = seen.messages();
    assert_eq!(told, ["Unfinished end of the outbox cut off"]);
}

#[tokio::test]
async fn a_segment_that_is_removed_under_the_outbox_is_noticed_and_one_that_it_removes_is_not() {
    let base = Scratch::new();
    let dir = take_again(&base.0, 0);
    let outbox = open_in(&dir);
    for n in 0..5 {
        let id = outbox.store(large(&n.to_string(), 3_000_000)).await.unwrap();
        outbox.is_in_place().unwrap();
        outbox.remove(id);
        outbox.flush().await.unwrap();
        outbox.is_in_place().unwrap();
    }
    outbox.store(large("stays", 10)).await.unwrap();
    for file in std::fs::read_dir(outbox.file()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let error = outbox.is_in_place().unwrap_err();
    assert!(matches!(error, StateDirError::Replaced { .. }), "{error}");
}

// ---- Forcing to disk ----

#[tokio::test]
async fn each_setting_forces_as_often_as_it_says() {
    for (sync, least, most) in [
        (OutboxSync::None, 0, 0),
        // By the clock, which a slow machine may reach.
        (OutboxSync::Interval, 0, 20),
        (OutboxSync::Always, 21, u64::MAX),
    ] {
        let base = Scratch::new();
        let outbox = Outbox::open(&take_again(&base.0, 0), &settings(sync), &Log::discard()).unwrap();
        for n in 0..21 {
            outbox.store(large(&n.to_string(), 10)).await.unwrap();
        }
        let syncs = outbox.snapshot().syncs;
        assert!((least..=most).contains(&syncs), "{sync:?}: {syncs}");
    }
}

#[tokio::test]
async fn with_interval_the_last_entry_is_forced_although_nothing_follows() {
    let base = Scratch::new();
    let dir = take_again(&base.0, 0);
    let outbox = Outbox::open(&dir, &settings(OutboxSync::Interval), &Log::discard()).unwrap();
    outbox.store(large("a", 10)).await.unwrap();
    let forced = async {
        while outbox.snapshot().syncs == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, forced).await.unwrap();
    let (tell, told) = mpsc::channel();
    meddle(&outbox, move |log| tell.send(log.holds_unsynced()).unwrap())
        .await
        .unwrap();
    assert!(!told.recv().unwrap());
}

// ---- Killed ----

/// What the process that is to be killed does, and where.
const CHILD: &str = "CAF_OUTBOX_TEST_CHILD";

/// Not a test of its own: run by the next one in another process, which it kills.
#[test]
fn stores_until_killed_when_it_is_the_child_of_a_test() {
    let Ok(base) = std::env::var(CHILD) else { return };
    let dir = StateDir::take(Path::new(&base)).unwrap();
    let (marks, _) = Marks::open(&dir, 4).unwrap();
    let outbox = Outbox::open(&dir, &OutboxSettings::default(), &Log::discard()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let key = AssignmentKey::new("tenant", "runs");
        let _mark = marks.set(&Mark { key, alone: true }).await;
        for n in 0.. {
            let id = outbox.store(large(&n.to_string(), 5_000)).await.unwrap();
            println!("stored {id}");
        }
    });
}

#[tokio::test]
async fn kill_9_loses_nothing_that_was_confirmed_and_leaves_its_marks() {
    let base = Scratch::new();
    let mut confirmed = Vec::new();
    for _round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "outbox::tests::stores_until_killed_when_it_is_the_child_of_a_test",
            ])
            .arg("--nocapture")
            .env(CHILD, &base.0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let confirm = |line: String| {
            line.rsplit_once("stored ")
                .map(|(_, id)| id.parse::<i64>().unwrap())
        };
        confirmed.extend(lines.by_ref().filter_map(confirm).take(200));
        child.kill().unwrap();
        child.wait().unwrap();
        confirmed.extend(lines.filter_map(confirm));
    }
    assert!(confirmed.len() >= 600);
    let dir = take_again(&base.0, 0);
    let (_, marks) = Marks::open(&dir, 4).unwrap();
    assert_eq!(marks.len(), 1);
    assert!(marks[0].alone && marks[0].key == AssignmentKey::new("tenant", "runs"));
    let outbox = Outbox::open(&dir, &OutboxSettings::default(), &Log::discard()).unwrap();
    let found = all_left(&outbox).await;
    let missing = confirmed
        .iter()
        .filter(|id| !found.iter().any(|entry| entry.id.0 == **id));
    assert_eq!(missing.count(), 0);
    assert!(
        found
            .iter()
            .all(|entry| entry.content.messages[0].payload.len() == 5_000)
    );
}
