//! Slots are accounted for, whatever fails around them; and what the fleet has been told stands when the node must leave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use caf_actors::claims::Claims;
use caf_actors::claims::fleet::{ClaimStore, Fleet, Found, Revision, StoreError};
use caf_actors::claims::record::{ClaimRecord, ClaimState, OutcomeRef, OwnerWord};
use caf_actors::pool::{LookAtPool, PoolSnapshot};
use caf_actors::sink::Outgoing;
use caf_actors::supervisor::Escalation;
use caf_protocol::block::ResourceClass;
use caf_protocol::ids::AssignmentKey;
use caf_worker::settings::Settings;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;

use crate::rig::{self, Rig, assignment, in_system};

/// Longer than two looks of the auditor.
const TWO_LOOKS: Duration = Duration::from_millis(4_500);
const MISSED: &str = "Slots unaccounted for";

async fn pools(rig: &Rig) -> Vec<(ResourceClass, PoolSnapshot)> {
    let mut pools = Vec::new();
    for pool in &rig.tree().pools {
        let look = pool.look.ask(LookAtPool, Duration::from_secs(5)).await;
        pools.push((pool.class, look.expect("the pool answers")));
    }
    pools
}

#[test]
fn a_slot_that_leaks_is_reported_once_and_the_others_go_on() {
    in_system(async {
        let rig = Rig::start().await;
        let slots = &rig.tree().pool(ResourceClass::Cpu).slots;
        std::mem::forget(slots.try_take());
        rig.wait("the auditor misses it", |rig| rig.lines(MISSED) == 1)
            .await;
        for (class, pool) in pools(&rig).await {
            let missed = usize::from(class == ResourceClass::Cpu);
            assert_eq!(
                (pool.slots_unaccounted, pool.running),
                (missed, missed),
                "{class:?}"
            );
        }
        for n in 0..20 {
            rig.deliver(assignment(&format!("a-{n}"), &json!({})), n).await;
        }
        rig.settled(20).await;
        rig.pass(TWO_LOOKS).await;
        assert_eq!(rig.lines(MISSED), 1, "nothing changed");
        rig.stop().await;
    });
}

#[test]
fn under_load_with_failing_actors_every_slot_is_accounted_for() {
    in_system(async {
        let mut settings = Settings::default();
        settings.worker.supervision.max_restarts = 1_000;
        let rig = Rig::start_with(settings).await;
        let failing = [
            "Step execution started",
            "Step execution completed",
            "Assignment rejected",
            "Attempt failed, retrying",
        ];
        let began = tokio::time::Instant::now();
        let mut sequence = 0;
        while began.elapsed() < TWO_LOOKS {
            rig.fail_at(failing[sequence as usize % failing.len()]);
            for patch in [
                json!({}),
                json!({"version": "2"}),
                rig::failing("EXECUTION_FAILED", 2),
                rig::in_pool("io"),
            ] {
                rig.deliver(assignment(&format!("a-{sequence}"), &patch), sequence)
                    .await;
                sequence += 1;
            }
            rig.pass(Duration::from_millis(20)).await;
        }
        assert!(rig.restarts() > 10, "{} restarts", rig.restarts());
        rig.fail_at("nothing");
        rig.wait("everything held is let go", |rig| {
            rig.tree().status.held().held_jobs() == 0
        })
        .await;
        rig.alive().await;
        rig.wait("all slots are free", |rig| {
            rig.tree().pools.iter().all(|pool| pool.slots.busy() == 0)
        })
        .await;
        rig.pass(TWO_LOOKS).await;
        assert_eq!(rig.lines(MISSED), 0);
        assert!(
            pools(&rig)
                .await
                .iter()
                .all(|(_, pool)| pool.slots_unaccounted == 0)
        );
        rig.stop().await;
    });
}

/// Claims in memory.
#[derive(Default)]
struct Memory(Mutex<HashMap<AssignmentKey, Found>>);

impl Memory {
    fn records(&self) -> HashMap<AssignmentKey, Found> {
        self.0.lock().expect("no panic holds it").clone()
    }
}

impl ClaimStore for Memory {
    fn write(
        &self,
        key: &AssignmentKey,
        record: &ClaimRecord,
        expected: Revision,
    ) -> BoxFuture<'static, Result<Revision, StoreError>> {
        let mut records = self.0.lock().expect("no panic holds it");
        let found = records.entry(key.clone()).or_default();
        let written = if found.revision == expected {
            found.revision += 1;
            found.record = Some(record.clone());
            Ok(found.revision)
        } else {
            Err(StoreError::Conflict)
        };
        std::future::ready(written).boxed()
    }

    fn read(&self, key: &AssignmentKey) -> BoxFuture<'static, Result<Found, StoreError>> {
        let found = self.records().remove(key).unwrap_or_default();
        std::future::ready(Ok(found)).boxed()
    }

    fn ask_owner(&self, _: &str, _: &AssignmentKey) -> BoxFuture<'static, OwnerWord> {
        std::future::ready(OwnerWord::Silent).boxed()
    }

    fn is_waiting(&self, _: &str, _: u64, _: &AssignmentKey) -> BoxFuture<'static, Result<bool, StoreError>> {
        std::future::ready(Ok(true)).boxed()
    }

    fn result(&self, _: &OutcomeRef) -> BoxFuture<'static, Result<Option<Outgoing>, StoreError>> {
        std::future::ready(Ok(None)).boxed()
    }
}

/// The node leaves without draining then: its successor must find each claim as it was.
#[test]
fn when_the_restart_budget_is_spent_no_claim_is_given_back_and_no_verdict_is_sent() {
    in_system(async {
        let (settings, store) = (Settings::default(), Arc::new(Memory::default()));
        let fleet = Fleet::new(Arc::clone(&store) as Arc<dyn ClaimStore>, "process", "worker");
        let claims = Claims::new(&settings.idempotency, Some(fleet));
        let mut rig = Rig::start_with_claims(settings, claims).await;
        for n in 0..5 {
            rig.deliver(assignment(&format!("held-{n}"), &rig::waiting()), n)
                .await;
        }
        rig.published(|counts| counts.0 == 5).await;
        let before = store.records();
        assert_eq!(before.len(), 5);
        rig.always_fail_at("Step execution started");
        // Each ends the pool, and what waits in it is lost with it; what runs goes on.
        for n in 10.. {
            rig.deliver(assignment(&format!("lost-{n}"), &rig::in_pool("io")), n)
                .await;
            rig.wait("the message is lost", |rig| {
                rig.tree().status.held().held_jobs() <= 5
            })
            .await;
            if rig.escalated() {
                break;
            }
        }
        assert_eq!(rig.escalation().await, Escalation::RestartBudgetSpent);
        let after = store.records();
        assert!(before.iter().all(|(key, found)| after.get(key) == Some(found)));
        let running = |found: &Found| {
            found
                .record
                .as_ref()
                .is_some_and(|record| record.state == ClaimState::Running && record.owner == "process")
        };
        assert!(after.values().all(running), "{after:?}");
        assert_eq!(rig.verdicts(), []);
        rig.stop().await;
    });
}
