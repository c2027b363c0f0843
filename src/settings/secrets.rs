//! The texts among the settings that nobody may read: what the log hides wherever it stands.
//!
//! Neighbours: [`super::origin`] hides the same values by their keys; the command line hands these to the log. Pure.

use percent_encoding::percent_decode_str;
use url::Url;

use super::Settings;

impl Settings {
    /// Passwords, tokens and header values, also those inside of addresses; as given and decoded.
    pub fn secrets(&self) -> Vec<String> {
        let mut found: Vec<String> = [
            &self.nats.password,
            &self.nats.token,
            &self.http.admin_token,
            &self.approvals.links.key,
            &self.tenants.policy_store.token,
        ]
        .into_iter()
        .flatten()
        .map(|secret| secret.expose().to_owned())
        .collect();
        for value in self.worker.tracing.headers().into_values() {
            // `Bearer x`, of which the library may write the second half.
            found.extend(value.rsplit_once(' ').map(|(_, last)| last.to_owned()));
            found.push(value);
        }
        found.extend(
            self.nats
                .url
                .split(',')
                .flat_map(|address| of_address(address, true)),
        );
        for connection in self.blocks.sql.connections.values() {
            found.extend(
                connection
                    .password
                    .as_ref()
                    .map(|password| password.expose().to_owned()),
            );
            found.extend(of_address(&connection.url, false));
        }
        let named = self.secrets.values().filter_map(|secret| secret.value.as_ref());
        found.extend(named.map(|value| value.expose().to_owned()));
        found
    }
}

/// Password of an address, also in its query; where there is none, the user if that is a token.
fn of_address(text: &str, user_is_token: bool) -> Vec<String> {
    let text = text.trim();
    let whole = match text.contains("://") {
        true => text.to_owned(),
        false => format!("nats://{text}"),
    };
    let Ok(url) = Url::parse(&whole) else {
        return Vec::new();
    };
    let user = Some(url.username()).filter(|user| user_is_token && !user.is_empty());
    let secret = url.password().or(user);
    let decoded = secret.map(|secret| percent_decode_str(secret).decode_utf8_lossy().into_owned());
    // As written: the parser encodes what need not be.
    let raw = secret.filter(|secret| text.contains(secret)).map(str::to_owned);
    let queried = url.query_pairs().filter(|(name, _)| name == "password");
    let queried: Vec<String> = queried.map(|(_, value)| value.into_owned()).collect();
    raw.into_iter().chain(decoded).chain(queried).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use caf_blocks::settings::SqlConnectionSettings;

    #[test]
    fn every_secret_of_the_settings_is_known_as_given_and_decoded() {
        let mut settings = Settings::default();
        settings.nats.url = "nats://user:pa%40ss@h:1, tls://t0ken@h".to_owned();
        settings.nats.password = Some("nats-password".into());
        settings.nats.token = Some("nats-token".into());
        settings.tenants.policy_store.token = Some("store-token".into());
        settings.http.admin_token = Some("admin-token".into());
        settings.approvals.links.key = Some("link-key".into());
        settings.worker.tracing.secret_headers = Some("authorization=Bearer%20otel".into());
        let mut connection = SqlConnectionSettings::new("postgres://u:in-url@h/d?password=queried");
        connection.password = Some("sql-password".into());
        let connections = &mut settings.blocks.sql.connections;
        connections.insert("main".to_owned(), connection);
        let mut secrets = settings.secrets();
        secrets.sort();
        let expected = [
            "Bearer otel",
            "admin-token",
            "in-url",
            "in-url",
            "link-key",
            "nats-password",
            "nats-token",
            "otel",
            "pa%40ss",
            "pa@ss",
            "queried",
            "sql-password",
            "store-token",
            "t0ken",
            "t0ken",
        ];
        assert_eq!(secrets, expected);
        assert_eq!(Settings::default().secrets(), Vec::<String>::new());
    }
}
