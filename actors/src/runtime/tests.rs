//! Pins the facts about actix that the pipeline relies on.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

#[derive(Debug, Message)]
#[rtype(result = "usize")]
struct Count;

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Fail;

#[derive(Default)]
struct Counter(usize);

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<Count> for Counter {
    type Result = usize;

    fn handle(&mut self, _: Count, _: &mut Self::Context) -> usize {
        self.0 += 1;
        self.0
    }
}

impl Handler<Fail> for Counter {
    type Result = ();

    fn handle(&mut self, _: Fail, _: &mut Self::Context) {
        panic!("asked to fail");
    }
}

const LIMIT: Duration = Duration::from_secs(5);

fn in_system(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

async fn start(
    on: &EventLoop,
    count: &Route<Count>,
    fail: &Route<Fail>,
) -> tokio::sync::oneshot::Receiver<EndReason> {
    let (count, fail) = (count.clone(), fail.clone());
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    let connect = move |address: &Addr<Counter>| {
        count.connect(address);
        fail.connect(address);
    };
    spawn_actor(
        &on.handle(),
        Counter::default,
        connect,
        Box::new(|reason| {
            let _ = ended.send(reason);
        }),
    )
    .await;
    has_ended
}

#[test]
fn a_panic_ends_the_actor_is_noticed_and_the_route_leads_to_the_next_one() {
    in_system(async {
        let on = EventLoop::start();
        let (count, fail) = (Route::default(), Route::default());
        let ended = start(&on, &count, &fail).await;
        assert_eq!(count.ask(Count, LIMIT).await, Some(1));
        assert_eq!(count.ask(Count, LIMIT).await, Some(2));
        fail.tell(Fail).expect("somebody is there");
        assert_eq!(ended.await, Ok(EndReason::Panicked));
        assert!(
            count.tell(Count).is_err(),
            "nobody is there, and the sender learns it"
        );
        let _ended = start(&on, &count, &fail).await;
        assert_eq!(
            count.ask(Count, LIMIT).await,
            Some(1),
            "a new value, with nothing of the old one"
        );
    });
}

#[test]
fn a_panic_in_one_actor_does_not_touch_its_neighbour_on_the_same_loop() {
    in_system(async {
        let on = EventLoop::start();
        let (count, fail) = (Route::default(), Route::default());
        let (other_count, other_fail) = (Route::default(), Route::default());
        let ended = start(&on, &count, &fail).await;
        let _other = start(&on, &other_count, &other_fail).await;
        fail.tell(Fail).expect("somebody is there");
        let _ = ended.await;
        assert_eq!(other_count.ask(Count, LIMIT).await, Some(1));
    });
}

#[test]
fn messages_told_are_handled_in_order_and_none_is_dropped_however_many() {
    in_system(async {
        let on = EventLoop::start();
        let (count, fail) = (Route::default(), Route::default());
        let _ended = start(&on, &count, &fail).await;
        for _ in 0..10_000 {
            count.tell(Count).expect("somebody is there");
        }
        assert_eq!(count.ask(Count, LIMIT).await, Some(10_001));
    });
}

#[test]
fn a_task_that_panics_is_noticed_too() {
    in_system(async {
        let on = EventLoop::start();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        let runs = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&runs);
        spawn_task(
            &on.handle(),
            move || {
                seen.fetch_add(1, SeqCst);
                async { panic!("asked to fail") }.boxed_local()
            },
            Box::new(|reason| {
                let _ = ended.send(reason);
            }),
        );
        assert_eq!(has_ended.await, Ok(EndReason::Panicked));
        assert_eq!(runs.load(SeqCst), 1);
    });
}
