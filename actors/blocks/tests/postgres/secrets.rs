//! Passwords that are named secrets, against a server that asks for them.

use caf_protocol::secret::vault::{Destination, NamedSecret, Vault};

use super::*;

const ROLE: &str = "app";

/// Lets the role in by its password only.
fn ask_for_password(server: &Postgres, password: &str) {
    let file = server.execute("SHOW hba_file").expect("is told");
    let rules = [
        format!("host all {ROLE} 127.0.0.1/32 scram-sha-256"),
        format!("host all {ROLE} ::1/128 scram-sha-256"),
        "host all all 127.0.0.1/32 trust".to_owned(),
    ];
    let lines: Vec<String> = rules.iter().map(|rule| format!("SELECT '{rule}'")).collect();
    let copy = format!("COPY ({}) TO '{}'", lines.join(" UNION ALL "), file.trim());
    let statements = [
        format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{password}'"),
        copy,
        "SELECT pg_reload_conf()".to_owned(),
    ];
    for statement in statements {
        server.execute(&statement).expect("is done");
    }
}

fn put(vault: &Vault, password: &str, port: u16) {
    let destinations = ["sql:ro".to_owned(), format!("postgres://127.0.0.1:{port}")];
    let destinations = destinations
        .iter()
        .map(|text| Destination::parse(text).expect("is one"));
    let secret = NamedSecret::new(
        password.into(),
        ["acme".to_owned()],
        ["sql.query".to_owned()],
        destinations.collect(),
    );
    vault.replace([("pg".to_owned(), secret)]);
}

fn blocks_with(vault: &Vault, url: &str, allow_inline: bool) -> Registry {
    let mut settings = BlockSettings::default();
    settings.sql.allow_inline = allow_inline;
    for name in ["ro", "not_listed"] {
        let mut connection = SqlConnectionSettings::new(url);
        connection.user = Some(ROLE.to_owned());
        connection.password_secret = Some("pg".to_owned());
        settings.sql.connections.insert(name.to_owned(), connection);
    }
    let extras = Extras {
        vault: vault.clone(),
        ..Extras::default()
    };
    let built = build(&settings, OperationLimits::default(), extras);
    built.expect("builds").registry
}

async fn asked(blocks: &Registry, connection: Value, text: &str, tenant: &str) -> Result<Value, ErrorCode> {
    let given = json!({"connection": connection, "query": text});
    let inputs = given.as_object().cloned().expect("is an object");
    let block = blocks.get("sql.query").expect("is registered");
    let mut context = context(Duration::from_secs(30));
    context.tenant_id = tenant.to_owned();
    let done = match block.prepare(inputs) {
        Ok(task) => task.run(context).await,
        Err(failure) => Err(failure),
    };
    assert!(!format!("{done:?}").contains("-password"), "{done:?}");
    done.map(|outputs| outputs["rows"][0].clone())
        .map_err(|failure| failure.code)
}

#[test]
fn a_password_that_is_a_secret_goes_where_it_is_for_and_its_next_value_counts_at_once() {
    with_server(async |server| {
        ask_for_password(&server, "first-password");
        let (vault, port) = (Vault::default(), server.port());
        put(&vault, "first-password", port);
        let url = format!("postgres://127.0.0.1:{port}/postgres");
        let blocks = blocks_with(&vault, &url, true);
        let who = "SELECT current_user AS v, 'first-password' AS p";
        let expected = Ok(json!({"v": ROLE, "p": "[REDACTED]"}));
        assert_eq!(asked(&blocks, json!("ro"), who, "acme").await, expected);
        for (connection, tenant) in [("ro", "other"), ("not_listed", "acme")] {
            let denied = asked(&blocks, json!(connection), who, tenant).await;
            assert_eq!(denied, Err(ErrorCode::PermissionDenied), "{connection} {tenant}");
        }

        let inline = |url: String| json!({"url": url, "user": ROLE, "password": {"$secret": "pg"}});
        assert_eq!(asked(&blocks, inline(url.clone()), who, "acme").await, expected);
        assert_eq!(
            asked(&blocks, json!(inline(url.clone()).to_string()), who, "acme").await,
            expected
        );
        let at = |host: &str| format!("postgres://{host}:{port}/postgres");
        for (url, code) in [
            (at("localhost"), ErrorCode::PermissionDenied),
            (
                format!("postgres://127.0.0.1:{port},localhost:{port}/postgres"),
                ErrorCode::PermissionDenied,
            ),
            (format!("{url}?hostaddr=127.0.0.2"), ErrorCode::InvalidInput),
            (
                format!("postgres://{ROLE}:x@127.0.0.1:{port}/postgres"),
                ErrorCode::InvalidInput,
            ),
            (
                "postgres:///postgres?host=/tmp".to_owned(),
                ErrorCode::InvalidInput,
            ),
            ("sqlite::memory:".to_owned(), ErrorCode::InvalidInput),
        ] {
            assert_eq!(
                asked(&blocks, inline(url.clone()), who, "acme").await,
                Err(code),
                "{url}"
            );
        }
        let closed = blocks_with(&vault, &url, false);
        let refused = asked(&closed, inline(url), who, "acme").await;
        assert_eq!(
            refused,
            Err(ErrorCode::PermissionDenied),
            "connections of jobs are not allowed"
        );

        server
            .execute(&format!("ALTER ROLE {ROLE} PASSWORD 'second-password'"))
            .expect("is done");
        put(&vault, "wrong-password", port);
        let wrong = asked(&blocks, json!("ro"), who, "acme").await;
        assert_eq!(
            wrong,
            Err(ErrorCode::ExecutionFailed),
            "the connection of the first value is not used"
        );
        put(&vault, "second-password", port);
        let user = "SELECT current_user AS v";
        assert_eq!(
            asked(&blocks, json!("ro"), user, "acme").await,
            Ok(json!({"v": ROLE}))
        );
    });
}
