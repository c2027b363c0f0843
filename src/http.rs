//! Ports that answer HTTP: each has pages of its own, and anything else is 404.
//!
//! Neighbours: `serve` and `exec` open them and close them at the end; [`health`], [`metrics`] and [`admin`] are the pages, and [`guard`]
//! says who may ask the last.
//! Knows nothing of what is on them. Whoever connects may be hostile: one request for each connection, which is over after
//! its time whatever the other side does, and no more of them than what they cost allows.

use std::any::Any;
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use actix_rt::net::TcpStream;
use actix_web::body::MessageBody;
use actix_web::dev::{Extensions, ServerHandle, ServiceRequest, ServiceResponse};
use actix_web::http::KeepAlive;
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, Error, HttpResponse, HttpServer, web};
use rustix::fd::AsFd;
use rustix::net::sockopt::set_tcp_user_timeout;
use rustix::net::{Shutdown, shutdown};
use tokio::task::JoinHandle;

pub mod admin;
pub mod guard;
pub mod health;
pub mod metrics;
pub mod view;

/// How long a request may take to arrive.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// Milliseconds after which the system ends a connection whose other side takes nothing.
const STALL_LIMIT_MS: u32 = 5_000;
/// Longest life of a connection: enough for the largest page over a slow line.
const LIFE_LIMIT: Duration = Duration::from_secs(20);

/// An open port.
pub struct Port {
    /// Where it listens.
    pub address: SocketAddr,
    server: ServerHandle,
}

impl Port {
    /// Opens a port with these pages, and answers on this thread's event loop. Each of so many connections at once may hold
    /// a whole page in memory; more of them wait.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn open(
        address: SocketAddr,
        connections: usize,
        pages: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let server = HttpServer::new(move || {
            App::new()
                .wrap(from_fn(only_one))
                .configure(pages.clone())
                .default_service(web::to(nothing_here))
        })
        .disable_signals()
        .workers(1)
        .max_connections(connections)
        .keep_alive(KeepAlive::Disabled)
        .client_request_timeout(REQUEST_LIMIT)
        .on_connect(limit_life)
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

/// What is kept beside a connection, and gone with it.
struct Connection {
    /// Whether a request came on it.
    was_asked: Cell<bool>,
    /// Ends it when its time is over.
    end: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end.abort();
    }
}

/// A second request on a connection is never answered. The server below would answer one after the other into memory, as
/// fast as they come, for whoever does not read.
async fn only_one(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let connection = request.conn_data::<Connection>();
    if connection.is_some_and(|connection| connection.was_asked.replace(true)) {
        return std::future::pending().await;
    }
    next.call(request).await
}

fn limit_life(connection: &dyn Any, kept: &mut Extensions) {
    let Some(stream) = connection.downcast_ref::<TcpStream>() else {
        return;
    };
    // Where the system knows no such limit, the other one holds.
    let _ = set_tcp_user_timeout(stream, STALL_LIMIT_MS);
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    let end = actix_rt::spawn(async move {
        tokio::time::sleep(LIFE_LIMIT).await;
        let _ = shutdown(socket, Shutdown::Both);
    });
    kept.insert(Connection {
        was_asked: Cell::new(false),
        end,
    });
}

async fn nothing_here() -> HttpResponse {
    HttpResponse::NotFound()
        .content_type("text/plain")
        .body("not found\n")
}
