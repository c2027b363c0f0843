//! The pages of the admin port: what the node does, for operators.
//!
//! Neighbours: `serve` opens the port; the health page has the state of the parts.

use actix_web::{HttpResponse, web};

use super::health::Health;

/// Puts the pages where they belong.
pub fn pages(health: Health) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    let health = web::Data::new(health);
    move |config| {
        config
            .app_data(health.clone())
            .route("/status", web::get().to(status));
    }
}

async fn status(health: web::Data<Health>) -> HttpResponse {
    HttpResponse::Ok().json(health.page().await)
}
