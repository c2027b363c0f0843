//! What the admin port tells operators.

use caf_testkit::http;

use crate::support::Node;

#[test]
fn the_admin_port_is_always_open() {
    let mut node = Node::start();
    let port = node.worker.admin_port().expect("is logged");
    let answer = http::get(port, "/status").expect("answers");
    assert_eq!(answer.status, 200);
}
