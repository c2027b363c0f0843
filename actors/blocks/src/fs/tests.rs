use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use caf_protocol::block::Outputs;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::tests::{context, context_for, inputs, run};

/// A directory of the test's own, with a root `data` in it; removed at the end.
struct Place {
    home: PathBuf,
    settings: FsSettings,
}

impl Place {
    fn new() -> Self {
        let home = std::env::temp_dir().join(format!("caf-blocks-{}", Uuid::new_v4().simple()));
        fs::create_dir(&home).expect("creates");
        let settings = FsSettings {
            roots: [("data".to_owned(), home.join("data"))].into(),
            ..FsSettings::default()
        };
        Self { home, settings }
    }

    fn shared(&self) -> Arc<Shared> {
        Shared::new(&self.settings, OperationLimits::default())
    }

    fn delete(&self, given: Value) -> Result<Outputs, Failure> {
        run(blob_delete(&self.shared()).prepare(inputs(given))?, context())
    }

    fn data(&self, path: &str) -> PathBuf {
        self.home.join("data").join(path)
    }

    fn put(&self, given: Value) -> Result<Outputs, Failure> {
        run(blob_put(&self.shared()).prepare(inputs(given))?, context())
    }

    fn get(&self, path: &str) -> Result<Outputs, Failure> {
        run(
            blob_get(&self.shared()).prepare(inputs(json!({"path": path})))?,
            context(),
        )
    }

    /// Every file below, so that a leftover shows.
    fn files(&self) -> Vec<String> {
        fn walk(directory: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(directory).expect("lists") {
                let path = entry.expect("is readable").path();
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, found);
                } else {
                    found.push(
                        path.file_name()
                            .expect("has a name")
                            .to_string_lossy()
                            .into_owned(),
                    );
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.home, &mut found);
        found.sort();
        found
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn denied(result: Result<Outputs, Failure>, what: &str) {
    let failure = result.expect_err(what);
    assert_eq!(failure.code, ErrorCode::PermissionDenied, "{what}: {failure:?}");
}

#[test]
fn what_is_put_can_be_got() {
    let place = Place::new();
    let put = place
        .put(json!({"path": "data/a/b/c.txt", "content": "grüß", "content_type": "text/plain"}))
        .expect("is written");
    assert_eq!((&put["size"], &put["size_bytes"]), (&json!(6), &json!(6)));
    assert_eq!(
        (&put["path"], &put["content_type"]),
        (&json!("data/a/b/c.txt"), &json!("text/plain"))
    );
    assert!(
        put["created"]
            .as_str()
            .is_some_and(|text| text.ends_with('Z') && text.len() == 27),
        "{put:?}"
    );

    let got = place.get("data/a/b/c.txt").expect("is read");
    assert_eq!(
        (&got["content"], &got["encoding"]),
        (&json!("grüß"), &json!("text"))
    );
    assert_eq!((&got["size"], &got["size_bytes"]), (&json!(6), &json!(6)));
    assert_eq!(got["modified"], put["created"]);
    assert!(!got.contains_key("content_type"));
    assert_eq!(place.files(), ["c.txt"]);
}

#[test]
fn content_is_text_base64_or_any_json_value() {
    let place = Place::new();
    for (name, given, bytes) in [
        ("a", json!({"content": "x"}), &b"x"[..]),
        ("b", json!({"data": "x"}), b"x"),
        ("c", json!({"content": ""}), b""),
        ("d", json!({"content": {"a": [1, null]}}), b"{\"a\":[1,null]}"),
        ("e", json!({"content": 5}), b"5"),
        ("f", json!({"content": "/wA=", "encoding": "base64"}), &[0xff, 0]),
        ("g", json!({"content": "/wA=", "encoding": "TEXT"}), b"/wA="),
    ] {
        let mut all = inputs(given);
        all.insert("path".to_owned(), json!(format!("data/{name}")));
        place.put(Value::Object(all)).expect(name);
        assert_eq!(fs::read(place.data(name)).expect(name), bytes, "{name}");
    }
    let got = place.get("data/f").expect("is read");
    assert_eq!(
        (&got["content"], &got["encoding"]),
        (&json!("/wA="), &json!("base64"))
    );
}

#[test]
fn inputs_that_break_a_rule_are_refused() {
    use ErrorCode::{InvalidFormat, InvalidInput, MissingRequiredField};
    let place = Place::new();
    for (given, code) in [
        (json!({"content": "x"}), MissingRequiredField),
        (json!({"path": "data/a"}), MissingRequiredField),
        (json!({"path": "data/a", "content": null}), MissingRequiredField),
        (json!({"path": "", "content": "x"}), InvalidInput),
        (json!({"path": 5, "content": "x"}), InvalidFormat),
        (json!({"path": "data", "content": "x"}), InvalidInput),
        (json!({"path": "data/../a", "content": "x"}), InvalidInput),
        (
            json!({"path": "data/a", "content": "x", "encoding": "rot13"}),
            InvalidInput,
        ),
        (
            json!({"path": "data/a", "content": "!", "encoding": "base64"}),
            InvalidFormat,
        ),
        (
            json!({"path": "data/a", "content": 5, "encoding": "base64"}),
            InvalidFormat,
        ),
        (
            json!({"path": "data/a", "content": "x", "overwrite": "maybe"}),
            InvalidFormat,
        ),
        (
            json!({"path": "data/a", "content": "x", "content_type": "x".repeat(257)}),
            InvalidInput,
        ),
    ] {
        assert_eq!(
            place.put(given.clone()).expect_err("is refused").code,
            code,
            "{given}"
        );
    }
    assert_eq!(place.get("data").expect_err("is a root").code, InvalidInput);
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_file_is_replaced_only_when_told_to() {
    let place = Place::new();
    place
        .put(json!({"path": "data/a", "content": "1"}))
        .expect("is written");
    let failure = place
        .put(json!({"path": "data/a", "content": "2"}))
        .expect_err("exists");
    assert_eq!(failure.code, ErrorCode::ExecutionFailed);
    assert_eq!(place.get("data/a").expect("is read")["content"], json!("1"));
    place
        .put(json!({"path": "data/a", "content": "3", "overwrite": "true"}))
        .expect("is replaced");
    assert_eq!(place.get("data/a").expect("is read")["content"], json!("3"));
    assert_eq!(place.files(), ["a"]);
}

#[test]
fn of_many_that_write_at_once_exactly_one_wins() {
    let place = Place::new();
    let block = blob_put(&place.shared());
    let won = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..16)
            .map(|n| {
                let content = format!("{n}").repeat(100_000);
                let task = block
                    .prepare(inputs(json!({"path": "data/x/one", "content": content})))
                    .expect("is accepted");
                scope.spawn(move || run(task, context()))
            })
            .collect();
        let results: Vec<_> = writers
            .into_iter()
            .map(|writer| writer.join().expect("ends"))
            .collect();
        for failure in results.iter().filter_map(|result| result.as_ref().err()) {
            assert_eq!(failure.code, ErrorCode::ExecutionFailed, "{failure:?}");
        }
        results.iter().filter(|result| result.is_ok()).count()
    });
    assert_eq!(won, 1);
    assert_eq!(place.files(), ["one"]);
    let content = fs::read(place.data("x/one")).expect("is read");
    assert!(content.len() >= 100_000, "the winner wrote all of it");
}

#[test]
fn a_name_that_is_taken_meanwhile_is_not_replaced() {
    let place = Place::new();
    fs::create_dir(place.home.join("data")).expect("creates");
    let dir = cap_std::fs::Dir::open_ambient_dir(place.home.join("data"), cap_std::ambient_authority())
        .expect("opens");
    fs::write(place.data("t"), "new").expect("writes");
    fs::write(place.data("taken"), "old").expect("writes");
    let refused = super::put::name_if_free(&dir, Path::new("t"), Path::new("taken")).expect_err("is taken");
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(place.data("taken")).expect("is read"), b"old");
    super::put::name_if_free(&dir, Path::new("t"), Path::new("free")).expect("is free");
    assert_eq!(fs::read(place.data("free")).expect("is read"), b"new");
}

#[test]
fn paths_outside_of_the_roots_are_denied() {
    let place = Place::new();
    fs::write(place.home.join("secret"), "s").expect("writes");
    let absolute = place.home.join("secret").display().to_string();
    for path in ["/etc/passwd", "other/a", "etc/passwd", absolute.as_str()] {
        denied(place.get(path), path);
        denied(
            place.put(json!({"path": path, "content": "x", "overwrite": true})),
            path,
        );
    }
    let beside = place.home.join("data-2/x").display().to_string();
    denied(
        place.put(json!({"path": beside, "content": "x"})),
        "a root's name is no prefix of other names",
    );
    assert_eq!(fs::read(place.home.join("secret")).expect("is read"), b"s");
}

#[test]
fn an_absolute_path_inside_a_root_works_and_the_innermost_root_wins() {
    let mut place = Place::new();
    place
        .settings
        .roots
        .insert("inner".to_owned(), place.data("inner"));
    let absolute = place.data("inner/a").display().to_string();
    place
        .put(json!({"path": absolute, "content": "x"}))
        .expect("is written");
    assert_eq!(place.get("inner/a").expect("is read")["content"], json!("x"));
    assert_eq!(
        place.get("data/inner/a").expect("is read")["path"],
        json!("data/inner/a")
    );
    assert_eq!(place.get(&absolute).expect("is read")["content"], json!("x"));
}

#[test]
fn a_symbolic_link_does_not_lead_out_of_its_root() {
    let place = Place::new();
    fs::create_dir_all(place.data("dir")).expect("creates");
    fs::write(place.home.join("secret"), "s").expect("writes");
    fs::write(place.data("dir/inside"), "i").expect("writes");
    symlink(place.home.join("secret"), place.data("absolute")).expect("links");
    symlink("../secret", place.data("relative")).expect("links");
    symlink(&place.home, place.data("up")).expect("links");
    symlink("dir/inside", place.data("fine")).expect("links");
    for path in ["data/absolute", "data/relative", "data/up/secret"] {
        denied(place.get(path), path);
    }
    denied(
        place.put(json!({"path": "data/up/new", "content": "x"})),
        "through a link",
    );
    denied(
        place.put(json!({"path": "data/up/a/new", "content": "x"})),
        "creating directories through a link",
    );
    assert!(!place.home.join("new").exists() && !place.home.join("a").exists());
    assert_eq!(
        place.get("data/fine").expect("stays inside")["content"],
        json!("i")
    );

    place
        .put(json!({"path": "data/absolute", "content": "x", "overwrite": true}))
        .expect("replaces the link");
    assert_eq!(
        fs::read(place.home.join("secret")).expect("is read"),
        b"s",
        "what it pointed to is untouched"
    );
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let place = Place::new();
    fs::create_dir_all(place.data("dir")).expect("creates");
    let made = std::process::Command::new("mkfifo")
        .arg(place.data("fifo"))
        .status()
        .expect("runs");
    assert!(made.success());
    let _listening = std::os::unix::net::UnixListener::bind(place.data("socket")).expect("binds");
    for path in ["data/dir", "data/fifo", "data/socket"] {
        let failure = place.get(path).expect_err(path);
        assert_eq!(failure.code, ErrorCode::ExecutionFailed, "{path}: {failure:?}");
    }
    let failure = place
        .put(json!({"path": "data/dir", "content": "x", "overwrite": true}))
        .expect_err("is a directory");
    assert_eq!(failure.code, ErrorCode::ExecutionFailed);
    place
        .put(json!({"path": "data/file", "content": "x"}))
        .expect("is written");
    let failure = place
        .put(json!({"path": "data/file/x", "content": "x"}))
        .expect_err("is no directory");
    assert_eq!(failure.code, ErrorCode::ExecutionFailed, "{failure:?}");
    assert_eq!(place.files(), ["fifo", "file", "socket"]);
}

#[test]
fn a_missing_file_is_unavailable_and_its_place_on_the_host_is_not_told() {
    let place = Place::new();
    for path in ["data/none", "data/no/ne"] {
        let failure = place.get(path).expect_err(path);
        assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
        let told = format!("{}{:?}", failure.message, failure.details);
        assert!(!told.contains(&place.home.display().to_string()), "{told}");
    }
}

#[test]
fn content_over_the_limit_is_refused_both_ways() {
    let mut place = Place::new();
    place.settings.max_bytes = 3;
    place
        .put(json!({"path": "data/a", "content": "abc"}))
        .expect("fits");
    assert_eq!(place.get("data/a").expect("fits")["size"], json!(3));
    let failure = place
        .put(json!({"path": "data/b", "content": "abcd"}))
        .expect_err("is too large");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
    assert_eq!(
        (&failure.details["size_bytes"], &failure.details["limit_bytes"]),
        (&json!(4), &json!(3))
    );
    fs::write(place.data("c"), "abcd").expect("writes");
    let failure = place.get("data/c").expect_err("is too large");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
    assert_eq!(place.files(), ["a", "c"]);
}

#[test]
fn nothing_is_left_of_a_write_that_was_stopped() {
    let place = Place::new();
    let task = blob_put(&place.shared())
        .prepare(inputs(json!({"path": "data/a", "content": "x".repeat(1 << 20)})))
        .expect("is accepted");
    let cancelled = context();
    cancelled.cancel.cancel();
    assert_eq!(
        run(task.clone(), cancelled).expect_err("stops").code,
        ErrorCode::CancelledByUser
    );
    let late = run(task, context_for(Duration::ZERO)).expect_err("stops");
    assert_eq!(late, Failure::deadline());
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn nothing_is_left_of_a_write_that_failed_half_way() {
    let place = Place::new();
    fs::create_dir_all(place.data("target")).expect("creates");
    // Naming fails after all of the content has been written: a directory cannot be replaced by a file.
    place
        .put(json!({"path": "data/target", "content": "x", "overwrite": true}))
        .expect_err("is a directory");
    assert_eq!(place.files(), [""; 0]);
}

/// A few milliseconds, another number for each kind.
fn tight() -> OperationLimits {
    let limit = |ms| Some(Duration::from_millis(ms));
    OperationLimits {
        fs_read: limit(1),
        fs_write: limit(2),
        fs_delete: limit(3),
        ..OperationLimits::default()
    }
}

#[test]
fn each_task_declares_the_limit_that_is_in_force_and_none_without() {
    let place = Place::new();
    let limit = |shared: &Arc<Shared>, kind: &str| {
        let given = inputs(json!({"path": "data/a", "content": "x"}));
        let task = match kind {
            "put" => blob_put(shared).prepare(given),
            "get" => blob_get(shared).prepare(given),
            _ => blob_delete(shared).prepare(given),
        };
        task.expect("is accepted").limit()
    };
    let (off, on) = (place.shared(), Shared::new(&place.settings, tight()));
    for (kind, operation, ms) in [
        ("get", Operation::FsRead, 1),
        ("put", Operation::FsWrite, 2),
        ("delete", Operation::FsDelete, 3),
    ] {
        assert_eq!(limit(&off, kind), None, "{kind}");
        let allowed = Duration::from_millis(ms);
        let expected = OperationLimit { operation, allowed };
        assert_eq!(limit(&on, kind), Some(expected), "{kind}");
    }
}

#[test]
fn between_its_steps_an_operation_notices_by_itself_that_its_limit_ran_out() {
    let limit = OperationLimit {
        operation: Operation::FsWrite,
        allowed: Duration::ZERO,
    };
    let failure = Watch::start(&context(), Some(limit))
        .check()
        .expect_err("ran out");
    assert_eq!(
        (failure.code, failure.total_limit),
        (ErrorCode::CancelledByTimeout, true)
    );
    assert_eq!(failure.message, "write limit has passed");
    assert_eq!(Watch::start(&context(), None).check(), Ok(()));
}

#[test]
fn a_file_is_removed_once_and_missing_ones_are_let_pass_only_when_asked() {
    let place = Place::new();
    place
        .put(json!({"path": "data/a/b", "content": "x"}))
        .expect("is written");
    let outputs = place.delete(json!({"path": "data/a/b"})).expect("is removed");
    assert_eq!(Value::from(outputs), json!({"path": "data/a/b", "deleted": true}));
    assert!(!place.data("a/b").exists());
    for missing in ["data/a/b", "data/none/b", "data/a/b/c"] {
        let failure = place.delete(json!({"path": missing})).expect_err("is gone");
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (ErrorCode::ResourceUnavailable, "path: there is no such file"),
            "{missing}"
        );
        let outputs = place
            .delete(json!({"path": missing, "missing_ok": true}))
            .expect("is let pass");
        assert_eq!(outputs["deleted"], json!(false), "{missing}");
    }
}

#[test]
fn nothing_but_a_name_in_a_root_is_removed() {
    let place = Place::new();
    place
        .put(json!({"path": "data/dir/a", "content": "x"}))
        .expect("is written");
    fs::write(place.home.join("outside"), "x").expect("writes");
    symlink(place.home.join("outside"), place.data("link")).expect("links");
    symlink(&place.home, place.data("way-out")).expect("links");
    let outside = place.home.join("outside").display().to_string();
    for (path, code) in [
        ("data/dir", ErrorCode::ExecutionFailed),
        ("data/dir/", ErrorCode::InvalidInput),
        ("data/../outside", ErrorCode::InvalidInput),
        ("other/x", ErrorCode::PermissionDenied),
        (outside.as_str(), ErrorCode::PermissionDenied),
    ] {
        let failure = place
            .delete(json!({"path": path, "missing_ok": true}))
            .expect_err(path);
        assert_eq!(failure.code, code, "{path}: {}", failure.message);
    }
    place
        .delete(json!({"path": "data/way-out/outside", "missing_ok": true}))
        .expect_err("leads out");
    place
        .delete(json!({"path": "data/link"}))
        .expect("a link goes, not what it leads to");
    assert!(place.home.join("outside").exists() && place.data("dir/a").exists());
    assert!(!place.data("link").is_symlink());
}

#[test]
fn a_removal_may_be_repeated_only_where_a_missing_file_is_let_pass() {
    let place = Place::new();
    let repeatable = |given| {
        let task = blob_delete(&place.shared()).prepare(inputs(given));
        task.expect("is accepted").is_repeatable()
    };
    assert_eq!(repeatable(json!({"path": "data/a"})), Some(false));
    assert_eq!(
        repeatable(json!({"path": "data/a", "missing_ok": "true"})),
        Some(true)
    );
}

#[test]
fn a_root_that_cannot_be_opened_fails_the_job_and_not_the_start() {
    let place = Place::new();
    fs::write(place.home.join("file"), "").expect("writes");
    let settings = FsSettings {
        roots: [("data".to_owned(), place.home.join("file/data"))].into(),
        ..FsSettings::default()
    };
    let task = blob_get(&Shared::new(&settings, OperationLimits::default()))
        .prepare(inputs(json!({"path": "data/a"})))
        .expect("is accepted");
    let failure = run(task, context()).expect_err("cannot be opened");
    assert_eq!(failure.code, ErrorCode::ResourceUnavailable);
    assert!(!failure.message.contains("file/data"), "{}", failure.message);
}

#[test]
fn the_systems_own_permissions_count() {
    let place = Place::new();
    place
        .put(json!({"path": "data/a", "content": "x"}))
        .expect("is written");
    fs::set_permissions(place.data("a"), fs::Permissions::from_mode(0o000)).expect("sets");
    // The superuser may read everything, so only the translation is tested then.
    if let Err(failure) = place.get("data/a") {
        assert_eq!(failure.code, ErrorCode::PermissionDenied);
    }
    for (errno, code) in [
        (rustix::io::Errno::ACCESS, ErrorCode::PermissionDenied),
        (rustix::io::Errno::PERM, ErrorCode::PermissionDenied),
        (rustix::io::Errno::ROFS, ErrorCode::PermissionDenied),
        (rustix::io::Errno::NOSPC, ErrorCode::ResourceUnavailable),
        (rustix::io::Errno::DQUOT, ErrorCode::ResourceUnavailable),
        (rustix::io::Errno::NOENT, ErrorCode::ResourceUnavailable),
        (rustix::io::Errno::IO, ErrorCode::ExecutionFailed),
    ] {
        assert_eq!(failure_of(errno.into(), "working").code, code, "{errno}");
    }
}

mod attacks;

#[test]
fn a_root_that_was_moved_away_or_removed_is_found_where_its_path_leads_now() {
    let place = Place::new();
    let shared = place.shared();
    let put = |path: &str| {
        run(
            blob_put(&shared).prepare(inputs(json!({"path": path, "content": "x"})))?,
            context(),
        )
    };
    let get = |path: &str| {
        run(
            blob_get(&shared).prepare(inputs(json!({"path": path})))?,
            context(),
        )
    };
    put("data/a").expect("is written");
    fs::rename(place.home.join("data"), place.home.join("away")).expect("is moved");
    let gone = get("data/a").expect_err("is no longer a root");
    assert_eq!(
        gone.code,
        caf_protocol::error_code::ErrorCode::ResourceUnavailable,
        "{gone:?}"
    );
    put("data/b").expect("is written");
    assert!(place.data("b").exists() && !place.home.join("away/b").exists());
    fs::remove_dir_all(place.home.join("data")).expect("is removed");
    put("data/c").expect("is written");
    assert!(place.data("c").exists());
}
