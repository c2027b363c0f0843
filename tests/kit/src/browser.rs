//! A headless Chromium with one page: what a person sees, and what a browser thinks of it.
//!
//! Neighbours: the test of the page of the admin port. Spoken to over a pipe, in the protocol of its developer tools:
//! expressions are evaluated beside the page's own policy, so that the page is not changed for the test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::process::Process;
use crate::programs::chromium;
use crate::{TempDir, wait};

/// Longest wait for one answer of the browser; its start is the longest.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page. Ends on drop.
#[derive(Debug)]
pub struct Browser {
    input: ChildStdin,
    messages: Receiver<Value>,
    session: String,
    next: u64,
    problems: Vec<String>,
    _process: Process,
    // Last: removed after the process has ended.
    _profile: TempDir,
}

impl Browser {
    /// Starts one with an empty page of this size in CSS pixels.
    ///
    /// # Errors
    /// When it is missing, then with what to install, or does not answer.
    pub fn start(width: u32, height: u32) -> Result<Self> {
        let profile = TempDir::new("browser")?;
        // The browser reads from descriptor 3 and writes to 4: what we hold as its standard input and output. Its sandbox
        // does not work as root, which tests in containers are.
        let script = "exec \"$0\" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
                      --hide-scrollbars --user-data-dir=\"$1\" --remote-debugging-pipe about:blank \
                      3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null";
        let mut process = Process::spawn(
            Command::new("bash")
                .arg("-c")
                .arg(script)
                .arg(chromium()?)
                .arg(profile.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        )?;
        let child = process.child();
        let input = child.stdin.take().context("it has an input")?;
        let output = child.stdout.take().context("it has an output")?;
        let (say, messages) = channel();
        std::thread::spawn(move || {
            // Ends with the browser.
            for message in BufReader::new(output).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).unwrap_or_default();
                if say.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            input,
            messages,
            session: String::new(),
            next: 0,
            problems: Vec::new(),
            _process: process,
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", &attach)?;
        browser.session = session["sessionId"]
            .as_str()
            .context("it has a session")?
            .to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, &json!({}))?;
        }
        browser.resize(width, height)?;
        Ok(browser)
    }

    /// Gives the page this size in CSS pixels.
    ///
    /// # Errors
    /// When the browser does not answer.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", &size).map(drop)
    }

    /// Shows pages in their dark colours, or their light ones.
    ///
    /// # Errors
    /// When the browser does not answer.
    pub fn darken(&mut self, dark: bool) -> Result<()> {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &features).map(drop)
    }

    /// Goes to an address.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let went = self.call("Page.navigate", &json!({"url": url}))?;
        match went["errorText"].as_str() {
            Some(error) => bail!("{url}: {error}"),
            None => Ok(()),
        }
    }

    /// The value of a JavaScript expression; a promise is waited for.
    ///
    /// # Errors
    /// When it throws, or the browser does not answer.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", &asked)?;
        if answer["exceptionDetails"].is_object() {
            bail!("{expression}: {}", answer["exceptionDetails"]);
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// When it is not in time; then with what the page says.
    pub fn wait_for(&mut self, expression: &str) -> Result<()> {
        let became = wait::poll(PATIENCE, || {
            // Throws while what it speaks of is not there yet.
            self.evaluate(&format!("Boolean({expression})"))
                .is_ok_and(|value| value == true)
                .then_some(())
        });
        if became.is_none() {
            bail!(
                "never true: {expression}; the page says: {}",
                self.evaluate("document.body.innerText")?
            );
        }
        Ok(())
    }

    /// Errors and warnings that the page caused so far: of its scripts, its policy and its requests.
    pub fn problems(&mut self) -> Vec<String> {
        while let Ok(message) = self.messages.try_recv() {
            self.note(&message);
        }
        self.problems.clone()
    }

    /// Writes what is seen to a file (PNG), down to the end of the page.
    ///
    /// # Errors
    /// When the browser does not answer, or the file cannot be written.
    pub fn screenshot(&mut self, path: &Path) -> Result<()> {
        let asked = json!({"format": "png", "captureBeyondViewport": true});
        let shot = self.call("Page.captureScreenshot", &asked)?;
        let bytes = STANDARD.decode(shot["data"].as_str().unwrap_or_default())?;
        std::fs::write(path, bytes).with_context(|| path.display().to_string())
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.write_all(&bytes).context("the browser has ended")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut message = match self.messages.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => bail!("{method}: the browser does not answer"),
                Err(RecvTimeoutError::Disconnected) => bail!("{method}: the browser has ended"),
            };
            if message["id"] == self.next {
                return match message["error"].is_null() {
                    true => Ok(message["result"].take()),
                    false => bail!("{method}: {}", message["error"]),
                };
            }
            self.note(&message);
        }
    }

    fn note(&mut self, message: &Value) {
        let said = &message["params"];
        let is_loud = |level: &Value| level == "error" || level == "warning";
        let problem = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => is_loud(&said["type"]),
            Some("Log.entryAdded") => is_loud(&said["entry"]["level"]),
            Some("Page.javascriptDialogOpening") => true,
            _ => false,
        };
        if problem {
            self.problems.push(said.to_string());
        }
    }
}
