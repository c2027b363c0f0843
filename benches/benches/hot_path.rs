//! How long the steps of the hot path take: `cargo bench -p caf-bench`. With `--test` each runs once.

#[path = "../operations.rs"]
mod operations;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, make) in operations::ALL {
        let mut operation = make();
        criterion.bench_function(name, |bencher| bencher.iter(&mut operation));
    }
    criterion.final_summary();
}
