//! Servers in sessions, reached from outside: by `berth port-forward`, with programs that know nothing of Berth, and by the
//! client library.

mod strain;
mod web;

use std::{io, process::Stdio, time::Duration};

use berth_client::{Client, ConnectOptions, PortStream, Reason, Session};
use berth_proto::{
    transport::PORT_CONNECTIONS,
    v1::{self, EndReason, SessionState, task_spec::Program},
};
use berth_tests::{Cluster, READY, Setup, process, until};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout},
};

use crate::util::{delete, on_both, run, shell, state};

/// A `berth port-forward` that runs.
struct Forward {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// `host:port` here, one for each.
    addresses: Vec<String>,
}

impl Forward {
    async fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let mut child = tokio::process::Command::new(process::binary("berth"))
            .arg("port-forward")
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("BERTH_ADDRESS", &cluster.address)
            .env("BERTH_TOKEN", &cluster.admin_token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut addresses = Vec::new();
        for _ in 1..args.len() {
            let line = tokio::time::timeout(READY, lines.next_line()).await.expect("in time");
            let line = line.expect("text").expect("it goes on");
            let (address, port) =
                line.strip_prefix("Forwarding ").expect(&line).split_once(" -> ").expect(&line);
            assert!(port.parse::<u16>().is_ok(), "{line}");
            addresses.push(address.to_owned());
        }
        Self { child, lines, addresses }
    }

    /// Waits for its end: its code, and what it said on stderr.
    async fn ended(mut self) -> (Option<i32>, String) {
        assert_eq!(self.lines.next_line().await.expect("text"), None, "more than the addresses");
        let output = tokio::time::timeout(READY, self.child.wait_with_output()).await.expect("it ends");
        let output = output.expect("it is ours");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    async fn interrupt(self) -> (Option<i32>, String) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().expect("it runs").cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("our child");
        self.ended().await
    }
}

async fn client(cluster: &Cluster, token: &str) -> Client {
    Client::connect(ConnectOptions::new(&cluster.address).token(token)).await.expect("it answers")
}

async fn session(cluster: &Cluster, id: &str) -> Session {
    client(cluster, &cluster.admin_token).await.session(id.parse().expect("an id"))
}

/// Starts a server, and returns the port that it says first.
async fn serve(cluster: &Cluster, session: &str, program: &[&str]) -> u16 {
    let args = program.iter().map(|arg| (*arg).to_owned()).collect();
    let task = v1::TaskSpec { program: Some(Program::Argv(v1::Argv { args })), ..Default::default() };
    served(cluster, session, task).await
}

async fn served(cluster: &Cluster, session: &str, task: v1::TaskSpec) -> u16 {
    let request = v1::StartTaskRequest { session_id: session.into(), task: Some(task), ..Default::default() };
    let task = cluster.tasks().start_task(request).await.expect("it starts").into_inner().id;
    until(READY, "the server", async || {
        let logs = cluster.berth(&["logs", session, &task]).await.ok();
        let port = logs.split_once("port ")?.1.split_whitespace().next()?;
        port.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok()
    })
    .await
}

/// Echoes, and counts its connections.
const ECHO: &str = "
import socket, threading
server = socket.create_server(('127.0.0.1', 0), backlog=128)
print('port', server.getsockname()[1], flush=True)
def echo(conn):
    try:
        while data := conn.recv(65536): conn.sendall(data)
    except OSError: pass
    conn.close()
while True: threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
";

async fn echoes(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin), text: &[u8]) {
    stream.write_all(text).await.expect("it is open");
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).await.expect("it is open");
    assert_eq!(heard, text);
}

/// curl's word on a URL: the status, and a hash of what came.
async fn curl(url: &str, more: &[&str]) -> String {
    let output = tokio::process::Command::new("curl")
        .args(["-sS", "-m", "60", "--noproxy", "*", "-w", "%{http_code}"])
        .args(more)
        .arg(url)
        .output()
        .await
        .expect("curl");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What most people will do with it. Red when a hop loses, doubles or holds back a byte, or ends one direction with the other.
async fn a_web_server_is_reached_by_programs_that_know_nothing_of_berth(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let id = cluster.session().await.id;
    let make = "mkdir www && cd www && echo hello > index.html && \
                python3 -c \"open('big','wb').write(bytes(i * 7 % 251 for i in range(251 * 40000)))\" && sha256sum big";
    let sum = run(&cluster, &id, make).await.0.split_whitespace().next().expect("a sum").to_owned();
    let port = serve(&cluster, &id, &["python3", "-u", "-m", "http.server", "-d", "www", "0"]).await;
    let echo = serve(&cluster, &id, &["python3", "-c", ECHO]).await;
    let (web, raw) = (format!("0:{port}"), format!(":{echo}"));
    let forward = Forward::start(&cluster, &[&id, &web, &raw]).await;
    let url = format!("http://{}", forward.addresses[0]);

    assert_eq!(curl(&url, &[]).await, "hello\n200");
    assert!(curl(&format!("{url}/nothing"), &["-o", "/dev/null"]).await.ends_with("404"));
    let copy = cluster.dir.path().join("copy");
    let copies: Vec<_> = (0..4)
        .map(|n| {
            let (url, to) = (format!("{url}/big"), copy.with_extension(n.to_string()));
            async move {
                assert_eq!(curl(&url, &["-o", to.to_str().unwrap()]).await, "200");
                let told = tokio::process::Command::new("sha256sum").arg(&to).output().await.unwrap();
                String::from_utf8(told.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
            }
        })
        .collect();
    assert_eq!(futures::future::join_all(copies).await, vec![sum; 4]);

    // More at once than a session takes: the others wait, and none is refused.
    let many = (0..PORT_CONNECTIONS + 16).map(|_| curl(&url, &[]));
    let told = futures::future::join_all(many).await;
    assert_eq!(told, vec!["hello\n200"; PORT_CONNECTIONS + 16]);

    // What is sent is the end of what is sent, and no more.
    let mut stream = TcpStream::connect(&forward.addresses[1]).await.expect("it listens");
    echoes(&mut stream, b"first").await;
    stream.write_all(&[9; 1 << 20]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(READY, stream.read_to_end(&mut rest)).await.expect("in time").expect("in order");
    assert!(rest == [9; 1 << 20], "{} bytes", rest.len());

    let (code, said) = forward.interrupt().await;
    assert_eq!((code, said.as_str()), (Some(130), ""));
    cluster.stop().await;
}
on_both!(a_web_server_is_reached_by_programs_that_know_nothing_of_berth:
    native_a_web_server_is_reached_by_programs_that_know_nothing_of_berth,
    docker_a_web_server_is_reached_by_programs_that_know_nothing_of_berth);

/// Red when one connection's error ends the others, or is told as an end, or not at all.
async fn what_becomes_of_one_connection_concerns_no_other(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let id = cluster.session().await.id;
    let echo = serve(&cluster, &id, &["python3", "-c", ECHO]).await;
    let (good, bad) = (format!("0:{echo}"), "0:1");
    let forward = Forward::start(&cluster, &[&id, &good, bad]).await;
    let mut open = TcpStream::connect(&forward.addresses[0]).await.unwrap();
    echoes(&mut open, b"one").await;
    for _ in 0..2 {
        let mut refused = TcpStream::connect(&forward.addresses[1]).await.unwrap();
        let error = refused.read(&mut [0; 1]).await.expect_err("not an end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    echoes(&mut open, b"two").await;

    // The session's end ends all of them, and the command.
    delete(&cluster, &id).await;
    let error = open.read(&mut [0; 1]).await.expect_err("not an end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let (code, said) = forward.ended().await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.matches("nothing listens on port 1 in the session").count(), 2, "{said}");
    assert!(said.contains("hint: start a server in it that listens on 127.0.0.1:1"), "{said}");
    assert!(said.contains("error: the session is over"), "{said}");
    // There is none to begin with.
    let late = cluster.berth(&["port-forward", &id, good.as_str()]).await;
    assert_eq!((late.code, late.stdout.as_str()), (Some(1), ""), "{late:?}");
    assert!(late.stderr.contains("is over"), "{late:?}");
    cluster.stop().await;
}
on_both!(what_becomes_of_one_connection_concerns_no_other:
    native_what_becomes_of_one_connection_concerns_no_other,
    docker_what_becomes_of_one_connection_concerns_no_other);

/// Red when a pause cuts what is open, or lets something begin.
async fn a_pause_stands_still_and_goes_on(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let id = cluster.session().await.id;
    let session = session(&cluster, &id).await;
    let port = serve(&cluster, &id, &["python3", "-c", ECHO]).await;
    let mut open = session.connect_port(port).await.expect("it listens");
    echoes(&mut open, b"before").await;
    session.pause().await.expect("it stands");
    open.write_all(b"meanwhile").await.expect("it is taken");
    let refused = session.connect_port(port).await.expect_err("nothing begins");
    assert_eq!(refused.reason(), Some(Reason::SessionPaused));
    session.resume().await.expect("it goes on");
    let mut heard = [0; 9];
    open.read_exact(&mut heard).await.expect("it is as it was");
    assert_eq!(&heard, b"meanwhile");
    echoes(&mut open, b"after").await;
    delete(&cluster, &id).await;
    let error = open.read(&mut [0; 1]).await.expect_err("not an end");
    assert_eq!(PortStream::cause(&error).and_then(|e| e.reason()), Some(Reason::SessionEnded), "{error:?}");
    cluster.stop().await;
}
on_both!(a_pause_stands_still_and_goes_on:
    native_a_pause_stands_still_and_goes_on,
    docker_a_pause_stands_still_and_goes_on);

/// Whoever has no right to a session has none to its ports; and a right that ends, ends what is open with it, both ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_its_tenants_alone() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let token = |tenant: &'static str| {
        let cluster = &cluster;
        async move {
            let args = ["token", "create", "--tenant", tenant, "--format", "json"];
            let made: serde_json::Value = serde_json::from_str(&cluster.berth(&args).await.ok()).unwrap();
            (made["id"].as_str().unwrap().to_owned(), made["value"].as_str().unwrap().to_owned())
        }
    };
    let ((own_id, own), (_, other)) = (token("team-a").await, token("team-b").await);
    let owner = client(&cluster, &own).await;
    let session = owner.create_session(berth_client::CreateOptions::new()).await.expect("a session");
    let mut open = session.connect_port(7).await.expect("it is its own");
    echoes(&mut open, b"mine").await;
    let theirs = client(&cluster, &other).await.session(session.id());
    let refused = theirs.connect_port(7).await.expect_err("it is not theirs");
    assert_eq!(refused.reason(), Some(Reason::SessionNotFound), "{refused:?}");

    cluster.berth(&["token", "revoke", &own_id]).await.ok();
    let error = open.read(&mut [0; 1]).await.expect_err("not an end");
    let cause = PortStream::cause(&error).expect("it is told why");
    assert_eq!(cause.reason(), Some(Reason::TokenRevoked), "{cause:?}");
    // What it says now goes nowhere.
    let said = async { while open.write_all(&[0; 1 << 16]).await.is_ok() {} };
    tokio::time::timeout(READY, said).await.expect("nobody takes it");
    // And it is in the record, with the port.
    let told = cluster.berth(&["audit", "--what", "PortService/Dial", "--format", "json"]).await.ok();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let outcomes: Vec<&str> =
        told.as_array().unwrap().iter().map(|record| record["outcome"].as_str().unwrap()).collect();
    assert!(outcomes.contains(&"OK") && outcomes.contains(&"NOT_FOUND SESSION_NOT_FOUND"), "{told}");
    assert!(told.as_array().unwrap().iter().all(|record| record["details"]["port"] == "7"), "{told}");
    cluster.stop().await;
}

/// Red when an open connection counts as something that happens, or bytes do not.
async fn bytes_keep_a_session_and_an_open_connection_does_not(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let client = client(&cluster, &cluster.admin_token).await;
    let make = || client.create_session(berth_client::CreateOptions::new());
    let (silent, busy) = (make().await.expect("a session"), make().await.expect("another"));
    let mut ports = Vec::new();
    for session in [&silent, &busy] {
        let id = session.id().to_string();
        ports.push(match sandbox {
            "fake" => 7,
            // What a detached task leaves behind is nobody's task: it keeps no session from being idle.
            _ => {
                let server = ECHO.replace('"', "'");
                let line = format!(
                    "setsid python3 -c \"{server}\" > port < /dev/null 2>&1 & \
                     while ! [ -s port ]; do sleep 0.05; done; cat port"
                );
                served(&cluster, &id, v1::TaskSpec { detached: true, ..shell(&line) }).await
            }
        });
    }
    let mut open = silent.connect_port(ports[0]).await.expect("it listens");
    let mut used = busy.connect_port(ports[1]).await.expect("it listens");
    echoes(&mut open, b"once").await;
    let idle = || berth_client::UpdateOptions::new().idle_timeout(Duration::from_secs(4));
    for session in [&silent, &busy] {
        session.update(idle()).await.expect("it is told");
        echoes(&mut used, b"meanwhile").await;
    }
    let ended = async || {
        let session = state(&cluster, &silent.id().to_string()).await;
        (session.state() == SessionState::Ended).then_some(session)
    };
    let over = loop {
        echoes(&mut used, b"again").await;
        if let Some(over) = ended().await {
            break over;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(over.end_reason(), EndReason::Idle);
    let error = open.read(&mut [0; 1]).await.expect_err("not an end");
    assert_eq!(PortStream::cause(&error).and_then(|e| e.reason()), Some(Reason::SessionEnded), "{error:?}");
    echoes(&mut used, b"still").await;
    assert_eq!(state(&cluster, &busy.id().to_string()).await.state(), SessionState::Ready);
    until(READY, "the other one's end", async || {
        (state(&cluster, &busy.id().to_string()).await.end_reason() == EndReason::Idle).then_some(())
    })
    .await;
    cluster.stop().await;
}
on_both!(bytes_keep_a_session_and_an_open_connection_does_not:
    native_bytes_keep_a_session_and_an_open_connection_does_not,
    docker_bytes_keep_a_session_and_an_open_connection_does_not);

/// A client that may use the session is not to use its way out as a proxy of its own.
async fn the_way_out_is_not_a_port_for_clients(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let id = cluster.berth(&["create", "--allow", "example.org"]).await.ok().trim().to_owned();
    let session = session(&cluster, &id).await;
    let proxy = run(&cluster, &id, "echo $HTTPS_PROXY").await.0;
    let port = proxy.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let inside = format!(
        "python3 -c \"import socket; socket.create_connection(('127.0.0.1', {port}))\" && echo there"
    );
    assert_eq!(run(&cluster, &id, &inside).await.0, "there");
    let refused = session.connect_port(port).await.expect_err("it is not for clients");
    assert_eq!(refused.reason(), Some(Reason::PortRefused), "{refused:?}");
    delete(&cluster, &id).await;
    cluster.stop().await;
}
on_both!(the_way_out_is_not_a_port_for_clients:
    native_the_way_out_is_not_a_port_for_clients,
    docker_the_way_out_is_not_a_port_for_clients);

/// Red when it listens where others reach it unasked, or says nothing of a port that is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_listens_here_alone_and_says_what_it_can_not_do() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let id = cluster.session().await.id;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let local = taken.local_addr().unwrap().port();
    let pair = format!("{local}:7");
    for (code, args, says) in [
        (2, vec!["port-forward", &id, "--listen", "0.0.0.0", "0:7"], "--expose"),
        (2, vec!["port-forward", &id, "0"], "1 to 65535"),
        (2, vec!["port-forward", &id], "REMOTE"),
        (1, vec!["port-forward", &id, &pair], "0:REMOTE"),
        (1, vec!["port-forward", "nobody", "7"], "no session fits"),
    ] {
        let seen = cluster.berth(&args).await;
        assert_eq!((seen.code, seen.stdout.as_str()), (Some(code), ""), "{args:?}: {seen:?}");
        assert!(seen.stderr.contains(says), "{args:?}: {seen:?}");
    }
    let forward = Forward::start(&cluster, &[&id, "0:7"]).await;
    assert!(forward.addresses[0].starts_with("127.0.0.1:"), "{:?}", forward.addresses);
    let mut stream = TcpStream::connect(&forward.addresses[0]).await.unwrap();
    echoes(&mut stream, b"hello").await;
    assert_eq!(forward.interrupt().await.0, Some(130));
    cluster.stop().await;
}
