//! One look into a session: what is there, what of it is new, and what becomes of that.
//!
//! What is there was arranged by a task, and may change while it is looked at. So the directory is reached through no
//! link, nothing is read but regular files, and everything has a bound: entries, depth, bytes, time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use berth_checkpoint::Digest;
use berth_proto::{
    Code, Error, Reason, SessionId, TaskId,
    convert::time_out,
    media,
    transport::MESSAGE_LIMIT,
    v1::{self, file_service_client::FileServiceClient, task_service_client::TaskServiceClient},
    world,
};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use super::{Artifacts, DIRECTORY, fetch::Content};
use crate::{
    audit::{BERTH, Record},
    checkpoints::{Added, Known, NewArtifact, Room, unkept},
    fleet::Session,
    tenant::Sight,
};

/// Entries of the directory that are looked at, subdirectories and what is in them included.
const ENTRIES_MAX: u32 = 1000;
/// Levels of directories.
const DEPTH: u32 = 8;
/// Bytes of a name.
const NAME_MAX: usize = 512;
/// Files that were not kept, of those that are told.
const TOLD_MAX: usize = 100;
/// For the worker to be reached: one that is away now is not waited for.
const CHANNEL_WITHIN: Duration = Duration::from_secs(1);
/// For each call of it but the reading of a file.
const CALL_WITHIN: Duration = Duration::from_secs(4);
/// Tasks among which those are looked for that have ended.
const TASKS: u32 = 100;
/// A file that changes while it is read is read so often.
const TRIES: usize = 3;

/// The way into one session.
pub(super) struct Inside {
    pub session: SessionId,
    pub channel: Channel,
}

impl Inside {
    pub fn files(&self) -> FileServiceClient<Channel> {
        FileServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }
}

/// A regular file that is to be kept.
pub(super) struct Found {
    pub name: String,
    pub size: u64,
}

/// Why a file is not kept: for people, and whether the rest need not be tried.
pub(super) enum Refused {
    Because(String),
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Of one look: what it left out.
#[derive(Default)]
struct LeftOut {
    told: Vec<v1::NotKept>,
    more: u64,
}

impl LeftOut {
    fn add(&mut self, name: &str, size: u64, why: impl Into<String>) {
        if self.told.len() < TOLD_MAX {
            let cut = name.floor_char_boundary(NAME_MAX);
            self.told.push(v1::NotKept { name: name[..cut].to_owned(), size, why: why.into() });
        } else {
            self.more += 1;
        }
    }

    fn into_wire(self) -> v1::ListArtifactsResponse {
        v1::ListArtifactsResponse { not_kept: self.told, more_not_kept: self.more, ..Default::default() }
    }
}

/// A status of the worker's, in our words.
pub(super) fn from_status(status: &tonic::Status) -> Error {
    berth_proto::error::from_status(status, Reason::AgentUnreachable)
}

fn late<T>(_: T) -> Error {
    Error::unavailable(Reason::AgentUnreachable, "the session's agent does not answer in time")
}

/// A file's time in nanoseconds since 1970.
pub(super) fn nanos(info: &v1::FileInfo) -> i64 {
    info.modified_at
        .map_or(0, |at| at.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(at.nanos)))
}

impl Artifacts {
    async fn inside(&self, session: &Session) -> Result<Inside, Error> {
        let worker = session.worker.as_ref().ok_or_else(crate::fleet::not_ready)?;
        let channel = self.shared.links.channel(worker, Instant::now() + CHANNEL_WITHIN).await?;
        Ok(Inside { session: session.id, channel })
    }

    fn session(&self, id: SessionId) -> Result<std::sync::Arc<Session>, Error> {
        self.shared.view.session(&Sight::All, &id).ok_or_else(|| crate::fleet::no_session(&id))
    }

    /// Of the newest tasks those that have ended, as the agent knows it: it knows first.
    pub(super) async fn done_tasks(&self, session: SessionId) -> Result<BTreeSet<TaskId>, Error> {
        let inside = self.inside(&*self.session(session)?).await?;
        let mut tasks = TaskServiceClient::new(inside.channel).max_decoding_message_size(MESSAGE_LIMIT);
        let request =
            v1::ListTasksRequest { session_id: session.to_string(), page_size: TASKS, ..Default::default() };
        let listed = timeout(CALL_WITHIN, tasks.list_tasks(request)).await.map_err(late)?;
        let listed = listed.map_err(|status| from_status(&status))?.into_inner().tasks;
        let done = listed.iter().filter(|task| task.state() == v1::TaskState::Done);
        Ok(done.filter_map(|task| task.id.parse().ok()).collect())
    }

    /// Keeps what is new. `task`: at whose end it is found.
    pub(super) async fn look(&self, id: SessionId, task: Option<TaskId>) -> Result<(), Error> {
        let session = self.session(id)?;
        let inside = self.inside(&session).await?;
        let (entries, more) = match entries_of(&inside).await {
            Ok(listed) => listed,
            // Most sessions have no such directory, and in some it is something else.
            Err(error) if matches!(error.code(), Code::NotFound) => (Vec::new(), false),
            Err(error) => match error.reason() {
                Reason::FileKind | Reason::FileDenied => {
                    let mut left_out = LeftOut::default();
                    left_out.add(DIRECTORY, 0, "it is no directory that may be read");
                    return self.note(&session, left_out).await;
                }
                _ => return Err(error),
            },
        };
        let catalog = &self.checkpoints.catalog;
        if self.settings.quota.bytes == 0 && !entries.is_empty() {
            let mut left_out = LeftOut::default();
            left_out.add(
                DIRECTORY,
                0,
                "no artifacts are kept here: the operator says so (BERTH_ARTIFACT_QUOTA)",
            );
            return self.note(&session, left_out).await;
        }
        let known = world::on_thread(catalog.known_artifacts(id)).await.map_err(unkept)?;
        let mut left_out = LeftOut::default();
        let found = new_files(entries, &known, self.settings.file_bytes, &mut left_out);
        if more {
            left_out.add(DIRECTORY, 0, format!("only the first {ENTRIES_MAX} entries in it are looked at"));
        }
        let names: BTreeSet<String> = found.iter().map(|(found, _)| found.name.clone()).collect();
        for (found, _) in found.into_iter().filter(|(_, new)| *new) {
            match self.keep(&session, &inside, &found, known.get(&found.name), task).await {
                Ok(()) => {}
                Err(Refused::Because(why)) => left_out.add(&found.name, found.size, why),
                Err(Refused::Failed(error)) => {
                    let why = format!("it could not be kept so far: {}", error.message());
                    left_out.add(&found.name, found.size, why);
                    self.note(&session, left_out).await?;
                    return Err(error);
                }
            }
        }
        if !more {
            let gone = catalog.forget_gone_artifacts(session.id, &names);
            world::on_thread(gone).await.map_err(unkept)?;
        }
        self.note(&session, left_out).await
    }

    async fn note(&self, session: &Session, left_out: LeftOut) -> Result<(), Error> {
        let wire = left_out.into_wire();
        let noted =
            self.checkpoints.catalog.note_look(session.id, &session.spec.tenant, &wire, self.settings.keep);
        world::on_thread(noted).await.map_err(unkept)
    }

    /// Reads a file, stores its pieces, and enters it.
    async fn keep(
        &self,
        session: &Session,
        inside: &Inside,
        found: &Found,
        known: Option<&Known>,
        task: Option<TaskId>,
    ) -> Result<(), Refused> {
        // What can't be kept need not be read.
        let used = self.checkpoints.catalog.artifact_use(&session.spec.tenant);
        let used = world::on_thread(used).await.map_err(unkept)?;
        if used.count >= self.settings.quota.count
            || used.bytes.saturating_add(found.size) > self.settings.quota.bytes
        {
            return Err(self.full(used));
        }
        let _slot = self.slots.acquire().await.map_err(|_| Error::internal("no more artifacts are kept"))?;
        let mut tries = 0;
        loop {
            tries += 1;
            let content = self.fetch(inside, found).await?;
            let Some(content) = content else {
                if tries < TRIES {
                    continue;
                }
                return Err(Refused::Because("it changed while it was read".to_owned()));
            };
            if known.is_some_and(|known| known.sha256 == content.sha256 && known.size == content.size) {
                let same = self.checkpoints.catalog.same_artifact(session.id, &found.name, content.modified);
                return Ok(world::on_thread(same).await.map_err(unkept)?);
            }
            let new = self.new_artifact(session, found, content, task);
            let added = self.checkpoints.catalog.add_artifact(&new, self.settings.quota);
            match world::on_thread(added).await.map_err(unkept)? {
                Added::Kept => {
                    self.tell(&new);
                    return Ok(());
                }
                Added::Full(used) => return Err(self.full(used)),
                // It was found to be damaged, or swept, just now.
                Added::Missing(_) if tries < TRIES => {}
                Added::Missing(_) => {
                    return Err(Refused::Because("the blob store did not keep its content".to_owned()));
                }
            }
        }
    }

    fn new_artifact(
        &self,
        session: &Session,
        found: &Found,
        content: Content,
        task: Option<TaskId>,
    ) -> NewArtifact {
        let now = world::now();
        let shown = v1::Artifact {
            // Ids of this form grow with time.
            id: SessionId::new().to_string(),
            session_id: session.id.to_string(),
            task_id: task.map(|task| task.to_string()).unwrap_or_default(),
            name: found.name.clone(),
            size: content.size,
            sha256: hex(&content.sha256),
            media_type: media::of_name(&found.name).to_owned(),
            created_at: Some(time_out(now)),
            expires_at: Some(time_out(now + self.settings.keep)),
            tenant: session.spec.tenant.to_string(),
        };
        NewArtifact {
            shown,
            session: session.id,
            tenant: session.spec.tenant.clone(),
            sha256: content.sha256,
            modified: content.modified,
            expires_at: self.checkpoints.catalog.now() + self.settings.keep,
            pieces: content.pieces,
        }
    }

    fn tell(&self, new: &NewArtifact) {
        let shown = &new.shown;
        tracing::info!(
            session.id = shown.session_id,
            artifact.id = shown.id,
            size = shown.size,
            "artifact kept"
        );
        let mut record = Record::new(world::now(), BERTH, "artifact kept");
        record.tenant.clone_from(&shown.tenant);
        record.session.clone_from(&shown.session_id);
        record.task.clone_from(&shown.task_id);
        record.outcome = "OK".to_owned();
        let details = [
            ("artifact", shown.id.clone()),
            ("name", shown.name.clone()),
            ("size", shown.size.to_string()),
            ("sha256", shown.sha256.clone()),
        ];
        record.details = details.map(|(name, value)| (name.to_owned(), value)).into();
        self.audit.record(record);
    }

    fn full(&self, used: Room) -> Refused {
        let most = self.settings.quota;
        Refused::Because(format!(
            "the quota is reached: {} artifacts with {} bytes are kept, of at most {} with {} bytes",
            used.count, used.bytes, most.count, most.bytes
        ))
    }
}

/// The directory's first entries, and whether there are more.
async fn entries_of(inside: &Inside) -> Result<(Vec<v1::FileInfo>, bool), Error> {
    let request = v1::ListRequest {
        session_id: inside.session.to_string(),
        path: DIRECTORY.to_owned(),
        depth: DEPTH,
        page_size: ENTRIES_MAX,
        page_token: String::new(),
        no_links: true,
    };
    let page = timeout(CALL_WITHIN, inside.files().list(request)).await.map_err(late)?;
    let page = page.map_err(|status| from_status(&status))?.into_inner();
    Ok((page.entries, !page.next_page_token.is_empty()))
}

fn hex(bytes: &[u8; 32]) -> String {
    Digest(*bytes).hex()
}

/// The regular files among what is there, each with whether it is new or changed. What can't be kept is told.
fn new_files(
    entries: Vec<v1::FileInfo>,
    known: &BTreeMap<String, Known>,
    most: u64,
    left_out: &mut LeftOut,
) -> Vec<(Found, bool)> {
    let mut files = Vec::new();
    for entry in entries {
        let modified = nanos(&entry);
        let why = match entry.r#type() {
            v1::FileType::Directory => continue,
            v1::FileType::File if !entry.path_bytes.is_empty() => "its name is not UTF-8".to_owned(),
            v1::FileType::File if entry.path.len() > NAME_MAX => {
                format!("its name has more than {NAME_MAX} bytes")
            }
            v1::FileType::File if entry.size > most => format!("it has more than {most} bytes"),
            v1::FileType::File => {
                let same = |known: &Known| known.size == entry.size && known.modified == modified;
                let new = !known.get(&entry.path).is_some_and(same);
                files.push((Found { name: entry.path, size: entry.size }, new));
                continue;
            }
            v1::FileType::Symlink => "it is a symbolic link".to_owned(),
            _ => "it is no regular file".to_owned(),
        };
        left_out.add(&entry.path, entry.size, why);
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: v1::FileType, size: u64) -> v1::FileInfo {
        let at = prost_types::Timestamp { seconds: 5, nanos: 7 };
        v1::FileInfo {
            path: path.into(),
            r#type: kind.into(),
            size,
            modified_at: Some(at),
            ..Default::default()
        }
    }

    /// Red when a link is taken for a file, or a file that is known for a new one.
    #[test]
    fn what_is_new_is_told_from_what_is_known_and_what_is_none() {
        use v1::FileType::{Directory, File, Other, Symlink};
        let odd = v1::FileInfo { path_bytes: vec![0xff].into(), ..entry("\u{fffd}", File, 1) };
        let entries = vec![
            entry("d", Directory, 0),
            entry("d/new\nline", File, 10),
            entry("known", File, 3),
            entry("grown", File, 4),
            entry("link", Symlink, 9),
            entry("pipe", Other, 0),
            entry("giant", File, 1 << 40),
            entry(&"x".repeat(513), File, 1),
            odd,
        ];
        let of = |size, modified| Known { size, sha256: [0; 32], modified };
        let at = 5_000_000_007;
        let known = BTreeMap::from([("known".to_owned(), of(3, at)), ("grown".to_owned(), of(3, at))]);
        let mut left_out = LeftOut::default();
        let files = new_files(entries, &known, 100, &mut left_out);
        let told: Vec<(&str, bool)> = files.iter().map(|(f, new)| (f.name.as_str(), *new)).collect();
        assert_eq!(told, [("d/new\nline", true), ("known", false), ("grown", true)]);
        let whys: Vec<&str> = left_out.told.iter().map(|one| one.why.as_str()).collect();
        assert_eq!(
            whys,
            [
                "it is a symbolic link",
                "it is no regular file",
                "it has more than 100 bytes",
                "its name has more than 512 bytes",
                "its name is not UTF-8"
            ]
        );
    }

    /// Red when each file that was left out is told.
    #[test]
    fn what_is_left_out_is_told_of_a_few() {
        let mut left_out = LeftOut::default();
        (0..5000).for_each(|n| left_out.add(&n.to_string(), 1, "it is a symbolic link"));
        let wire = left_out.into_wire();
        assert_eq!((wire.not_kept.len(), wire.more_not_kept), (100, 4900));
    }
}
