use proptest::prelude::*;

use super::*;

fn settings(max_breakers: usize) -> CircuitBreakerSettings {
    CircuitBreakerSettings {
        max_breakers,
        failure_threshold: 2,
        ..CircuitBreakerSettings::default()
    }
}

fn host(number: usize) -> Endpoint {
    Endpoint::new(EndpointKind::Http, &format!("http://host-{number}"))
}

fn call(book: &mut Book, tenant: &str, endpoint: &Endpoint, verdict: Verdict, now: Instant) -> Admission {
    let admission = book.admit(tenant, endpoint, true, now);
    if let Ok(ticket) = &admission.verdict {
        book.settle(tenant, endpoint, (ticket, false), verdict, now);
    }
    admission
}

fn open(book: &mut Book, tenant: &str, endpoint: &Endpoint, now: Instant) {
    for _ in 0..2 {
        call(book, tenant, endpoint, Verdict::Failure, now);
    }
}

fn is_refused(book: &mut Book, tenant: &str, endpoint: &Endpoint, now: Instant) -> bool {
    let admission = book.admit(tenant, endpoint, true, now);
    admission.verdict.is_err()
}

#[test]
fn what_one_tenant_makes_fail_is_left_alone_for_that_tenant_only() {
    let (mut book, now) = (Book::new(&settings(10)), Instant::now());
    open(&mut book, "hostile", &host(1), now);
    assert!(is_refused(&mut book, "hostile", &host(1), now));
    assert!(!is_refused(&mut book, "hostile", &host(2), now));
    assert!(!is_refused(&mut book, "acme", &host(1), now));
}

#[test]
fn a_hundred_thousand_hosts_of_one_tenant_push_out_only_its_own_breakers() {
    let (mut book, now) = (Book::new(&settings(100)), Instant::now());
    open(&mut book, "acme", &host(0), now);
    let mut forgotten_open = 0;
    for number in 0..100_000 {
        let admission = call(&mut book, "hostile", &host(number), Verdict::Failure, now);
        let again = call(&mut book, "hostile", &host(number), Verdict::Failure, now);
        for gone in [admission.forgotten, again.forgotten].into_iter().flatten() {
            assert_eq!(&*gone.tenant_id, "hostile");
            forgotten_open += usize::from(gone.phase == Phase::Open);
        }
        assert!(book.count() <= 100);
    }
    assert_eq!(forgotten_open, 100_000 - 99, "each of them is told");
    assert!(is_refused(&mut book, "acme", &host(0), now));
    assert_eq!(book.look(usize::MAX, now).len(), 100);
}

#[test]
fn closed_ones_go_first_and_of_those_the_one_not_used_for_longest() {
    let (mut book, now) = (Book::new(&settings(3)), Instant::now());
    open(&mut book, "acme", &host(0), now);
    call(&mut book, "acme", &host(1), Verdict::Success, now);
    call(&mut book, "acme", &host(2), Verdict::Success, now);
    call(&mut book, "acme", &host(1), Verdict::Success, now);
    let forgotten = call(&mut book, "acme", &host(3), Verdict::Success, now).forgotten;
    let forgotten = forgotten.expect("one had to go");
    assert_eq!((forgotten.endpoint, forgotten.phase), (host(2), Phase::Closed));
}

#[test]
fn the_list_begins_with_what_is_open_and_is_cut() {
    let (mut book, now) = (Book::new(&settings(10)), Instant::now());
    call(&mut book, "acme", &host(0), Verdict::Success, now);
    call(&mut book, "acme", &host(1), Verdict::Failure, now);
    open(&mut book, "acme", &host(2), now);
    assert!(is_refused(&mut book, "acme", &host(2), now));
    let seen = book.look(2, now);
    let told: Vec<_> = seen
        .iter()
        .map(|seen| (seen.phase, seen.failures, seen.refused))
        .collect();
    assert_eq!(told, [(Phase::Open, 0, 1), (Phase::Closed, 1, 0)]);
    assert_eq!(seen[0].retry_after, Some(Duration::from_secs(10)));
    assert_eq!(book.counts(now)[&(EndpointKind::Http, Phase::Closed)], 2);
    let later = now + Duration::from_secs(10);
    assert_eq!(
        book.look(1, later)[0].phase,
        Phase::HalfOpen,
        "whoever calls next may, so it is not open any more"
    );
}

#[test]
fn a_retry_is_withheld_for_want_of_a_token_or_when_its_wait_ends_before_the_breaker_lets_through() {
    let (mut book, now) = (Book::new(&settings(10)), Instant::now());
    let wait = Duration::from_secs(1);
    call(&mut book, "acme", &host(1), Verdict::Answered, now);
    for _ in 0..10 {
        assert_eq!(book.retry("acme", &host(1), wait, now), Ok(()));
    }
    assert_eq!(book.retry("acme", &host(1), wait, now), Err(Withheld::NoToken));
    open(&mut book, "acme", &host(2), now);
    let withheld = book.retry("acme", &host(2), wait, now);
    assert!(matches!(withheld, Err(Withheld::Breaker(_))), "{withheld:?}");
    let long = Duration::from_secs(10);
    assert_eq!(book.retry("acme", &host(2), long, now), Ok(()));
}

#[test]
fn a_retry_that_helps_gives_its_token_back() {
    let (mut book, now) = (Book::new(&settings(10)), Instant::now());
    call(&mut book, "acme", &host(1), Verdict::Success, now);
    for _ in 0..100 {
        assert_eq!(book.retry("acme", &host(1), Duration::ZERO, now), Ok(()));
        let ticket = book
            .admit("acme", &host(1), false, now)
            .verdict
            .expect("is closed");
        book.settle("acme", &host(1), (&ticket, true), Verdict::Success, now);
    }
    assert_eq!(book.look(1, now)[0].retry_tokens, 10);
}

#[test]
fn a_call_that_outlives_its_breaker_says_nothing_to_the_one_that_took_its_place() {
    let (mut book, now) = (Book::new(&settings(1)), Instant::now());
    let early = book
        .admit("acme", &host(1), true, now)
        .verdict
        .expect("is closed");
    call(&mut book, "acme", &host(2), Verdict::Success, now);
    call(&mut book, "acme", &host(1), Verdict::Failure, now);
    book.settle("acme", &host(1), (&early, false), Verdict::Failure, now);
    assert!(
        !is_refused(&mut book, "acme", &host(1), now),
        "one failure counts"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever is called, indices and entries agree, and the bound holds.
    #[test]
    fn the_book_is_bounded_and_its_orders_hold_what_it_holds(
        max in 1usize..8,
        calls in prop::collection::vec((0usize..5, 0usize..6, 0u8..3, 0u64..20), 0..200),
    ) {
        let mut book = Book::new(&settings(max));
        let mut now = Instant::now();
        for (tenant, endpoint, verdict, seconds) in calls {
            let verdict = [Verdict::Success, Verdict::Failure, Verdict::Neutral][usize::from(verdict)];
            call(&mut book, &format!("tenant-{tenant}"), &host(endpoint), verdict, now);
            now += Duration::from_secs(seconds);
            prop_assert!(book.count() <= max);
            let held: usize = book.shelves.values().map(|shelf| shelf.entries.len()).sum();
            prop_assert_eq!((held, book.by_size.len()), (book.count(), book.shelves.len()));
            for (tenant_id, shelf) in &book.shelves {
                let place = (shelf.entries.len(), Reverse(shelf.used), Arc::clone(tenant_id));
                prop_assert!(book.by_size.contains(&place));
                prop_assert!(!shelf.entries.is_empty());
                prop_assert_eq!(shelf.closed.len() + shelf.others.len(), shelf.entries.len());
                for (endpoint, entry) in &shelf.entries {
                    let is_closed = entry.machine.recorded() == Phase::Closed;
                    let order = if is_closed { &shelf.closed } else { &shelf.others };
                    prop_assert_eq!(order.get(&entry.used), Some(endpoint));
                }
            }
        }
    }
}
