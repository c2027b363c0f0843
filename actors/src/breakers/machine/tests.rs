use proptest::prelude::*;

use super::*;

const RULES: Thresholds = Thresholds {
    failures: 3,
    recovery: Duration::from_secs(10),
    successes: 2,
    trials: 2,
};

struct Bench {
    machine: Machine,
    epochs: Epochs,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let mut epochs = Epochs::default();
        Self {
            machine: Machine::new(&mut epochs),
            epochs,
            now: Instant::now(),
        }
    }

    fn call(&mut self) -> Result<Ticket, Refusal> {
        let admitted = self.machine.admit(&RULES, self.now, &mut self.epochs);
        admitted.map(|(ticket, _)| ticket)
    }

    fn end(&mut self, ticket: &Ticket, verdict: Verdict) -> Option<Change> {
        self.machine
            .settle(ticket, verdict, &RULES, self.now, &mut self.epochs)
    }

    fn calls(&mut self, verdicts: &[Verdict]) {
        for verdict in verdicts {
            let ticket = self.call().expect("is let through");
            self.end(&ticket, *verdict);
        }
    }

    fn opened() -> Self {
        let mut bench = Self::new();
        bench.calls(&[Verdict::Failure; 3]);
        assert_eq!(bench.phase(), Phase::Open);
        bench
    }

    fn phase(&self) -> Phase {
        self.machine.phase(self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

#[test]
fn failures_in_a_row_open_it_and_a_success_between_them_begins_anew() {
    use Verdict::{Answered, Failure, Neutral, Success};
    let mut bench = Bench::new();
    bench.calls(&[Failure, Failure, Success, Failure, Failure]);
    assert_eq!((bench.phase(), bench.machine.failures()), (Phase::Closed, 2));
    bench.calls(&[Answered, Neutral]);
    assert_eq!(bench.machine.failures(), 2, "what says nothing changes nothing");
    bench.calls(&[Failure]);
    assert_eq!(bench.phase(), Phase::Open);
    let refusal = bench.call().expect_err("is open");
    assert_eq!(
        (refusal.phase, refusal.retry_after),
        (Phase::Open, RULES.recovery)
    );
}

#[test]
fn after_the_recovery_time_a_few_calls_at_once_find_out() {
    let mut bench = Bench::opened();
    bench.pass(RULES.recovery - Duration::from_millis(1));
    bench.call().expect_err("not yet");
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.phase(), Phase::HalfOpen);
    let (one, two) = (bench.call().expect("a trial"), bench.call().expect("a trial"));
    assert_eq!(bench.call().expect_err("no third").phase, Phase::HalfOpen);
    assert_eq!(bench.end(&one, Verdict::Success), None);
    let three = bench.call().expect("there is room again");
    let closed = bench.end(&two, Verdict::Answered).expect("changes");
    assert_eq!((closed.from, closed.to), (Phase::HalfOpen, Phase::Closed));
    assert_eq!(bench.end(&three, Verdict::Failure), None, "it was a trial");
    assert_eq!(bench.machine.failures(), 0);
}

#[test]
fn a_trial_that_fails_opens_it_for_the_whole_time_again_and_the_other_trials_say_nothing_more() {
    let mut bench = Bench::opened();
    bench.pass(RULES.recovery);
    let (one, two) = (bench.call().expect("a trial"), bench.call().expect("a trial"));
    assert_eq!(
        bench.end(&one, Verdict::Failure).map(|change| change.to),
        Some(Phase::Open)
    );
    bench.pass(RULES.recovery / 2);
    assert_eq!(bench.end(&two, Verdict::Success), None);
    assert_eq!(bench.call().expect_err("is open").retry_after, RULES.recovery / 2);
}

#[test]
fn calls_from_before_it_opened_neither_close_nor_prolong_it() {
    let mut bench = Bench::new();
    let early: Vec<_> = (0..5).map(|_| bench.call().expect("is closed")).collect();
    bench.calls(&[Verdict::Failure; 3]);
    bench.pass(RULES.recovery / 2);
    for (ticket, verdict) in early
        .iter()
        .zip([Verdict::Success, Verdict::Failure].iter().cycle())
    {
        assert_eq!(bench.end(ticket, *verdict), None);
    }
    assert_eq!(bench.call().expect_err("is open").retry_after, RULES.recovery / 2);
}

#[test]
fn a_trial_that_is_given_up_makes_room_and_one_that_hangs_does_so_after_the_recovery_time() {
    let mut bench = Bench::opened();
    bench.pass(RULES.recovery);
    let given_up = bench.call().expect("a trial");
    let _hangs = bench.call().expect("a trial");
    bench.end(&given_up, Verdict::Neutral);
    let _hangs_too = bench.call().expect("there is room again");
    let refusal = bench.call().expect_err("no room");
    assert_eq!(refusal.retry_after, RULES.recovery);
    bench.pass(RULES.recovery);
    let more = [bench.call().expect("more"), bench.call().expect("more")];
    bench.call().expect_err("no more than that");
    bench.end(&more[0], Verdict::Success);
    bench.end(&more[1], Verdict::Success);
    assert_eq!(bench.phase(), Phase::Closed);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Call,
    End(usize, Verdict),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![
        4 => Just(Verdict::Failure),
        3 => Just(Verdict::Success),
        1 => Just(Verdict::Answered),
        1 => Just(Verdict::Neutral),
    ];
    prop_oneof![
        4 => Just(Step::Call),
        4 => (0usize..8, verdict).prop_map(|(call, verdict)| Step::End(call, verdict)),
        1 => (0u64..12_000).prop_map(Step::Pass),
    ]
}

/// A call of the model, with the period of the state in which it began.
struct Running {
    ticket: Ticket,
    period: usize,
}

/// What was seen of the machine from outside: nothing of its insides but its changes.
#[derive(Default)]
struct Model {
    period: usize,
    /// In the period: failures since the last success, successes, calls let through.
    failures: u32,
    successes: u32,
    began: u64,
    phase: Option<Phase>,
}

impl Model {
    fn turn(&mut self, to: Phase, now_ms: u64) {
        *self = Self {
            period: self.period + 1,
            began: now_ms,
            phase: Some(to),
            ..Self::default()
        };
    }

    fn phase(&self) -> Phase {
        self.phase.unwrap_or(Phase::Closed)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn it_changes_when_the_calls_of_its_state_say_so_and_never_otherwise(steps in prop::collection::vec(step(), 0..200)) {
        let (mut bench, mut model) = (Bench::new(), Model::default());
        let (mut running, mut now_ms): (Vec<Running>, u64) = (Vec::new(), 0);
        let recovery_ms = 10_000;
        for step in steps {
            match step {
                Step::Pass(ms) => {
                    now_ms += ms;
                    bench.pass(Duration::from_millis(ms));
                }
                Step::Call => {
                    let passed = now_ms - model.began;
                    let admitted = bench.machine.admit(&RULES, bench.now, &mut bench.epochs);
                    if let Ok((_, Some(change))) = &admitted {
                        prop_assert_eq!((change.from, change.to), (Phase::Open, Phase::HalfOpen));
                        prop_assert_eq!(model.phase(), Phase::Open);
                        prop_assert!(passed >= recovery_ms, "it was opened {passed} ms ago");
                        model.turn(Phase::HalfOpen, now_ms);
                    }
                    let trials = running.iter().filter(|call| call.period == model.period).count() as u64;
                    match (model.phase(), admitted) {
                        (_, Ok((ticket, _))) => {
                            prop_assert_ne!(model.phase(), Phase::Open);
                            if model.phase() == Phase::HalfOpen {
                                let rounds = 1 + (now_ms - model.began) / recovery_ms;
                                prop_assert!(trials < u64::from(RULES.trials) * rounds);
                            }
                            running.push(Running { ticket, period: model.period });
                        }
                        (Phase::Open, Err(refusal)) => {
                            prop_assert_eq!(whole(refusal.retry_after), recovery_ms - passed);
                        }
                        (Phase::HalfOpen, Err(refusal)) => {
                            prop_assert!(trials >= u64::from(RULES.trials));
                            prop_assert!(whole(refusal.retry_after) <= recovery_ms);
                        }
                        (Phase::Closed, Err(_)) => prop_assert!(false, "a closed one refuses nothing"),
                    }
                }
                Step::End(number, verdict) => {
                    if running.is_empty() { continue; }
                    let call = running.remove(number % running.len());
                    let change = bench.end(&call.ticket, verdict);
                    let mut expected = None;
                    if call.period == model.period {
                        match verdict {
                            Verdict::Failure => model.failures += 1,
                            Verdict::Success => { model.failures = 0; model.successes += 1; }
                            Verdict::Answered => model.successes += 1,
                            Verdict::Neutral => {}
                        }
                        expected = match model.phase() {
                            Phase::Closed if model.failures >= RULES.failures => Some(Phase::Open),
                            Phase::HalfOpen if verdict == Verdict::Failure => Some(Phase::Open),
                            Phase::HalfOpen if model.successes >= RULES.successes => Some(Phase::Closed),
                            _ => None,
                        };
                    }
                    prop_assert_eq!(change.map(|change| change.to), expected);
                    if let Some(to) = expected { model.turn(to, now_ms); }
                }
            }
        }
        // Whatever happened, it is never stuck: within two recovery times somebody may call.
        bench.pass(RULES.recovery);
        prop_assert!(bench.call().is_ok());
    }
}

fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("is small")
}
