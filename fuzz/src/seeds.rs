//! Inputs to begin with: real messages of today's contract, and what was once an attack. They are made here and not kept
//! as files, so that they can't fall behind the contract. `cargo run -p berth-fuzz --example seeds DIR` writes them for a
//! fuzzer to start from.

use std::time::{Duration, SystemTime};

use berth_agent::{ledger::BodyHash, wire};
use berth_checkpoint::Digest;
use berth_files::tar;
use berth_proto::{
    Epoch, Error, SessionId, TaskId,
    agent_config::{AgentConfig, Cgroups, User},
    convert::{duration_out, time_out},
    domain::{
        BackendChoice, Egress, Labels, Limits, Placement, Preset, RestoreFrom, TaskDefaultsPatch, TaskSpec,
        TemplateSpec,
    },
    transport::data_head,
    v1::{self, ArchiveKind, ArchiveRoot, archive_part::Part},
};
use berth_worker::sessions::record::Meta;
use prost::Message;
use tonic::Status;

use crate::MESSAGES;

/// An input, and the target that it is for.
pub struct Seed {
    pub target: &'static str,
    pub bytes: Vec<u8>,
}

/// All of them.
pub fn all() -> Vec<Seed> {
    [messages(), checks(), egress(), hellos(), archives(), disk(), words()].into_iter().flatten().collect()
}

fn of(target: &'static str, parts: &[&[u8]]) -> Seed {
    Seed { target, bytes: parts.concat() }
}

fn create_session() -> v1::CreateSessionRequest {
    v1::CreateSessionRequest {
        request_id: "k".into(),
        template: "base".into(),
        limits: Some(limits().into()),
        env: [("A".to_owned(), "1".to_owned())].into(),
        labels: [("name".to_owned(), "box".to_owned())].into(),
        ttl: Some(duration_out(Duration::from_secs(60))),
        worker_selector: [("zone".to_owned(), "a".to_owned())].into(),
        priority: 3,
        wait_for_place: Some(duration_out(Duration::from_millis(1500))),
        checkpoints: Some(v1::CheckpointPolicy {
            interval: Some(duration_out(Duration::from_secs(300))),
            keep: 3,
            keep_for: Some(duration_out(Duration::from_secs(3600))),
            ..Default::default()
        }),
        egress: Some(reach().into()),
        ..Default::default()
    }
}

fn limits() -> Limits {
    Limits { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30, pids: 64 }
}

fn reach() -> Egress {
    let allow = ["*.example.org:8443", "192.0.2.0/24:5432", "[2001:db8::/32]:1"];
    Egress {
        preset: Preset::Packages,
        allow: allow.iter().map(|rule| rule.parse().expect("a rule")).collect(),
    }
}

fn task_spec() -> v1::TaskSpec {
    let args = ["python3", "-c", "print(1)"].map(str::to_owned).to_vec();
    v1::TaskSpec {
        program: Some(v1::task_spec::Program::Argv(v1::Argv { args })),
        cwd: "src".into(),
        env: [("B".to_owned(), "2".to_owned())].into(),
        timeout: Some(duration_out(Duration::from_secs(9))),
        pty: true,
        pty_size: Some(v1::PtySize { cols: 80, rows: 24 }),
        ..Default::default()
    }
}

fn placement() -> Placement {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    Placement {
        session: SessionId::from_u128(1),
        epoch: Epoch(4),
        template: TemplateSpec {
            name: "base".into(),
            root: None,
            image: Some("i".into()),
            backend: BackendChoice::Auto,
            user: "user".into(),
        },
        limits: limits(),
        env: Labels::from([("A".to_owned(), "1".to_owned())]),
        created_at: at,
        expires_at: Some(at + Duration::from_secs(60)),
        expires_in: Some(Duration::from_secs(60)),
        idle_timeout: Some(Duration::from_secs(9)),
        task_defaults: TaskDefaultsPatch { timeout: Some(None), ..Default::default() },
        start_timeout: Duration::from_secs(30),
        restore: Some(RestoreFrom { checkpoint: "c".into(), root: [7; 32] }),
        fenced: true,
        checkpoint_on_drain: true,
        egress: reach(),
    }
}

fn hello() -> v1::Hello {
    v1::Hello {
        worker_id: "w-1".into(),
        process_id: "p".into(),
        instance: "i".into(),
        incarnation: 3,
        version: "0.1.0".into(),
        capacity: Some(v1::Capacity {
            cpu_millis: 2000,
            memory_bytes: 1 << 32,
            disk_bytes: 1 << 33,
            max_sessions: 9,
        }),
        running: vec![v1::RunningSession {
            session_id: SessionId::from_u128(1).to_string(),
            epoch: 4,
            state: v1::SessionState::Ready.into(),
            backend: "native".into(),
        }],
        backends: vec![v1::BackendStatus { name: "native".into(), ready: true, ..Default::default() }],
        templates: vec!["base".into()],
        ..Default::default()
    }
}

fn task() -> v1::Task {
    v1::Task {
        id: TaskId::from_u128(2).to_string(),
        session_id: SessionId::from_u128(1).to_string(),
        state: v1::TaskState::Done.into(),
        spec: Some(task_spec()),
        pid: 12,
        started_at: Some(time_out(SystemTime::UNIX_EPOCH + Duration::from_secs(5))),
        stdout: Some(v1::StreamInfo { length: 100, ..Default::default() }),
        end: Some(v1::TaskEnd {
            outcome: Some(v1::Outcome { kind: Some(v1::outcome::Kind::Exited(1)) }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// With the place of its name in front.
fn message(name: &str, message: &impl Message) -> Seed {
    let at = MESSAGES.iter().position(|known| *known == name).expect("it is one of the contract");
    of("requests", &[&[at as u8], &message.encode_to_vec()])
}

fn messages() -> Vec<Seed> {
    let id = SessionId::from_u128(1).to_string();
    let run = v1::RunRequest { session_id: id.clone(), task: Some(task_spec()), ..Default::default() };
    let write =
        v1::WriteHeader { session_id: id.clone(), path: "a/b".into(), mode: Some(0o644), make_parents: true };
    vec![
        message("CreateSessionRequest", &create_session()),
        message("RunRequest", &run),
        message("WriteRequest", &v1::WriteRequest::header(write)),
        message("WriteRequest", &v1::WriteRequest::data(b"content".to_vec())),
        message(
            "ReadRequest",
            &v1::ReadRequest { session_id: id, path: "a".into(), offset: 3, length: 9, no_links: true },
        ),
        message("PlaceSession", &v1::PlaceSession::from(placement())),
        message("Hello", &hello()),
        message("Task", &task()),
        message("Manifest", &manifest()),
    ]
}

fn checks() -> Vec<Seed> {
    let check = |kind: u8, wire: Vec<u8>| of("validation", &[&[kind], &wire]);
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 1 });
    let words = "x".repeat(5000);
    let long = v1::Egress { preset: words.clone(), ..Default::default() };
    let labels = [(words.clone(), String::new())].into();
    let outcome = v1::Outcome { kind: Some(v1::outcome::Kind::Signaled(9)) };
    let list = v1::ListSessionsRequest { page_size: 9, states: vec![3], ..Default::default() };
    let (session_id, task_id) = (SessionId::from_u128(1).to_string(), TaskId::from_u128(2).to_string());
    let grace = Some(duration_out(Duration::from_secs(2)));
    let details: Status = Error::invalid("argv", "is empty").hint("name a program").into();
    let status = |message: &str, details: &[u8]| {
        of("status", &[&[3], &(message.len() as u16).to_be_bytes(), message.as_bytes(), details])
    };
    vec![
        check(0, create_session().encode_to_vec()),
        check(0, v1::CreateSessionRequest { labels, ..create_session() }.encode_to_vec()),
        check(1, task_spec().encode_to_vec()),
        check(2, v1::PlaceSession::from(placement()).encode_to_vec()),
        check(3, v1::Egress::from(reach()).encode_to_vec()),
        // A message that no header holds.
        check(3, long.encode_to_vec()),
        check(4, create_session().checkpoints.unwrap_or_default().encode_to_vec()),
        check(5, outcome.encode_to_vec()),
        check(6, v1::TemplateSpec::from(placement().template).encode_to_vec()),
        check(7, list.encode_to_vec()),
        check(8, v1::CancelTaskRequest { session_id, task_id, grace }.encode_to_vec()),
        check(9, v1::ListAuditRequest { since: at(1_700_000_000), ..Default::default() }.encode_to_vec()),
        // Before 1970, and after all that a store can hold.
        check(9, v1::ListAuditRequest { since: at(-5), ..Default::default() }.encode_to_vec()),
        check(9, v1::ListAuditRequest { until: at(i64::MAX - 1), ..Default::default() }.encode_to_vec()),
        status("argv: is empty", details.details()),
        status(&words, details.details()),
        status("not ours", b""),
    ]
}

fn egress() -> Vec<Seed> {
    let hosts = [
        "EXAMPLE.org.",
        "*.example.org:8443",
        "192.0.2.0/24:5432",
        "[2001:db8::/32]:1",
        "2001:db8::/32",
        "[::ffff:10.0.0.1]:80",
        "::ffff:10.0.0.1",
        "127.1",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "a.0x",
        "1.2.3.4.",
        "xn--bcher-kva.example:443",
        "*",
        "a_b.example",
        "-a.example",
        "[::1%25lo]:443",
        "10.0.0.0/0",
        "[::/0]:1",
    ];
    let requests = [
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
        "CONNECT [2001:db8::1]:443 HTTP/1.0\r\n\r\n",
        "POST HTTP://A.example/p?q=1 HTTP/1.0\r\nhOST: a.example:80\r\nContent-Length: 3\r\n\
            Proxy-Authorization: Basic eA==\r\nConnection: x-secret, close\r\nX-Secret: 1\r\nAccept: */*\r\n\r\nabcGET",
        "GET http://a.example:8080?x HTTP/1.1\r\nHost: a.example:8080\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nClose: x\r\n\r\n",
        "GET http://a@b.example/#x HTTP/1.1\nHost: b.example\n\n",
    ];
    let hosts = hosts.iter().map(|host| of("egress_rules", &[host.as_bytes()]));
    hosts.chain(requests.iter().map(|head| of("proxy_request", &[head.as_bytes()]))).collect()
}

/// What rustls says as a client, and the same in small records.
fn hellos() -> Vec<Seed> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("it has some")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let config = std::sync::Arc::new(config);
    let mut seeds = Vec::new();
    for name in ["a.example", "xn--bcher-kva.example", "192.0.2.1"] {
        let server = rustls::pki_types::ServerName::try_from(name).expect("a name");
        let mut client = rustls::ClientConnection::new(config.clone(), server).expect("it can be made");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("a hello can be written");
        let cut = hello[5..].chunks(40).flat_map(|part| [&[22, 3, 1, 0, part.len() as u8], part].concat());
        let cut: Vec<u8> = cut.collect();
        seeds.extend([of("client_hello", &[&hello]), of("client_hello", &[&cut])]);
    }
    seeds
}

fn entry(kind: ArchiveKind, path: &str, target: &str, size: u64) -> v1::ArchiveEntry {
    v1::ArchiveEntry {
        root: ArchiveRoot::Workspace.into(),
        path: path.as_bytes().to_vec().into(),
        kind: kind.into(),
        mode: 0o755,
        mtime_ns: 1,
        size,
        target: target.as_bytes().to_vec().into(),
    }
}

fn entries() -> Vec<v1::ArchiveEntry> {
    vec![
        entry(ArchiveKind::Directory, "", "", 0),
        entry(ArchiveKind::Directory, "d", "", 0),
        entry(ArchiveKind::File, "d/f", "", 3),
        entry(ArchiveKind::HardLink, "h", "d/f", 0),
        entry(ArchiveKind::Symlink, "l", "../outside", 0),
    ]
}

fn manifest() -> v1::Manifest {
    let piece = v1::Piece { digest: Digest::of(b"abc").to_wire(), size: 3 };
    let task =
        v1::KeptTask { task: Some(task()), stdout_tail: b"tail".to_vec().into(), ..Default::default() };
    let key = v1::KeptKey {
        request_id: "k".into(),
        body: vec![1; 16].into(),
        task_id: TaskId::from_u128(2).to_string(),
    };
    v1::Manifest {
        version: 1,
        entries: entries(),
        content: vec![piece],
        tasks: vec![task],
        keys: vec![key],
        skipped: 0,
    }
}

fn archives() -> Vec<Seed> {
    let stream = |entries: Vec<v1::ArchiveEntry>| {
        let mut bytes = vec![0];
        let mut put = |part| {
            let part = v1::ArchivePart { part: Some(part) };
            bytes.extend(part.encode_length_delimited_to_vec());
        };
        for entry in entries {
            let size = entry.size as usize;
            put(Part::Entry(entry));
            if size > 0 {
                put(Part::Data(vec![b'x'; size].into()));
            }
        }
        put(Part::End(v1::ArchiveEnd::default()));
        Seed { target: "archive_import", bytes }
    };
    let root = entry(ArchiveKind::Directory, "", "", 0);
    let out = entry(ArchiveKind::Symlink, "x", "../outside", 0);
    let list =
        |count| v1::ManifestRoot { manifest: vec![v1::Piece { digest: vec![1; 32].into(), size: 9 }; count] };
    vec![
        stream(entries()),
        // Ways out.
        stream(vec![root.clone(), out.clone(), entry(ArchiveKind::File, "x/secret", "", 3)]),
        stream(vec![root.clone(), out, entry(ArchiveKind::HardLink, "h", "x/secret", 0)]),
        stream(vec![root, entry(ArchiveKind::File, "../outside/new", "", 3)]),
        of("manifest", &[&[0], b"some content, some content"]),
        of("manifest", &[&[1], &list(3).encode_to_vec()]),
        of("manifest", &[&[2], &manifest().encode_to_vec()]),
        of("manifest", &[&[3], &(0..60).collect::<Vec<u8>>()]),
        of("archive_import", &[&[1], &(0..90).collect::<Vec<u8>>()]),
        of("tarball", &[&[0, 99, 0], &tarball()]),
        of("tarball", &[&[2, 0, 1], &tarball()]),
        of("search", &[&[3, 2, 0, 3], b"o+.", &[4], b"*.rs", b"one\ntwo\nthree\n"]),
        of("search", &[&[9, 0, 1, 1], b"x", &[9], b"[!a]{b,c}", b"a\nx\n\nx"]),
    ]
}

fn tarball() -> Vec<u8> {
    let entry = |path: &[u8], kind, target: &[u8]| tar::Entry {
        path: path.to_vec(),
        kind,
        mode: 0o755,
        uid: 1000,
        gid: 1000,
        mtime: (1_700_000_000, 5),
        size: 0,
        target: target.to_vec(),
    };
    let file = tar::Entry { size: 3, ..entry(&[b'n'; 120], tar::Kind::File, b"") };
    let parts = [
        tar::header(&entry(b"d", tar::Kind::Directory, b"")),
        tar::header(&file),
        [&b"one"[..], &[0; 509]].concat(),
        tar::header(&entry(b"d/link", tar::Kind::Symlink, b"../x")),
        tar::header(&entry(b"d/again", tar::Kind::HardLink, &[b'n'; 120])),
        tar::END.to_vec(),
    ];
    parts.concat()
}

fn disk() -> Vec<Seed> {
    let body = BodyHash::of(&TaskSpec::try_from(task_spec()).expect("it is one"));
    let (body, task) = (format!("{body:?}"), TaskId::from_u128(2));
    let hash: u128 =
        body.bytes().filter(u8::is_ascii_digit).fold(0, |sum, b| sum.wrapping_mul(10) + u128::from(b));
    let line = |key: &str| format!("+ {key} {hash:032x} {task}\n");
    let ledger = format!("{}{}- 6b\n", line("6b31"), line("6b"));
    let spawn = wire::Spawn {
        pty: false,
        cwd: b"/w\xff".to_vec(),
        programs: vec![b"/bin/x".to_vec()],
        argv: vec![b"x".to_vec()],
        env: vec![b"A=1".to_vec()],
    };
    let packet = |kind: u8, bytes: &[u8]| of("packets", &[&[kind], bytes]);
    let config = AgentConfig {
        session_id: SessionId::from_u128(1).to_string(),
        backend: "native".into(),
        user: User { name: "user".into(), uid: 1000, gid: 1000, home: "/home/user".into() },
        workspace: "/workspace".into(),
        run_dir: "/.berth/run".into(),
        spool_dir: "/.berth/spool".into(),
        cgroups: Cgroups::default(),
        seccomp: true,
        spools_bytes: 1 << 20,
        writable: vec!["/tmp".into()],
        file_bytes: Some(1 << 30),
    };
    let preface = v1::DataPreface { worker_id: "w".into(), incarnation: 3, data_token: "t".into() };
    let head = data_head(&preface).expect("it is short");
    let meta = Meta::new(&placement(), berth_proto::domain::Backend::Native, false);
    let report = wire::Report {
        event: Some(wire::Event::Spawned(wire::Spawned { pid: 3, group: Some(1), guard: None })),
    };
    vec![
        of("ledger", &[ledger.as_bytes()]),
        of("ledger", &[&ledger.as_bytes()[..ledger.len() / 2]]),
        // A bit of it flipped: no text any more.
        of("ledger", &[ledger.as_bytes(), b"+ \xff\xfe\n", line("6b32").as_bytes()]),
        of(
            "spool",
            &[&[0, 1, 0, 0x20, 0, 0, 0x50, 0, 3, 1, 0, 9, 0x10, 0, 7, 0, 1, 0, 100, 3, 2, 0, 50, 1, 0]],
        ),
        of("spool", &[&[1, 0, 0, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0x10, 0, 3, 1, 0, 9, 1, 0]]),
        packet(0, &wire::packet(wire::Kind::Spawn, 7, &spawn.encode_to_vec())),
        packet(0, &wire::packet(wire::Kind::Signal, 7, &wire::Signal { signal: 15 }.encode_to_vec())),
        packet(1, &[&7u64.to_le_bytes()[..], &report.encode_to_vec()].concat()),
        packet(2, &serde_json::to_vec(&config).expect("it can be written")),
        packet(3, &head[head.len() - preface.encoded_len() - 2..]),
        packet(4, &serde_json::to_vec(&meta).expect("it can be written")),
    ]
}

fn words() -> Vec<Seed> {
    let worker = |kind: u8, wire: Vec<u8>| of("worker_words", &[&[kind], &wire]);
    let long = v1::TaskSpec { program: Some(v1::task_spec::Program::Shell("x".repeat(9000))), ..task_spec() };
    let report = v1::SessionReport {
        session_id: SessionId::from_u128(1).to_string(),
        epoch: 4,
        state: v1::SessionState::Ready.into(),
        message: "x".repeat(3000),
        ..Default::default()
    };
    let health = Some(v1::WorkerHealth { cpu_busy: 0.5, ..Default::default() });
    let beat = v1::Heartbeat { sequence: 3, health, templates: vec!["base".into()], ..Default::default() };
    let task_report = |task| v1::TaskReport { epoch: 4, task: Some(task) };
    let names = [
        "w-1.a_b",
        "default",
        "a/b",
        "/a/..",
        "616263",
        "+f",
        "native",
        "full",
        "a//b/",
        "00000000000000000000000000000001",
    ];
    let texts = [
        "a\x1b[2Jb\n",
        "\u{9b}31m\u{7f}\u{202e}x",
        "grüße, 日本",
        "a\u{61c}b",
        "1.5G",
        "500m",
        "1h30m",
        "SIGTERM",
        "80x24",
        "db.internal=10.0.0.1",
        "A=b=c",
    ];
    let mut seeds = vec![
        worker(0, hello().encode_to_vec()),
        worker(1, beat.encode_to_vec()),
        worker(2, report.encode_to_vec()),
        worker(3, task_report(task()).encode_to_vec()),
        worker(3, task_report(v1::Task { spec: Some(long), ..task() }).encode_to_vec()),
    ];
    seeds.extend(names.iter().map(|name| of("names", &[name.as_bytes()])));
    seeds.extend(texts.iter().map(|text| of("terminal", &[text.as_bytes()])));
    seeds
}
