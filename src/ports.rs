//! The ports of a node that serves: health, metrics while their flag is on, and admin.
//!
//! Neighbours: `serve` opens them before anything else and closes them last; [`crate::http`] has the pages.

use std::io;
use std::sync::Arc;

use actix_web::web::ServiceConfig;
use caf_actors::events::{self, Log};
use caf_protocol::secret::Secret;

use crate::admin::Admin;
use crate::exit::Exit;
use crate::http::guard::Guard;
use crate::http::health::Health;
use crate::http::{Port, admin, health, metrics};
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

impl Ports {
    /// Opens them, or says in the log why not.
    ///
    /// # Errors
    /// With the exit code when one cannot be opened.
    pub fn open(
        settings: &HttpSettings,
        health: &Health,
        metrics: Option<Arc<Metrics>>,
        admin: Admin,
        log: &Log,
    ) -> Result<Self, Exit> {
        let mut ports = Self(Vec::new());
        ports.add(&HEALTH, &settings.health_addr, health::pages(health.clone()), log)?;
        if let Some(metrics) = metrics {
            let pages = metrics::pages(metrics, health.clone());
            ports.add(&METRICS, &settings.metrics_addr, pages, log)?;
        }
        let guard = Guard::new(
            settings.admin_token.as_ref().map(Secret::expose),
            &settings.admin_hosts,
        );
        ports.add(&ADMIN, &settings.admin_addr, admin::pages(admin, guard), log)?;
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
        let opened = address
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
            .and_then(|address| Port::open(address, kind.connections, pages));
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
