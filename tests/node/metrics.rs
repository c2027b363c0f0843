//! What a node measures, as whoever scrapes it sees it.

use caf_testkit::http;

use crate::support::Node;

const METRICS: &str = "CP2_OBSERVABILITY_METRICS_ENABLED";

#[test]
fn the_metrics_port_is_open_only_with_its_flag() {
    let mut node = Node::start_with(|worker| worker.env(METRICS, "true"));
    let port = node.worker.metrics_port().expect("is logged");
    let answer = http::get(port, "/metrics").expect("answers");
    assert_eq!(answer.status, 200);
    assert_eq!(http::get(port, "/elsewhere").expect("answers").status, 404);

    let node = Node::start();
    let opened = |log: &serde_json::Value| log["message"] == "Metrics endpoint started";
    assert!(!node.worker.logs().iter().any(opened));
}
