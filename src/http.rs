//! Ports that answer HTTP: each has pages of its own, and anything else is 404.
//!
//! Neighbours: `serve` and `exec` open them and close them at the end; [`health`], [`metrics`] and [`admin`] are the pages,
//! [`guard`] says who may ask the last, [`audit`] and [`peers`] remember who did, [`tls`] has its certificate, and
//! `connection` limits what a connection may bring and how long it lives.
//! Knows nothing of what is on them. Whoever connects may be hostile: one request for each connection, which is over after
//! its time whatever the other side does, and no more of them than what they cost allows.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{Extensions, HttpService, KeepAlive};
use actix_rt::net::TcpStream;
use actix_server::{Server, ServerHandle};
use actix_service::{ServiceFactoryExt as _, fn_service, map_config};
use actix_web::dev::AppConfig;
use actix_web::{App, HttpResponse, web};
use rustix::net::sockopt::set_tcp_user_timeout;

use self::audit::Audit;
use self::connection::{OneRequest, STALL_LIMIT};
use self::stream::Stream;
use self::tls::AdminTls;

pub mod admin;
pub mod approval_links;
pub mod approvals;
pub mod audit;
mod body;
mod connection;
pub mod guard;
pub mod health;
pub mod metrics;
pub mod peers;
mod stream;
pub mod tls;
pub mod view;

/// How long a request may take to arrive.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// How long whoever sends more than was answered may take to end it.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Who is let in.
#[derive(Clone)]
pub struct Entrance {
    /// Most connections at once: each may hold a whole page in memory; more of them wait.
    pub connections: usize,
    /// Where each peer counts and is told of, and how connections are encrypted, if they are; nothing where everybody is
    /// let in.
    pub watched: Option<(Audit, Option<AdminTls>)>,
}

impl From<usize> for Entrance {
    /// For everybody, so many at once.
    fn from(connections: usize) -> Self {
        Self {
            connections,
            watched: None,
        }
    }
}

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
        entrance: impl Into<Entrance>,
        pages: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let Entrance { connections, watched } = entrance.into();
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let answer = move || {
            let app = App::new()
                .configure(pages.clone())
                .default_service(web::to(nothing_here));
            let http = HttpService::build()
                .keep_alive(KeepAlive::Disabled)
                .client_request_timeout(REQUEST_LIMIT)
                .client_disconnect_timeout(END_LIMIT)
                .local_addr(address)
                .on_connect_ext(|connection: &OneRequest<Stream>, known: &mut Extensions| {
                    if let Some(certified) = connection.get_ref().certified() {
                        known.insert(certified);
                    }
                })
                .h1(map_config(app, |()| AppConfig::default()));
            let watched = watched.clone();
            fn_service(move |stream: TcpStream| let_in(stream, watched.clone())).and_then(http)
        };
        let server = Server::build()
            .disable_signals()
            .workers(1)
            .max_concurrent_connections(connections)
            .shutdown_timeout(1)
            .listen("http", listener, answer)?
            .run();
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

/// A connection with its limits, and who is on the other side.
async fn let_in(
    stream: TcpStream,
    watched: Option<(Audit, Option<AdminTls>)>,
) -> Result<(OneRequest<Stream>, Option<SocketAddr>), DispatchError> {
    // For what is still unsent when the connection is closed here. A system that knows no such limit has one of its own.
    let stall_ms = u32::try_from(STALL_LIMIT.as_millis()).unwrap_or(u32::MAX);
    let _ = set_tcp_user_timeout(&stream, stall_ms);
    let peer = stream.peer_addr().ok();
    let stream = match (watched, peer) {
        (None, _) => Stream::plain(stream),
        // Gone already.
        (Some(_), None) => return Err(DispatchError::DisconnectTimeout),
        (Some((audit, tls)), Some(peer)) => {
            let acceptor = tls.map(|tls| tls.acceptor());
            let admitted = Stream::admit(stream, peer, &audit.peers, acceptor).await;
            admitted.map_err(|why| {
                audit.tell_kept_out(peer.ip(), &why);
                DispatchError::DisconnectTimeout
            })?
        }
    };
    Ok((OneRequest::new(stream), peer))
}

async fn nothing_here() -> HttpResponse {
    HttpResponse::NotFound()
        .content_type("text/plain")
        .body("not found\n")
}
