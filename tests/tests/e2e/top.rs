//! `berth top`, in a terminal and without one.

use std::{
    io::{Read, Write},
    process::{Child, Command, Stdio},
};

use berth_tests::{Cluster, READY, Setup, process, skip, until};
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::{Value, json};

use crate::util::started;

/// A command in a terminal of 110 columns and 30 rows.
struct Terminal {
    child: Child,
    keyboard: std::fs::File,
    screen: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let size = nix::pty::Winsize { ws_row: 30, ws_col: 110, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).expect("a terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("a handle"));
        let child = Command::new(process::binary("berth"))
            .args(args)
            .env_clear()
            .env("TERM", "xterm")
            .env("BERTH_ADDRESS", &cluster.address)
            .env("BERTH_TOKEN", &cluster.admin_token)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("it starts");
        let keyboard = std::fs::File::from(pty.master);
        let mut reader = keyboard.try_clone().expect("a handle");
        let (sender, screen) = std::sync::mpsc::channel();
        // Ends with the terminal.
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, screen, seen: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("it is there");
    }

    fn hear(&mut self) {
        while let Ok(bytes) = self.screen.try_recv() {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// The last whole screen, with its colours, once it is as it should be.
    async fn shows(&mut self, what: &str, is: impl Fn(&str) -> bool) -> String {
        until(READY, what, async || {
            self.hear();
            let whole = &self.seen[..self.seen.rfind("\x1b[?2026l")?];
            let frame = &whole[whole.rfind("\x1b[?2026h")?..];
            is(frame).then(|| frame.to_owned())
        })
        .await
    }

    async fn ended(mut self) -> (Option<i32>, String) {
        let code = until(READY, "its end", async || self.child.try_wait().expect("our child")).await.code();
        self.hear();
        until(READY, "its last words", async || {
            self.hear();
            self.seen.ends_with("\x1b[?1049l").then_some(())
        })
        .await;
        let flags = tcgetattr(&self.keyboard).expect("a terminal").local_flags;
        assert!(flags.contains(LocalFlags::ICANON | LocalFlags::ECHO), "{flags:?}");
        (code, self.seen)
    }
}

/// The row of a session, as it is drawn.
fn row<'a>(frame: &'a str, name: &str) -> Option<&'a str> {
    frame.lines().find(|line| line.split_whitespace().any(|word| word == name))
}

/// Red when a key does nothing, when load is not told, when a name moves the cursor, or when the terminal is left raw.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_is_shown_and_keys_are_obeyed() {
    if skip::without("native", "e2e top the_fleet_is_shown") {
        return;
    }
    let cluster = Cluster::start(Setup { workers: 2, ..Setup::new("native") }).await;
    cluster.berth(&["create", "--name", "busy"]).await.ok();
    cluster.berth(&["create", "--name", "calm"]).await.ok();
    cluster.berth(&["create", "--name", "bad\u{1b}[2J"]).await.ok();
    let task = started(&cluster, "busy", &["sh", "-c", "while :; do :; done"]).await;
    let mut top = Terminal::start(&cluster, &["top", "--interval", "300ms"]);
    let frame =
        top.shows("the fleet", |frame| frame.contains("worker-2") && row(frame, "calm").is_some()).await;
    assert!(frame.contains("bad\\u{1b}[2J") && frame.contains("3 sessions ready"), "{frame}");
    assert!(frame.contains("sort: cpu") && frame.lines().count() == 30, "{frame}");
    // The busiest is first, with its task and its share of a core.
    let busy = |frame: &str| {
        let words: Vec<_> = row(frame, "busy")?.split_whitespace().map(str::to_owned).collect();
        let at = words.iter().position(|word| word.starts_with("worker-"))?;
        Some((words.get(at + 1)?.clone(), words.get(at + 2)?.parse::<u32>().ok()?))
    };
    let first = |frame: &str, one: &str, other: &str| {
        frame.find(&format!("  {one} ")) < frame.find(&format!("  {other} "))
    };
    top.shows("its load", |frame| {
        busy(frame).is_some_and(|(tasks, cpu)| tasks == "1" && cpu > 0) && first(frame, "busy", "calm")
    })
    .await;
    // By name, and the other way round; the mark moves.
    top.press("ssss");
    top.shows("another order", |frame| frame.contains("sort: name") && first(frame, "busy", "calm")).await;
    top.press("r");
    top.shows("the order turned", |frame| first(frame, "calm", "busy")).await;
    let marked = |frame: &str, name: &str| row(frame, name).is_some_and(|line| line.contains("\x1b[1;36m"));
    top.press("\x1b[F");
    top.shows("the mark at the end", |frame| !marked(frame, "calm")).await;
    top.press("\x1b[H\x1b[B\x1b[A");
    top.shows("the mark at the first", |frame| marked(frame, "calm")).await;
    cluster.berth(&["cordon", "worker-2"]).await.ok();
    top.shows("what became of a worker", |frame| frame.contains("cordoned")).await;
    top.press("q");
    assert_eq!(top.ended().await.0, Some(0));
    // However it ends, the terminal is given back.
    let mut top = Terminal::start(&cluster, &["top"]);
    top.shows("the fleet", |frame| frame.contains("worker-1")).await;
    let pid = nix::unistd::Pid::from_raw(top.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our own child");
    assert_eq!(top.ended().await.0, Some(130));
    cluster.berth(&["kill", "busy", &task]).await;
    cluster.stop().await;
}

/// Red when a client's token fails for the workers, or when it draws where nobody looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_terminal_it_is_one_snapshot() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let id = cluster.session().await.id;
    let text = cluster.berth(&["top"]).await.ok();
    assert!(text.contains("worker-1") && text.contains(&id[24..]) && !text.contains('\x1b'), "{text}");
    let told = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let all = told(&cluster.berth(&["top", "--once", "--format", "json"]).await.ok());
    assert_eq!((&all["workers"][0]["id"], &all["sessions"][0]["id"]), (&json!("worker-1"), &json!(id)));
    assert_eq!((&all["queue"], &all["coordinator"]["scope"]), (&json!([]), &json!("admin")));
    let token = cluster.berth(&["token", "create", "--tenant", "red"]).await.ok();
    let env = [("BERTH_ADDRESS", cluster.address.as_str()), ("BERTH_TOKEN", token.trim())];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let own = told(&process::run("berth", &["top", "--format", "json"], &env, b"").await.ok());
    assert_eq!((&own["workers"], &own["sessions"]), (&Value::Null, &json!([])));
    let text = process::run("berth", &["top"], &env, b"").await.ok();
    assert!(text.contains("tenant red") && !text.contains("worker-1"), "{text}");
    let refused = cluster.berth(&["top", "--interval", "0"]).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    cluster.stop().await;
}
