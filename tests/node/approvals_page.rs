//! Approvals as people meet them: the page of the admin port and links that were handed out, in a browser; and who tries to
//! decide without being asked.
//!
//! `PAGE_SCREENSHOTS=<directory>` keeps pictures.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};

use caf_testkit::http::{self, Response};
use caf_testkit::ports::free_port;
use caf_testkit::tls::Certificates;
use caf_testkit::wait::poll;
use caf_testkit::worker::{Finished, WorkerBuilder};
use caf_testkit::{AssignmentBuilder, Browser, Worker};
use serde_json::{Value, json};

use crate::page::{TEXT, assert_nothing_overflows, keep};
use crate::support::{Node, SOON, program};

/// What callers may write to confuse who reads it.
const HOSTILE: [&str; 4] = [
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"></blockquote><h1>Approved</h1>",
    "pay \u{202e}001\u{202c} to \u{2066}eve\u{2069}\u{200b}\u{feff} {{nonce}} {{body}}",
    "\" autofocus onfocus=\"document.title='owned'\" x='",
    "Zeile eins\nصفحة ثانية\n\t'quoted' & <b>bold</b>",
];
/// Nowhere in a log.
const SECRET: &str = "s3cret-part-of-what-is-asked";

/// A worker that asks people, and where they are led.
struct Asking {
    node: Node,
    admin: u16,
    links: u16,
}

fn asking(worker: WorkerBuilder, links: u16) -> WorkerBuilder {
    worker
        .env("WORKER__APPROVALS__ENABLED", true)
        .env("WORKER__HTTP__APPROVAL_ADDR", format!("127.0.0.1:{links}"))
        .env(
            "WORKER__APPROVALS__LINKS__BASE_URL",
            format!("http://127.0.0.1:{links}/"),
        )
}

impl Asking {
    fn start() -> Self {
        let links = free_port();
        let mut node = Node::start_with(|worker| asking(worker, links));
        let admin = node.worker.admin_port().expect("is logged");
        Self { node, admin, links }
    }

    /// Asks these, and returns their ids once all wait.
    fn ask(&self, jobs: &[AssignmentBuilder]) -> Vec<String> {
        self.node.client.assign_all(jobs).expect("are sent");
        jobs.iter().map(|job| self.pending(job.assignment_id())).collect()
    }

    /// The approval that an assignment asks for, once it waits.
    fn pending(&self, assignment_id: &str) -> String {
        let listed = poll(SOON, || {
            let answer = self.call("GET", "/v1/approvals?limit=100", None).json().ok()?;
            let all = answer["approvals"].as_array()?.clone();
            let own = all
                .into_iter()
                .find(|one| one["assignment_id"] == assignment_id)?;
            own["approval_id"].as_str().map(str::to_owned)
        });
        listed.unwrap_or_else(|| panic!("{assignment_id} never waits"))
    }

    fn call(&self, method: &str, path: &str, body: Option<Value>) -> Response {
        call(self.admin, method, path, body)
    }

    fn standing(&self, id: &str) -> Value {
        let answer = self.call("GET", &format!("/v1/approvals/{id}"), None);
        answer.json().expect("is JSON")["standing"].clone()
    }

    fn link(&self, id: &str, body: Value) -> String {
        let answer = self.call("POST", &format!("/v1/approvals/{id}/links"), Some(body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json().expect("is JSON")["url"]
            .as_str()
            .expect("has an address")
            .to_owned()
    }

    fn at_link(&self, method: &str, url: &str, form: Option<&str>) -> Response {
        let path = url.strip_prefix(&format!("http://127.0.0.1:{}", self.links));
        let headers: &[_] = match form {
            Some(_) => &[("Content-Type", "application/x-www-form-urlencoded")],
            None => &[],
        };
        let body = form.unwrap_or_default().as_bytes();
        let server = SocketAddr::from(([127, 0, 0, 1], self.links));
        http::request(server, method, path.expect("leads here"), headers, body).expect("answers")
    }

    fn result(&self, assignment_id: &str) -> Value {
        let found = poll(SOON, || {
            self.node.answers().results(assignment_id).into_iter().next()
        });
        found.unwrap_or_else(|| panic!("{assignment_id} has no result"))
    }
}

fn call(port: u16, method: &str, path: &str, body: Option<Value>) -> Response {
    let server = SocketAddr::from(([127, 0, 0, 1], port));
    let headers: &[_] = match body {
        Some(_) => &[("Content-Type", "application/json")],
        None => &[],
    };
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    http::request(server, method, path, headers, body.as_bytes()).expect("answers")
}

fn question(id: &str, description: &str, approvers: &[&str]) -> AssignmentBuilder {
    let inputs = json!({
        "approval_type": "deploy", "description": description, "approvers": approvers, "timeout_seconds": 3_600,
    });
    AssignmentBuilder::new("human.approval", inputs)
        .id(id)
        .tenant("acme")
}

/// What the log says of decisions that people sent.
fn decisions(worker: &Worker, message: &str) -> Vec<Value> {
    let lines = worker.logs().into_iter();
    lines
        .filter(|line| line["message"] == message)
        .map(|line| line["context"].clone())
        .collect()
}

/// As the pages write it: what is unseen or turns text around is spelt out.
fn shown(text: &str) -> String {
    let spelt = |c: char| match u32::from(c) {
        0x202e | 0x202c | 0x2066 | 0x2069 | 0x200b | 0xfeff => format!("\\u{:04x}", u32::from(c)),
        _ => c.to_string(),
    };
    text.chars().map(spelt).collect()
}

/// As the browser has it, whatever stands around.
fn text_of(browser: &mut Browser, selector: &str) -> String {
    let text = format!("document.querySelector({}).textContent", json!(selector));
    let text = browser.evaluate(&text).expect("is there");
    text.as_str().expect("is text").to_owned()
}

fn card(id: &str) -> String {
    format!("article[data-id=\"{id}\"]")
}

/// Presses a button of a card of the page.
fn press(browser: &mut Browser, id: &str, word: &str) {
    let find = format!(
        "[...document.querySelectorAll({})].find(b => b.textContent === {}).click()",
        json!(format!("{} button", card(id))),
        json!(word)
    );
    browser.evaluate(&find).expect("is there");
}

fn told(browser: &mut Browser, id: &str, words: &str) {
    let told = format!(
        "document.querySelector({}).textContent.includes({})",
        json!(format!("{} .told", card(id))),
        json!(words)
    );
    browser.wait_for(&told).expect(words);
}

#[test]
fn a_person_decides_on_the_page_with_a_comment_and_a_second_window_is_told_what_was_decided() {
    let mut asking = Asking::start();
    let long = format!("{SECRET} {}", "x".repeat(4_000));
    let mut jobs: Vec<_> = HOSTILE
        .iter()
        .enumerate()
        .map(|(n, text)| question(&format!("hostile-{n}"), text, &[]))
        .collect();
    jobs.push(question("long", &long, &["ann", "bob"]));
    let ids = asking.ask(&jobs);
    let address = format!("http://127.0.0.1:{}/approvals", asking.admin);
    let mut first = Browser::start(1200, 900).expect("the browser starts");
    let mut second = Browser::start(360, 740).expect("the browser starts");
    for (browser, width) in [(&mut first, 1200), (&mut second, 360)] {
        browser.open(&address).expect("answers");
        browser
            .wait_for("document.querySelectorAll('article').length === 5")
            .expect("all are listed");
        for (text, id) in HOSTILE.iter().zip(&ids) {
            assert_eq!(text_of(browser, &format!("{} blockquote", card(id))), shown(text));
        }
        assert!(text_of(browser, &card(&ids[4])).contains("ann, bob"));
        assert!(text_of(browser, "#count").contains("5 wait"));
        assert_nothing_overflows(browser, width);
    }
    keep(&mut first, "approvals-desk.png");
    keep(&mut second, "approvals-phone.png");
    let foreign = "document.querySelectorAll('article img, article b, article h1, article script').length";
    assert_eq!(first.evaluate(foreign).expect("is evaluated"), 0);

    // Without a name nothing is sent; with a name that is not on the list the page says so.
    press(&mut first, &ids[4], "Approve");
    told(&mut first, &ids[4], "who you are");
    first
        .evaluate("document.getElementById('name').value = 'eve'")
        .expect("is there");
    press(&mut first, &ids[4], "Approve");
    told(&mut first, &ids[4], "not among the approvers");
    assert_eq!(asking.standing(&ids[4])["state"], "pending");

    // The second window stops looking, so that it decides in good faith.
    second.evaluate("clearTimeout(timer), round++").expect("is there");
    let fill = format!(
        "document.getElementById('name').value = 'ann'; document.querySelector({}).value = 'fine <b>with</b> me'",
        json!(format!("{} textarea", card(&ids[4])))
    );
    first.evaluate(&fill).expect("is there");
    press(&mut first, &ids[4], "Approve");
    told(&mut first, &ids[4], "it was approved by ann");
    let result = asking.result("long");
    assert_eq!(result["status"], "success", "{result}");
    assert_eq!(result["outputs"]["approved"], true, "{result}");
    assert_eq!(result["outputs"]["approver"], "ann", "{result}");
    assert_eq!(result["outputs"]["comment"], "fine <b>with</b> me", "{result}");
    second
        .evaluate("document.getElementById('name').value = 'bob'")
        .expect("is there");
    press(&mut second, &ids[4], "Reject");
    told(
        &mut second,
        &ids[4],
        "too late and does not count. it was approved by ann",
    );
    told(&mut second, &ids[4], "fine <b>with</b> me");
    assert_eq!(asking.standing(&ids[4])["decision"], "approved");

    // A window that looks again sees what was decided elsewhere.
    let elsewhere = json!({"decision": "rejected", "approver": "carl"});
    let path = format!("/v1/approvals/{}/decision", ids[0]);
    assert_eq!(asking.call("POST", &path, Some(elsewhere)).status, 200);
    told(&mut first, &ids[0], "it was rejected by carl");
    assert_ne!(first.evaluate("document.title").expect("is evaluated"), "owned");
    let problems = [first.problems(), second.problems()].concat();
    // The browser itself notes the refusals of eve (403) and bob (409); nothing else is wrong.
    let unexpected = problems
        .iter()
        .filter(|problem| !problem.contains("403") && !problem.contains("409"));
    assert_eq!(unexpected.collect::<Vec<_>>(), Vec::<&String>::new());

    asking
        .node
        .worker
        .wait_for_log(|line| line["context"]["approver"] == "carl")
        .expect("is told");
    let counted = decisions(&asking.node.worker, "Approval decided by a person");
    assert_eq!(counted[0]["approver"], "ann", "{counted:?}");
    assert_eq!(counted[0]["via"], "page", "{counted:?}");
    assert_eq!(counted[1]["via"], "api", "{counted:?}");
    let refused = decisions(&asking.node.worker, "Approval decision refused");
    let outcomes: Vec<_> = refused.iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["not_an_approver", "settled_before"]);
    let log = serde_json::to_string(&asking.node.worker.logs()).expect("is JSON");
    for hidden in [SECRET, "with</b> me", "Zeile eins"] {
        assert!(!log.contains(hidden), "{hidden} is in the log");
    }
}

#[test]
fn a_link_decides_once_on_a_phone_without_an_account_and_says_afterwards_what_was_decided() {
    let mut asking = Asking::start();
    let jobs: Vec<_> = HOSTILE
        .iter()
        .enumerate()
        .map(|(n, text)| question(&format!("asks-{n}"), &format!("{text} {SECRET}"), &["bob", "ann"]))
        .collect();
    let ids = asking.ask(&jobs);
    let several = asking.call(
        "POST",
        &format!("/v1/approvals/{}/links", ids[0]),
        Some(json!({})),
    );
    assert_eq!(several.status, 400, "{}", several.text());
    let stranger = json!({"approver": "eve"});
    let stranger = asking.call("POST", &format!("/v1/approvals/{}/links", ids[0]), Some(stranger));
    assert_eq!(stranger.status, 403, "{}", stranger.text());
    let link = asking.link(&ids[0], json!({"approver": "bob"}));
    let other = asking.link(&ids[0], json!({"approver": "ann", "expires_in_s": 600}));
    assert_ne!(link, other);

    // Programs that show previews look, again and again.
    for method in ["GET", "HEAD", "GET"] {
        let seen = asking.at_link(method, &link, None);
        assert_eq!(seen.status, 200);
        for (name, value) in [
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(seen.header(name), Some(value));
        }
        let policy = seen.header("content-security-policy").expect("has one");
        assert!(
            policy.starts_with("default-src 'none'; style-src 'nonce-"),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(seen.header("set-cookie"), None);
    }
    assert_eq!(asking.standing(&ids[0])["state"], "pending");

    let mut phone = Browser::start(360, 740).expect("the browser starts");
    for (id, text) in ids.iter().zip(HOSTILE) {
        let link = asking.link(id, json!({"approver": "bob"}));
        phone.open(&link).expect("answers");
        phone
            .wait_for(&format!("{TEXT}.includes('bob')"))
            .expect("is shown");
        let said = text_of(&mut phone, "blockquote").replace(['{', '}'], "");
        assert_eq!(said, shown(&format!("{text} {SECRET}")).replace(['{', '}'], ""));
        assert_nothing_overflows(&mut phone, 360);
    }
    phone.open(&link).expect("answers");
    phone
        .wait_for(&format!("{TEXT}.includes('bob')"))
        .expect("is shown");
    keep(&mut phone, "link-phone.png");
    phone.darken(true).expect("answers");
    keep(&mut phone, "link-phone-dark.png");
    let decide = "document.querySelector('textarea').value = 'no\\nway & <i>'; \
                  document.querySelector('button[value=rejected]').click()";
    phone.evaluate(decide).expect("is there");
    phone
        .wait_for("document.title === 'Rejected' && document.querySelectorAll('form').length === 0")
        .expect("is decided");
    keep(&mut phone, "link-decided.png");
    assert_eq!(text_of(&mut phone, "blockquote.comment"), "no\nway & <i>");
    let result = asking.result("asks-0");
    assert_eq!(result["outputs"]["approved"], false, "{result}");
    assert_eq!(result["outputs"]["approver"], "bob", "{result}");
    assert_eq!(result["outputs"]["comment"], "no\nway & <i>", "{result}");

    // Again: it says what was decided, and a decision by the same or another link does not count.
    phone.open(&link).expect("answers");
    phone
        .wait_for("document.title === 'Decided already'")
        .expect("is told");
    assert_nothing_overflows(&mut phone, 360);
    for (url, form, status) in [
        (&link, "decision=approved&comment=", 409),
        (&other, "decision=approved", 409),
        (&link, "decision=rejected", 200),
        (&other, "decision=perhaps", 400),
        (&other, "approver=eve&decision=approved", 400),
    ] {
        let answer = asking.at_link("POST", url, Some(form));
        assert_eq!(answer.status, status, "{form}: {}", answer.text());
    }
    assert_eq!(asking.standing(&ids[0])["decision"], "rejected");
    assert_eq!(asking.standing(&ids[0])["via"], "link");
    assert_eq!(asking.node.answers().results("asks-0").len(), 1);
    assert_eq!(phone.problems(), Vec::<String>::new());
    assert_ne!(phone.evaluate("document.title").expect("is evaluated"), "owned");

    asking
        .node
        .worker
        .wait_for_message("Approval decision refused")
        .expect("is told");
    let counted = decisions(&asking.node.worker, "Approval decided by a person");
    assert_eq!(counted.len(), 1, "{counted:?}");
    assert_eq!(
        (&counted[0]["via"], &counted[0]["named_by"]),
        (&json!("link"), &json!("link"))
    );
    let made = decisions(&asking.node.worker, "Approval link made");
    assert!(
        made.iter().any(|line| line["link"] == counted[0]["link"]),
        "{made:?}"
    );
    let log = serde_json::to_string(&asking.node.worker.logs()).expect("is JSON");
    let token = link.rsplit('/').next().expect("has a last part");
    for hidden in [SECRET, "way & ", &token[..40], &token[token.len() - 20..]] {
        assert!(!log.contains(hidden), "{hidden} is in the log");
    }
}

#[test]
fn a_link_holds_across_workers_and_restarts_and_one_that_is_over_or_forged_opens_nothing() {
    let mut asking = Asking::start();
    let ids = asking.ask(&[
        question("first", SECRET, &["bob"]),
        question("second", SECRET, &[]),
    ]);
    // For the only one who may; and for nobody in particular.
    let link = asking.link(&ids[0], json!({}));
    let open = asking.link(&ids[1], json!({}));
    let brief = asking.link(&ids[1], json!({"expires_in_s": 1}));

    let over = poll(SOON, || {
        let answer = asking.at_link("GET", &brief, None);
        (answer.status == 410).then_some(answer)
    });
    let over = over.expect("is over").text();
    assert!(!over.contains(SECRET) && !over.contains("acme"), "{over}");
    assert_eq!(
        asking.at_link("POST", &brief, Some("decision=approved")).status,
        410
    );

    // The worker is gone, and another of the fleet has taken its place: for it the key is in the bucket.
    asking.node.worker.kill();
    let links = asking.links;
    asking.node.worker = asking
        .node
        .another(|worker| self::asking(worker, links).env("WORKER__WORKER__ID", "another-worker"));
    asking.admin = asking.node.worker.admin_port().expect("is logged");
    let mut phone = Browser::start(360, 740).expect("the browser starts");
    phone.open(&link).expect("answers");
    phone
        .wait_for("document.querySelectorAll('button').length === 2")
        .expect("is shown");
    phone
        .evaluate("document.querySelector('button[value=approved]').click()")
        .expect("is there");
    phone
        .wait_for("document.title === 'Approved'")
        .expect("is decided");
    let result = asking.result("first");
    assert_eq!(result["outputs"]["approved"], true, "{result}");
    assert_eq!(result["outputs"]["approver"], "bob", "{result}");

    // A link with another signature, name, time, approval or form.
    let (base, token) = open.rsplit_once('/').expect("has a last part");
    let flipped = |at: usize| {
        let mut bytes = token.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        format!("{base}/{}", String::from_utf8(bytes).expect("is text"))
    };
    let mut forged: Vec<String> = [0, 3, 13, 40, 100, 125, token.len() - 30].map(flipped).to_vec();
    forged.extend([
        format!("{base}/{}", &token[..token.len() - 4]),
        format!("{base}/{token}AAAA"),
        format!("{base}/{token}="),
        format!("{base}/"),
        format!("{base}/x%00"),
        format!("{base}/{}", "A".repeat(2_000)),
    ]);
    for (n, url) in forged.iter().enumerate() {
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        let form = (method == "POST").then_some("decision=approved");
        let answer = asking.at_link(method, url, form);
        assert!([404, 429].contains(&answer.status), "{url}: {}", answer.status);
        assert!(!answer.text().contains(SECRET), "{url}");
    }
    let tries = poll(SOON, || {
        let answer = asking.at_link("GET", &forged[0], None);
        (answer.status == 429).then_some(answer)
    });
    assert!(tries.expect("is stopped").header("retry-after").is_some());
    // Who has a link shares an address with who guesses, and gets through.
    assert_eq!(asking.at_link("GET", &open, None).status, 200);
    assert_eq!(asking.standing(&ids[1])["state"], "pending");
    for path in ["/", "/status", "/approvals", "/v1/approvals", "/a", "/metrics"] {
        let answer = http::get(asking.links, path).expect("answers");
        assert_eq!(answer.status, 404, "{path}");
    }
    assert_eq!(asking.at_link("DELETE", &open, None).status, 405);
    assert_eq!(
        asking.at_link("POST", &open, Some("decision=approved")).status,
        200
    );
    let by = asking.standing(&ids[1])["by"]
        .as_str()
        .expect("is named")
        .to_owned();
    assert!(by.starts_with("link-"), "{by}");
}

#[test]
fn no_page_of_another_site_decides_anything() {
    let asking = Asking::start();
    let ids = asking.ask(&[question("wanted", "?", &[])]);
    let target = format!(
        "http://127.0.0.1:{}/v1/approvals/{}/decision",
        asking.admin, ids[0]
    );
    let link = asking.link(&ids[0], json!({}));
    let evil = Evil::serve(&target, &link);
    let mut browser = Browser::start(800, 600).expect("the browser starts");
    browser.open(&evil.address("/fetch")).expect("answers");
    browser
        .wait_for("document.title.startsWith('tried 4')")
        .expect("everything is tried");
    let read = browser.evaluate("document.title").expect("is evaluated");
    assert_eq!(read, "tried 4, read 0");
    for page in ["/form", "/link"] {
        browser.open(&evil.address(page)).expect("answers");
        browser
            .wait_for("!location.href.includes('/form') && !location.href.includes('/link') && document.body.innerText.length > 0")
            .expect("the form is sent");
        let said = browser.evaluate(TEXT).expect("is evaluated").to_string();
        assert!(said.contains("Another site") || said.contains("error"), "{said}");
        assert_eq!(asking.standing(&ids[0])["state"], "pending", "{page}");
    }
    // A name that was bound to this address, as its own page would ask.
    let server = SocketAddr::from(([127, 0, 0, 1], asking.admin));
    let body = json!({"decision": "approved", "approver": "eve"}).to_string();
    let path = format!("/v1/approvals/{}/decision", ids[0]);
    let own = format!("127.0.0.1:{}", asking.admin);
    for (host, origin, kind, status) in [
        ("evil.example", "http://evil.example", "application/json", 421),
        (&own, "http://evil.example", "application/json", 403),
        (&own, "null", "application/json", 403),
        (&own, &*format!("http://{own}"), "text/plain", 415),
    ] {
        let headers = [("Host", host), ("Origin", origin), ("Content-Type", kind)];
        let answer = http::request(server, "POST", &path, &headers, body.as_bytes()).expect("answers");
        assert_eq!(answer.status, status, "{host} {origin} {kind}");
    }
    let listed = http::request(server, "GET", "/v1/approvals", &[("Host", "evil.example")], b"");
    assert_eq!(listed.expect("answers").status, 421);
    assert_eq!(asking.standing(&ids[0])["state"], "pending");
}

/// A site that wants approvals to be decided.
struct Evil(u16);

impl Evil {
    fn serve(target: &str, link: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let port = listener.local_addr().expect("has an address").port();
        let body = "{\"decision\":\"approved\",\"approver\":\"eve\"}";
        let fetch = format!(
            "<script>(async () => {{ let tried = 0, read = 0; for (const [mode, type] of [['no-cors', 'text/plain'], \
             ['cors', 'application/json'], ['no-cors', 'application/json'], ['cors', 'text/plain']]) {{ try {{ \
             const a = await fetch({}, {{ method: 'POST', mode, credentials: 'include', headers: {{ 'Content-Type': type }}, \
             body: {} }}); if (a.type !== 'opaque') read++; }} catch (e) {{}} tried++; }} \
             document.title = 'tried ' + tried + ', read ' + read; }})()</script>",
            json!(target),
            json!(body)
        );
        let form = format!(
            "<form method=post enctype=text/plain action=\"{target}\"><input name='{}' value='\"}}'></form>\
             <script>document.forms[0].submit()</script>",
            "{\"decision\":\"approved\",\"approver\":\"eve\",\"comment\":\""
        );
        let link = format!(
            "<form method=post action=\"{link}\"><input name=decision value=approved></form>\
             <script>document.forms[0].submit()</script>"
        );
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut asked = [0; 4_096];
                let length = stream.read(&mut asked).unwrap_or_default();
                let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
                let page = match asked.split(' ').nth(1) {
                    Some("/fetch") => &fetch,
                    Some("/form") => &form,
                    Some("/link") => &link,
                    _ => "",
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    page.len()
                );
                let _ = stream.write_all(format!("{head}{page}").as_bytes());
            }
        });
        Self(port)
    }

    /// By another name of this machine: another site.
    fn address(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.0)
    }
}

#[test]
fn the_command_line_lists_shows_links_and_decides_in_the_name_of_the_certificate() {
    let certificates = Certificates::generate().expect("makes");
    let (cert, key) = certificates.server();
    let (links, paths) = (free_port(), [cert, key, certificates.authority()]);
    let [cert, key, authority] = paths.map(|path| path.display().to_string());
    let mut node = Node::start_with(|worker| {
        asking(worker, links)
            .env("WORKER__HTTP__ADMIN_TLS__CERT_FILE", &cert)
            .env("WORKER__HTTP__ADMIN_TLS__KEY_FILE", &key)
            .env("WORKER__HTTP__APPROVAL_TLS__CERT_FILE", &cert)
            .env("WORKER__HTTP__APPROVAL_TLS__KEY_FILE", &key)
            .env(
                "WORKER__APPROVALS__LINKS__BASE_URL",
                format!("https://localhost:{links}"),
            )
            .env(
                "WORKER__APPROVALS__LINKS__KEY",
                "a key of the settings, 32 bytes long",
            )
            .env("WORKER__HTTP__ADMIN_TLS__CLIENT_CA_FILE", &authority)
    });
    let admin = format!(
        "https://localhost:{}",
        node.worker.admin_port().expect("is logged")
    );
    let (client, client_key) = certificates.client();
    let run = |arguments: &[&str]| -> Finished {
        let trust = [("--admin", admin.clone()), ("--ca-file", authority.clone())];
        let shown = [
            ("--cert", client.display().to_string()),
            ("--key", client_key.display().to_string()),
        ];
        let options = trust.into_iter().chain(shown);
        let options = options.flat_map(|(name, value)| [name.to_owned(), value]);
        program()
            .arg("approvals")
            .args(arguments.iter().copied())
            .args(options)
            .run(SOON)
            .expect("runs")
    };
    let jobs = [
        question("for-me", "Shall\u{1b}[2J we?", &["caf client"]),
        question("for-bob", "Shall he?", &["bob"]).tenant("other"),
    ];
    node.client.assign_all(&jobs).expect("are sent");
    let listed = poll(SOON, || {
        let listed = run(&["list", "--output", "json"]);
        let listed: Value = serde_json::from_str(&listed.stdout()).ok()?;
        (listed["pending"] == 2).then_some(listed)
    });
    let listed = listed.expect("both wait");
    let id_of = |assignment: &str| {
        let all = listed["approvals"].as_array().expect("is a list").iter();
        let mut own = all.filter(|one| one["assignment_id"] == assignment);
        let one = own.next().expect("is listed");
        one["approval_id"].as_str().expect("has an id").to_owned()
    };
    let (mine, bobs) = (id_of("for-me"), id_of("for-bob"));
    let one = run(&["list", "--tenant", "acme"]).stdout();
    assert!(one.contains(&mine) && !one.contains(&bobs), "{one}");
    assert!(one.contains("Shall\\u{1b}[2J we?"), "{one}");
    let first = run(&["list", "--limit", "1", "--output", "json"]).stdout();
    let first: Value = serde_json::from_str(&first).expect("is JSON");
    let next = first["next_cursor"].as_str().expect("there is more").to_owned();
    let second = run(&["list", "--cursor", &next]).stdout();
    assert!(second.contains("1 listed, 2 wait in all"), "{second}");

    // Nobody decides in another's name, whatever is stated.
    let stated = run(&["decide", &bobs, "approved", "--approver", "bob"]);
    assert_eq!(stated.code(), Some(64), "{}", stated.stderr());
    assert!(
        stated.stderr().contains("the name of your certificate"),
        "{}",
        stated.stderr()
    );
    let not_mine = run(&["decide", &bobs, "approved"]);
    assert_eq!(not_mine.code(), Some(64), "{}", not_mine.stderr());
    assert!(
        not_mine.stderr().contains("not among the approvers"),
        "{}",
        not_mine.stderr()
    );
    let decided = run(&["decide", &mine, "rejected", "--comment", "not today"]);
    assert_eq!(decided.code(), Some(0), "{}", decided.stderr());
    assert!(
        decided.stdout().starts_with("rejected by caf client, "),
        "{}",
        decided.stdout()
    );
    let again = run(&["decide", &mine, "approved"]);
    assert_eq!(again.code(), Some(1), "{}", again.stdout());
    assert!(
        again
            .stderr()
            .contains("decided already: rejected by \"caf client\""),
        "{}",
        again.stderr()
    );
    let shown = run(&["show", &mine]).stdout();
    assert!(
        shown.contains("standing    rejected by caf client") && shown.contains("not today"),
        "{shown}"
    );

    let made = run(&["link", &bobs, "--expires-in-s", "600"]);
    assert_eq!(made.code(), Some(0), "{}", made.stderr());
    let url = made.stdout().lines().next().expect("has an address").to_owned();
    let port = format!("https://localhost:{links}");
    assert!(url.starts_with(&format!("{port}/a/")), "{url}");
    // That port is encrypted, asks nobody for a certificate, and has nothing but links.
    assert!(http::get(links, "/a/x").is_err());
    let elsewhere = program()
        .args(["approvals", "list", "--admin", &port, "--ca-file", &authority])
        .run(SOON)
        .expect("runs");
    assert!(
        elsewhere.stderr().contains("status 404, not JSON"),
        "{}",
        elsewhere.stderr()
    );
    let nobody = run(&["show", &"0".repeat(64)]);
    assert_eq!(nobody.code(), Some(1), "{}", nobody.stdout());
    let told = node
        .worker
        .wait_for_message("Approval decided by a person")
        .expect("is told");
    assert_eq!(told["context"]["named_by"], "certificate", "{told}");
    assert_eq!(told["context"]["approver"], "caf client", "{told}");
}

#[test]
fn a_page_that_needs_a_token_asks_for_it_before_it_shows_what_waits() {
    let links = free_port();
    let mut node =
        Node::start_with(|worker| asking(worker, links).env("WORKER__HTTP__ADMIN_TOKEN", "t0ps3cret"));
    let port = node.worker.admin_port().expect("is logged");
    assert_eq!(call(port, "GET", "/v1/approvals", None).status, 401);
    let decision = json!({"decision": "approved", "approver": "eve"});
    let path = format!("/v1/approvals/{}/decision", "0".repeat(64));
    assert_eq!(call(port, "POST", &path, Some(decision)).status, 401);
    let mut browser = Browser::start(360, 740).expect("the browser starts");
    browser
        .open(&format!("http://localhost:{port}/approvals"))
        .expect("answers");
    let asks = "document.getElementById('login').getClientRects().length > 0";
    browser.wait_for(asks).expect("it asks");
    assert_nothing_overflows(&mut browser, 360);
    let log_in = "document.getElementById('token').value = 't0ps3cret'; \
                  document.getElementById('login-form').requestSubmit()";
    browser.evaluate(log_in).expect("is evaluated");
    browser
        .wait_for(&format!("{TEXT}.includes('nobody waits')"))
        .expect("it shows");
}

#[test]
fn where_nobody_asks_people_there_are_no_approvals_and_no_links() {
    let mut node = Node::start();
    let port = node.worker.admin_port().expect("is logged");
    for (method, path) in [
        ("GET", "/v1/approvals".to_owned()),
        ("GET", format!("/v1/approvals/{}", "0".repeat(64))),
    ] {
        let answer = call(port, method, &path, None);
        assert_eq!(answer.status, 404, "{path}");
        let error = answer.json().expect("is JSON")["error"].to_string();
        assert!(path.len() > 20 || error.contains("approvals.enabled"), "{error}");
    }
    let mut browser = Browser::start(360, 740).expect("the browser starts");
    browser
        .open(&format!("http://127.0.0.1:{port}/approvals"))
        .expect("answers");
    browser
        .wait_for(&format!("{TEXT}.includes('approvals.enabled')"))
        .expect("says what to do");
}
