//! The fake agent keeps the contract: what the contract suite relies on, in short.

use std::time::Duration;

use berth_proto::{
    Code, Reason, SessionId, convert,
    domain::Outcome,
    error::{detail_of, reason_of},
    v1::{
        self, agent_service_client::AgentServiceClient, file_service_client::FileServiceClient,
        task_event::Event, task_service_client::TaskServiceClient,
    },
};
use bytes::Bytes;
use tonic::transport::Channel;

use super::script::{run, shell};
use crate::{
    sandbox::{SandboxBackend, SandboxSpec, SessionDirs, fake::FakeBackend},
    sessions::record,
};

struct Fake {
    session: SessionId,
    channel: Channel,
    _backend: FakeBackend,
}

impl Fake {
    async fn start() -> Self {
        let backend = FakeBackend::new(Default::default());
        let session = SessionId::new();
        let placement = record::sample(session);
        let spec = SandboxSpec {
            session,
            template: placement.template,
            limits: placement.limits,
            files_in_memory: 0,
            dirs: SessionDirs { root: "/nowhere".into() },
        };
        let running = backend.start(&spec).await.unwrap();
        let configure = v1::ConfigureRequest {
            session_id: session.to_string(),
            epoch: 1,
            task_defaults: Some(v1::TaskDefaults { max_concurrent: Some(2), ..Default::default() }),
            ..Default::default()
        };
        AgentServiceClient::new(running.agent.clone()).configure(configure).await.unwrap();
        Self { session, channel: running.agent, _backend: backend }
    }

    fn tasks(&self) -> TaskServiceClient<Channel> {
        TaskServiceClient::new(self.channel.clone())
    }

    async fn outcome(&self, change: impl FnOnce(&mut v1::TaskSpec), line: &str) -> (String, Outcome) {
        let mut request = shell(self.session, line);
        change(request.task.as_mut().unwrap());
        let (stdout, end) = run(self.channel.clone(), request).await.unwrap();
        (stdout, end.outcome.unwrap().try_into().unwrap())
    }

    async fn start_task(&self, line: &str, change: impl FnOnce(&mut v1::TaskSpec)) -> v1::Task {
        let request = shell(self.session, line);
        let mut task = request.task.unwrap();
        change(&mut task);
        let request =
            v1::StartTaskRequest { session_id: request.session_id, task: Some(task), ..Default::default() };
        self.tasks().start_task(request).await.unwrap().into_inner()
    }

    async fn wait(&self, id: &str) -> Outcome {
        let request = v1::WaitTaskRequest {
            session_id: self.session.to_string(),
            task_id: id.to_owned(),
            timeout: None,
        };
        let task = self.tasks().wait_task(request).await.unwrap().into_inner();
        task.end.unwrap().outcome.unwrap().try_into().unwrap()
    }
}

#[tokio::test]
async fn every_way_to_end() {
    let fake = Fake::start().await;
    let (out, outcome) = fake.outcome(|_| {}, "echo a && printf 'b\\n'; exit 7").await;
    assert_eq!((out.as_str(), outcome), ("a\nb\n", Outcome::Exited(7)));
    assert_eq!(fake.outcome(|_| {}, "nonsense").await.1, Outcome::Exited(127));
    assert_eq!(fake.outcome(|_| {}, "kill -11 $$").await.1, Outcome::Signaled(11));
    assert_eq!(fake.outcome(|_| {}, "oom").await.1, Outcome::OutOfMemory);
    let brief = Some(convert::duration_out(Duration::from_millis(30)));
    assert_eq!(fake.outcome(|t| t.timeout = brief, "sleep 1000").await.1, Outcome::TimedOut);
    let (out, outcome) = fake.outcome(|t| t.output_limit = 1000, "yes").await;
    assert_eq!((out.len(), outcome), (1000, Outcome::OutputLimit));
    let task = fake.start_task("sleep 1000", |_| {}).await;
    let cancel =
        v1::CancelTaskRequest { session_id: fake.session.to_string(), task_id: task.id.clone(), grace: None };
    fake.tasks().cancel_task(cancel.clone()).await.unwrap();
    assert_eq!(fake.wait(&task.id).await, Outcome::Cancelled);
    fake.tasks().cancel_task(cancel).await.expect("cancelling what is done changes nothing");
    // An attached task that nobody watches, and a detached one.
    let none = Some(convert::duration_out(Duration::from_millis(1)));
    let alone = fake.start_task("sleep 1000", |t| t.reattach_grace = none).await;
    assert_eq!(fake.wait(&alone.id).await, Outcome::Cancelled);
    let detached = fake
        .start_task("sleep 1000", |t| {
            t.reattach_grace = none;
            t.detached = true;
        })
        .await;
    let signal = v1::SignalTaskRequest {
        session_id: fake.session.to_string(),
        task_id: detached.id.clone(),
        signal: 15,
    };
    fake.tasks().signal_task(signal).await.unwrap();
    assert_eq!(fake.wait(&detached.id).await, Outcome::Signaled(15));
}

#[tokio::test]
async fn output_is_resumed_by_offset_and_its_loss_is_told() {
    let fake = Fake::start().await;
    let task = fake.start_task("echo 0123456789; echo err >&2", |_| {}).await;
    fake.wait(&task.id).await;
    let watch = |stdout_offset| v1::WatchTaskRequest {
        session_id: fake.session.to_string(),
        task_id: task.id.clone(),
        stdout_offset,
        ..Default::default()
    };
    let mut events = fake.tasks().watch_task(watch(4)).await.unwrap().into_inner();
    let (mut stdout, mut stderr, mut last) = (Vec::new(), Vec::new(), None);
    while let Some(event) = events.message().await.unwrap() {
        match event.event.clone() {
            Some(Event::Stdout(chunk)) => {
                assert_eq!(chunk.offset, 4);
                stdout.extend(chunk.data);
            }
            Some(Event::Stderr(chunk)) => stderr.extend(chunk.data),
            _ => {}
        }
        last = event.event;
    }
    assert_eq!((&stdout[..], &stderr[..]), (&b"456789\n"[..], &b"err\n"[..]));
    assert!(matches!(last, Some(Event::Ended(_))));
    let beyond = fake.tasks().watch_task(watch(12)).await.unwrap_err();
    assert_eq!((beyond.code(), reason_of(&beyond)), (Code::OutOfRange, Some(Reason::OffsetBeyondEnd)));

    let small = fake
        .start_task("yes", |t| {
            t.spool_bytes = 64 << 10;
            t.output_limit = 200_000;
        })
        .await;
    fake.wait(&small.id).await;
    let from_start = v1::WatchTaskRequest {
        session_id: fake.session.to_string(),
        task_id: small.id,
        ..Default::default()
    };
    let lost = fake.tasks().watch_task(from_start).await.unwrap_err();
    assert_eq!((lost.code(), reason_of(&lost)), (Code::OutOfRange, Some(Reason::OutputLost)));
    assert_eq!(detail_of(&lost, "first_kept").unwrap(), (200_000 - (64 << 10)).to_string());
}

#[tokio::test]
async fn stdin_request_ids_and_the_cap_on_tasks() {
    let fake = Fake::start().await;
    let session_id = fake.session.to_string();
    let task = fake.start_task("cat", |t| t.stdin = true).await;
    let write = |offset, data: &'static [u8]| v1::WriteStdinRequest {
        session_id: session_id.clone(),
        task_id: task.id.clone(),
        offset,
        data: Bytes::from_static(data),
    };
    assert_eq!(fake.tasks().write_stdin(write(Some(0), b"abc")).await.unwrap().into_inner().offset, 3);
    // A retry that overlaps is taken once.
    assert_eq!(fake.tasks().write_stdin(write(Some(1), b"bcde")).await.unwrap().into_inner().offset, 5);
    let close = v1::CloseStdinRequest { session_id: session_id.clone(), task_id: task.id.clone() };
    fake.tasks().close_stdin(close).await.unwrap();
    assert_eq!(fake.wait(&task.id).await, Outcome::Exited(0));
    let get = v1::GetTaskRequest { session_id: session_id.clone(), task_id: task.id.clone() };
    assert_eq!(fake.tasks().get_task(get).await.unwrap().into_inner().stdout.unwrap().length, 5);

    let mut keyed = v1::StartTaskRequest {
        session_id: session_id.clone(),
        task: shell(fake.session, "sleep 1000").task,
        request_id: "k".to_owned(),
        ..Default::default()
    };
    let one = fake.tasks().start_task(keyed.clone()).await.unwrap().into_inner();
    let same = fake.tasks().start_task(keyed.clone()).await.unwrap().into_inner();
    assert_eq!(one.id, same.id);
    keyed.task = shell(fake.session, "true").task;
    let other = fake.tasks().start_task(keyed).await.unwrap_err();
    assert_eq!(reason_of(&other), Some(Reason::RequestIdReused));
    fake.start_task("sleep 1000", |_| {}).await;
    let third = run(fake.channel.clone(), shell(fake.session, "true")).await.unwrap_err();
    assert_eq!((third.code(), reason_of(&third)), (Code::ResourceExhausted, Some(Reason::TooManyTasks)));
    let list = v1::ListTasksRequest { session_id, page_size: 2, ..Default::default() };
    let page = fake.tasks().list_tasks(list).await.unwrap().into_inner();
    assert_eq!(page.tasks.len(), 2);
    assert!(!page.next_page_token.is_empty() && page.tasks[0].id > page.tasks[1].id);
}

#[tokio::test]
async fn files_are_written_listed_moved_and_removed() {
    let fake = Fake::start().await;
    let session_id = fake.session.to_string();
    let mut files = FileServiceClient::new(fake.channel.clone());
    let data: Vec<u8> = (0..600_000u32).map(|i| i as u8).collect();
    let header = v1::WriteHeader {
        session_id: session_id.clone(),
        path: "a/b.bin".to_owned(),
        mode: Some(0o600),
        make_parents: true,
    };
    let part = |part| v1::WriteRequest { part: Some(part) };
    let mut messages = vec![part(v1::write_request::Part::Header(header))];
    messages
        .extend(data.chunks(100_000).map(|c| part(v1::write_request::Part::Data(Bytes::copy_from_slice(c)))));
    messages.push(v1::WriteRequest::end());
    let info = files.write(futures::stream::iter(messages)).await.unwrap().into_inner();
    assert_eq!((info.size, info.mode), (600_000, 0o600));

    let read = v1::ReadRequest {
        session_id: session_id.clone(),
        path: "/workspace/a/b.bin".into(),
        offset: 5,
        length: 300_000,
        no_links: false,
    };
    let mut parts = files.read(read).await.unwrap().into_inner();
    let mut got = Vec::new();
    while let Some(message) = parts.message().await.unwrap() {
        if let Some(v1::read_response::Part::Data(chunk)) = message.part {
            got.extend(chunk);
        }
    }
    assert_eq!(got, data[5..300_005]);

    let list =
        v1::ListRequest { session_id: session_id.clone(), path: ".".into(), depth: 2, ..Default::default() };
    let entries = files.list(list.clone()).await.unwrap().into_inner().entries;
    assert_eq!(entries.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["a", "a/b.bin"]);
    let first = files.list(v1::ListRequest { page_size: 1, ..list.clone() }).await.unwrap().into_inner();
    let second = v1::ListRequest { page_size: 1, page_token: first.next_page_token, ..list };
    assert_eq!(files.list(second).await.unwrap().into_inner().entries[0].path, "a/b.bin");

    let moved = v1::MoveRequest {
        session_id: session_id.clone(),
        source: "a".into(),
        destination: "c".into(),
        overwrite: false,
    };
    files.r#move(moved).await.unwrap();
    let stat =
        |path: &str| v1::StatRequest { session_id: session_id.clone(), path: path.into(), follow: false };
    assert_eq!(files.stat(stat("c/b.bin")).await.unwrap().into_inner().size, 600_000);
    assert_eq!(reason_of(&files.stat(stat("a")).await.unwrap_err()), Some(Reason::FileNotFound));
    let remove = v1::RemoveRequest { session_id: session_id.clone(), path: "c".into(), recursive: false };
    let full = files.remove(remove.clone()).await.unwrap_err();
    assert_eq!(reason_of(&full), Some(Reason::DirectoryNotEmpty));
    files.remove(v1::RemoveRequest { recursive: true, ..remove }).await.unwrap();
    assert!(files.stat(stat("c")).await.is_err());
}
