//! The page of the admin port in a browser: what a person sees under load, on a desk and on a phone, and when things go wrong.
//!
//! `PAGE_SCREENSHOTS=<directory>` keeps pictures of it.

use std::path::PathBuf;

use caf_testkit::{AssignmentBuilder, Browser};
use serde_json::json;

use crate::side_effects::Outside;
use crate::status::HOSTILE;
use crate::support::{Node, SOON, wait_answered};

/// What the page says, without what is hidden.
pub(crate) const TEXT: &str = "document.body.innerText";

/// Keeps a picture, where that is wanted.
pub(crate) fn keep(browser: &mut Browser, name: &str) {
    if let Some(directory) = std::env::var_os("PAGE_SCREENSHOTS") {
        let path = PathBuf::from(directory).join(name);
        browser.screenshot(&path).expect("can be kept");
    }
}

/// Nothing is wider than the page.
#[track_caller]
pub(crate) fn assert_nothing_overflows(browser: &mut Browser, width: u32) {
    let wide = "[...document.querySelectorAll('body *')].filter(e => e.getClientRects().length && \
                e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + '#' + e.id + '.' + e.className)";
    let wide = browser.evaluate(wide).expect("is evaluated");
    assert_eq!(wide, json!([]), "wider than {width}");
    let scrolls = browser.evaluate("document.documentElement.scrollWidth > innerWidth");
    assert_eq!(scrolls.expect("is evaluated"), false, "at {width}");
}

#[test]
fn a_person_sees_pools_failures_and_jobs_and_can_ask_what_became_of_one() {
    let outside = Outside::start();
    let mut node = Node::start_with(|worker| {
        outside
            .allow(worker)
            .env("WORKER__POOLS__IO__MAX_CONCURRENCY", 2)
            .env("WORKER__WORKER__ID", "worker-under-eyes")
    });
    let held: Vec<_> = (0..5)
        .map(|n| {
            outside
                .job(&format!("held-{n}"))
                .id(format!("held-{n}"))
                .set("resources", json!({"class": "io"}))
        })
        .collect();
    let fine: Vec<_> = (0..40)
        .map(|_| AssignmentBuilder::echo().set("resources", json!({"class": "cpu"})))
        .collect();
    let hostile = HOSTILE.map(|id| AssignmentBuilder::new("<b>type</b>", json!({})).id(id).tenant(id));
    node.client.assign_all(&held).expect("are sent");
    node.client.assign_all(&fine).expect("are sent");
    node.client.assign_all(&hostile).expect("are sent");
    wait_results(&node, fine.len() + hostile.len());
    let port = node.worker.admin_port().expect("is logged");

    let mut browser = Browser::start(1200, 900).expect("the browser starts");
    browser
        .open(&format!("http://127.0.0.1:{port}/"))
        .expect("answers");
    browser
        .wait_for(&format!("{TEXT}.includes('2 of 2')"))
        .expect("pools are shown");
    let text = browser.evaluate(TEXT).expect("is evaluated").to_string();
    for word in [
        "worker-under-eyes",
        "healthy",
        "INVALID_INPUT",
        "success 40",
        "refused 7",
        "consuming",
        "not draining",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let drawn = "document.querySelectorAll('#flow rect').length > 0 && document.querySelectorAll('#latency > *').length > 0";
    browser.wait_for(drawn).expect("throughput and latency are drawn");
    browser
        .wait_for("document.querySelectorAll('#running li').length === 2")
        .expect("jobs that run are listed");
    let failures = "[...document.querySelectorAll('#failures button.id')].map(b => b.textContent).sort()";
    let mut ids = HOSTILE.map(shown).to_vec();
    // As the browser sorts: by UTF-16 units.
    ids.sort_by_key(|id| id.encode_utf16().collect::<Vec<_>>());
    assert_eq!(browser.evaluate(failures).expect("is evaluated"), json!(ids));
    assert_nothing_overflows(&mut browser, 1200);
    keep(&mut browser, "desk.png");

    // Every hostile id but one is explained on a click; of two dots no browser can be brought to ask.
    for id in HOSTILE.into_iter().filter(|id| *id != "..") {
        let click = format!(
            "[...document.querySelectorAll('#failures button.id')].find(b => b.textContent === {}).click()",
            json!(shown(id))
        );
        browser
            .evaluate("document.getElementById('answer').replaceChildren()")
            .expect("is evaluated");
        browser.evaluate(&click).expect("is there");
        browser
            .wait_for("document.getElementById('answer').innerText.includes('No block runs this job type')")
            .expect(id);
    }
    let ask = "document.getElementById('ask-id').value = 'held-4'; document.getElementById('ask-tenant').value = ''; \
               document.getElementById('ask-form').requestSubmit()";
    browser.evaluate(ask).expect("is evaluated");
    let answer = "document.getElementById('answer').innerText";
    browser
        .wait_for(&format!("{answer}.includes('Waits for a slot of pool io')"))
        .expect("is explained");
    browser
        .evaluate("document.activeElement.blur()")
        .expect("is evaluated");

    for (width, dark) in [(360, false), (360, true), (768, false)] {
        browser.darken(dark).expect("answers");
        browser.resize(width, 740).expect("answers");
        browser
            .wait_for(&format!("innerWidth === {width}"))
            .expect("is resized");
        assert_nothing_overflows(&mut browser, width);
        keep(
            &mut browser,
            &format!("{width}-{}.png", if dark { "dark" } else { "light" }),
        );
    }
    assert_ne!(browser.evaluate("document.title").expect("is evaluated"), "owned");
    let elements = "document.querySelectorAll('img, b b, script:not([nonce])').length";
    assert_eq!(browser.evaluate(elements).expect("is evaluated"), 0);
    assert_eq!(browser.problems(), Vec::<String>::new());

    // A node that is gone: what was known stays, and is marked.
    node.worker.kill();
    browser
        .wait_for(&format!(
            "{TEXT}.includes('does not answer') && document.body.classList.contains('stale')"
        ))
        .expect("silence is said");
    browser
        .wait_for(&format!("{TEXT}.includes('2 of 2')"))
        .expect("what was known stays");
    keep(&mut browser, "silent.png");
}

#[test]
fn a_page_that_needs_a_token_asks_for_it_and_keeps_it_out_of_its_address() {
    let mut node = Node::start_with(|worker| worker.env("WORKER__HTTP__ADMIN_TOKEN", "t0ps3cret"));
    let job = [AssignmentBuilder::echo()];
    node.client.assign_all(&job).expect("is sent");
    wait_answered(&node.client, &job, SOON);
    let port = node.worker.admin_port().expect("is logged");
    let mut browser = Browser::start(360, 740).expect("the browser starts");
    browser
        .open(&format!("http://localhost:{port}/"))
        .expect("answers");
    let visible = |id: &str| format!("document.getElementById('{id}').getClientRects().length > 0");
    browser.wait_for(&visible("login")).expect("it asks");
    assert_nothing_overflows(&mut browser, 360);
    keep(&mut browser, "login.png");
    let log_in = |token: &str| {
        format!(
            "document.getElementById('token').value = '{token}'; document.getElementById('login-form').requestSubmit()"
        )
    };
    browser.evaluate(&log_in("wrong")).expect("is evaluated");
    browser
        .wait_for(&visible("login-failed"))
        .expect("it says that it is wrong");
    browser.evaluate(&log_in("t0ps3cret")).expect("is evaluated");
    browser
        .wait_for(&format!("{TEXT}.includes('success 1')"))
        .expect("it shows");
    assert_eq!(browser.evaluate(&visible("login")).expect("is evaluated"), false);
    let kept = "location.href + JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie + \
                document.documentElement.outerHTML";
    let kept = browser.evaluate(kept).expect("is evaluated").to_string();
    assert!(!kept.contains("t0ps3cret"), "{kept}");
    // The browser itself notes each refusal; nothing else is wrong.
    let problems = browser.problems();
    assert!(
        problems.iter().all(|problem| problem.contains("401")),
        "{problems:?}"
    );
}

/// As the page writes it: what turns text around is spelt out.
fn shown(id: &str) -> String {
    id.replace('\u{202e}', "\\u202e")
}

/// Waits until so many results are stored.
#[track_caller]
fn wait_results(node: &Node, count: usize) {
    caf_testkit::wait_until(&format!("{count} results"), SOON, || {
        node.answers().on(caf_testkit::client::RESULT).len() >= count
    });
}
