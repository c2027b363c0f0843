//! The page of the metrics port: everything measured so far, in Prometheus' text form (contract 8.3).
//!
//! Neighbours: `serve` opens the port while the flag of metrics is on; the registry of [`crate::telemetry::metrics`] has
//! what was counted, [`super::health`] has what is so at the moment. Both answer although a part hangs.

use std::sync::Arc;

use actix_web::{HttpResponse, web};

use super::health::Health;
use crate::telemetry::metrics::{Metrics, state};

/// Most connections of the metrics port: a page may have 3 MB.
pub const CONNECTIONS: usize = 32;

/// Puts the page where it belongs.
pub fn pages(
    metrics: Arc<Metrics>,
    health: Health,
) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    let (metrics, health) = (web::Data::from(metrics), web::Data::new(health));
    move |config| {
        config
            .app_data(metrics.clone())
            .app_data(health.clone())
            .route("/metrics", web::get().to(page))
            .route("/metrics", web::head().to(page));
    }
}

async fn page(metrics: web::Data<Metrics>, health: web::Data<Health>) -> HttpResponse {
    let now = state::samples(&health.look().await);
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(metrics.encode(&now))
}
