//! Inputs that a job refers to by an `http:` or `https:` address: one GET, by the rules of `http.request`.
//!
//! Neighbours: [`super`] sends, follows and receives; the pipeline calls [`Fetch`]. Knows nothing of what the bytes mean.

use std::sync::Arc;

use bytes::Bytes;
use caf_protocol::block::{BlockContext, RunMode};
use caf_protocol::error_code::ErrorCode;
use caf_protocol::outcome::Failure;
use caf_protocol::reference::{Fetch, FetchFuture, Location, Scheme, misdirected};
use url::Url;

use super::Shared;
use super::request::Request;
use crate::payload::too_large_for_a_payload;
use crate::watch::until_stopped;

/// Statuses that say that there is nothing under the address.
const GONE: [u16; 2] = [404, 410];

/// Fetches by address.
pub(crate) struct HttpFetch {
    shared: Arc<Shared>,
}

impl HttpFetch {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Shared {
    async fn fetch(&self, url: Url, max_bytes: u64, context: &BlockContext) -> Result<Bytes, Failure> {
        let answer = self.follow(&Request::get(url)?, context).await?;
        if let Some(failure) = answer.failure() {
            return Err(if GONE.contains(&answer.response.status().as_u16()) {
                Failure::new(
                    ErrorCode::ResourceUnavailable,
                    "there is nothing under this address",
                )
            } else {
                failure
            });
        }
        let max_bytes = max_bytes.min(self.settings.max_response_bytes);
        let received = self.receive(answer, max_bytes, context).await;
        let bytes = received.map_err(|failure| too_large_for_a_payload(failure, max_bytes))?;
        Ok(bytes.into())
    }
}

impl Fetch for HttpFetch {
    fn scheme(&self) -> Scheme {
        Scheme::Http
    }

    fn mode(&self) -> RunMode {
        RunMode::Async
    }

    fn fetch(self: Arc<Self>, location: Location, max_bytes: u64, context: BlockContext) -> FetchFuture {
        Box::pin(async move {
            let Location::Http { url } = location else {
                return Err(misdirected());
            };
            let fetch = self.shared.fetch(url, max_bytes, &context);
            until_stopped(&context, fetch).await
        })
    }
}
