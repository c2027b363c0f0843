//! A line in the log for each call of the admin port, as loud as it deserves: what changes something at info; refusals and
//! reading at info too, but so seldom that neither a stranger nor a page that refreshes itself fills the log.
//!
//! Neighbours: [`super::guard`] tells of every call, `Port` of connections that were kept out; [`super::peers`] counts.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use actix_web::dev::ServiceRequest;
use actix_web::http::{Method, StatusCode};
use caf_actors::events::Log;
use caf_actors::events::admin::{Call, Caller, Loudness, Watched, called, kept_out};
use tokio::time::Instant;

use super::peers::{Peer, Peers};
use super::tls::Certified;

/// Tells of calls. Clones share what they remember.
#[derive(Clone)]
pub struct Audit {
    /// Who was told of, and how often.
    pub peers: Peers,
    /// Where lines go.
    pub log: Log,
    /// Whose they are.
    pub port: Watched,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Asker {
    /// As it counts.
    pub peer: Peer,
    address: String,
    certified: Option<Certified>,
}

impl Asker {
    /// Who sends this request.
    pub fn of(request: &ServiceRequest) -> Self {
        let address = request.peer_addr().as_ref().map(SocketAddr::ip);
        Self::new(address, request.conn_data::<Certified>().cloned())
    }

    fn new(address: Option<IpAddr>, certified: Option<Certified>) -> Self {
        let at = Peer::at(address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)));
        let certificate = certified
            .as_ref()
            .map(|certified| Peer::Certificate(certified.fingerprint));
        Self {
            peer: certificate.unwrap_or(at),
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            certified,
        }
    }

    fn caller(&self, has_token: bool) -> Caller {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let certificate = self.certified.as_ref();
        Caller {
            address: self.address.clone(),
            certificate: certificate.map(|known| (known.subject.clone(), hex(&known.fingerprint))),
            proven_by: match (certificate.is_some(), has_token) {
                (true, true) => "certificate+token",
                (true, false) => "certificate",
                (false, true) => "token",
                (false, false) => "nothing",
            },
        }
    }
}

impl Audit {
    /// Tells of a call and its answer.
    pub fn tell(
        &self,
        asker: &Asker,
        has_token: bool,
        (method, path): (&Method, &str),
        status: StatusCode,
        taken: Duration,
    ) {
        let loudness = self.loudness(asker.peer, method, status);
        let call = Call {
            method: method.as_str(),
            path,
            status: status.as_u16(),
            taken,
        };
        self.log.emit(called(&asker.caller(has_token), &call, loudness));
    }

    /// Tells of a connection that was closed before anything could be asked.
    pub fn tell_kept_out(&self, address: IpAddr, why: &str) {
        let asker = Asker::new(Some(address), None);
        let loudness = match self.peers.tells_refusal(asker.peer, Instant::now()) {
            true => Loudness::Aloud,
            false => Loudness::Softly,
        };
        self.log
            .emit(kept_out(self.port, &asker.caller(false), why, loudness));
    }

    fn loudness(&self, peer: Peer, method: &Method, status: StatusCode) -> Loudness {
        let now = Instant::now();
        let reads = method == Method::GET || method == Method::HEAD;
        // Not found is an answer to who reads. Who wants something done and is not heard is refused, whatever the reason.
        let is_refused = status.is_client_error() && !(reads && status == StatusCode::NOT_FOUND);
        let aloud = match (is_refused, reads) {
            (true, _) => self.peers.tells_refusal(peer, now),
            (false, true) => self.peers.tells_reading(peer, now),
            (false, false) => true,
        };
        match aloud {
            true => Loudness::Aloud,
            false => Loudness::Softly,
        }
    }
}
