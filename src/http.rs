//! Ports that answer HTTP: each has pages of its own, and anything else is 404.
//!
//! Neighbours: `serve` and `exec` open them and close them at the end; [`health`], [`metrics`] and [`admin`] are the pages, and [`guard`]
//! says who may ask the last.
//! Knows nothing of what is on them.

use std::net::SocketAddr;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpResponse, HttpServer, web};

pub mod admin;
pub mod guard;
pub mod health;
pub mod metrics;
pub mod view;

/// Most connections of one port at once: more than people and monitors need, and little that is held by whoever opens many.
/// One on which no request comes is closed after five seconds.
const MAX_CONNECTIONS: usize = 256;

/// An open port.
pub struct Port {
    /// Where it listens.
    pub address: SocketAddr,
    server: ServerHandle,
}

impl Port {
    /// Opens a port with these pages, and answers on this thread's event loop.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn open(
        address: SocketAddr,
        pages: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let server = HttpServer::new(move || {
            App::new()
                .configure(pages.clone())
                .default_service(web::to(nothing_here))
        })
        .disable_signals()
        .workers(1)
        .max_connections(MAX_CONNECTIONS)
        .shutdown_timeout(1)
        .bind(address)?;
        let address = server.addrs().first().copied().unwrap_or(address);
        let server = server.run();
        let handle = server.handle();
        actix_rt::spawn(server);
        Ok(Self {
            address,
            server: handle,
        })
    }

    /// Closes the port.
    pub async fn close(self) {
        self.server.stop(true).await;
    }
}

async fn nothing_here() -> HttpResponse {
    HttpResponse::NotFound()
        .content_type("text/plain")
        .body("not found\n")
}
