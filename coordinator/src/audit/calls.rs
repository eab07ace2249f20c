//! The record of a call: begun in the guard, told more by the service, ended with the answer.

use std::sync::{Arc, Mutex, PoisonError};

use berth_net::Peer;
use berth_proto::{
    error::{code_name, reason_of},
    v1, world,
};
use tokio::time::Instant;
use tonic::Status;

use super::{Argv, Audit, Record};
use crate::{auth::digest, identity::Caller};

/// Calls that only look, or belong to one that is recorded. A call that is added later is recorded until somebody has decided
/// that it need not be.
const READS: [&str; 40] = [
    "AdminService/ListWorkers",
    "AdminService/GetWorker",
    "AdminService/ListTemplates",
    "AdminService/GetInfo",
    "AdminService/WatchEvents",
    "ArtifactService/ListArtifacts",
    "ArtifactService/GetArtifact",
    "ArtifactService/ReadArtifact",
    "AuditService/ListAudit",
    "AuditService/VerifyAudit",
    "BlobService/FindMissing",
    "BlobService/PutBlobs",
    "BlobService/GetBlobs",
    "CheckpointService/ListCheckpoints",
    "CheckpointService/GetCheckpoint",
    "FileService/Read",
    "FileService/Stat",
    "FileService/List",
    "FileService/Watch",
    "FileService/Search",
    "FileService/Pack",
    "InterpreterService/ListContexts",
    "InterpreterService/WatchExecution",
    "IdentityService/ListTokens",
    "IdentityService/ListTenants",
    "IdentityService/GetTenant",
    "SecretService/ListSecrets",
    "SessionService/GetSession",
    "SessionService/ListSessions",
    "TaskService/WatchTask",
    "TaskService/GetTask",
    "TaskService/ListTasks",
    "TaskService/WaitTask",
    "TaskService/GetUsage",
    "TaskService/WriteStdin",
    "TaskService/CloseStdin",
    "TaskService/ResizePty",
    "Health/Check",
    "Health/Watch",
    "ServerReflection/ServerReflectionInfo",
];
/// Refusals of callers without a good token that are recorded in one second.
const REFUSALS: u32 = 10;

/// What is known of a call so far. A clone is the same note.
#[derive(Clone)]
pub struct Note(Arc<Open>);

struct Open {
    audit: Arc<Audit>,
    /// `None`: it is recorded.
    record: Mutex<Option<Record>>,
}

impl Note {
    fn with(&self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.0.record.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(record);
        }
    }

    /// The call, with what its service says by [`about`].
    pub async fn around<T>(&self, call: impl Future<Output = T>) -> T {
        CALL.scope(self.clone(), call).await
    }

    /// The answer begins.
    pub fn answered(&self, refused: Option<&Status>) {
        self.end(outcome(refused));
    }

    fn end(&self, outcome: String) {
        let record = self.0.record.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(record) = record {
            self.0.audit.record(Record { outcome, ..record });
        }
    }
}

impl Drop for Open {
    /// Its caller went away before there was an answer.
    fn drop(&mut self) {
        let record = self.record.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(record) = record {
            self.audit.record(Record { outcome: "CANCELLED".to_owned(), ..record });
        }
    }
}

tokio::task_local! {
    static CALL: Note;
}

/// What the call that is served now is about, if it is one that is recorded: its `session`, the `tenant` of that, its `task`, or
/// a detail of another name. Nothing that is secret.
pub fn about(name: &str, value: impl ToString) {
    let _ = CALL.try_with(|note| {
        note.with(|record| {
            let value = value.to_string();
            match name {
                "session" => record.session = value,
                "tenant" => record.tenant = value,
                "task" => record.task = value,
                _ => drop(record.details.insert(name.to_owned(), value)),
            }
        });
    });
}

/// The call that is served now starts this.
pub fn about_program(program: Option<&v1::TaskSpec>) {
    let policy = CALL.try_with(|note| note.0.audit.settings.argv);
    if let (Ok(policy), Some(program)) = (policy, program) {
        about("argv", argv(policy, program));
    }
}

impl Audit {
    /// A call begins. `path`: `/berth.v1.Service/Method`.
    pub fn call(self: &Arc<Self>, path: &str, caller: Option<&Caller>) -> Option<Note> {
        let what = what(path);
        if READS.contains(&what) {
            return None;
        }
        let mut record = Record::new(world::now(), &caller.map(who).unwrap_or_default(), what);
        record.tenant = caller.map(|caller| caller.tenant.to_string()).unwrap_or_default();
        Some(Note(Arc::new(Open { audit: self.clone(), record: Mutex::new(Some(record)) })))
    }

    /// A call is refused at the door, whatever it is.
    pub fn refused(&self, path: &str, caller: Option<&Caller>, peer: Option<&Peer>, why: &Status) {
        if caller.is_none() && !self.refusals.one_more(REFUSALS) {
            return;
        }
        let mut record = Record::new(world::now(), &caller.map(who).unwrap_or_default(), what(path));
        record.tenant = caller.map(|caller| caller.tenant.to_string()).unwrap_or_default();
        record.outcome = outcome(Some(why));
        if let Some(address) = peer.and_then(|peer| peer.address) {
            record.details.insert("peer".to_owned(), address.ip().to_canonical().to_string());
        }
        self.record(record);
    }
}

/// As an audit record names it.
fn who(caller: &Caller) -> String {
    match (&caller.token, caller.scope) {
        (Some(token), _) => token.id.to_string(),
        (None, crate::identity::Scope::Worker) => "join.token".to_owned(),
        (None, _) => "admin.token".to_owned(),
    }
}

/// `Service/Method`, without the package.
fn what(path: &str) -> &str {
    let path = path.trim_start_matches('/');
    let service = path.split('/').next().unwrap_or_default();
    &path[service.rfind('.').map_or(0, |dot| dot + 1)..]
}

fn outcome(refused: Option<&Status>) -> String {
    match refused {
        None => "OK".to_owned(),
        Some(status) => {
            let code = code_name(status.code());
            reason_of(status).map_or_else(|| code.clone(), |reason| format!("{code} {}", reason.as_str()))
        }
    }
}

/// A command line, or its hash: over the arguments one behind the other, each with a zero byte after it.
pub fn argv(policy: Argv, program: &v1::TaskSpec) -> String {
    use v1::task_spec::Program;
    let words: Vec<&str> = match &program.program {
        Some(Program::Argv(argv)) => argv.args.iter().map(String::as_str).collect(),
        Some(Program::Shell(line)) => vec!["sh", "-c", line],
        None => Vec::new(),
    };
    match policy {
        Argv::Full => words.join(" "),
        Argv::Hash => {
            let mut bytes = Vec::new();
            for word in words {
                bytes.extend_from_slice(word.as_bytes());
                bytes.push(0);
            }
            let hash = digest(&bytes);
            format!("sha256:{}", hash.iter().map(|b| format!("{b:02x}")).collect::<String>())
        }
    }
}

/// Lets through so many in a second.
#[derive(Default)]
pub struct Refusals(Mutex<Option<(Instant, u32)>>);

impl Refusals {
    fn one_more(&self, most: u32) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (since, count) =
            seen.filter(|(since, _)| now.duration_since(*since).as_secs() == 0).unwrap_or((now, 0));
        *seen = Some((since, count.saturating_add(1)));
        count < most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv_of(words: &[&str]) -> v1::TaskSpec {
        let args = words.iter().map(|word| (*word).to_owned()).collect();
        v1::TaskSpec { program: Some(v1::task_spec::Program::Argv(v1::Argv { args })), ..Default::default() }
    }

    #[test]
    fn a_command_line_is_hashed_word_by_word() {
        let of = |words: &[&str]| argv(Argv::Hash, &argv_of(words));
        assert_ne!(of(&["a", "bc"]), of(&["ab", "c"]));
        // printf 'true\0' | sha256sum
        assert_eq!(of(&["true"]), "sha256:debc2f07db78d52d2def07b7bc620d7042367501d9439a62ba09b559a98e0957");
        assert_eq!(argv(Argv::Full, &argv_of(&["a", "bc"])), "a bc");
    }

    #[test]
    fn a_path_is_told_without_its_package() {
        assert_eq!(what("/berth.v1.TaskService/Run"), "TaskService/Run");
        assert_eq!(what("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), READS[39]);
        for odd in ["", "/", "//", "/a.", "/x/y.z/w"] {
            assert!(what(odd).len() <= odd.len());
        }
    }

    /// Red when a call that is left out is renamed, or its name was misspelt.
    #[test]
    fn what_is_left_out_is_there() {
        let set =
            <prost_types::FileDescriptorSet as prost::Message>::decode(berth_proto::DESCRIPTORS).unwrap();
        let services = set.file.iter().flat_map(|file| &file.service);
        let all: Vec<String> = services
            .flat_map(|s| s.method.iter().map(move |method| format!("{}/{}", s.name(), method.name())))
            .collect();
        for left_out in READS.iter().filter(|call| call.contains("Service/")) {
            assert!(all.iter().any(|call| call == left_out), "{left_out}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refusals_is_thinned_out() {
        let refusals = Refusals::default();
        let through = |n: u32| (0..n).filter(|_| refusals.one_more(10)).count();
        assert_eq!((through(500), through(500)), (10, 0));
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert_eq!(through(500), 10);
    }
}
