//! What tasks say they talk to, and what their failures say of it.

use caf_protocol::endpoint::{EndpointKind, Sign};
use uuid::Uuid;

use super::*;
use crate::settings::FsSettings;

fn settings(home: &std::path::Path) -> BlockSettings {
    let roots = [
        ("data".to_owned(), home.join("data")),
        ("inner".to_owned(), home.join("data/inner")),
        ("file".to_owned(), home.join("file")),
    ];
    let mut settings = BlockSettings {
        fs: FsSettings {
            roots: roots.into(),
            ..FsSettings::default()
        },
        ..BlockSettings::default()
    };
    settings.sql.allow_inline = true;
    let connections = [
        ("main", "postgres://user:s3cret@db.internal/app"),
        ("file", "sqlite:///var/lib/app.db"),
        ("memory", ":memory:"),
    ];
    for (name, url) in connections {
        let connection = SqlConnectionSettings::new(url);
        settings.sql.connections.insert(name.to_owned(), connection);
    }
    settings
}

fn task(home: &std::path::Path, job_type: &str, given: Value) -> Arc<dyn Task> {
    let blocks = build(&settings(home), OperationLimits::default(), Extras::default()).expect("builds");
    let block = blocks.registry.get(job_type).expect("is registered");
    block.prepare(inputs(given)).expect("is accepted")
}

#[test]
fn tasks_name_what_they_talk_to_and_never_a_secret() {
    let home = std::env::temp_dir().join("caf-blocks-endpoints");
    let http = |url: &str| ("http.request", json!({"url": url, "method": "GET"}));
    let get = |path: String| ("fs.blob_get", json!({"path": path}));
    let sql = |connection: &str| {
        (
            "sql.query",
            json!({"query": "SELECT 1", "connection": connection}),
        )
    };
    let absolute = |path: &str| home.join(path).display().to_string();
    for ((job_type, given), expected) in [
        (
            http("https://Example.com/hooks/s3cret?key=s3cret"),
            Some("https://example.com"),
        ),
        (http("http://example.com:8080/"), Some("http://example.com:8080")),
        (http("http://[::1]:81/"), Some("http://[::1]:81")),
        (get("data/a/b".to_owned()), Some("data")),
        (get(absolute("data/a")), Some("data")),
        (get(absolute("data/inner/a")), Some("inner")),
        (get("elsewhere/a".to_owned()), None),
        (get("/etc/passwd".to_owned()), None),
        (sql("main"), Some("main")),
        (sql("file"), Some("file")),
        (sql("memory"), None),
        (sql(":memory:"), None),
        (
            sql("postgres://me:s3cret@h:1/db?sslmode=disable"),
            Some("postgres://h:1/db"),
        ),
        (
            sql("sqlite:///var/lib/other.db"),
            Some("sqlite:/var/lib/other.db"),
        ),
        (("echo", json!({"a": 1})), None),
        (("sleep", json!({"ms": 1})), None),
    ] {
        let endpoint = task(&home, job_type, given.clone()).endpoint();
        let name = endpoint.as_ref().map(|endpoint| endpoint.name());
        assert_eq!(name, expected, "{job_type} {given}");
    }
}

#[test]
fn failures_tell_a_job_at_fault_from_a_directory_or_a_database_file_at_fault() {
    let home = std::env::temp_dir().join(format!("caf-blocks-{}", Uuid::new_v4().simple()));
    std::fs::create_dir_all(home.join("data")).expect("creates");
    std::fs::write(home.join("file"), "no directory, and no database").expect("writes");
    std::fs::write(home.join("data/there"), "x").expect("writes");
    let put = |path: &str| ("fs.blob_put", json!({"path": path, "content": "x"}));
    let get = |path: &str| ("fs.blob_get", json!({"path": path}));
    let database = |name: &str| format!("sqlite://{}", home.join(name).display());
    let sql = |name: &str, query: &str| ("sql.query", json!({"connection": database(name), "query": query}));
    for ((job_type, given), sign) in [
        (get("data/missing"), Sign::Up),
        (put("data/there"), Sign::Up),
        (put("nowhere/x"), Sign::Refused),
        (put("file/x"), Sign::Down),
        (get("file/x"), Sign::Down),
        (sql("missing/app.db", "SELECT 1"), Sign::Down),
        (sql("file", "SELECT * FROM t"), Sign::Down),
    ] {
        let failure = run(task(&home, job_type, given.clone()), context()).expect_err("fails");
        assert_eq!(failure.sign(), sign, "{job_type} {given}: {failure:?}");
    }
    std::fs::remove_dir_all(&home).expect("removes");
    assert_eq!(EndpointKind::ALL.map(EndpointKind::as_str), ["http", "sql", "fs"]);
}
