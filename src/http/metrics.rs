//! The page of the metrics port: everything measured so far, in Prometheus' text form (contract 8.3).
//!
//! Neighbours: `serve` opens the port while the flag of metrics is on; the registry of [`crate::telemetry::metrics`] has
//! the numbers.

use std::sync::Arc;

use actix_web::{HttpResponse, web};

use crate::telemetry::metrics::Metrics;

/// Puts the page where it belongs.
pub fn pages(metrics: Arc<Metrics>) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    let metrics = web::Data::from(metrics);
    move |config| {
        config
            .app_data(metrics.clone())
            .route("/metrics", web::get().to(page));
    }
}

async fn page(metrics: web::Data<Metrics>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(metrics.encode())
}
