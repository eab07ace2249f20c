//! Session directories on the worker's disk: made before a sandbox starts, removed when it is gone. The session's own
//! files are in a file system of their own there, where a [`store`] can hold them to their size: taking that away is an
//! unmount and an unlink, whatever is in it. What is left, or where nothing is mounted, is [`removal`]'s to walk.
//!
//! All of it blocks: the async functions run it on tokio's blocking threads.

pub(crate) mod image;
pub(crate) mod loops;
mod mounts;
mod removal;
pub mod store;

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_proto::{SessionId, agent_config::SOCKET_NAME};
use tokio::time::Instant;

pub use self::removal::remove_tree;
use self::store::{Choice, Store};
use crate::{
    health::machine,
    sandbox::{Problem, SessionDirs},
};

/// Longest path of a Unix socket: `sun_path` less its NUL.
const SOCKET_PATH_MAX: usize = 107;

/// A loop device clears itself when the last process that saw its mount is gone: a sandbox is gone in a moment. After
/// this time somebody else has it, and it is not waited for.
const CLEARED_WITHIN: Duration = Duration::from_secs(2);
const CLEARED_LOOK: Duration = Duration::from_millis(1);

/// All session directories of a worker.
#[derive(Clone, Debug)]
pub struct Workspaces {
    base: PathBuf,
    store: Arc<Store>,
}

/// Why there can't be any.
#[derive(Debug)]
pub enum OpenError {
    Io(io::Error),
    /// Their sizes can't be held as was asked for.
    Store(Problem),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Workspaces {
    /// Uses `<base>/sessions`, making it if need be, and tries how sessions' files can be held to their size. Fails when
    /// the agents' socket paths would be longer than the kernel takes. Blocks for some milliseconds.
    pub fn open(base: &Path, choice: Choice) -> Result<Self, OpenError> {
        let mut this = Self::plain(base)?;
        this.store = Arc::new(Store::choose(choice, &this.base).map_err(OpenError::Store)?);
        Ok(this)
    }

    /// The same with plain directories, whose size nothing holds.
    pub fn plain(base: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(base)?;
        let base = base.canonicalize()?.join("sessions");
        let this = Self { base, store: Arc::new(Store::plain()) };
        let socket = this.dirs(SessionId::from_u128(0)).run().join(SOCKET_NAME);
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{} is too long: an agent's socket under it would have a path of {length} bytes, and the \
                     kernel takes {SOCKET_PATH_MAX}",
                    this.base.display()
                ),
            ));
        }
        make_dir(&this.base, 0o711)?;
        Ok(this)
    }

    /// What holds sessions' files to their size.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Bytes of disk to offer to sessions, where nobody has said how many: of what is free beyond `margin`, with what
    /// sessions that are there already have.
    pub fn offer(&self, margin: u64) -> io::Result<u64> {
        let free = machine::disk_free(&self.base)?.saturating_add(self.allocated()?);
        Ok(self.store.offer(free.saturating_sub(margin)))
    }

    /// Bytes that are allocated to sessions now.
    fn allocated(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let (sessions, _) = self.list()?;
        let images = sessions.into_iter().filter_map(|session| self.dirs(session).image().metadata().ok());
        Ok(images.map(|image| image.blocks() * 512).sum())
    }

    /// `<base>/sessions`.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// A directory on the same disk, where checkpoints are put together. Made if need be.
    pub fn staging(&self) -> io::Result<PathBuf> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = self.base.with_file_name("staging");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(dir)
    }

    /// Where a session lives, whether or not it is there.
    pub fn dirs(&self, session: SessionId) -> SessionDirs {
        SessionDirs { root: self.base.join(session.to_string()) }
    }

    /// Makes a session's directories, with the modes that [`SessionDirs`] names, and room for so many bytes of files. What
    /// an earlier attempt left there is removed first. On an error nothing is left.
    pub async fn create(&self, session: SessionId, disk_bytes: u64) -> io::Result<SessionDirs> {
        let dirs = self.dirs(session);
        let store = self.store.clone();
        let by_engine = store.kind() == store::Kind::Volume;
        let made = blocking(move || {
            match std::fs::create_dir(&dirs.root) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    mounts::unmount_below(&dirs.root)?;
                    remove_tree(&dirs.root)?;
                    std::fs::create_dir(&dirs.root)?;
                }
                other => other?,
            }
            // The umask narrows what mkdir is given: modes are set again.
            set_mode(&dirs.root, 0o711)?;
            make_dir(&dirs.berth(), 0o700)?;
            make_dir(&dirs.run(), 0o700)?;
            make_dir(&dirs.spool(), 0o700)?;
            make_dir(&dirs.files(), 0o755)?;
            store.provide(&dirs, disk_bytes)?;
            set_mode(&dirs.files(), 0o755)?;
            if !by_engine {
                make_dir(&dirs.workspace(), 0o755)?;
                make_dir(&dirs.home(), 0o755)?;
            }
            Ok(dirs)
        })
        .await;
        if made.is_err()
            && let Err(error) = self.remove(session).await
        {
            tracing::warn!(session.id = %session, %error, "a workspace that could not be made was not removed");
        }
        made
    }

    /// Removes a session's directories and all that is in them. One that is not there is no error. Its sandbox is gone.
    pub async fn remove(&self, session: SessionId) -> io::Result<()> {
        let root = self.dirs(session).root;
        let devices = blocking({
            let root = root.clone();
            move || {
                let devices = loops::of_files_below(&root)?;
                mounts::unmount_below(&root)?;
                remove_tree(&root)?;
                Ok(devices)
            }
        })
        .await?;
        // Until then the space is not free.
        let deadline = Instant::now() + CLEARED_WITHIN;
        for device in devices {
            while loops::is_below(&device, &root) {
                if Instant::now() > deadline {
                    tracing::warn!(session.id = %session, "another process still has the session's files: they go with it");
                    return Ok(());
                }
                tokio::time::sleep(CLEARED_LOOK).await;
            }
        }
        Ok(())
    }

    /// Takes away what is mounted on a session's directory or below it. The image stays.
    pub async fn release(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        blocking(move || mounts::unmount_below(&path)).await
    }

    /// The entries of the sessions directory: sessions by their id, and names that are none.
    pub fn list(&self) -> io::Result<(Vec<SessionId>, Vec<PathBuf>)> {
        let (mut sessions, mut others) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.base)? {
            let entry = entry?;
            match entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                Some(session) => sessions.push(session),
                None => others.push(entry.path()),
            }
        }
        Ok((sessions, others))
    }
}

/// Runs `work` on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    berth_proto::world::blocking(work).await?
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Makes a directory of this mode, whatever the umask; one that is there gets the mode.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => set_mode(path, mode),
    }
}

/// Replaces a file in one step. Not flushed to the disk: it has to outlive this process, not the
/// machine, with which its subject would die too.
pub(crate) fn write_atomic(path: &Path, data: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut temp = path.as_os_str().to_owned();
    temp.push(".new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(data)?;
    drop(file);
    std::fs::rename(&temp, path)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    fn workspaces() -> (tempfile::TempDir, Workspaces) {
        let temp = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::plain(temp.path()).unwrap();
        (temp, workspaces)
    }

    #[tokio::test]
    async fn a_session_gets_its_directories_with_their_modes() {
        let (_temp, workspaces) = workspaces();
        let session = SessionId::new();
        let dirs = workspaces.create(session, 1 << 20).await.unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(dirs.root.clone()), 0o711);
        assert_eq!(mode(dirs.berth()), 0o700);
        assert_eq!(mode(dirs.run()), 0o700);
        assert_eq!(mode(dirs.spool()), 0o700);
        assert_eq!(mode(dirs.workspace()), 0o755);
        assert_eq!(mode(dirs.home()), 0o755);
        assert_eq!(workspaces.list().unwrap().0, vec![session]);
        workspaces.remove(session).await.unwrap();
        workspaces.remove(session).await.unwrap();
        assert!(workspaces.list().unwrap().0.is_empty());
    }

    #[tokio::test]
    async fn what_an_earlier_attempt_left_is_gone() {
        let (_temp, workspaces) = workspaces();
        let session = SessionId::new();
        let dirs = workspaces.create(session, 1 << 20).await.unwrap();
        fs::write(dirs.workspace().join("old"), "x").unwrap();
        let dirs = workspaces.create(session, 1 << 20).await.unwrap();
        assert!(!dirs.workspace().join("old").exists());
    }

    /// `worker --help` and docs/configuration.md name the figure.
    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let base = |length: usize| {
            let rest = length - temp.path().as_os_str().len() - 1;
            Workspaces::plain(&temp.path().join("x".repeat(rest)))
        };
        assert!(base(44).is_ok());
        let error = base(45).unwrap_err();
        assert!(error.to_string().contains("107"), "{error}");
    }
}
