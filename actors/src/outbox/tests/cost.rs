//! What storing and removing costs, in a directory of one's choice:
//! `CAF_OUTBOX_COST_DIR=/var/tmp/cost cargo test --release -p caf-actors --lib outbox::tests::cost -- --nocapture`.

use std::time::Instant;

use super::*;

/// Processor time of this process so far, in microseconds.
fn cpu_us() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Processor time of the writer's thread so far, in microseconds.
fn writer_us() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of = |thread: PathBuf| {
        let name = std::fs::read_to_string(thread.join("comm")).ok()?;
        let times = std::fs::read_to_string(thread.join("schedstat")).ok()?;
        (name.trim() == "outbox").then(|| times.split(' ').next()?.parse::<f64>().ok())?
    };
    threads.filter_map(|thread| of(thread.path())).sum::<f64>() / 1e3
}

/// Measures, and asserts nothing.
#[tokio::test]
async fn storing_and_removing_is_measured() {
    let Some(place) = std::env::var_os("CAF_OUTBOX_COST_DIR") else {
        return;
    };
    for sync in [OutboxSync::None, OutboxSync::Interval] {
        for batch in [1_usize, 16, 256] {
            let dir = Path::new(&place).join(format!("{sync:?}-{batch}"));
            let outbox = Outbox::open(&take_again(&dir, 0), &settings(sync), &Log::discard()).unwrap();
            let messages = vec![
                message("caf.result", vec![7; 200]),
                message("caf.result", vec![7; 1_000]),
            ];
            let rounds = 20_000 / batch;
            let model = entry("a", messages);
            let (cpu, writer, began) = (cpu_us(), writer_us(), Instant::now());
            for _ in 0..rounds {
                let stores: Vec<_> = (0..batch)
                    .map(|_| outbox.store(model.clone()))
                    .map(tokio::spawn)
                    .collect();
                for store in stores {
                    outbox.remove(store.await.unwrap().unwrap());
                }
            }
            outbox.flush().await.unwrap();
            let tasks = (rounds * batch) as f64;
            println!(
                "{sync:?}, {batch} at once: {:.1} µs of processor time, {:.1} µs of them the writer's, {:.1} µs of time, {} syncs",
                (cpu_us() - cpu) / tasks,
                (writer_us() - writer) / tasks,
                began.elapsed().as_secs_f64() * 1e6 / tasks,
                outbox.snapshot().syncs
            );
        }
    }
}
