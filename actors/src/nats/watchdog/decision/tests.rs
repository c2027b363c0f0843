use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_millis(1_000);
/// Time between two looks.
const STEP: Duration = Duration::from_millis(250);

fn consumer() -> ConsumerView {
    ConsumerView {
        pending: 5,
        ack_pending: 0,
        max_ack_pending: 100,
        delivered: 7,
        waiting: 1,
        paused: false,
    }
}

/// Everything that makes a stall.
fn stalled() -> Observation {
    Observation {
        now: Duration::ZERO,
        connected: true,
        generation: 1,
        draining: false,
        phase: Phase::Pulling,
        arrived: 3,
        heard: 3,
        server: ServerView::Consumer(consumer()),
    }
}

/// What comes of looking `times` at the same thing; times of what was done, in steps.
fn watch(judge: &mut Judge, from: u32, times: u32, seen: impl Fn(u32) -> Observation) -> Vec<(u32, Action)> {
    (from..from + times)
        .map(|step| {
            let now = STEP * step;
            (step, judge.decide(&Observation { now, ..seen(step) }))
        })
        .filter(|(_, action)| *action != Action::Nothing)
        .collect()
}

#[test]
fn a_stall_that_lasts_is_met_in_four_stages_each_as_long_as_the_first() {
    let done = watch(&mut Judge::new(LIMIT), 0, 22, |_| stalled());
    // The first look learns what has arrived; after each stage time begins with the next look.
    let expected = [
        (5, Action::RebuildPull),
        (10, Action::RebuildConsumer),
        (15, Action::Reconnect),
        (20, Action::Leave),
    ];
    assert_eq!(done, expected);
}

#[test]
fn the_connection_that_was_made_anew_continues_the_stall_and_any_other_ends_it() {
    let mut judge = Judge::new(LIMIT);
    let until_reconnect = watch(&mut judge, 0, 16, |_| stalled());
    assert_eq!(until_reconnect.last(), Some(&(15, Action::Reconnect)));
    let away = Observation {
        connected: false,
        ..stalled()
    };
    assert_eq!(watch(&mut judge, 16, 1, |_| away), []);
    let again = Observation {
        generation: 2,
        ..stalled()
    };
    assert_eq!(watch(&mut judge, 17, 5, |_| again), [(21, Action::Leave)]);

    let mut judge = Judge::new(LIMIT);
    watch(&mut judge, 0, 16, |_| stalled());
    watch(&mut judge, 16, 1, |_| again);
    let foreign = Observation {
        generation: 3,
        ..stalled()
    };
    assert_eq!(watch(&mut judge, 17, 5, |_| foreign), [(21, Action::RebuildPull)]);
}

#[test]
fn a_broker_that_went_away_in_the_middle_of_it_starts_afresh() {
    let mut judge = Judge::new(LIMIT);
    watch(&mut judge, 0, 16, |_| stalled());
    let away = Observation {
        connected: false,
        ..stalled()
    };
    assert_eq!(watch(&mut judge, 16, 40, |_| away), []);
    let again = Observation {
        generation: 2,
        ..stalled()
    };
    assert_eq!(watch(&mut judge, 56, 5, |_| again), [(60, Action::RebuildPull)]);
}

#[test]
fn a_message_that_arrives_ends_the_stall() {
    let mut judge = Judge::new(LIMIT);
    watch(&mut judge, 0, 11, |_| stalled());
    let arrived = Observation {
        arrived: 4,
        ..stalled()
    };
    assert_eq!(watch(&mut judge, 11, 6, |_| arrived), [(16, Action::RebuildPull)]);
}

#[test]
fn others_that_are_served_are_no_stall_while_the_broker_knows_us_and_are_one_when_it_does_not() {
    let others = |step: u32, heard: u64| Observation {
        heard,
        server: ServerView::Consumer(ConsumerView {
            delivered: 7 + u64::from(step),
            ..consumer()
        }),
        ..stalled()
    };
    let known = watch(&mut Judge::new(LIMIT), 0, 60, |step| {
        others(step, u64::from(step / 3))
    });
    assert_eq!(known, []);
    let unknown = watch(&mut Judge::new(LIMIT), 0, 6, |step| others(step, 3));
    assert_eq!(unknown, [(5, Action::RebuildPull)]);
    // Signs of life alone are not messages.
    let hanging = watch(&mut Judge::new(LIMIT), 0, 6, |step| Observation {
        heard: u64::from(step),
        ..stalled()
    });
    assert_eq!(hanging, [(5, Action::RebuildPull)]);
}

#[test]
fn a_broker_that_does_not_answer_gets_a_new_connection_now_and_then_and_never_loses_us() {
    let silent = Observation {
        server: ServerView::Silent,
        ..stalled()
    };
    let mut judge = Judge::new(LIMIT);
    let steps: Vec<_> = watch(&mut judge, 0, 400, |_| silent);
    // Ever more seldom: 3, 6, 12, 24, 24 s, and a look in between.
    let expected = [13, 38, 87, 184, 281, 378].map(|step| (step, Action::Reconnect));
    assert_eq!(steps, expected);
    watch(&mut judge, 400, 1, |_| stalled());
    assert_eq!(watch(&mut judge, 401, 13, |_| silent), [(413, Action::Reconnect)]);
}

#[test]
fn a_consumer_that_is_missing_is_made_again_and_never_loses_us() {
    let missing = Observation {
        server: ServerView::Missing,
        ..stalled()
    };
    let done = watch(&mut Judge::new(LIMIT), 0, 60, |_| missing);
    assert!(done.len() > 5 && done.iter().all(|(_, action)| *action == Action::RebuildConsumer));
    let preparing = Observation {
        phase: Phase::Preparing,
        ..missing
    };
    assert_eq!(watch(&mut Judge::new(LIMIT), 0, 60, |_| preparing), []);
}

fn phases() -> impl Strategy<Value = Phase> {
    prop_oneof![
        1 => Just(Phase::Preparing),
        1 => Just(Phase::NoRoom),
        4 => Just(Phase::Pulling),
        1 => Just(Phase::TooLarge),
    ]
}

fn servers() -> impl Strategy<Value = ServerView> {
    let consumer = (0_u64..3, 0_u64..4, 0_i64..4, 0_u64..3, prop::bool::weighted(0.1)).prop_map(
        |(pending, ack_pending, max_ack_pending, delivered, paused)| {
            ServerView::Consumer(ConsumerView {
                pending,
                ack_pending,
                max_ack_pending,
                delivered,
                waiting: 0,
                paused,
            })
        },
    );
    prop_oneof![
        1 => Just(ServerView::NotAsked),
        1 => Just(ServerView::Silent),
        1 => Just(ServerView::Refused),
        1 => Just(ServerView::Missing),
        8 => consumer,
        8 => Just(stalled().server),
    ]
}

prop_compose! {
    fn observations()(
        step in 0_u64..400,
        connected in prop::bool::weighted(0.95),
        reconnected in prop::bool::weighted(0.02),
        draining in prop::bool::weighted(0.02),
        arrives in prop::bool::weighted(0.05),
        hears in prop::bool::weighted(0.3),
        phase in phases(),
        server in servers(),
    ) -> (Observation, bool, bool, bool) {
        let seen = Observation {
            now: Duration::from_millis(step),
            connected,
            generation: 0,
            draining,
            phase,
            arrived: 0,
            heard: 0,
            server,
        };
        (seen, reconnected, arrives, hears)
    }
}

/// Whether this look, on its own, is what a stall looks like.
fn looks_stalled(seen: &Observation) -> bool {
    let ServerView::Consumer(c) = seen.server else {
        return false;
    };
    let full = c.max_ack_pending > 0 && c.ack_pending >= c.max_ack_pending.unsigned_abs();
    seen.connected && !seen.draining && seen.phase == Phase::Pulling && c.pending > 0 && !c.paused && !full
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Nothing is done about the pull, and nobody leaves, unless every look for the whole time was a stall.
    #[test]
    fn whatever_is_seen_only_a_stall_that_lasted_is_acted_upon(
        looks in prop::collection::vec(observations(), 1..300),
    ) {
        let mut judge = Judge::new(LIMIT);
        let (mut now, mut generation, mut arrived, mut heard) = (Duration::ZERO, 0, 0, 0);
        let mut stalled_since: Option<Duration> = None;
        let mut stages = Vec::new();
        for (mut seen, reconnected, arrives, hears) in looks {
            now += seen.now;
            generation += u64::from(reconnected);
            arrived += u64::from(arrives);
            heard += u64::from(hears || arrives);
            (seen.now, seen.generation, seen.arrived, seen.heard) = (now, generation, arrived, heard);
            let action = judge.decide(&seen);
            if !looks_stalled(&seen) || arrives {
                stalled_since = None;
            } else if stalled_since.is_none() || reconnected {
                // A new connection begins a stall anew, with this look.
                stalled_since = Some(now);
            }
            let for_long = stalled_since.is_some_and(|since| now - since >= LIMIT);
            match (action, seen.server) {
                (Action::Nothing, _) => {}
                (Action::Reconnect, ServerView::Silent) => prop_assert!(seen.connected && !seen.draining),
                (Action::RebuildConsumer, ServerView::Missing) => prop_assert!(seen.connected && !seen.draining),
                (action, _) => {
                    prop_assert!(for_long, "{action:?} at {now:?}: {seen:?}");
                    // Each stage waits as long as the first.
                    stalled_since = None;
                    stages.push((action, arrived));
                }
            }
        }
        // Nobody leaves before everything else was tried since the last arrival.
        for (at, (action, arrived)) in stages.iter().enumerate() {
            if *action == Action::Leave {
                let before = at.checked_sub(1).map(|before| stages[before]);
                let tried = before.is_some_and(|(action, then)| action >= Action::Reconnect && then == *arrived);
                prop_assert!(tried, "left after {before:?}");
            }
        }
    }

    /// Without an end to the stall, the worker has left after a bounded time, whatever the steps between two looks.
    #[test]
    fn a_stall_without_end_ends_the_worker(steps in prop::collection::vec(1_u64..300, 200)) {
        let mut judge = Judge::new(LIMIT);
        let mut now = Duration::ZERO;
        let mut left = None;
        for step in steps {
            now += Duration::from_millis(step);
            if judge.decide(&Observation { now, ..stalled() }) == Action::Leave {
                left.get_or_insert(now);
            }
        }
        let longest = (LIMIT + Duration::from_millis(600)) * 4 + Duration::from_millis(300);
        prop_assert!(now < longest || left.is_some_and(|left| left <= longest), "{left:?}");
    }
}
