use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn store() -> PolicyStoreSettings {
    PolicyStoreSettings {
        url: Some("http://store".to_owned()),
        max_tenants: 3,
        ..PolicyStoreSettings::default()
    }
}

fn weight(weight: u32) -> TenantOverride {
    TenantOverride {
        weight: Some(weight),
        ..TenantOverride::default()
    }
}

fn asked(found: Found) -> (Question, bool) {
    match found {
        Found::Ask(question, wait) => (question, wait.is_some()),
        Found::Wait(_) => panic!("somebody asks already"),
        Found::Settled => panic!("nothing is asked"),
    }
}

fn is_settled(found: &Found) -> bool {
    matches!(found, Found::Settled)
}

/// A [`Told`] with its settings; the answers lie on top of the default policy.
struct Rig {
    told: Told,
    store: PolicyStoreSettings,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        Self {
            told: Told::default(),
            store: store(),
            now: Instant::now(),
        }
    }

    fn look(&mut self, tenant: &str) -> Found {
        self.told.look(tenant, &self.store, self.now)
    }

    fn hear(&mut self, question: &Question, answer: Answer) -> Option<bool> {
        let below = TenantPolicy::default();
        self.told.hear(question, answer, &below, &self.store, self.now)
    }

    fn weight(&self, tenant: &str) -> Option<u32> {
        self.told.policy(tenant).map(|policy| policy.weight)
    }
}

#[test]
fn the_first_jobs_of_a_tenant_wait_for_one_question_and_nobody_waits_after_its_time() {
    let mut rig = Rig::new();
    let (question, waits) = asked(rig.look("acme"));
    assert!(waits);
    assert!(matches!(rig.look("acme"), Found::Wait(_)), "nobody asks twice");
    rig.now += Duration::from_millis(50);
    assert!(is_settled(&rig.look("acme")), "the time is over");
    assert_eq!(
        rig.hear(&question, Answer::Policy(weight(7), Some("\"1\"".to_owned()))),
        None
    );
    assert_eq!(rig.weight("acme"), Some(7));
    rig.now += 59 * SECOND;
    assert!(is_settled(&rig.look("acme")));
    rig.now += SECOND;
    let (question, waits) = asked(rig.look("acme"));
    assert_eq!(
        (question.etag.as_deref(), waits),
        (Some("\"1\""), false),
        "what was told counts meanwhile"
    );
    assert!(is_settled(&rig.look("acme")));
    rig.hear(&question, Answer::Unchanged);
    assert_eq!(rig.weight("acme"), Some(7));
    rig.now += 60 * SECOND;
    let (question, _) = asked(rig.look("acme"));
    rig.hear(&question, Answer::Absent);
    assert_eq!(rig.weight("acme"), None);
    assert!(
        is_settled(&rig.look("acme")),
        "that there is none is known as well"
    );
}

#[test]
fn what_was_told_counts_while_the_store_is_away_and_it_is_asked_less_and_less() {
    let mut rig = Rig::new();
    let (question, _) = asked(rig.look("acme"));
    rig.hear(&question, Answer::Policy(weight(7), None));
    let (mut asked_for, mut turns) = (0, Vec::new());
    for _ in 0..600 {
        rig.now += SECOND;
        if let Found::Ask(question, _) = rig.look("acme") {
            asked_for += 1;
            turns.extend(rig.hear(&question, Answer::Away));
        }
        assert_eq!(rig.weight("acme"), Some(7));
    }
    assert_eq!(turns, [true], "told once");
    assert!((15..30).contains(&asked_for), "{asked_for}");
    assert!(
        rig.told.stale(rig.now) >= 590 * SECOND,
        "{:?}",
        rig.told.stale(rig.now)
    );
    // Nobody waits for a store that is away, nor is it asked about others.
    rig.told.note(true, rig.now);
    assert!(rig.told.is_resting(rig.now) && is_settled(&rig.look("other")));
    rig.now += 31 * SECOND;
    let (question, _) = asked(rig.look("acme"));
    assert!(
        is_settled(&rig.look("another")),
        "one question tells whether it is back"
    );
    assert_eq!(rig.hear(&question, Answer::Policy(weight(8), None)), Some(false));
    assert_eq!(
        (rig.weight("acme"), rig.told.stale(rig.now)),
        (Some(8), Duration::ZERO)
    );
    assert!(!rig.told.is_away());
}

#[test]
fn many_questions_that_fail_at_once_make_nobody_wait_longer_for_its_return() {
    let mut rig = Rig::new();
    rig.store.max_tenants = 100;
    let questions: Vec<_> = (0..100).map(|n| asked(rig.look(&n.to_string())).0).collect();
    for question in &questions {
        rig.hear(question, Answer::Away);
    }
    assert!(rig.told.is_resting(rig.now));
    rig.now += FIRST_PAUSE;
    let (probe, waits) = asked(rig.look("0"));
    assert!(!waits);
    rig.hear(&probe, Answer::Away);
    rig.now += FIRST_PAUSE;
    assert!(is_settled(&rig.look("0")), "each failed look doubles the pause");
    rig.now += FIRST_PAUSE;
    asked(rig.look("0"));
}

#[test]
fn an_answer_that_cannot_be_used_changes_nothing_and_makes_nobody_wait_again() {
    let mut rig = Rig::new();
    let (question, _) = asked(rig.look("acme"));
    rig.hear(&question, Answer::Unusable);
    assert!(is_settled(&rig.look("acme")));
    rig.now += SECOND;
    let (question, waits) = asked(rig.look("acme"));
    assert!(!waits && is_settled(&rig.look("acme")));
    rig.hear(&question, Answer::Policy(weight(7), None));
    rig.now += 60 * SECOND;
    let (question, _) = asked(rig.look("acme"));
    rig.hear(&question, Answer::Unusable);
    assert_eq!(rig.weight("acme"), Some(7));
    assert!(!rig.told.is_away(), "it answers, if not well");
}

#[test]
fn tenants_without_a_policy_take_no_room_from_those_with_one() {
    let mut rig = Rig::new();
    for tenant in ["a", "b"] {
        let (question, _) = asked(rig.look(tenant));
        rig.hear(&question, Answer::Policy(weight(2), None));
        rig.now += SECOND;
    }
    for number in 0..1_000 {
        let (question, _) = asked(rig.look(&format!("random-{number}")));
        let answer = if number % 2 == 0 {
            Answer::Absent
        } else {
            Answer::Unusable
        };
        rig.hear(&question, answer);
        rig.now += Duration::from_millis(1);
        assert!(rig.told.len() <= 3 + 2);
    }
    assert_eq!((rig.weight("a"), rig.weight("b")), (Some(2), Some(2)));
    for tenant in ["c", "d"] {
        let (question, _) = asked(rig.look(tenant));
        rig.hear(&question, Answer::Policy(weight(3), None));
    }
    assert_eq!(
        (rig.weight("a"), rig.weight("d")),
        (None, Some(3)),
        "then the oldest goes"
    );
}

#[test]
fn what_is_kept_counts_in_the_next_process_until_it_is_asked_again() {
    let mut rig = Rig::new();
    let (question, _) = asked(rig.look("acme"));
    rig.hear(&question, Answer::Policy(weight(7), Some("\"1\"".to_owned())));
    let kept = rig.told.take_changed().expect("it has changed");
    assert_eq!(rig.told.take_changed(), None, "only once");
    let mut next = Rig::new();
    for (tenant, kept) in kept {
        let (below, now) = (TenantPolicy::default(), next.now);
        next.told.recall(&tenant, kept, &below, 3, now);
    }
    assert_eq!(next.weight("acme"), Some(7));
    let (question, waits) = asked(next.look("acme"));
    assert_eq!((question.etag.as_deref(), waits), (Some("\"1\""), false));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_the_answer_with_its_time_or_when_nobody_asks_any_more() {
    let mut rig = Rig::new();
    let wait = |found| match found {
        Found::Ask(question, Some(wait)) => (question, wait),
        _ => panic!("the first job asks and waits"),
    };
    let (question, first) = wait(rig.look("acme"));
    let begun = Instant::now();
    rig.hear(&question, Answer::Absent);
    first.wait().await;
    let (question, second) = wait(rig.look("lost"));
    drop(question);
    second.wait().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let (_question, third) = wait(rig.look("slow"));
    third.wait().await;
    assert!(
        begun.elapsed() <= Duration::from_millis(51),
        "{:?}",
        begun.elapsed()
    );
}
