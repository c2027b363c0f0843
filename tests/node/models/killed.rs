//! Workers that die while a model speaks to them: each job is answered once, by whoever comes next.

use super::*;

/// Short, so that what a dead worker held comes back soon.
const ACK_WAIT_MS: u64 = 2_000;
/// Streams that are open when the worker dies.
const OPEN: usize = 4;

fn speaking() -> OpenAi {
    let server = server();
    server.set(|_| {
        Reply::at(Pace {
            holds_after: Some(1),
            ..Pace::default()
        })
    });
    server
}

fn patient(number: usize) -> AssignmentBuilder {
    prompt("openai:m", &format!("number {number}")).deadline_ms(600_000)
}

fn fleet(worker: WorkerBuilder, server: &OpenAi) -> WorkerBuilder {
    let priced = "output_price_per_million = 1";
    with(worker, &[provider("openai:*", server, priced)]).env("NATS_ACK_WAIT_MS", ACK_WAIT_MS)
}

#[test]
fn a_worker_killed_while_streams_are_open_leaves_each_job_to_another_which_answers_it_once() {
    let server = speaking();
    let mut node = Node::start_with(|worker| fleet(worker, &server));
    let sent = jobs(OPEN, patient);
    node.client.assign_all(&sent).expect("are sent");
    wait_until("all streams are open", SOON, || server.calls() == OPEN);
    let mut other = node.another(|worker| fleet(worker, &server));
    node.worker.kill();
    wait_until("its streams are gone", SOON, || server.abandoned() == OPEN);
    wait_until("the other has them", SOON, || server.calls() == OPEN);
    assert_eq!(
        node.answers().on("caf.exec.result.v1").len(),
        0,
        "nothing in part"
    );
    server.release();
    node.wait_answered(&sent, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, &sent);
    for job in &sent {
        let result = &answers.results(job.assignment_id())[0];
        assert_text(result, "Hello, wörld");
        // Of the first call nobody learned what it cost.
        assert_eq!(result["cost"], 0.000_007, "{result}");
    }
    assert_eq!((server.asked().len(), other.is_running()), (2 * OPEN, true));
}

#[test]
fn a_worker_that_is_sent_away_hands_open_streams_back() {
    let server = speaking();
    let mut node = Node::start_with(|worker| fleet(worker, &server).env("WORKER__DRAIN__SOFT_S", 1));
    let job = [patient(0)];
    node.client.assign_all(&job).expect("is sent");
    wait_until("the stream is open", SOON, || server.calls() == 1);
    node.worker.terminate().expect("is told");
    node.worker.wait_exit(SOON).expect("ends");
    server.release();
    let _other = node.another(|worker| fleet(worker, &server));
    node.wait_answered(&job, SOON);
    let answers = node.answers();
    assert_each_answered_once(&answers, &job);
    assert_text(&answers.results(job[0].assignment_id())[0], "Hello, wörld");
}
