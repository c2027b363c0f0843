//! Rules of the admin port: who may ask it.

use std::net::SocketAddr;

use caf_actors::settings::rules::Rules;

use caf_protocol::secret::Secret;

use crate::settings::HttpSettings;

/// Longest token in bytes: more fits no header.
const MAX_TOKEN_BYTES: usize = 1_024;

/// Checks what goes with `http.admin_addr`.
pub(super) fn check(http: &HttpSettings, rules: &mut Rules) {
    let address = http.admin_addr.parse::<SocketAddr>();
    let is_loopback = address.map_or(true, |address| address.ip().to_canonical().is_loopback());
    rules.require(
        "admin_token",
        is_loopback || http.admin_token.is_some() || http.admin_tls.client_ca_file.is_some(),
        "must be set when http.admin_addr is not a loopback address, unless http.admin_tls.client_ca_file is",
    );
    rules.section("admin_tls", |rules| http.admin_tls.validate(rules));
    rules.section("approval_tls", |rules| http.approval_tls.validate(rules));
    rules.section("admin_client", |rules| http.admin_client.validate(rules));
    let fits = |token: &Secret| {
        let token = token.expose();
        (1..=MAX_TOKEN_BYTES).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
    };
    rules.require(
        "admin_token",
        http.admin_token.as_ref().is_none_or(fits),
        "must have 1 to 1024 printable ASCII characters and no spaces",
    );
    let is_name = |host: &String| {
        (1..=253).contains(&host.len())
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    rules.require(
        "admin_hosts",
        http.admin_hosts.iter().all(is_name),
        "must be host names without port",
    );
}
