//! What storing and removing costs: `cargo test --release -p caf-actors --lib outbox::tests::cost -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

/// Processor time of this process so far, in microseconds.
fn cpu_us() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

#[tokio::test]
#[ignore = "measures, asserts nothing"]
async fn storing_and_removing_is_measured() {
    let place = std::env::var_os("CAF_OUTBOX_COST_DIR");
    for sync in [OutboxSync::None, OutboxSync::Interval] {
        for batch in [1_usize, 16, 256] {
            let base = Scratch::new();
            let dir = place.as_ref().map_or(base.0.clone(), |place| {
                PathBuf::from(place).join(batch.to_string())
            });
            let outbox = Outbox::open(&take_again(&dir, 0), &settings(sync), &Log::discard()).unwrap();
            let messages = vec![
                message("caf.result", vec![7; 200]),
                message("caf.result", vec![7; 1_000]),
            ];
            let rounds = 20_000 / batch;
            let (cpu, began) = (cpu_us(), Instant::now());
            for round in 0..rounds {
                let stores: Vec<_> = (0..batch)
                    .map(|n| outbox.store(entry(&format!("{round}-{n}"), messages.clone())))
                    .map(tokio::spawn)
                    .collect();
                for store in stores {
                    outbox.remove(store.await.unwrap().unwrap());
                }
            }
            outbox.flush().await.unwrap();
            let tasks = (rounds * batch) as f64;
            println!(
                "{sync:?}, {batch} at once: {:.1} µs of processor time, {:.1} µs of time, {} syncs",
                (cpu_us() - cpu) / tasks,
                began.elapsed().as_secs_f64() * 1e6 / tasks,
                outbox.snapshot().syncs
            );
        }
    }
}
