//! What somebody tries who may name any path, or who has a shell on the host and swaps things in the root meanwhile.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::*;
use crate::settings::FsQuotaSettings;

const SECRET: &str = "hunter2";

impl Place {
    fn with_secret() -> Self {
        let place = Self::new();
        fs::create_dir_all(place.data("dir")).expect("creates");
        fs::create_dir(place.home.join("outside")).expect("creates");
        fs::write(place.home.join("outside/file"), SECRET).expect("writes");
        place
    }

    fn secret(&self) -> String {
        fs::read_to_string(self.home.join("outside/file")).expect("is read")
    }

    fn outside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.join("outside")).expect("lists");
        entries
            .map(|entry| {
                entry
                    .expect("is readable")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }
}

#[test]
fn links_of_every_kind_lead_nowhere() {
    let place = Place::with_secret();
    for (target, link) in [
        ("/proc/self/environ", "environ"),
        ("/proc/self/root/etc/passwd", "magic"),
        ("/proc/self/cwd", "cwd"),
        ("/dev/zero", "zero"),
        ("../outside/file", "file"),
        ("../outside", "directory"),
        ("dir/../../outside/file", "through"),
        ("nowhere", "dangling"),
        ("../outside/new", "dangling-outside"),
        ("loop", "loop"),
    ] {
        symlink(target, place.data(link)).expect("links");
    }
    for path in [
        "environ",
        "magic",
        "cwd/x",
        "zero",
        "file",
        "directory/file",
        "through",
        "dangling",
        "loop",
    ] {
        place.get(&format!("data/{path}")).expect_err(path);
    }
    for path in ["cwd/x", "directory/new", "loop/x", "dangling/x"] {
        let given = json!({"path": format!("data/{path}"), "content": "x", "overwrite": true});
        place.put(given).expect_err(path);
        place
            .delete(json!({"path": format!("data/{path}")}))
            .expect_err(path);
    }
    // What replaces a link replaces the link.
    for path in ["dangling-outside", "file", "zero", "environ"] {
        let given = json!({"path": format!("data/{path}"), "content": "x", "overwrite": true});
        place.put(given).expect(path);
        assert_eq!(
            place.get(&format!("data/{path}")).expect(path)["content"],
            json!("x")
        );
    }
    assert_eq!(
        (place.secret().as_str(), place.outside()),
        (SECRET, vec!["file".to_owned()])
    );
}

#[test]
fn a_hard_link_is_neither_read_nor_written_through() {
    let mut place = Place::with_secret();
    fs::hard_link(place.home.join("outside/file"), place.data("hard")).expect("links");
    denied(place.get("data/hard"), "a file of two names");
    place
        .put(json!({"path": "data/hard", "content": "x", "overwrite": true}))
        .expect("takes the name");
    assert_eq!(place.secret(), SECRET, "the other name has the old content");
    assert_eq!(
        place.get("data/hard").expect("has one name")["content"],
        json!("x")
    );

    fs::hard_link(place.home.join("outside/file"), place.data("again")).expect("links");
    place.settings.allow_hard_links = true;
    assert_eq!(
        place.get("data/again").expect("is allowed")["content"],
        json!(SECRET)
    );
    place
        .delete(json!({"path": "data/again"}))
        .expect("removes the name");
    assert_eq!(place.secret(), SECRET);
}

#[test]
fn what_is_no_file_is_neither_opened_replaced_nor_removed() {
    let place = Place::with_secret();
    let made = std::process::Command::new("mkfifo")
        .arg(place.data("fifo"))
        .status();
    assert!(made.expect("runs").success());
    let _listening = std::os::unix::net::UnixListener::bind(place.data("socket")).expect("binds");
    for path in ["data/fifo", "data/socket", "data/dir"] {
        for result in [
            place.get(path),
            place.put(json!({"path": path, "content": "x", "overwrite": true})),
            place.delete(json!({"path": path})),
        ] {
            let failure = result.expect_err(path);
            assert_eq!(failure.code, ErrorCode::ExecutionFailed, "{path}: {failure:?}");
        }
    }
    assert!(place.data("fifo").exists() && place.data("socket").exists() && place.data("dir").exists());
}

#[test]
fn nothing_outside_is_seen_or_changed_while_somebody_swaps_links_and_directories() {
    let place = Place::with_secret();
    fs::create_dir(place.data("swap")).expect("creates");
    fs::write(place.data("swap/file"), "inside").expect("writes");
    fs::write(place.data("leaf"), "inside").expect("writes");
    let (stop, shared) = (AtomicBool::new(false), place.shared());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The directory, the file and links to outside take each other's names for as long as the test runs.
            while !stop.load(SeqCst) {
                let _ = fs::rename(place.data("swap"), place.data("kept"));
                let _ = symlink(place.home.join("outside"), place.data("swap"));
                let _ = fs::remove_file(place.data("swap"));
                let _ = fs::rename(place.data("kept"), place.data("swap"));
                let _ = fs::rename(place.data("leaf"), place.data("leaf-kept"));
                let _ = symlink("../outside/file", place.data("leaf"));
                let _ = fs::remove_file(place.data("leaf"));
                let _ = fs::rename(place.data("leaf-kept"), place.data("leaf"));
            }
        });
        let (get, put, delete) = (blob_get(&shared), blob_put(&shared), blob_delete(&shared));
        let ask = |block: &dyn Block, given: Value| {
            let task = block.prepare(inputs(given)).expect("is accepted");
            run(task, context())
        };
        let mut seen = 0;
        for n in 0..60 {
            for path in ["data/swap/file", "data/leaf"] {
                if let Ok(outputs) = ask(&get, json!({"path": path})) {
                    assert_eq!(outputs["content"], json!("inside"), "{path}");
                    seen += 1;
                }
            }
            let path = format!("data/swap/new-{n}");
            let _ = ask(&put, json!({"path": path, "content": "x", "overwrite": true}));
            let _ = ask(
                &put,
                json!({"path": format!("data/swap/deep-{n}/x"), "content": "x"}),
            );
            let _ = ask(&delete, json!({"path": path}));
            let _ = ask(&delete, json!({"path": "data/swap/file", "missing_ok": true}));
            let _ = ask(
                &put,
                json!({"path": "data/swap/file", "content": "inside", "overwrite": true}),
            );
        }
        stop.store(true, SeqCst);
        assert!(seen > 0, "sometimes the file was there");
    });
    assert_eq!(
        (place.secret().as_str(), place.outside()),
        (SECRET, vec!["file".to_owned()])
    );
}

#[test]
fn files_have_no_rights_beyond_reading_and_writing() {
    let place = Place::new();
    fs::create_dir(place.home.join("data")).expect("creates");
    fs::write(place.data("old"), "x").expect("writes");
    fs::set_permissions(place.data("old"), fs::Permissions::from_mode(0o6777)).expect("sets");
    for path in ["data/old", "data/a/new"] {
        place
            .put(json!({"path": path, "content": "#!/bin/sh", "overwrite": true}))
            .expect("is written");
    }
    for path in ["old", "a/new"] {
        let mode = fs::metadata(place.data(path)).expect("is there").mode();
        assert_eq!(mode & 0o7113, 0, "{path}: {mode:o}");
    }
}

#[test]
fn temporary_files_of_dead_writers_go_and_those_of_living_ones_stay() {
    let place = Place::with_secret();
    let left = ".caf-00000000000000000000000000000000.tmp";
    fs::write(place.data(left), "half").expect("writes");
    fs::write(place.data(&format!("dir/{left}")), "half").expect("writes");
    let dir =
        cap_std::fs::Dir::open_ambient_dir(place.data("dir"), cap_std::ambient_authority()).expect("opens");
    let (living, file) = super::super::leftovers::create(&dir).expect("creates");
    for path in [format!("data/{left}"), format!("data/dir/{left}")] {
        assert_eq!(
            place.get(&path).expect_err("is no content").code,
            ErrorCode::InvalidInput
        );
        let failure = place.put(json!({"path": path, "content": "x", "overwrite": true}));
        assert_eq!(failure.expect_err("is reserved").code, ErrorCode::InvalidInput);
    }
    place
        .put(json!({"path": "data/dir/a", "content": "x"}))
        .expect("is written");
    let mut expected = vec![
        left.to_owned(),
        living.display().to_string(),
        "a".to_owned(),
        "file".to_owned(),
    ];
    expected.sort();
    assert_eq!(
        place.files(),
        expected,
        "only the directory that was written to was looked through"
    );
    drop(file);
    place
        .put(json!({"path": "data/dir/b", "content": "x"}))
        .expect("is written");
    assert!(
        !place.data("dir").join(&living).exists(),
        "a process that begins removes it"
    );
}

/// Reads as a process would whose limits stand on the way.
fn grows(place: &Place, quota: FsQuotaSettings) -> Arc<Shared> {
    let mut settings = place.settings.clone();
    settings.quotas.insert("data".to_owned(), quota);
    Shared::new(&settings, OperationLimits::default())
}

fn put_with(shared: &Arc<Shared>, path: &str, bytes: usize) -> Result<Outputs, Failure> {
    let given = json!({"path": path, "content": "x".repeat(bytes), "overwrite": true});
    run(blob_put(shared).prepare(inputs(given))?, context())
}

#[test]
fn a_root_holds_no_more_than_its_quota() {
    let place = Place::with_secret();
    fs::write(place.data("before"), "x".repeat(400)).expect("writes");
    let left = ".caf-00000000000000000000000000000000.tmp";
    fs::write(place.data(&format!("dir/{left}")), "x".repeat(900)).expect("writes");
    let shared = grows(
        &place,
        FsQuotaSettings {
            max_bytes: 1_000,
            max_files: 6,
        },
    );
    put_with(&shared, "data/a", 500).expect("fits beside what was there, and the leftover is gone");
    let failure = put_with(&shared, "data/b", 101).expect_err("does not fit");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
    assert_eq!(failure.details["quota_bytes"], json!(1_000), "{failure:?}");
    assert!(!place.data("b").exists());
    put_with(&shared, "data/a", 10).expect("a smaller one takes the place of a larger one");
    put_with(&shared, "data/b", 500).expect("now fits");
    let removed = run(
        blob_delete(&shared)
            .prepare(inputs(json!({"path": "data/b"})))
            .expect("is accepted"),
        context(),
    );
    removed.expect("is removed");
    put_with(&shared, "data/b", 500).expect("fits again");

    // before, dir, a, b: two names are left, and a directory is one.
    let failure = put_with(&shared, "data/x/y/z", 1).expect_err("too many names");
    assert_eq!(failure.details["quota_files"], json!(6), "{failure:?}");
    put_with(&shared, "data/x/z", 1).expect("fits");
    put_with(&shared, "data/last", 1).expect_err("none is left");
    // Roots without a quota have none.
    assert!(
        place
            .put(json!({"path": "data/last", "content": "x".repeat(5_000)}))
            .is_ok()
    );
}

#[test]
fn many_that_write_at_once_stay_within_the_quota_together() {
    let place = Place::with_secret();
    let shared = grows(
        &place,
        FsQuotaSettings {
            max_bytes: 10_000,
            max_files: 1_000,
        },
    );
    let written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let shared = &shared;
                scope.spawn(move || {
                    (0..10)
                        .filter(|n| put_with(shared, &format!("data/{writer}-{n}"), 300).is_ok())
                        .count()
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().expect("ends"))
            .sum::<usize>()
    });
    assert_eq!(written, 33, "as many as fit");
}

#[test]
fn a_file_that_is_larger_than_it_says_or_grows_is_not_read_beyond_the_limit() {
    let mut place = Place::with_secret();
    place.settings.max_bytes = 1_000;
    let sparse = fs::File::create(place.data("sparse")).expect("creates");
    sparse.set_len(1 << 40).expect("is sparse");
    let failure = place.get("data/sparse").expect_err("is too large");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
    // Told by what is read, not by what the system said before.
    let endless = super::super::get::read(
        &mut std::io::repeat(b'x'),
        0,
        1_000,
        &Watch::start(&context(), None),
    );
    assert_eq!(
        endless.expect_err("is too large").details["limit_bytes"],
        json!(1_000)
    );
}

#[test]
fn names_as_long_as_the_system_allows_work_and_longer_ones_are_refused() {
    let place = Place::new();
    let name = |bytes: usize| format!("data/{}", "x".repeat(bytes));
    place
        .put(json!({"path": name(255), "content": "x"}))
        .expect("is written");
    assert_eq!(place.get(&name(255)).expect("is read")["content"], json!("x"));
    let deep = format!("data/{}x", "d/".repeat(2_000));
    place
        .put(json!({"path": deep, "content": "x"}))
        .expect("is written");
    assert_eq!(place.get(&deep).expect("is read")["content"], json!("x"));
    for path in [name(256), format!("data/{}", "d/".repeat(2_100) + "x")] {
        let failure = place
            .put(json!({"path": path, "content": "x"}))
            .expect_err("is too long");
        assert_eq!(failure.code, ErrorCode::InvalidInput);
    }
    // Case is the file system's: on this one both are.
    place
        .put(json!({"path": "data/Case", "content": "1"}))
        .expect("is written");
    assert!(place.get("data/case").is_err() || place.get("DATA/Case").is_err());
}

#[test]
fn files_of_the_kernel_are_no_content() {
    let mut place = Place::new();
    place.settings.roots.insert("proc".to_owned(), "/proc".into());
    denied(place.get("proc/self/environ"), "of this process");
    denied(place.get("proc/self/status"), "of this process");
    place.get("proc/self/root/etc/passwd").expect_err("leads out");
}
