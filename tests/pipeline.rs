//! The whole tree with fake edges: every row of the table, counted at the sink; failures of its parts.
//!
//! The test delivers, and reads what was published and settled. Only `blocked` needs a broker.

#[path = "pipeline/blocked.rs"]
mod blocked;
#[path = "pipeline/limits.rs"]
mod limits;
#[path = "pipeline/queue.rs"]
mod queue;
#[path = "pipeline/references.rs"]
mod references;
#[path = "pipeline/retries.rs"]
mod retries;
#[path = "pipeline/rig.rs"]
mod rig;
#[path = "pipeline/slots.rs"]
mod slots;
#[path = "pipeline/tenants.rs"]
mod tenants;

use std::time::Duration;

use caf_actors::pool::EmptyLine;
use caf_actors::settings::LimitSettings;
use caf_actors::sink::Verdict;
use caf_actors::supervisor::Escalation;
use caf_worker::settings::Settings;
use rig::{Rig, assignment, in_system};
use serde_json::json;

/// Row 1.
#[test]
fn bytes_that_nobody_can_answer_are_buried_with_their_original() {
    in_system(async {
        let rig = Rig::start().await;
        for (sequence, bytes) in [&b"\xff\xfenot json"[..], b"{}", b"[]", b""]
            .into_iter()
            .enumerate()
        {
            rig.deliver_bytes(bytes.to_vec(), sequence as u64).await;
        }
        rig.settled(4).await;
        assert_eq!(rig.counts(), (0, 0, 4));
        let letter = &rig.dead_letters()[0];
        assert_eq!(letter["original_payload_base64"], "//5ub3QganNvbg==");
        assert_eq!(letter["reason"], "unreadable");
        assert!(rig.verdicts().iter().all(|(_, verdict)| *verdict == Verdict::Ack));
        rig.stop().await;
    });
}

/// Row 2.
#[test]
fn an_invalid_assignment_is_rejected_answered_and_buried() {
    in_system(async {
        let rig = Rig::start().await;
        for (n, patch) in [
            json!({"version": "2"}),
            json!({"request_id": null}),
            json!({"job": {"type": "no.such.block", "payload": {}}}),
            json!({"job": {"type": "probe", "payload": {"refuse": true}}}),
            json!({"job": {"type": "probe", "payload": {"panic_in_prepare": true}}}),
        ]
        .into_iter()
        .enumerate()
        {
            rig.deliver(assignment(&format!("bad-{n}"), &patch), n as u64)
                .await;
        }
        rig.settled(5).await;
        assert_eq!(rig.counts(), (5, 5, 5));
        let reasons: Vec<_> = rig.acks().iter().map(|ack| ack["message"].clone()).collect();
        let expected = [
            "unsupported_version",
            "missing_field",
            "unsupported_job_type",
            "invalid_inputs",
            "invalid_inputs",
        ];
        assert_eq!(reasons, expected);
        for (ack, result) in rig.acks().iter().zip(rig.results()) {
            assert_eq!(
                (&ack["status"], &result["status"]),
                (&json!("rejected"), &json!("error"))
            );
        }
        assert_eq!(rig.results()[2]["error"]["details"]["field"], "job.type");
        rig.stop().await;
    });
}

/// Row 3.
#[test]
fn a_tenant_that_is_not_on_the_list_is_rejected() {
    in_system(async {
        let mut settings = Settings::default();
        settings.tenants.allowed = vec!["other".to_owned()];
        let rig = Rig::start_with(settings).await;
        rig.deliver(assignment("a", &json!({})), 1).await;
        rig.settled(1).await;
        assert_eq!(rig.counts(), (1, 1, 1));
        assert_eq!(rig.acks()[0]["message"], "tenant_not_allowed");
        assert_eq!(rig.results()[0]["error_code"], "PERMISSION_DENIED");
        rig.stop().await;
    });
}

/// Row 4: exactly slots + queue are accepted.
#[test]
fn a_bounded_pool_accepts_exactly_its_places_and_refuses_the_rest() {
    in_system(async {
        let mut settings = Settings::default();
        settings.worker.queue.v2.enabled = true;
        settings.pools.cpu.max_concurrency = 2;
        settings.worker.queue.v2.max_queue_size = 3;
        let rig = Rig::start_with(settings).await;
        for n in 0..9 {
            rig.deliver(assignment(&format!("a-{n}"), &rig::waiting()), n)
                .await;
        }
        rig.published(|counts| counts.0 == 9).await;
        let statuses = rig.ack_statuses();
        assert_eq!((statuses["accepted"], statuses["rejected"]), (5, 4));
        let refused = rig
            .acks()
            .into_iter()
            .find(|ack| ack["status"] == "rejected")
            .expect("one");
        assert_eq!(
            (&refused["message"], &refused["overload_status"]),
            (&json!("queue_full"), &json!("critical"))
        );
        rig.release();
        rig.settled(9).await;
        let codes: Vec<_> = rig
            .results()
            .iter()
            .filter(|r| r["error_code"] == "SYSTEM_OVERLOAD")
            .cloned()
            .collect();
        assert_eq!(codes.len(), 4);
        assert!(codes.iter().all(|result| result["error"]["retryable"] == true));
        assert_eq!(rig.counts(), (9, 9, 0));
        rig.stop().await;
    });
}

/// CP1: without the flag the queue has no bound of its own.
#[test]
fn an_unbounded_pool_refuses_nothing() {
    in_system(async {
        let rig = Rig::start().await;
        for n in 0..500 {
            rig.deliver(assignment(&format!("a-{n}"), &json!({})), n).await;
        }
        rig.settled(500).await;
        assert_eq!(rig.counts(), (500, 500, 0));
        assert_eq!(rig.ack_statuses()["accepted"], 500);
        assert!(rig.acks().iter().all(|ack| ack.get("overload_status").is_none()));
        rig.stop().await;
    });
}

/// Rows 6 and 7.
#[test]
fn success_is_answered_and_a_failure_is_answered_and_buried() {
    in_system(async {
        let rig = Rig::start().await;
        rig.deliver(assignment("good", &json!({})), 1).await;
        rig.deliver(assignment("bad", &rig::failing("EXECUTION_FAILED", 2)), 2)
            .await;
        rig.settled(2).await;
        assert_eq!(rig.counts(), (2, 2, 1));
        let (good, bad) = (rig.result_of("good"), rig.result_of("bad"));
        assert_eq!(
            (&good["status"], &good["outputs"]["ok"]),
            (&json!("success"), &json!(true))
        );
        assert_eq!(
            (&bad["status"], &bad["error_code"]),
            (&json!("error"), &json!("EXECUTION_FAILED"))
        );
        assert_eq!(bad["retries_used"], 1, "two calls in all");
        assert_eq!(rig.dead_letters()[0]["stream_sequence"], 2);
        rig.stop().await;
    });
}

/// The JetStream verdict comes after the confirmed publish of ack, result and dead letter.
#[test]
fn nothing_is_settled_before_everything_is_confirmed() {
    in_system(async {
        let rig = Rig::start().await;
        rig.sink.refuse_publishes(true);
        rig.deliver(assignment("bad", &rig::failing("EXECUTION_FAILED", 1)), 1)
            .await;
        rig.wait("several tries", |rig| rig.sink.tries() >= 4).await;
        assert!(rig.verdicts().is_empty());
        assert_eq!(rig.tree().status.held().held_jobs(), 1);
        let waiting = rig.publisher().await;
        assert!(
            waiting.unconfirmed > 0 && waiting.oldest_unconfirmed_ms >= 100,
            "{waiting:?}"
        );
        rig.sink.refuse_publishes(false);
        rig.settled(1).await;
        let done = rig.publisher().await;
        assert_eq!((done.unconfirmed, done.oldest_unconfirmed_ms), (0, 0));
        assert_eq!(rig.counts(), (1, 1, 1));
        rig.stop().await;
    });
}

/// Row 8, in a slot and in the queue.
#[test]
fn a_deadline_ends_a_job_whether_it_runs_or_waits() {
    in_system(async {
        let mut settings = Settings::default();
        settings.pools.cpu.max_concurrency = 1;
        let rig = Rig::start_with(settings).await;
        let mut slow = rig::waiting();
        slow["options"] = json!({"deadline_ms": 300});
        rig.deliver(assignment("running", &slow), 1).await;
        slow["options"] = json!({"deadline_ms": 100});
        rig.deliver(assignment("queued", &slow), 2).await;
        rig.settled(2).await;
        assert_eq!(rig.counts(), (2, 2, 0));
        for id in ["running", "queued"] {
            let result = rig.result_of(id);
            assert_eq!(
                (&result["status"], &result["error_code"]),
                (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT"))
            );
        }
        let order: Vec<_> = rig
            .results()
            .iter()
            .map(|result| result["assignment_id"].clone())
            .collect();
        assert_eq!(
            order,
            ["queued", "running"],
            "nobody waits past a deadline for a slot"
        );
        rig.release();
        rig.stop().await;
    });
}

/// Row 8b: its first handling was cut off, and its time has passed since.
#[test]
fn an_assignment_that_expired_before_it_could_start_is_timed_out_with_its_first_ack() {
    in_system(async {
        let rig = Rig::start_with(rig::settings_with_one_slot()).await;
        rig.deliver(assignment("blocker", &rig::waiting()), 1).await;
        let mut short = rig::waiting();
        short["options"] = json!({"deadline_ms": 150});
        rig.deliver(assignment("late", &short), 2).await;
        rig.published(|counts| counts.0 == 2).await;
        // The pool fails while "late" waits in it: its line is lost, the broker delivers again.
        rig.fail_at("Step execution started");
        rig.deliver(assignment("trigger", &rig::in_pool("cpu")), 3).await;
        rig.release();
        rig.wait("the waiting jobs are gone", |rig| {
            rig.tree().status.held().held_jobs() == 0
        })
        .await;
        rig.alive().await;
        rig.pass(Duration::from_millis(200)).await;
        rig.deliver(assignment("late", &short), 2).await;
        rig.wait("an answer", |rig| {
            rig.results().iter().any(|r| r["assignment_id"] == "late")
        })
        .await;
        let result = rig.result_of("late");
        assert_eq!(
            (&result["status"], &result["error_code"]),
            (&json!("timeout"), &json!("CANCELLED_BY_TIMEOUT"))
        );
        let acks: Vec<_> = rig
            .raw_acks()
            .into_iter()
            .filter(|ack| ack.contains("\"late\""))
            .collect();
        assert!(
            acks.iter().all(|ack| *ack == acks[0]),
            "the first ack, byte for byte"
        );
        rig.stop().await;
    });
}

/// Row 10: the same message again; 10b: another message with the same assignment.
#[test]
fn a_held_assignment_is_renewed_and_a_copy_of_it_is_dropped() {
    in_system(async {
        let rig = Rig::start().await;
        rig.deliver(assignment("a", &rig::waiting()), 1).await;
        rig.published(|counts| counts.0 == 1).await;
        rig.deliver_again(assignment("a", &rig::waiting()), 1, "second")
            .await;
        rig.deliver_again(assignment("a", &rig::waiting()), 7, "copy")
            .await;
        rig.settled(2).await;
        let expected = [
            ("second".to_owned(), Verdict::InProgress),
            ("copy".to_owned(), Verdict::Ack),
        ];
        assert_eq!(rig.verdicts(), expected);
        assert_eq!(rig.counts(), (1, 0, 0));
        rig.release();
        rig.settled(3).await;
        assert_eq!(
            rig.verdicts()[2],
            ("second".to_owned(), Verdict::Ack),
            "the newest delivery is settled"
        );
        assert_eq!(rig.counts(), (1, 1, 0));
        rig.stop().await;
    });
}

/// Row 11.
#[test]
fn a_finished_assignment_is_answered_again_with_the_same_bytes_and_never_run_again() {
    in_system(async {
        let rig = Rig::start().await;
        rig.deliver(assignment("a", &json!({})), 1).await;
        rig.settled(1).await;
        // The same message again: its result was confirmed, only the broker does not know.
        rig.deliver(assignment("a", &json!({})), 1).await;
        rig.settled(2).await;
        assert_eq!(rig.counts(), (1, 1, 0));
        // Another message: somebody asks again.
        rig.deliver(assignment("a", &json!({})), 2).await;
        rig.settled(3).await;
        assert_eq!(rig.counts(), (1, 2, 0));
        let results = rig.raw_results();
        assert_eq!(results[0], results[1]);
        assert_eq!(rig.runs(), 1);
        rig.stop().await;
    });
}

#[test]
fn a_message_that_comes_back_after_its_result_was_confirmed_is_only_settled() {
    in_system(async {
        let rig = Rig::start().await;
        rig.deliver(assignment("a", &json!({})), 1).await;
        rig.settled(1).await;
        rig.deliver_again(assignment("a", &json!({})), 1, "again").await;
        rig.settled(2).await;
        assert_eq!(rig.counts(), (1, 1, 0), "who listens has heard it");
        assert_eq!(rig.verdicts()[1], ("again".to_owned(), Verdict::Ack));
        rig.stop().await;
    });
}

#[test]
fn an_answer_that_the_stream_has_had_before_is_said_in_the_log_unless_it_is_a_repetition() {
    in_system(async {
        let rig = Rig::start().await;
        rig.sink.know_all();
        rig.deliver(assignment("a", &json!({})), 1).await;
        rig.settled(1).await;
        let said = "Answer dropped by the stream: this id was answered before";
        assert_eq!(rig.lines(said), 1, "the result");
        rig.deliver(assignment("a", &json!({})), 2).await;
        rig.settled(2).await;
        assert_eq!(rig.lines(said), 1, "row 11 repeats on purpose");
        rig.stop().await;
    });
}

/// Row 12.
#[test]
fn while_draining_what_has_not_started_is_handed_back() {
    in_system(async {
        let rig = Rig::start_with(rig::settings_with_one_slot()).await;
        rig.deliver(assignment("running", &rig::waiting()), 1).await;
        rig.deliver(assignment("queued", &rig::waiting()), 2).await;
        rig.published(|counts| counts.0 == 2).await;
        rig.tree().status.start_draining();
        rig.deliver(assignment("arriving", &json!({})), 3).await;
        rig.settled(1).await;
        rig.empty_lines(EmptyLine::HandBack).await;
        rig.settled(2).await;
        assert!(
            rig.verdicts()
                .iter()
                .all(|(_, verdict)| *verdict == Verdict::Nak { delay_ms: 100 })
        );
        assert_eq!(
            rig.counts(),
            (2, 0, 0),
            "nothing is said about what is handed back"
        );
        rig.release();
        rig.settled(3).await;
        assert_eq!(rig.result_of("running")["status"], "success");
        rig.stop().await;
    });
}

/// Row 15, without a store to spill to.
#[test]
fn a_result_larger_than_the_server_takes_is_an_error_with_size_and_hash() {
    in_system(async {
        let rig = Rig::start().await;
        rig.sink.set_max_message_bytes(4_000);
        rig.deliver(assignment("big", &rig::yielding(5_000)), 1).await;
        rig.deliver(assignment("small", &rig::yielding(500)), 2).await;
        rig.settled(2).await;
        let (big, small) = (rig.result_of("big"), rig.result_of("small"));
        assert_eq!(
            (&big["status"], &big["error_code"]),
            (&json!("error"), &json!("RESOURCE_UNAVAILABLE"))
        );
        assert!(big["error"]["details"]["outputs_bytes"].as_u64() > Some(5_000));
        assert_eq!(small["status"], "success");
        rig.stop().await;
    });
}

#[test]
fn a_panicking_block_ends_as_internal_error_frees_its_slot_and_its_neighbours_never_notice() {
    in_system(async {
        let rig = Rig::start_with(rig::settings_with_one_slot()).await;
        for (n, mode) in ["loop", "thread"].into_iter().enumerate() {
            let panicking = json!({
                "job": {"type": "probe", "payload": {"panic": mode}},
                "options": {"retry": {"max_attempts": 1}},
            });
            rig.deliver(assignment(&format!("panics-{mode}"), &panicking), n as u64)
                .await;
        }
        rig.deliver(assignment("neighbour", &json!({})), 9).await;
        rig.settled(3).await;
        for mode in ["loop", "thread"] {
            assert_eq!(
                rig.result_of(&format!("panics-{mode}"))["error_code"],
                "INTERNAL_ERROR"
            );
        }
        assert_eq!(rig.result_of("neighbour")["status"], "success");
        assert_eq!(rig.restarts(), 0, "no actor ended");
        rig.stop().await;
    });
}

#[test]
fn a_block_that_blocks_its_thread_past_its_deadline_delays_nobody() {
    in_system(async {
        let rig = Rig::start_with(rig::settings_with_one_slot()).await;
        let mut stuck = json!({"job": {"type": "probe", "payload": {"block_thread": true}}});
        stuck["options"] = json!({"deadline_ms": 100});
        rig.deliver(assignment("stuck", &stuck), 1).await;
        rig.deliver(assignment("next", &json!({})), 2).await;
        rig.settled(2).await;
        assert_eq!(rig.result_of("stuck")["status"], "timeout");
        assert_eq!(rig.result_of("next")["status"], "success");
        rig.release();
        rig.stop().await;
    });
}

#[test]
fn each_station_is_re_created_after_a_panic_and_the_redelivered_message_is_answered_once() {
    in_system(async {
        for (station, line) in [
            ("intake", "Assignment rejected"),
            ("pool", "Step execution started"),
            ("publisher", "Step execution completed"),
        ] {
            let rig = Rig::start().await;
            rig.fail_at(line);
            let patch = if station == "intake" {
                json!({"version": "2"})
            } else {
                json!({})
            };
            rig.deliver(assignment("a", &patch), 1).await;
            rig.wait("the restart", |rig| rig.restarts() == 1).await;
            rig.wait("the lost message is let go", |rig| {
                rig.tree().status.held().held_jobs() == 0
            })
            .await;
            rig.alive().await;
            rig.deliver(assignment("a", &patch), 1).await;
            rig.settled(1).await;
            assert_eq!(rig.results().len(), 1, "{station}");
            let acks = rig.raw_acks();
            assert!(
                acks.iter().all(|ack| *ack == acks[0]),
                "{station}: one ack, byte for byte"
            );
            rig.stop().await;
        }
    });
}

#[test]
fn a_station_that_keeps_failing_spends_the_restart_budget_and_the_node_is_told_to_leave() {
    in_system(async {
        let mut rig = Rig::start().await;
        rig.always_fail_at("Assignment rejected");
        // Several messages may be lost with one failure: deliver until the budget is spent.
        for n in 0.. {
            rig.deliver(assignment(&format!("a-{n}"), &json!({"version": "2"})), n)
                .await;
            rig.wait("the message is lost", |rig| {
                rig.tree().status.held().held_jobs() == 0
            })
            .await;
            if rig.escalated() {
                break;
            }
        }
        assert_eq!(rig.escalation().await, Escalation::RestartBudgetSpent);
        assert_eq!(rig.restarts(), 5);
        rig.stop().await;
    });
}

#[test]
fn what_a_worker_holds_is_bounded_and_returns() {
    in_system(async {
        let limits = LimitSettings {
            max_held: 3,
            max_held_bytes: 1_000_000,
            ..LimitSettings::default()
        };
        let settings = Settings {
            limits,
            ..Settings::default()
        };
        let rig = Rig::start_with(settings).await;
        for n in 0..3 {
            rig.deliver(assignment(&format!("a-{n}"), &rig::waiting()), n)
                .await;
        }
        let held = rig.tree().status.held().clone();
        assert!(
            tokio::time::timeout(Duration::from_millis(50), held.reserve(1))
                .await
                .is_err(),
            "no room for a fourth"
        );
        rig.release();
        rig.settled(3).await;
        assert_eq!(held.reserve(10).await.remaining(), 3);
        assert!(
            rig.tree()
                .leases
                .renewable(tokio::time::Instant::now())
                .is_empty(),
            "nothing is renewed any more"
        );
        rig.stop().await;
    });
}
