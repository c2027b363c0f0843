//! Mutated assignments in great numbers against a running node: each leaves by exactly one row, and memory stays as it was.
//!
//! `MUTATIONS=1000000 cargo test --release --test node a_flood_of_mutated -- --nocapture` sends a million; without it a few
//! thousand. `MUTATIONS_SEED` begins elsewhere.

use std::time::{Duration, Instant};

use caf_testkit::client::ASSIGN;
use caf_testkit::wait::poll;
use caf_testkit::{AssignmentBuilder, http, malformed};
use serde_json::json;

use crate::support::{ASSIGNMENTS, CONSUMER, Node};

/// So many without a wish.
const FEW: u64 = 3_000;
/// Sent at once, before it is looked whether the node keeps up.
const BATCH: u64 = 500;
/// So many may be under way: the stream is not what is tried here.
const AHEAD: u64 = 4_000;
/// Largest message that is mutated, in bytes.
const LARGEST: usize = 2_048;
/// Rows by which a message leaves only to come again.
const COME_AGAIN: [&str; 4] = ["5", "10", "10c", "12"];
/// From so many on, the memory is judged: before, caches fill.
const ENOUGH: u64 = 100_000;
/// More than this is a leak, in bytes: over 100,000 messages, 500 bytes each would be twice as much.
const TOO_MUCH: u64 = 24 * 1024 * 1024;
/// Without any message handled for so long, they are lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// A reproducible sequence (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("is below a length")
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Pieces that readers of JSON stumble over.
const PIECES: [&[u8]; 16] = [
    b"{",
    b"}",
    b"[[[[",
    b"null",
    b"\"\"",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\\u0000",
    b"\\ud800",
    b"\xff\xfe",
    b"\"undefined\"",
    b",",
    b":",
    b"\"tenant_id\":\"other\",",
    b"\"version\":1,",
];

/// One message: a hostile or a plain one with a fresh id, changed in up to three places.
fn mutated(dice: &mut Dice, corpus: &[Vec<u8>], number: u64) -> Vec<u8> {
    let base = dice.of(corpus);
    let text = String::from_utf8_lossy(base).replacen("malformed-", &format!("m{number}-"), 1);
    let mut bytes = match std::str::from_utf8(base) {
        Ok(_) => text.into_bytes(),
        Err(_) => base.clone(),
    };
    for _ in 0..dice.below(4) {
        let (at, length) = (dice.below(bytes.len() + 1), bytes.len());
        match dice.below(7) {
            0 if at < length => bytes[at] ^= 1 << dice.below(8),
            1 if at < length => drop(bytes.remove(at)),
            2 => drop(bytes.splice(at..at, dice.of(&PIECES).iter().copied())),
            3 => bytes.truncate(at),
            4 => {
                let end = (at + dice.below(32)).min(length);
                let copied = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, copied));
            }
            5 => {
                let other = dice.of(corpus);
                let from = dice.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            // As it is.
            _ => {}
        }
    }
    bytes.truncate(2 * LARGEST);
    bytes
}

/// How many have left for good, as the node counts; with `all` also those that come again.
fn left(port: u16, all: bool) -> u64 {
    let Ok(page) = http::get(port, "/metrics") else {
        return 0;
    };
    let text = page.text();
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("worker_assignments_total{row=\""));
    let rows = rows.filter_map(|rest| rest.split_once("\"} "));
    let final_rows = rows.filter(|(row, _)| all || !COME_AGAIN.contains(row));
    final_rows
        .map(|(_, count)| count.parse::<f64>().expect("is a number") as u64)
        .sum()
}

fn wanted() -> u64 {
    let said = std::env::var("MUTATIONS").ok();
    said.map_or(FEW, |said| said.parse().expect("MUTATIONS is a number"))
}

/// Waits until all but so many have left.
fn wait_until_left(port: u16, sent: u64, but: u64) {
    let (mut seen, mut since) = (left(port, false), Instant::now());
    while seen + but < sent {
        let more = poll(Duration::from_secs(5), || {
            Some(left(port, false)).filter(|now| *now > seen)
        });
        match more {
            Some(now) => (seen, since) = (now, Instant::now()),
            None => assert!(since.elapsed() < PATIENCE, "{seen} of {sent} have left"),
        }
    }
}

#[test]
fn a_flood_of_mutated_assignments_leaves_by_one_row_each_and_memory_stays_flat() {
    let wanted = wanted();
    let seed = std::env::var("MUTATIONS_SEED").ok();
    let mut dice = Dice(seed.map_or(0xcaf, |seed| seed.parse().expect("MUTATIONS_SEED is a number")));
    let mut corpus: Vec<Vec<u8>> = malformed().into_iter().map(|message| message.bytes).collect();
    corpus.retain(|bytes| bytes.len() <= LARGEST);
    let mut node = Node::start_with(|worker| worker.env("CP2_OBSERVABILITY_METRICS_ENABLED", "true"));
    let port = node.worker.metrics_port().expect("is logged");
    let began = Instant::now();
    let (mut sent, mut warm) = (0, None);
    let mut previous = Vec::new();
    while sent < wanted {
        let batch: Vec<Vec<u8>> = (0..BATCH.min(wanted - sent))
            .map(|n| {
                // Now and then one comes twice.
                if dice.below(50) > 0 || previous.is_empty() {
                    previous = mutated(&mut dice, &corpus, sent + n);
                }
                previous.clone()
            })
            .collect();
        sent += batch.len() as u64;
        publish(&node, batch);
        wait_until_left(port, sent, AHEAD);
        if warm.is_none() && sent >= wanted / 4 {
            warm = Some(node.worker.resident_bytes().expect("is known"));
        }
    }
    wait_until_left(port, sent, 0);
    // What has left has left once: nothing is there to come again, and nothing more was counted.
    let stream = || node.client.stream_count(ASSIGNMENTS).expect("is there");
    poll(PATIENCE, || (stream() == 0).then_some(())).expect("the broker was told of each");
    let consumer = node.client.consumer(ASSIGNMENTS, CONSUMER).expect("is there");
    assert_eq!((consumer.pending, consumer.ack_pending), (0, 0));
    // On a machine that is too busy leases lapse, and the broker delivers again what had left: then each delivery has a row.
    let deliveries = deliveries(&node);
    assert_eq!(left(port, true), deliveries, "each delivery leaves by one row");
    let again = deliveries - sent;
    assert!(
        (sent..=sent + again).contains(&left(port, false)),
        "nothing is lost"
    );
    let (before, after) = (
        warm.expect("was noted"),
        node.worker.resident_bytes().expect("is known"),
    );
    eprintln!(
        "{sent} mutated assignments, {again} delivered again, in {:.0} s; resident memory {} KiB after a quarter, {} KiB at the end",
        began.elapsed().as_secs_f64(),
        before / 1024,
        after / 1024,
    );
    if sent >= ENOUGH {
        assert!(after < before + TOO_MUCH, "{before} bytes became {after}");
    }
    // It goes on. Among the answers to a million one more would not be found in time: rows are counted.
    let before = left(port, false);
    node.client.assign(&AssignmentBuilder::echo()).expect("is sent");
    poll(PATIENCE, || (left(port, false) > before).then_some(())).expect("one more leaves");
}

/// How many messages the broker has delivered, each as often as it did.
fn deliveries(node: &Node) -> u64 {
    let request = format!("CONSUMER.INFO.{ASSIGNMENTS}.{CONSUMER}");
    let info = node.client.jetstream_api(&request, &json!({})).expect("is there");
    info["delivered"]["consumer_seq"].as_u64().expect("is a number")
}

fn publish(node: &Node, batch: Vec<Vec<u8>>) {
    let nats = node.client.nats();
    let publishing = async move {
        for payload in batch {
            nats.publish(ASSIGN, payload.into()).await?;
        }
        nats.flush().await?;
        anyhow::Ok(())
    };
    node.client.run(publishing).expect("runs").expect("is published");
}
