//! A small MCP client, written by hand: what counts is what is on the wire, and a test that used the server's own library
//! would see the same mistake on both sides.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
};

use crate::{
    Cluster,
    http::{Http, Reply},
    process,
};

/// How long an answer may take on a busy machine.
const ANSWER: Duration = Duration::from_secs(120);

/// The protocol's versions: the first without a handshake, and those with one.
pub const VERSIONS: [&str; 3] = ["2026-07-28", "2025-11-25", "2025-06-18"];

/// `berth mcp`, and this end of its conversation.
pub struct Mcp {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    version: &'static str,
    next_id: u64,
    /// All that came and was no answer.
    pub notifications: Vec<Value>,
    log: PathBuf,
}

impl Mcp {
    /// Starts it with nothing of our environment but PATH, and greets it.
    pub async fn start(cluster: &Cluster, args: &[&str], version: &'static str) -> Self {
        Self::start_as(cluster, &cluster.admin_token, args, version).await
    }

    pub async fn start_as(cluster: &Cluster, token: &str, args: &[&str], version: &'static str) -> Self {
        let env = [("BERTH_ADDRESS", cluster.address.as_str()), ("BERTH_TOKEN", token)];
        Self::start_with(&env, args, version, cluster.dir.path().join("mcp.log")).await
    }

    /// `log`: what it says on stderr.
    pub async fn start_with(
        env: &[(&str, &str)],
        args: &[&str],
        version: &'static str,
        log: PathBuf,
    ) -> Self {
        let args: Vec<&str> = ["mcp"].into_iter().chain(args.iter().copied()).collect();
        Self::start_command(&process::binary("berth"), &args, env, version, log).await
    }

    /// Any command, as a client starts it.
    pub async fn start_command(
        program: &Path,
        args: &[&str],
        env: &[(&str, &str)],
        version: &'static str,
        log: PathBuf,
    ) -> Self {
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        let mut command = tokio::process::Command::new(program);
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let mut child = command
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} {args:?} does not start: {error}", program.display()));
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut mcp = Self { child, stdin, stdout, version, next_id: 0, notifications: Vec::new(), log };
        mcp.greet().await;
        mcp
    }

    async fn greet(&mut self) {
        if self.has_handshake() {
            let params = json!({
                "protocolVersion": self.version,
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            });
            let answer = self.request("initialize", params).await;
            assert_eq!(answer["result"]["protocolVersion"], self.version, "{answer}");
            assert_eq!(answer["result"]["serverInfo"]["name"], "berth", "{answer}");
            self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        } else {
            let answer = self.request("server/discover", json!({})).await;
            let versions = answer["result"]["supportedVersions"].as_array().expect("versions").clone();
            assert!(versions.contains(&json!(self.version)), "{answer}");
        }
    }

    fn has_handshake(&self) -> bool {
        self.version < "2026-07-28"
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Writes a message, or what is none.
    pub async fn send(&mut self, message: &Value) {
        self.send_line(message.to_string().as_bytes()).await;
    }

    pub async fn send_line(&mut self, line: &[u8]) {
        let stdin = self.stdin.as_mut().expect("it is open");
        stdin.write_all(line).await.expect("it reads");
        stdin.write_all(b"\n").await.expect("it reads");
    }

    /// Sends a request. Its id, to wait for its answer.
    pub async fn ask(&mut self, method: &str, mut params: Value) -> u64 {
        self.next_id += 1;
        if !self.has_handshake() {
            let meta = json!({
                "io.modelcontextprotocol/protocolVersion": self.version,
                "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            });
            let given = params.get("_meta").cloned().unwrap_or(json!({}));
            params["_meta"] = meta;
            for (name, value) in given.as_object().expect("an object") {
                params["_meta"][name] = value.clone();
            }
        }
        let id = self.next_id;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
        id
    }

    /// The next message. `None`: it has closed its output.
    pub async fn next(&mut self) -> Option<Value> {
        let line = tokio::time::timeout(ANSWER, self.stdout.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("no answer; its log:\n{}", self.log()));
        // Nothing but the protocol may be on its standard output.
        line.expect("UTF-8").map(|line| serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")))
    }

    /// The answer to a request. What else comes is kept.
    pub async fn answer(&mut self, id: u64) -> Value {
        loop {
            let message = self.next().await.unwrap_or_else(|| panic!("it ended:\n{}", self.log()));
            if message["id"] == json!(id) {
                return message;
            }
            self.notifications.push(message);
        }
    }

    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params).await;
        self.answer(id).await
    }

    /// The first notification of that method whose params are as wanted; it is taken from those that are kept.
    pub async fn notified(&mut self, method: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let fits = |message: &Value| message["method"] == method && wanted(&message["params"]);
            if let Some(at) = self.notifications.iter().position(fits) {
                return self.notifications.remove(at)["params"].clone();
            }
            let message = self.next().await.unwrap_or_else(|| panic!("it ended:\n{}", self.log()));
            self.notifications.push(message);
        }
    }

    /// What a resource holds: its one content.
    pub async fn read(&mut self, uri: &str) -> Value {
        let answer = self.request("resources/read", json!({"uri": uri})).await;
        let contents = answer["result"]["contents"].as_array().unwrap_or_else(|| panic!("{uri}: {answer}"));
        assert_eq!((contents.len(), &contents[0]["uri"]), (1, &json!(uri)), "{answer}");
        contents[0].clone()
    }

    /// The message of a request that was refused, which says what to do.
    pub async fn denied(&mut self, method: &str, params: Value) -> String {
        let answer = self.request(method, params.clone()).await;
        let message =
            answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{method} {params}: {answer}"));
        assert!(message.contains("; "), "{method} {params} says nothing to do: {message}");
        message.to_owned()
    }

    pub async fn ask_tool(&mut self, tool: &str, arguments: Value) -> u64 {
        self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// The result of a tool, good or bad.
    pub async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let id = self.ask_tool(tool, arguments).await;
        let answer = self.answer(id).await;
        assert!(answer["result"].is_object(), "{tool}: {answer}");
        answer["result"].clone()
    }

    /// The structured answer of a tool that did its work.
    pub async fn ok(&mut self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments).await;
        assert_ne!(result["isError"], true, "{tool}: {result}");
        assert!(result["content"][0]["text"].is_string(), "{tool} has no text to read: {result}");
        result["structuredContent"].clone()
    }

    /// The text of a tool that refused, which says what to do.
    pub async fn refused(&mut self, tool: &str, arguments: Value) -> String {
        let result = self.call(tool, arguments.clone()).await;
        assert_eq!(result["isError"], true, "{tool} {arguments}: {result}");
        let text = result["content"][0]["text"].as_str().expect("text").to_owned();
        assert!(text.starts_with("error: ") && text.contains("\nhint: "), "{tool}: {text}");
        text
    }

    /// Closes its input and waits until it has ended. Its exit code.
    pub async fn end(mut self) -> Option<i32> {
        self.stdin = None;
        self.ended().await
    }

    pub async fn ended(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(ANSWER, self.child.wait()).await;
        status.unwrap_or_else(|_| panic!("it does not end:\n{}", self.log())).expect("our child").code()
    }

    pub async fn kill(mut self) {
        self.child.kill().await.expect("our own child can be killed");
    }
}

/// MCP over HTTP: a request is a connection.
impl Http {
    pub async fn request(&mut self, method: &str, params: Value) -> Reply {
        self.next_id += 1;
        let message = json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params});
        self.send("POST", "/mcp", &message.to_string()).await
    }

    /// Begins a conversation of a version that has such.
    pub async fn begin(address: &str, token: &str) -> Self {
        let mut http = Self::new(address, token);
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "h", "version": "1"}});
        let reply = http.request("initialize", params).await;
        assert_eq!(
            (reply.status, &reply.message()["result"]["serverInfo"]["name"]),
            (200, &json!("berth")),
            "{reply:?}"
        );
        let id = reply.headers.get("mcp-session-id").expect("a conversation").clone();
        let http = http.with("Mcp-Session-Id", &id).with("MCP-Protocol-Version", "2025-11-25");
        let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(http.send("POST", "/mcp", &done.to_string()).await.status, 202);
        http
    }

    pub async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let reply = self.request("tools/call", json!({"name": tool, "arguments": arguments})).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.message()["result"].clone()
    }
}
