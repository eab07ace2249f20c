//! Messages: reading them, and checking what they ask for.

use std::fmt::Debug;

use berth_proto::{
    DESCRIPTORS, Error,
    convert::{self, bounds},
    domain::{
        CheckpointPolicy, ContextSpec, CreateSession, Egress, Execution, Limits, LimitsPatch, Outcome,
        Placement, Program, PtySize, TaskDefaultsPatch, TaskSpec, TemplateSpec,
    },
    error::{HINT_MAX, MESSAGE_MAX, detail_of, from_status, reason_of},
    v1,
};
use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::input::Input;

macro_rules! messages {
    ($($name:ident)*) => {
        /// All messages of the contract. A new one goes to the end: an input's first byte is a place in this list.
        pub const MESSAGES: &[&str] = &[$(stringify!($name)),*];
        const READERS: &[fn(&[u8])] = &[$(read_and_write::<v1::$name>),*];
    };
}

messages! {
    Capacity BackendStatus WorkerHealth Canary TemplateProblem Worker ListWorkersRequest ListWorkersResponse
    GetWorkerRequest CordonRequest UncordonRequest DrainRequest SetBackendRequest WorkerProblem Template
    ListTemplatesRequest ListTemplatesResponse GetInfoRequest Info WatchEventsRequest Event BackupRequest
    BackupChunk ConfigureRequest Door Fence ConfigureResponse WatchAgentRequest AgentEvent FreezeRequest
    FreezeResponse RenewRequest RenewResponse ExportRequest ImportResponse ShutdownRequest ShutdownResponse
    AuditRecord ListAuditRequest ListAuditResponse VerifyAuditRequest VerifyAuditResponse Checkpoint
    CheckpointSessionRequest ListCheckpointsRequest ListCheckpointsResponse GetCheckpointRequest
    DeleteCheckpointRequest DeleteCheckpointResponse RestoreSessionRequest ForkSessionRequest
    ForkSessionResponse FindMissingRequest FindMissingResponse Blob PutBlobsResponse GetBlobsRequest
    ArchivePart ArchiveEntry ArchiveEnd Manifest Piece KeptTask KeptKey ManifestRoot Limits TaskDefaults
    PtySize Egress Outcome Usage FileInfo ReadRequest ReadResponse WriteRequest WriteEnd WriteHeader
    StatRequest ListRequest ListResponse MakeDirRequest MoveRequest RemoveRequest RemoveResponse Token
    CreateTokenRequest CreateTokenResponse ListTokensRequest ListTokensResponse RevokeTokenRequest Quota
    Tenant SetQuotaRequest ListTenantsRequest ListTenantsResponse GetTenantRequest Session CheckpointPolicy
    CreateSessionRequest GetSessionRequest ListSessionsRequest ListSessionsResponse UpdateSessionRequest
    PauseSessionRequest ResumeSessionRequest DeleteSessionRequest Argv TaskSpec StreamInfo Task TaskEnd
    TaskEvent OutputChunk RunRequest StartTaskRequest WatchTaskRequest GetTaskRequest ListTasksRequest
    ListTasksResponse WaitTaskRequest WriteStdinRequest WriteStdinResponse CloseStdinRequest
    CloseStdinResponse ResizePtyRequest ResizePtyResponse SignalTaskRequest SignalTaskResponse
    CancelTaskRequest TakeCheckpointRequest Parting TakeCheckpointResponse WorkerMessage EgressDecisions
    EgressDecision CoordinatorMessage Hello RunningSession Welcome TemplateSpec Heartbeat Leaving
    CredentialKept Stopping LeaseRenewed PlaceSession RestoreFrom EndSession PauseCommand UpdateCommand
    SetBackendCommand Cordoned SessionReport TaskReport DataPreface
    SecretUse SecretValue Secret SetSecretRequest ListSecretsRequest
    ListSecretsResponse DeleteSecretRequest DeleteSecretResponse
    DialRequest DialHeader DialEnd DialResponse DialConnected
    InterpreterContext CreateContextRequest ListContextsRequest ListContextsResponse ExecuteRequest
    WatchExecutionRequest ExecuteEvent MimeBundle ExecutionEnded InterruptContextRequest
    InterruptContextResponse RestartContextRequest DeleteContextRequest DeleteContextResponse
    ExecutionStarted ExecutionError MimeData
    WatchRequest WatchEvent FileChange
    Artifact ListArtifactsRequest ListArtifactsResponse NotKept GetArtifactRequest ReadArtifactRequest
    ReadArtifactResponse DeleteArtifactRequest DeleteArtifactResponse
    GetUsageRequest SessionUsage
    SearchRequest SearchEvent SearchMatch SearchEnd PackRequest PackResponse PackEnd UnpackRequest UnpackHeader
    UnpackEnd UnpackResponse
    EgressCarried
}

/// Every message of the contract is read or refused, and what was read is what was written of it again.
pub fn requests(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    READERS[input.choice(READERS.len())](input.rest());
}

fn read_and_write<M: Message + Default + Clone + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    let written = message.encode_to_vec();
    assert_eq!(written.len(), message.encoded_len());
    let read = M::decode(&*written).expect("what was written is read");
    // A number that is none is not equal to itself.
    #[allow(clippy::eq_op)]
    if message == message {
        assert_eq!(read, message, "it is the same again");
    }
}

/// What the descriptors say that there is.
pub fn messages_of_the_contract() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).expect("it is one");
    let ours = set.file.iter().filter(|file| file.package() == "berth.v1");
    ours.flat_map(|file| &file.message_type).map(|message| message.name().to_owned()).collect()
}

/// What passes the conversion is within its bounds and survives the wire; what does not is refused in few words.
pub fn validation(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.choice(12);
    let wire = input.rest();
    match kind {
        0 => drop(checked(wire, create_session)),
        1 => drop(checked(wire, task_spec)),
        2 => drop(checked(wire, placement)),
        3 => drop(checked(wire, |wire: v1::Egress| {
            let egress = Egress::try_from(wire)?;
            assert!(egress.allow.len() <= bounds::EGRESS_RULES);
            assert_eq!(Egress::try_from(v1::Egress::from(egress.clone()))?, egress);
            Ok(())
        })),
        4 => drop(checked(wire, |wire: v1::CheckpointPolicy| {
            let policy = CheckpointPolicy::try_from(wire)?;
            assert!(policy.interval.is_none_or(|every| every >= bounds::CHECKPOINT_INTERVAL_MIN));
            assert_eq!(CheckpointPolicy::try_from(v1::CheckpointPolicy::from(policy))?, policy);
            Ok(())
        })),
        5 => drop(checked(wire, |wire: v1::Outcome| {
            let outcome = Outcome::try_from(wire)?;
            assert_eq!(Outcome::try_from(v1::Outcome::from(outcome))?, outcome);
            Ok(())
        })),
        6 => drop(checked(wire, |wire: v1::TemplateSpec| {
            let spec = TemplateSpec::try_from(wire)?;
            assert_eq!(TemplateSpec::try_from(v1::TemplateSpec::from(spec.clone()))?, spec);
            Ok(())
        })),
        7 => drop(checked(wire, |wire: v1::ListSessionsRequest| {
            let size = convert::page_size(wire.page_size, bounds::PAGE_DEFAULT)?;
            assert!((1..=bounds::PAGE_MAX as usize).contains(&size));
            wire.states.iter().try_for_each(|state| convert::session_state("states", *state).map(drop))?;
            within_labels(&convert::labels("labels", wire.labels)?);
            Ok(())
        })),
        8 => drop(checked(wire, |wire: v1::CancelTaskRequest| {
            assert!(convert::grace(wire.grace)? <= bounds::GRACE_MAX);
            convert::session_id(&wire.session_id)?;
            convert::task_id(&wire.task_id).map(|_| ())
        })),
        9 => drop(checked(wire, |wire: v1::ListAuditRequest| {
            for at in [wire.since, wire.until].into_iter().flatten() {
                let time = convert::time("since", at)?;
                assert!(time >= std::time::UNIX_EPOCH, "a time before 1970 is refused");
                assert_eq!(convert::time("since", convert::time_out(time))?, time);
                // What is done with times: a deadline some time after it, and a column of microseconds.
                assert!(time.checked_add(bounds::DURATION_MAX).is_some());
                let since = time.duration_since(std::time::UNIX_EPOCH).expect("it is not before");
                assert!(i64::try_from(since.as_micros()).is_ok(), "a time has its place in a store");
            }
            Ok(())
        })),
        10 => drop(checked(wire, |wire: v1::CreateContextRequest| {
            let spec = ContextSpec::try_from(wire)?;
            within_env(&spec.env);
            assert!(!spec.cwd.contains('\0') && spec.cwd.len() <= bounds::PATH);
            assert!(!spec.executable.is_empty() && !spec.executable.contains('\0'));
            assert!(spec.executable.len() <= bounds::PATH);
            Ok(())
        })),
        _ => drop(checked(wire, |wire: v1::ExecuteRequest| {
            let execution = Execution::try_from(wire)?;
            assert!(execution.code.len() <= bounds::CODE);
            assert!((1..=bounds::EXECUTION_OUTPUT_MAX).contains(&execution.output_limit));
            Ok(())
        })),
    }
}

/// Reads a message and checks it; what is wrong with it is told in few words.
fn checked<M: Message + Default>(bytes: &[u8], check: impl FnOnce(M) -> Result<(), Error>) -> Option<()> {
    check(M::decode(bytes).ok()?).map_err(told).ok()
}

/// An error goes out with a hint, and fits into the headers of an answer.
fn told(error: Error) {
    assert!(!error.message().is_empty());
    let (code, reason) = (error.code(), error.reason());
    let status = Status::from(error);
    assert_eq!((status.code(), reason_of(&status)), (code, Some(reason)));
    bounded(&status);
}

/// Percent-encoded and in base 64, with room for the other headers, below `HEADERS_LIMIT`.
fn bounded(status: &Status) {
    assert!(status.message().len() <= MESSAGE_MAX, "a message of {} bytes", status.message().len());
    let hint = detail_of(status, "hint").expect("there is a hint");
    assert!((1..=HINT_MAX).contains(&hint.len()), "a hint of {} bytes", hint.len());
    assert!(3 * status.message().len() + status.details().len() * 4 / 3 < 15 << 10);
}

fn within_labels(labels: &std::collections::BTreeMap<String, String>) {
    assert!(labels.len() <= bounds::LABELS);
    for (name, value) in labels {
        assert!((1..=bounds::LABEL).contains(&name.len()) && value.len() <= bounds::LABEL);
    }
}

fn within_env(env: &std::collections::BTreeMap<String, String>) {
    let total: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    assert!(total <= bounds::ENV_TOTAL);
    for (name, value) in env {
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'), "{name:?}");
    }
}

fn within_limits(limits: &Limits) {
    assert!((bounds::CPU_MILLIS_MIN..=bounds::CPU_MILLIS_MAX).contains(&limits.cpu_millis));
    assert!((bounds::MEMORY_MIN..=bounds::MEMORY_MAX).contains(&limits.memory_bytes));
    assert!((bounds::DISK_MIN..=bounds::DISK_MAX).contains(&limits.disk_bytes));
    assert!((bounds::PIDS_MIN..=bounds::PIDS_MAX).contains(&limits.pids));
}

fn create_session(wire: v1::CreateSessionRequest) -> Result<(), Error> {
    let create = CreateSession::try_from(wire)?;
    within_env(&create.env);
    within_labels(&create.labels);
    within_labels(&create.worker_selector);
    assert!((-bounds::PRIORITY..=bounds::PRIORITY).contains(&create.priority));
    assert!(create.request_id.is_none_or(|id| (1..=bounds::REQUEST_ID).contains(&id.len())));
    assert!(create.wait_for_place <= bounds::DURATION_MAX && !create.template.is_empty());
    let LimitsPatch { cpu_millis, memory_bytes, disk_bytes, pids } = create.limits;
    let usual = Limits { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30, pids: 512 };
    within_limits(&LimitsPatch { cpu_millis, memory_bytes, disk_bytes, pids }.over(usual));
    let defaults = TaskDefaultsPatch::try_from(v1::TaskDefaults::from(create.task_defaults))?;
    assert_eq!(defaults, create.task_defaults, "they survive the wire");
    Ok(())
}

fn task_spec(wire: v1::TaskSpec) -> Result<(), Error> {
    let spec = TaskSpec::try_from(wire)?;
    within_env(&spec.env);
    assert!(!spec.cwd.contains('\0') && spec.cwd.len() <= bounds::PATH);
    assert!((bounds::SPOOL_MIN..=bounds::SPOOL_MAX).contains(&spec.spool_bytes));
    assert!(spec.output_limit != Some(0));
    if let Some(Some(PtySize { cols, rows })) = spec.pty {
        assert!(cols > 0 && rows > 0 && spec.stdin);
    }
    match spec.program {
        Program::Argv(args) => {
            assert!(!args[0].is_empty() && !args.iter().any(|arg| arg.contains('\0')));
            assert!(args.iter().all(|arg| arg.len() < bounds::ARG));
        }
        Program::Shell(line) => {
            assert!(!line.contains('\0') && line.len() < bounds::ARG && !line.trim().is_empty());
        }
    }
    Ok(())
}

fn placement(wire: v1::PlaceSession) -> Result<(), Error> {
    let placement = Placement::try_from(wire)?;
    within_env(&placement.env);
    within_limits(&placement.limits);
    let again = Placement::try_from(v1::PlaceSession::from(placement.clone()))?;
    assert_eq!(again, placement, "it survives the wire");
    Ok(())
}

/// A status of another's making is read without harm, is passed on within bounds, and means the same one hop further.
pub fn status(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let code = Code::from_i32(i32::from(input.byte() % 20));
    let length = input.short();
    let message = String::from_utf8_lossy(input.take(length)).into_owned();
    let foreign = Status::with_details(code, message, Bytes::copy_from_slice(input.rest()));
    let error = from_status(&foreign, berth_proto::Reason::Internal);
    if let Some(reason) = reason_of(&foreign) {
        assert_eq!((error.code(), error.reason()), (code, reason), "what it says counts");
    }
    if code == Code::Ok {
        return;
    }
    let (code, reason) = (error.code(), error.reason());
    let passed_on = Status::from(error);
    bounded(&passed_on);
    let again = from_status(&passed_on, berth_proto::Reason::Unsupported);
    assert_eq!((again.code(), again.reason()), (code, reason), "it means the same");
    assert_eq!(again.message(), passed_on.message());
    assert_eq!(again.hint_text().map(str::to_owned), detail_of(&passed_on, "hint"));
}
