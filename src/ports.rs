//! The ports of a node that serves: health, metrics while their flag is on, and admin.
//!
//! Neighbours: `serve` opens them before anything else and closes them last; [`crate::http`] has the pages.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use actix_web::web::ServiceConfig;
use caf_actors::events::admin::{Watched, certificate_in_force};
use caf_actors::events::{self, Event, Log};
use caf_protocol::secret::Secret;
use caf_protocol::timestamp::iso_micros;

use crate::admin::Admin;
use crate::approvals::Desk;
use crate::exit::Exit;
use crate::http::audit::Audit;
use crate::http::guard::Guard;
use crate::http::health::Health;
use crate::http::peers::Peers;
use crate::http::tls::{AdminTls, Identity, SOON};
use crate::http::{Entrance, Port, admin, approval_links, health, metrics};
use crate::settings::HttpSettings;
use crate::telemetry::metrics::Metrics;

/// Open ports, each with the message that says that it is closed.
pub struct Ports(Vec<(Port, &'static str)>);

/// One kind of port: how many connections it takes at once, and how the log speaks of it.
struct Kind {
    connections: usize,
    started: &'static str,
    failed: &'static str,
    stopped: &'static str,
}

const HEALTH: Kind = Kind {
    connections: health::CONNECTIONS,
    started: "Health endpoint started",
    failed: "Failed to bind health socket",
    stopped: "Health endpoint stopped",
};
const METRICS: Kind = Kind {
    connections: metrics::CONNECTIONS,
    started: "Metrics endpoint started",
    failed: "Failed to bind metrics socket",
    stopped: "Metrics endpoint stopped",
};
const ADMIN: Kind = Kind {
    connections: admin::CONNECTIONS,
    started: "Admin endpoint started",
    failed: "Failed to bind admin socket",
    stopped: "Admin endpoint stopped",
};

const APPROVALS: Kind = Kind {
    connections: approval_links::CONNECTIONS,
    started: "Approval endpoint started",
    failed: "Failed to bind approval socket",
    stopped: "Approval endpoint stopped",
};

impl Ports {
    /// Opens them, or says in the log why not.
    ///
    /// # Errors
    /// With the exit code when one cannot be opened.
    pub fn open(
        settings: &HttpSettings,
        health: &Health,
        metrics: Option<Arc<Metrics>>,
        (admin, desk): (Admin, Desk),
        [tls, approval_tls]: [Option<AdminTls>; 2],
        log: &Log,
    ) -> Result<Self, Exit> {
        let mut ports = Self(Vec::new());
        ports.add(&HEALTH, &settings.health_addr, health::pages(health.clone()), log)?;
        if let Some(metrics) = metrics {
            let pages = metrics::pages(metrics, health.clone());
            ports.add(&METRICS, &settings.metrics_addr, pages, log)?;
        }
        let audit = Audit {
            peers: Peers::default(),
            log: log.clone(),
            port: Watched::Admin,
        };
        tell_of_certificate(settings, tls.as_ref(), log);
        let guard = Guard::new(
            settings.admin_token.as_ref().map(Secret::expose),
            &settings.admin_hosts,
        );
        let pages = admin::pages(admin, desk.clone(), guard.with_audit(audit.clone()));
        let entrance = Entrance {
            connections: ADMIN.connections,
            watched: Some((audit, tls)),
        };
        ports.add_watched(&ADMIN, &settings.admin_addr, entrance, pages, log)?;
        if let Some(address) = &settings.approval_addr {
            // Strangers reach this port: who they are and how many has nothing to do with who asks the admin port.
            let audit = Audit {
                peers: Peers::default(),
                log: log.clone(),
                port: Watched::Approvals,
            };
            if let Some(tls) = &approval_tls {
                log.emit(of_certificate(&tls.identity()));
            }
            let pages = approval_links::pages(desk, audit.peers.clone());
            let entrance = Entrance {
                connections: APPROVALS.connections,
                watched: Some((audit, approval_tls)),
            };
            ports.add_watched(&APPROVALS, address, entrance, pages, log)?;
        }
        Ok(ports)
    }

    /// Closes them.
    pub async fn close(self, log: &Log) {
        for (port, stopped) in self.0 {
            let address = port.address;
            port.close().await;
            log.emit(events::endpoint(stopped, address));
        }
    }

    fn add(
        &mut self,
        kind: &Kind,
        address: &str,
        pages: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
        log: &Log,
    ) -> Result<(), Exit> {
        self.add_watched(kind, address, kind.connections.into(), pages, log)
    }

    fn add_watched(
        &mut self,
        kind: &Kind,
        address: &str,
        entrance: Entrance,
        pages: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
        log: &Log,
    ) -> Result<(), Exit> {
        let opened = address
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
            .and_then(|address| Port::open(address, entrance, pages));
        match opened {
            Ok(port) => {
                log.emit(events::endpoint(kind.started, port.address));
                self.0.push((port, kind.stopped));
                Ok(())
            }
            Err(error) => {
                log.emit(events::bind_failed(kind.failed, address, &error.to_string()));
                Err(Exit::Unavailable)
            }
        }
    }
}

/// The line about a certificate that is in force from now on.
pub fn of_certificate(identity: &Identity) -> Event {
    let now = SystemTime::now();
    let soon = identity.not_after < now + SOON;
    certificate_in_force(
        identity.section,
        &identity.cert_file.display().to_string(),
        &iso_micros(identity.not_after),
        identity.days_left(now),
        soon,
    )
}

/// Says how long the certificate is good, or that others can listen to what is asked.
fn tell_of_certificate(settings: &HttpSettings, tls: Option<&AdminTls>, log: &Log) {
    if let Some(tls) = tls {
        log.emit(of_certificate(&tls.identity()));
        return;
    }
    let address = settings.admin_addr.parse::<SocketAddr>();
    if address.is_ok_and(|address| !address.ip().to_canonical().is_loopback()) {
        log.emit(events::warning(
            "http.admin_addr can be reached by others and is not encrypted: who listens on the way reads the token; set \
             http.admin_tls.cert_file and http.admin_tls.key_file, or put a proxy in front",
        ));
    }
}
