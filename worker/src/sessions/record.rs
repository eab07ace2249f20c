//! What a session's directory says about it, so that the worker's next process can take it up:
//! `meta.json` (the placement, written before the sandbox starts) and `sandbox.json` (the
//! sandbox's [`Identity`], written once it runs). Both 0600: the environment may hold secrets.
//!
//! A directory without `meta.json` never had a session (a canary, or a start cut short): it is
//! removed. One with a record that can't be understood is kept aside, never guessed at.

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use berth_proto::{
    Epoch, SessionId,
    domain::{Backend, Egress, Labels, Limits, Placement, PtySize, RestoreFrom, TaskDefaults, TemplateSpec},
    v1, world,
};
use serde::{Deserialize, Serialize};

use crate::{
    sandbox::{Identity, SessionDirs},
    workspace::write_atomic,
};

/// Grows when a reader of today's could not read the record.
const FORMAT: u32 = 1;

/// `meta.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    format: u32,
    session: String,
    epoch: u64,
    backend: String,
    pub paused: bool,
    template: Template,
    cpu_millis: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    pids: u32,
    env: Labels,
    created_at: SystemTime,
    expires_at: Option<SystemTime>,
    /// When its time to live is over, on the clock of this boot: the wall clock may jump, and no sandbox outlives a boot.
    #[serde(default)]
    expires_boot: Option<Duration>,
    idle_timeout: Option<Duration>,
    task_timeout: Option<Duration>,
    pty_cols: u16,
    pty_rows: u16,
    max_concurrent: u32,
    start_timeout: Duration,
    #[serde(default)]
    fenced: bool,
    #[serde(default)]
    checkpoint_on_drain: bool,
    /// Its files are being restored from this: half of them is none.
    #[serde(default)]
    restoring: Option<Restoring>,
    /// Absent: none.
    #[serde(default)]
    egress: Reach,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reach {
    preset: String,
    allow: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Restoring {
    checkpoint: String,
    root: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    name: String,
    root: Option<String>,
    image: Option<String>,
    backend: String,
    user: String,
}

impl Meta {
    pub fn new(placement: &Placement, backend: Backend, paused: bool) -> Self {
        let Placement { template, limits, .. } = placement;
        let task_defaults = placement.task_defaults.over(TaskDefaults::default());
        Self {
            format: FORMAT,
            session: placement.session.to_string(),
            epoch: placement.epoch.0,
            backend: backend.to_string(),
            paused,
            template: Template {
                name: template.name.clone(),
                root: template.root.clone(),
                image: template.image.clone(),
                backend: template.backend.to_string(),
                user: template.user.clone(),
            },
            cpu_millis: limits.cpu_millis,
            memory_bytes: limits.memory_bytes,
            disk_bytes: limits.disk_bytes,
            pids: limits.pids,
            env: placement.env.clone(),
            created_at: placement.created_at,
            expires_at: placement.expires_at,
            expires_boot: placement.expires_in.map(|left| world::boot_now() + left),
            idle_timeout: placement.idle_timeout,
            task_timeout: task_defaults.timeout,
            pty_cols: task_defaults.pty_size.cols,
            pty_rows: task_defaults.pty_size.rows,
            max_concurrent: task_defaults.max_concurrent,
            start_timeout: placement.start_timeout,
            fenced: placement.fenced,
            checkpoint_on_drain: placement.checkpoint_on_drain,
            restoring: placement
                .restore
                .clone()
                .map(|from| Restoring { checkpoint: from.checkpoint, root: from.root }),
            egress: Reach {
                preset: placement.egress.preset.to_string(),
                allow: placement.egress.allow.iter().map(ToString::to_string).collect(),
            },
        }
    }

    fn placement(&self, session: SessionId) -> io::Result<(Placement, Backend)> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if self.format != FORMAT {
            return Err(bad(format!("format {} is not {FORMAT}", self.format)));
        }
        if self.session != session.to_string() {
            return Err(bad(format!("it is the record of session {}", self.session)));
        }
        let template = TemplateSpec {
            name: self.template.name.clone(),
            root: self.template.root.clone(),
            image: self.template.image.clone(),
            backend: self.template.backend.parse().map_err(|error| bad(format!("{error}")))?,
            user: self.template.user.clone(),
        };
        let placement = Placement {
            session,
            epoch: Epoch(self.epoch),
            template,
            limits: Limits {
                cpu_millis: self.cpu_millis,
                memory_bytes: self.memory_bytes,
                disk_bytes: self.disk_bytes,
                pids: self.pids,
            },
            env: self.env.clone(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            expires_in: self.expires_boot.map(|at| at.saturating_sub(world::boot_now())),
            idle_timeout: self.idle_timeout,
            task_defaults: TaskDefaults {
                timeout: self.task_timeout,
                pty_size: PtySize { cols: self.pty_cols, rows: self.pty_rows },
                max_concurrent: self.max_concurrent,
            }
            .into(),
            start_timeout: self.start_timeout,
            fenced: self.fenced,
            // A record of before that was kept says nothing of it.
            checkpoint_on_drain: self.checkpoint_on_drain || self.fenced,
            restore: self
                .restoring
                .clone()
                .map(|from| RestoreFrom { checkpoint: from.checkpoint, root: from.root }),
            egress: Egress::try_from(v1::Egress {
                preset: self.egress.preset.clone(),
                allow: self.egress.allow.clone(),
            })
            .map_err(|error| bad(format!("{error}")))?,
        };
        let backend = self.backend.parse().map_err(|error| bad(format!("{error}")))?;
        Ok((placement, backend))
    }
}

fn meta_path(dirs: &SessionDirs) -> PathBuf {
    dirs.root.join("meta.json")
}

/// Writes the placement down.
pub fn write_meta(dirs: &SessionDirs, meta: &Meta) -> io::Result<()> {
    write_atomic(&meta_path(dirs), &serde_json::to_vec_pretty(meta)?)
}

/// Writes down which sandbox it is.
pub fn write_identity(dirs: &SessionDirs, identity: &Identity) -> io::Result<()> {
    write_atomic(&dirs.identity(), &serde_json::to_vec_pretty(identity)?)
}

/// What a session's directory says.
#[derive(Debug)]
pub enum Found {
    /// No session was ever placed here.
    Nothing,
    Session {
        placement: Box<Placement>,
        backend: Backend,
        paused: bool,
        identity: Option<Identity>,
    },
    /// A record that can't be understood, and why.
    Corrupt(io::Error),
}

/// Reads a session's directory.
pub fn read(session: SessionId, dirs: &SessionDirs) -> Found {
    let meta = match std::fs::read(meta_path(dirs)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        other => other,
    };
    let identity = match std::fs::read(dirs.identity()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
    };
    let read = || -> io::Result<Found> {
        let meta: Meta = serde_json::from_slice(&meta?)?;
        let (placement, backend) = meta.placement(session)?;
        Ok(Found::Session {
            placement: Box::new(placement),
            backend,
            paused: meta.paused,
            identity: identity?,
        })
    };
    read().unwrap_or_else(Found::Corrupt)
}

#[cfg(test)]
pub(crate) fn sample(session: SessionId) -> Placement {
    Placement {
        session,
        epoch: Epoch(1),
        template: TemplateSpec {
            name: "base".to_owned(),
            root: None,
            image: None,
            backend: berth_proto::domain::BackendChoice::Auto,
            user: "user".to_owned(),
        },
        limits: Limits { cpu_millis: 100, memory_bytes: 64 << 20, disk_bytes: 16 << 20, pids: 64 },
        env: Labels::from([("A".to_owned(), "1".to_owned())]),
        created_at: SystemTime::now(),
        expires_at: Some(SystemTime::now() + Duration::from_secs(3600)),
        expires_in: Some(Duration::from_secs(3600)),
        idle_timeout: None,
        task_defaults: TaskDefaults::default().into(),
        start_timeout: Duration::from_secs(30),
        restore: None,
        fenced: false,
        checkpoint_on_drain: false,
        egress: Egress::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use berth_proto::domain::Preset;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// What is left of a life goes on while there is no worker, and no wall clock has a say. (Red when the record has
    /// the rest itself, or when it is reckoned from `expires_at`.)
    #[test]
    fn a_time_to_live_runs_on_in_the_record() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = SessionDirs { root: temp.path().to_owned() };
        let session = SessionId::new();
        let placement = Placement { expires_at: Some(SystemTime::UNIX_EPOCH), ..sample(session) };
        let mut meta = Meta::new(&placement, Backend::Fake, false);
        // Written half an hour ago.
        let written = meta.expires_boot.expect("it has an end");
        meta.expires_boot = Some(written - HOUR / 2);
        write_meta(&dirs, &meta).unwrap();
        let Found::Session { placement, .. } = read(session, &dirs) else { panic!("it can be read") };
        let left = placement.expires_in.expect("it has an end");
        assert!(left <= HOUR / 2 && left > HOUR / 4, "{left:?}");
        // One that is over is over, and not none.
        meta.expires_boot = Some(Duration::ZERO);
        write_meta(&dirs, &meta).unwrap();
        let Found::Session { placement, .. } = read(session, &dirs) else { panic!("it can be read") };
        assert_eq!(placement.expires_in, Some(Duration::ZERO));
    }

    #[test]
    fn a_placement_survives_the_disk() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = SessionDirs { root: temp.path().to_owned() };
        let session = SessionId::new();
        assert!(matches!(read(session, &dirs), Found::Nothing));

        let allow = vec!["*.a.example:8443".parse().unwrap()];
        let egress = Egress { preset: Preset::Packages, allow };
        let placement = Placement { egress, ..sample(session) };
        write_meta(&dirs, &Meta::new(&placement, Backend::Fake, true)).unwrap();
        assert_eq!(std::fs::metadata(meta_path(&dirs)).unwrap().mode() & 0o777, 0o600);
        let identity = Identity::Fake { session: session.to_string() };
        write_identity(&dirs, &identity).unwrap();
        match read(session, &dirs) {
            Found::Session { placement: read, backend, paused, identity: found } => {
                let left = read.expires_in.expect("it has an end");
                assert!(left <= HOUR && left > HOUR / 2, "{left:?}");
                let read = Placement { expires_in: Some(HOUR), ..*read };
                assert_eq!((read, backend, paused, found), (placement, Backend::Fake, true, Some(identity)));
            }
            other => panic!("{other:?}"),
        }
        // Another session's record, and rubbish.
        assert!(matches!(read(SessionId::new(), &dirs), Found::Corrupt(_)));
        std::fs::write(meta_path(&dirs), "{").unwrap();
        assert!(matches!(read(session, &dirs), Found::Corrupt(_)));
    }
}
