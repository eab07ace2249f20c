//! `--format json`: every command, and nothing but JSON. On stdout one value (of what streams, one object a line), on
//! stderr one object a line; of a command that fails, one of the two says so.

use std::{collections::BTreeSet, path::Path, process::Stdio};

use berth_tests::{Cluster, READY, Setup, process, skip};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    Object,
    List,
    /// One object a line.
    Lines,
    /// Nothing on stdout, and one error on stderr.
    Error,
}
use Shape::*;

/// A fleet, and what was asked of it so far.
struct Asked {
    cluster: Cluster,
    env: Vec<(String, String)>,
    commands: BTreeSet<String>,
}

impl Asked {
    fn new(cluster: Cluster) -> Self {
        let (state, agent) = (cluster.dir.path().join("up"), process::binary("berth-agent"));
        let env = [
            ("BERTH_ADDRESS", cluster.address.as_str()),
            ("BERTH_TOKEN", &cluster.admin_token),
            ("BERTH_STATE_DIR", state.to_str().unwrap()),
            ("BERTH_AGENT", agent.to_str().unwrap()),
            ("BERTH_SANDBOX", "native"),
            ("GRPC_PORT", "0"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { cluster, env, commands: BTreeSet::new() }
    }

    fn path(&self, name: &str) -> String {
        self.cluster.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a command to its end, looks at all that it prints, and returns what it printed on stdout.
    async fn ask(&mut self, code: i32, shape: Shape, args: &[&str]) -> Value {
        self.commands.insert(args[0].to_owned());
        // Before what belongs to a task.
        let at = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
        let args = [&args[..at], &["--format", "json"], &args[at..]].concat();
        let seen = process::run("berth", &args, &self.env, b"").await;
        assert_eq!(seen.code, Some(code), "{args:?}: {seen:?}");
        let talk: Vec<Value> = seen.stderr.lines().map(|line| object(line, &args)).collect();
        let errors = talk.iter().filter(|told| told.get("message").is_some());
        for error in errors.clone() {
            let fields: Vec<&String> = error.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["code", "hint", "message", "reason", "request_id"], "{args:?}: {error}");
            assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{args:?}: {error}");
        }
        match shape {
            Error => {
                assert_eq!((seen.stdout.as_str(), errors.count()), ("", 1), "{args:?}: {seen:?}");
                talk.last().unwrap().clone()
            }
            Lines => seen.stdout.lines().map(|line| object(line, &args)).collect(),
            Object => object(&seen.stdout, &args),
            List => {
                let value: Value =
                    serde_json::from_str(&seen.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {seen:?}"));
                assert!(value.is_array(), "{args:?}: {value}");
                value
            }
        }
    }

    /// The first line of a command that goes on until it is told to stop.
    async fn first_line(&mut self, args: &[&str]) -> Value {
        self.commands.insert(args[0].to_owned());
        let mut child = tokio::process::Command::new(process::binary("berth"))
            .args(args)
            .args(["--format", "json"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // What events there are to see has to happen.
        let (line, ()) = tokio::join!(tokio::time::timeout(READY * 2, lines.next_line()), async {
            if args[0] == "events" {
                tokio::time::timeout(READY, self.stir(&mut child)).await.expect("events go on");
            }
        });
        let line = line.expect("a line in time").unwrap().expect("it goes on");
        let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let mut rest = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            rest.push(object(&line, args));
        }
        child.wait().await.unwrap();
        object(&line, args)
    }

    /// Lets something happen that `berth events` tells of, until it has looked.
    async fn stir(&self, child: &mut tokio::process::Child) {
        for _ in 0..20 {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            self.cluster.berth(&["cordon", "worker-1"]).await.ok();
            self.cluster.berth(&["uncordon", "worker-1"]).await.ok();
        }
    }
}

fn object(text: &str, args: &[&str]) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{args:?}: {e} in {text:?}"));
    assert!(value.is_object(), "{args:?}: {value}");
    value
}

/// All commands that `berth --help` lists.
async fn all_commands() -> BTreeSet<String> {
    let help = process::run("berth", &["--help"], &[], b"").await.ok();
    let listed = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap();
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Red when any of them prints a word of its own: a start's problem, a skipped file, how a task ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_prints_json_and_nothing_else() {
    if skip::without_root("e2e every_command_prints_json") {
        return;
    }
    let mut asked = Asked::new(Cluster::start(Setup { max_sessions: 9, ..Setup::new("native") }).await);
    let box_ = asked.ask(0, Object, &["create", "--name", "box"]).await;
    assert_eq!(box_["state"], "ready");
    tasks(&mut asked).await;
    files(&mut asked).await;
    sessions(&mut asked).await;
    fleet(&mut asked).await;
    machine(&mut asked).await;
    // One of two: what was done is told, and what was not.
    let gone = asked.ask(1, List, &["rm", "box", "nobody"]).await;
    assert_eq!(gone.as_array().unwrap().len(), 1);
    asked.ask(1, Error, &["tasks", "nobody"]).await;
    asked.ask(2, Error, &["ps", "--no-such-option"]).await;
    assert_eq!(asked.commands, all_commands().await, "each command has its line here");
    asked.cluster.stop().await;
}

async fn tasks(asked: &mut Asked) {
    let script = "echo out; echo err >&2; exit 3";
    let ran = asked.ask(3, Object, &["run", "--session", "box", "--", "sh", "-c", script]).await;
    assert_eq!((&ran["stdout_text"], &ran["stderr_text"]), (&"out\n".into(), &"err\n".into()));
    assert_eq!((&ran["exit_code"], &ran["outcome_text"]), (&3.into(), &"exit 3".into()));
    let out = asked.ask(124, Object, &["run", "-s", "box", "--timeout", "1s", "--", "sleep", "1000"]).await;
    assert_eq!(out["outcome_text"], "timed out");
    let args = ["run", "-s", "box", "--output-limit", "10", "--", "yes"];
    assert_eq!(asked.ask(153, Object, &args).await["outcome_text"], "output limit reached");
    let usage = asked.ask(0, Object, &["usage", "box"]).await;
    assert!(usage["cpu_seconds"].is_f64() && usage["tasks"].is_u64(), "{usage}");
    let listed = asked.ask(0, List, &["tasks", "box"]).await;
    let ids = asked.ask(0, List, &["tasks", "-q", "box"]).await;
    assert_eq!((listed.as_array().unwrap().len(), &listed[2]["id"]), (3, &ids[2]));
    let lines = asked.ask(0, Lines, &["logs", "box", ids[2].as_str().unwrap()]).await;
    let text = |stream: &str| {
        lines.as_array().unwrap().iter().find(|l| l["stream"] == stream).unwrap()["text"].clone()
    };
    assert_eq!((text("stdout"), text("stderr")), ("out\n".into(), "err\n".into()));
    assert_eq!(lines.as_array().unwrap().last().unwrap()["ended"]["id"], ids[2]);
    asked.ask(0, Lines, &["logs", "-f", "-n", "1", "box", ids[2].as_str().unwrap()]).await;
    asked.ask(0, Object, &["run", "-d", "-s", "box", "--", "sleep", "1000"]).await;
    asked.ask(0, Object, &["kill", "box", "--signal", "CONT"]).await;
    asked.ask(0, Object, &["kill", "box"]).await;
    asked.ask(2, Error, &["shell", "box"]).await;
    // What it says once it runs is JSON-RPC.
    asked.ask(2, Error, &["mcp", "--ttl", "some time"]).await;
}

async fn files(asked: &mut Asked) {
    let dir = asked.path("tree");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(Path::new(&dir).join("file"), "text").unwrap();
    let copied = asked.ask(0, Object, &["cp", "-r", &dir, "box:tree"]).await;
    assert_eq!(copied["files"], 1);
    nix::unistd::mkfifo(&Path::new(&dir).join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let copied = asked.ask(1, Object, &["cp", "-r", &dir, "box:again"]).await;
    assert_eq!((&copied["files"], copied["skipped"].as_array().unwrap().len()), (&1.into(), 1), "{copied}");
    asked.ask(1, Error, &["cp", "box:nothing", &dir]).await;
    let forwarded = asked.first_line(&["port-forward", "box", "0:8000"]).await;
    assert!(
        forwarded["address"].as_str().is_some_and(|address| address.starts_with("127.0.0.1:")),
        "{forwarded}"
    );
    assert_eq!(forwarded["port"], 8000);
    asked.ask(2, Error, &["port-forward", "box", "nonsense"]).await;
}

async fn sessions(asked: &mut Asked) {
    for args in [["ps", "-a"], ["ps", "-q"]] {
        assert_eq!(asked.ask(0, List, &args).await.as_array().unwrap().len(), 1);
    }
    asked.ask(0, Object, &["update", "box", "--label", "a=b"]).await;
    asked.ask(0, List, &["pause", "box"]).await;
    asked.ask(0, List, &["resume", "box"]).await;
    let taken = asked.ask(0, Object, &["checkpoint", "box"]).await;
    let id = taken["id"].as_str().unwrap();
    asked.ask(0, List, &["checkpoint", "list"]).await;
    assert_eq!(asked.ask(0, List, &["checkpoint", "list", "-q", "box"]).await[0], id);
    asked.ask(0, Object, &["checkpoint", "show", id]).await;
    artifacts(asked).await;
    asked.ask(0, Object, &["restore", id]).await;
    asked.ask(0, Object, &["fork", "box"]).await;
    assert_eq!(asked.ask(0, List, &["checkpoint", "rm", id]).await[0], id);
}

async fn artifacts(asked: &mut Asked) {
    assert_eq!(asked.ask(0, Object, &["artifact", "list"]).await["artifacts"], Value::Array(Vec::new()));
    assert_eq!(asked.ask(0, List, &["artifact", "list", "-q", "box"]).await, Value::Array(Vec::new()));
    let nobody = "0".repeat(32);
    asked.ask(1, Error, &["artifact", "get", &nobody]).await;
    assert_eq!(asked.ask(0, List, &["artifact", "remove", &nobody]).await[0], nobody.as_str());
}

async fn fleet(asked: &mut Asked) {
    asked.ask(0, List, &["queue"]).await;
    assert_eq!(asked.ask(0, Object, &["top"]).await["queue"], serde_json::json!([]));
    asked.ask(0, List, &["workers"]).await;
    asked.ask(0, Object, &["workers", "worker-1"]).await;
    asked.ask(0, Object, &["cordon", "worker-1"]).await;
    asked.ask(0, Object, &["uncordon", "worker-1"]).await;
    asked.ask(0, Object, &["backend", "worker-1", "native"]).await;
    asked.ask(0, List, &["templates"]).await;
    asked.ask(0, Object, &["info"]).await;
    let (backup, restored) = (asked.path("backup"), asked.path("restored"));
    asked.ask(0, List, &["backup", "--to", &backup]).await;
    asked.ask(0, Object, &["backup", "restore", "--from", &backup, "--state-dir", &restored]).await;
    asked.ask(1, Error, &["backup", "restore", "--from", &restored, "--state-dir", &restored]).await;
    let event = asked.first_line(&["events"]).await;
    assert!(event["token"].is_string(), "{event}");
    asked.ask(0, Object, &["drain", "worker-1", "--deadline", "60s", "--no-wait"]).await;
    asked.ask(0, Object, &["uncordon", "worker-1"]).await;
}

async fn machine(asked: &mut Asked) {
    let coordinator = asked.path("c");
    asked.ask(0, List, &["token", "show", "--state-dir", &coordinator]).await;
    let token =
        asked.ask(0, Object, &["token", "show", "--value", "admin", "--state-dir", &coordinator]).await;
    assert_eq!(token["value"], asked.cluster.admin_token);
    let made = asked.ask(0, Object, &["token", "create", "--tenant", "team-a", "--ttl", "1h"]).await;
    assert_eq!(
        (&made["scope"], &made["tenant"], &made["state"]),
        (&"client".into(), &"team-a".into(), &"active".into())
    );
    let id = made["id"].as_str().unwrap();
    assert_eq!(asked.ask(0, List, &["token", "list"]).await[0]["id"], id);
    assert_eq!(asked.ask(0, List, &["token", "revoke", id]).await[0]["state"], "revoked");
    asked.ask(1, Error, &["token", "revoke", "nothing"]).await;
    let audit = asked.ask(0, List, &["audit", "--what", "IdentityService/RevokeToken"]).await;
    assert_eq!(audit[0]["details"]["token"], *id);
    assert_eq!(asked.ask(0, Object, &["audit", "--verify"]).await["broken_at"], serde_json::Value::Null);
    let file = asked.path("c/credentials/join.token");
    let set = asked.ask(0, Object, &["secret", "set", "key", "--ttl", "1h", "--from-file", &file]).await;
    assert_eq!((&set["name"], &set["unusable"]), (&"key".into(), &serde_json::Value::Null));
    assert_eq!(asked.ask(0, List, &["secret", "list"]).await, serde_json::json!([set]));
    assert_eq!(asked.ask(0, List, &["secret", "rm", "key"]).await, serde_json::json!(["key"]));
    asked.ask(1, Error, &["secret", "rm", "key"]).await;
    asked.ask(2, Error, &["tenant", "set", "team-a"]).await;
    let set =
        asked.ask(0, Object, &["tenant", "set", "team-a", "--max-sessions", "3", "--cpu", "none"]).await;
    assert_eq!((&set["quota"]["sessions"], &set["quota"]["cpu_millis"]), (&3.into(), &Value::Null));
    assert_eq!(asked.ask(0, Object, &["tenant", "show", "team-a"]).await["used"]["sessions"], 0);
    asked.ask(0, List, &["tenant", "list"]).await;
    asked.ask(1, Error, &["token", "show", "--value", "join"]).await;
    let link = asked.ask(0, Object, &["dashboard", "--url", "http://127.0.0.1:8080/"]).await["link"].clone();
    assert!(link.as_str().unwrap().starts_with("http://127.0.0.1:8080/#token="), "{link}");
    asked.ask(1, Error, &["dashboard"]).await;
    let tls = asked.cluster.dir.path().join("tls").display().to_string();
    asked.ask(0, List, &["tls", "init", "--dir", &tls]).await;
    asked.ask(0, List, &["tls", "show", "--dir", &tls]).await;
    asked.ask(1, Error, &["tls", "init", "--dir", &tls]).await;
    asked.ask(0, List, &["env"]).await;
    assert!(asked.ask(0, Object, &["completions", "bash"]).await["script"].is_string());
    asked.ask(0, List, &["doctor"]).await;
    assert_eq!(asked.ask(1, Object, &["status"]).await["running"], false);
    assert_eq!(asked.ask(0, Object, &["stop"]).await["stopped"], false);
    let up = asked.ask(0, Object, &["up", "-d"]).await;
    assert_eq!((&up["ready"], &up["unready"]), (&true.into(), &Value::Array(Vec::new())));
    asked.ask(1, Error, &["up", "-d"]).await;
    asked.ask(1, Error, &["up"]).await;
    assert_eq!(asked.ask(0, Object, &["status"]).await["running"], true);
    assert_eq!(asked.ask(0, Object, &["stop"]).await["stopped"], true);
    assert!(asked.first_line(&["up"]).await["address"].is_string());
    // Both of the things that keep it from starting are in the one object.
    let (taken, bad) = (asked.cluster.address.rsplit(':').next().unwrap().to_owned(), asked.path("bad.toml"));
    std::fs::write(&bad, "nonsense = 1\n").unwrap();
    for args in [&["up", "-d"][..], &["up"]] {
        let told = asked.ask(1, Error, &[args, &["--port", &taken, "--templates", &bad]].concat()).await;
        let message = told["message"].as_str().unwrap();
        assert!(message.contains(&taken) && message.contains("bad.toml"), "{told}");
    }
    let steps = asked.ask(0, Lines, &["demo"]).await;
    assert_eq!(steps.as_array().unwrap().last().unwrap()["failed"], 0);
}
