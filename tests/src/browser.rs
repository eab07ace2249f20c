//! A real browser, without a window: Debian's Chromium, driven by its DevTools protocol over a pipe.
//!
//! The protocol is JSON, one message up to each zero byte, on the file descriptors 3 and 4: no port, no WebSocket, and
//! nobody else on the machine can drive it. It resolves no names, so a page that asks for anything but the gateway fails, and
//! all that it asks for, complains of or shows a dialog for is kept, to be looked at.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use berth_proto::spawn::spawn;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
};

use crate::{READY, skip, until};

const PROGRAMS: [&str; 3] = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
/// For it to answer one call.
const ANSWER: Duration = Duration::from_secs(60);

const BLANK: &str = "about:blank";
/// What the browser says of all that is under way when a network of this machine comes or goes.
const CHANGED: &str = "net::ERR_NETWORK_CHANGED";

/// What came of the calls, and what happened.
#[derive(Default)]
struct Heard {
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    /// URLs that the page asked for.
    asked: Vec<String>,
    /// What it complained of: exceptions, errors of the console and of the browser, dialogs.
    problems: Vec<String>,
}

/// One browser with one page.
pub struct Browser {
    child: Child,
    input: tokio::sync::Mutex<(u64, ChildStdin)>,
    heard: Arc<Mutex<Heard>>,
    /// The page's, within the protocol.
    session: String,
    _dir: TempDir,
}

impl Browser {
    /// Starts it. `None`: there is none on this machine, which is noted as the reason to skip `test`.
    pub async fn start(test: &str) -> Option<Self> {
        let Some(program) = PROGRAMS.into_iter().find(|program| Path::new(program).exists()) else {
            skip::note(test, "no browser: as root on Debian, apt-get install chromium");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("berth-browser").tempdir().expect("a temporary directory");
        let mut child = command(program, dir.path()).spawn().expect("a browser starts");
        let heard = Arc::<Mutex<Heard>>::default();
        let output = child.stdout.take().expect("it is piped");
        spawn("browser", listen(output, Arc::clone(&heard)));
        let input = tokio::sync::Mutex::new((0, child.stdin.take().expect("it is piped")));
        let mut browser = Self { child, input, heard, session: String::new(), _dir: dir };
        let target = browser.call("Target.createTarget", json!({"url": BLANK})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await;
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser.looks(false, (1280, 860)).await;
        Some(browser)
    }

    /// Light or dark, and how large.
    pub async fn looks(&self, dark: bool, (width, height): (u32, u32)) {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Goes to the dashboard at an address, and waits until it shows something. Again where the browser gave up half of its
    /// files, since a network of this machine came or went: other tests make some.
    pub async fn open(&self, url: &str) {
        until(READY, &format!("a page at {url}"), async || {
            // From elsewhere: to the same page it would only be another place in it.
            self.call("Page.navigate", json!({"url": BLANK})).await;
            let told = self.call("Page.navigate", json!({"url": url})).await;
            if told["errorText"] == CHANGED {
                return None;
            }
            assert!(told.get("errorText").is_none_or(Value::is_null), "{url}: {told}");
            let shown = async || {
                let loaded = "document.readyState === 'complete' && [document.getElementById('app').childElementCount]";
                until(READY, "the page to be loaded", async || {
                    let told = self.evaluate(loaded).await;
                    told["result"]["value"][0].as_u64()
                })
                .await
            };
            (shown().await > 0).then_some(())
        })
        .await;
    }

    /// The value of an expression in the page.
    ///
    /// # Panics
    /// When it throws.
    pub async fn eval(&self, expression: &str) -> Value {
        let told = self.evaluate(expression).await;
        assert!(told.get("exceptionDetails").is_none(), "{expression}: {told}");
        told["result"]["value"].clone()
    }

    async fn evaluate(&self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        self.call("Runtime.evaluate", asked).await
    }

    /// Waits until an expression is true, or something; a page that is just being loaded has nothing yet.
    pub async fn wait(&self, what: &str, expression: &str) -> Value {
        until(READY, &format!("{what} in the page ({expression})"), async || {
            let told = self.evaluate(expression).await;
            let value = told["result"]["value"].clone();
            let nothing = value.is_null() || value == json!(false) || told.get("exceptionDetails").is_some();
            (!nothing).then_some(value)
        })
        .await
    }

    /// Waits until the page shows this text, anywhere or within a selector.
    pub async fn sees(&self, within: &str, text: &str) {
        let expression = format!(
            "[...document.querySelectorAll({})].some((one) => one.innerText.includes({}))",
            json!(within),
            json!(text)
        );
        self.wait(&format!("{text:?}"), &expression).await;
    }

    /// Clicks what the selector finds, as a mouse does: what is covered or not there is waited for.
    pub async fn click(&self, selector: &str) {
        let at = format!(
            "(() => {{ const one = document.querySelector({}); if (!one || one.disabled) return null; \
             one.scrollIntoView({{block: 'center'}}); const {{x, y, width, height}} = one.getBoundingClientRect(); \
             const [left, top] = [x + width / 2, y + height / 2]; const hit = document.elementFromPoint(left, top); \
             return hit && (one.contains(hit) || hit.contains(one)) ? [left, top] : null; }})()",
            json!(selector)
        );
        let at = self.wait(&format!("{selector} to click on"), &at).await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Types into what the selector finds.
    pub async fn fill(&self, selector: &str, text: &str) {
        self.click(selector).await;
        self.wait(&format!("{selector} to type into"), &focused(selector)).await;
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// A picture of what is shown, as PNG.
    pub async fn picture(&self) -> Vec<u8> {
        let told =
            self.call("Page.captureScreenshot", json!({"format": "png", "optimizeForSpeed": false})).await;
        BASE64_STANDARD.decode(told["data"].as_str().expect("a picture")).expect("base64")
    }

    /// What the page asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.heard().asked.clone()
    }

    /// What it complained of since this was last asked, but for what a change of networks cut: the page goes on by itself.
    pub fn problems(&self) -> Vec<String> {
        let all = std::mem::take(&mut self.heard().problems);
        all.into_iter().filter(|problem| !problem.contains(CHANGED)).collect()
    }

    /// Ends it.
    pub async fn close(mut self) {
        let (_, input) = &mut *self.input.lock().await;
        let _ = input.write_all(b"{\"id\": 0, \"method\": \"Browser.close\"}\0").await;
        if tokio::time::timeout(ANSWER, self.child.wait()).await.is_err() {
            self.child.kill().await.expect("our own child can be killed");
        }
    }

    async fn call(&self, method: &str, parameters: Value) -> Value {
        let (tell, told) = oneshot::channel();
        {
            let (last, input) = &mut *self.input.lock().await;
            *last += 1;
            self.heard().waiting.insert(*last, tell);
            let mut message = json!({"id": *last, "method": method, "params": parameters});
            if !self.session.is_empty() {
                message["sessionId"] = self.session.clone().into();
            }
            input.write_all(format!("{message}\0").as_bytes()).await.expect("the browser listens");
        }
        let told = tokio::time::timeout(ANSWER, told).await;
        let told = told.unwrap_or_else(|_| panic!("the browser does not answer {method}"));
        let told = told.unwrap_or_else(|_| panic!("the browser ended before it answered {method}"));
        assert!(told.get("error").is_none(), "{method}: {told}");
        told["result"].clone()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().expect("nobody panics with it")
    }
}

fn focused(selector: &str) -> String {
    format!("document.activeElement === document.querySelector({})", json!(selector))
}

fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    let log = std::fs::File::create(dir.join("log")).expect("a log file");
    command
        .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#, program])
        .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
        .args(["--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check", "--mute-audio"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-extensions", "--disable-breakpad", "--password-store=basic", "--hide-scrollbars"])
        .args(["--force-color-profile=srgb", "--font-render-hinting=none"])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.*")
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .arg(BLANK)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir)
        .env("LANG", "C.UTF-8")
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true);
    command
}

async fn listen(output: ChildStdout, heard: Arc<Mutex<Heard>>) {
    let mut output = BufReader::new(output);
    let mut message = Vec::new();
    while output.read_until(0, &mut message).await.is_ok_and(|count| count > 0) {
        message.pop();
        let told: Value = serde_json::from_slice(&message).expect("the browser speaks JSON");
        message.clear();
        let mut heard = heard.lock().expect("nobody panics with it");
        match told["id"].as_u64() {
            Some(id) => {
                heard.waiting.remove(&id).map(|tell| tell.send(told));
            }
            None => heard.happened(&told),
        }
    }
    heard.lock().expect("nobody panics with it").waiting.clear();
}

impl Heard {
    fn happened(&mut self, told: &Value) {
        let about = &told["params"];
        match told["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => {
                let url = about["request"]["url"].as_str().unwrap_or_default();
                self.asked.extend((url != BLANK).then(|| url.to_owned()));
            }
            "Runtime.exceptionThrown" | "Page.javascriptDialogOpening" => {
                self.problems.push(about.to_string())
            }
            "Runtime.consoleAPICalled" if about["type"] != "log" && about["type"] != "debug" => {
                self.problems.push(about.to_string());
            }
            "Log.entryAdded"
                if about["entry"]["level"] == "error" || about["entry"]["level"] == "warning" =>
            {
                let entry = &about["entry"];
                self.problems.push(format!("{}: {} ({})", entry["source"], entry["text"], entry["url"]));
            }
            _ => {}
        }
    }
}

/// Where pictures for the documentation go, if they were asked for.
pub fn pictures() -> Option<PathBuf> {
    std::env::var_os("DASHBOARD_PICTURES").map(PathBuf::from)
}
