//! `SECURITY.md` promises a test for each mechanism: each must be there.

use std::path::Path;

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("SECURITY.md")).expect("is there");
    let named = text.split('`').filter_map(|part| part.split_once(".rs::"));
    let mut count = 0;
    for (file, test) in named {
        let file = format!("{file}.rs");
        let source =
            std::fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(
            source.contains(&format!("fn {test}(")),
            "{file} has no test {test}"
        );
        count += 1;
    }
    assert!(count > 30, "{count} tests are named");
}
