use async_nats::ConnectOptions;

use super::*;
use crate::{Client, wait_until};

const LIMIT: Duration = Duration::from_secs(20);

struct Line {
    near: Client,
    far: Client,
    proxy: Proxy,
    nats: NatsServer,
}

/// A client on each side of a proxy.
fn line() -> Line {
    let nats = NatsServer::start().expect("starts");
    let proxy = Proxy::start(&nats).expect("starts");
    let near = Client::connect_with(&proxy.url(), ConnectOptions::new()).expect("connects");
    let far = Client::connect(&nats).expect("connects");
    Line {
        near,
        far,
        proxy,
        nats,
    }
}

impl Line {
    /// Publishes until something arrives: what is sent while a client is away may be lost.
    fn assert_works(&self) {
        let heard = self.far.collect(&["alive"]).expect("listens");
        wait_until("a message goes through", LIMIT, || {
            let _ = self.near.publish("alive", &[], "x");
            !heard.is_empty()
        });
    }
}

#[test]
fn messages_pass_unchanged_and_other_servers_stay_unknown() {
    let line = line();
    let heard = line.far.collect(&["up"]).expect("listens");
    let back = line.near.collect(&["down"]).expect("listens");
    wait_until("the subscription is known", LIMIT, || {
        line.far.publish("down", &[], "x").expect("is sent");
        !back.is_empty()
    });
    let large = vec![b'\r'; 300_000];
    line.near
        .publish("up", &[("a", "b")], large.clone())
        .expect("is sent");
    line.far
        .publish("down", &[], "\r\nMSG x 1 5\r\n")
        .expect("is sent");
    wait_until("both arrive", LIMIT, || {
        heard.len() == 1 && back.messages().iter().any(|message| message.payload.len() > 1)
    });
    assert_eq!(
        (heard.messages()[0].payload.len(), heard.messages()[0].header("a")),
        (large.len(), Some("b"))
    );
    let last = back.messages().pop().expect("is there");
    assert_eq!(last.payload, b"\r\nMSG x 1 5\r\n");
    assert_eq!(
        (line.proxy.open_connections(), line.proxy.accepted_connections()),
        (1, 1)
    );
}

#[test]
fn a_cut_line_refuses_everybody_until_it_is_mended() {
    let line = line();
    line.proxy.cut();
    assert_eq!(line.proxy.open_connections(), 0);
    let address = line.proxy.url().replace("nats://", "");
    assert!(std::net::TcpStream::connect(&address).is_err());
    line.proxy.mend();
    line.assert_works();
    line.proxy.reset();
    line.assert_works();
    let Line { proxy, nats, .. } = line;
    drop(proxy);
    assert!(std::net::TcpStream::connect(&address).is_err());
    drop(nats);
}

#[test]
fn a_reset_line_ends_with_an_error_and_not_with_an_end() {
    use std::io::Read as _;
    let nats = NatsServer::start().expect("starts");
    let proxy = Proxy::start(&nats).expect("starts");
    let mut stream = std::net::TcpStream::connect(proxy.url().replace("nats://", "")).expect("connects");
    let mut info = [0; 5];
    stream.read_exact(&mut info).expect("the greeting comes");
    assert_eq!(&info, b"INFO ");
    proxy.reset();
    let error = stream.read_to_end(&mut Vec::new()).expect_err("is reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_silent_line_delivers_late_and_in_one_direction_if_asked() {
    let line = line();
    let heard = line.far.collect(&["up"]).expect("listens");
    let back = line.near.collect(&["down"]).expect("listens");
    // The client library calls a subscription done when it is written, not when the server has it.
    wait_until("the subscription is known", LIMIT, || {
        line.far.publish("down", &[], "1").expect("is sent");
        !back.is_empty()
    });
    line.proxy.half_open(&[Direction::ToServer]);
    let nats = line.near.nats();
    line.near
        .run(async move { nats.publish("up", "1".into()).await })
        .expect("answers")
        .expect("is taken");
    line.far.publish("down", &[], "2").expect("is sent");
    wait_until("the other direction works", LIMIT, || {
        back.messages().iter().any(|message| message.payload == b"2")
    });
    assert!(heard.is_empty() && line.proxy.open_connections() >= 1);
    line.proxy.mend();
    wait_until("it arrives late", LIMIT, || heard.len() == 1);
}

#[test]
fn a_slow_line_delivers_everything() {
    let line = line();
    for pace in [
        Pace::BytesPerSecond(20_000),
        Pace::Delay(Duration::from_millis(30)),
    ] {
        line.proxy.slow(pace);
        let heard = line.far.collect(&["up"]).expect("listens");
        line.near.publish("up", &[], vec![0; 5_000]).expect("is sent");
        wait_until("it arrives", LIMIT, || heard.len() == 1);
    }
    line.proxy.mend();
    line.assert_works();
}

#[test]
fn a_frame_is_held_until_released_or_dropped_and_only_the_first() {
    let line = line();
    let heard = line.far.collect(&["up.>"]).expect("listens");
    let send = |subject: &'static str| {
        let nats = line.near.nats();
        let sent = line
            .near
            .run(async move { nats.publish(subject, "x".into()).await });
        sent.expect("answers").expect("is taken");
    };
    let held = line.proxy.hold_when(|frame| frame.publishes("up.held"));
    assert!(held.wait(Duration::ZERO).is_none());
    send("up.held.1");
    send("up.later");
    let frame = held.wait(LIMIT).expect("is held");
    assert_eq!(
        (frame.subject.as_deref(), &*frame.payload),
        (Some("up.held.1"), &b"x"[..])
    );
    assert!(heard.is_empty());
    held.release();
    wait_until("both arrive", LIMIT, || heard.len() == 2);
    let held = line.proxy.hold_when(|frame| frame.publishes("up.held"));
    send("up.held.2");
    held.wait(LIMIT).expect("is held");
    held.drop_frame();
    send("up.held.3");
    wait_until("the next arrives", LIMIT, || heard.len() == 3);
    assert_eq!(heard.messages()[2].subject, "up.held.3");
}

#[test]
fn a_connection_that_is_severed_at_a_frame_says_nothing_more() {
    let line = line();
    let heard = line.far.collect(&["up.>"]).expect("listens");
    let held = line.proxy.hold_when(|frame| frame.publishes("up.held"));
    let nats = line.near.nats();
    let sent = line.near.run(async move {
        nats.publish("up.held", "x".into()).await?;
        nats.publish("up.later", "x".into()).await
    });
    sent.expect("answers").expect("is taken");
    held.wait(LIMIT).expect("is held");
    held.sever();
    line.assert_works();
    assert!(heard.is_empty());
}

#[test]
fn swallowed_frames_never_arrive_until_it_is_turned_off() {
    let line = line();
    let heard = line.far.collect(&["up"]).expect("listens");
    let swallowed = line.proxy.drop_all(|frame| frame.publishes("up"));
    for _ in 0..3 {
        line.near.publish("up", &[], "lost").expect("is sent");
    }
    wait_until("all are swallowed", LIMIT, || swallowed.count() == 3);
    drop(swallowed);
    line.near.publish("up", &[], "kept").expect("is sent");
    wait_until("it arrives", LIMIT, || !heard.is_empty());
    assert_eq!(heard.messages()[0].payload, b"kept");
}
