//! Session directories on the worker's disk: made before a sandbox starts, removed ([`removal`]) when
//! it is gone.
//!
//! All of it blocks: the async functions run it on tokio's blocking threads.

mod removal;

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use berth_proto::{SessionId, agent_config::SOCKET_NAME};

pub use self::removal::remove_tree;
use crate::sandbox::SessionDirs;

/// Longest path of a Unix socket: `sun_path` less its NUL.
const SOCKET_PATH_MAX: usize = 107;

/// All session directories of a worker.
#[derive(Clone, Debug)]
pub struct Workspaces {
    base: PathBuf,
}

impl Workspaces {
    /// Uses `<base>/sessions`, making it if need be. Fails when the agents' socket paths would be
    /// longer than the kernel takes.
    pub fn open(base: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(base)?;
        let base = base.canonicalize()?.join("sessions");
        let this = Self { base };
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

    /// Makes a session's directories, with the modes that [`SessionDirs`] names. What an earlier
    /// attempt left there is removed first.
    pub async fn create(&self, session: SessionId) -> io::Result<SessionDirs> {
        let dirs = self.dirs(session);
        blocking(move || {
            match std::fs::create_dir(&dirs.root) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
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
            make_dir(&dirs.root.join("files"), 0o755)?;
            make_dir(&dirs.workspace(), 0o755)?;
            make_dir(&dirs.home(), 0o755)?;
            Ok(dirs)
        })
        .await
    }

    /// Removes a session's directories and all that is in them. One that is not there is no error.
    pub async fn remove(&self, session: SessionId) -> io::Result<()> {
        let root = self.dirs(session).root;
        blocking(move || remove_tree(&root)).await
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
        let workspaces = Workspaces::open(temp.path()).unwrap();
        (temp, workspaces)
    }

    #[tokio::test]
    async fn a_session_gets_its_directories_with_their_modes() {
        let (_temp, workspaces) = workspaces();
        let session = SessionId::new();
        let dirs = workspaces.create(session).await.unwrap();
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
        let dirs = workspaces.create(session).await.unwrap();
        fs::write(dirs.workspace().join("old"), "x").unwrap();
        let dirs = workspaces.create(session).await.unwrap();
        assert!(!dirs.workspace().join("old").exists());
    }

    /// `worker --help` and docs/configuration.md name the figure.
    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let base = |length: usize| {
            let rest = length - temp.path().as_os_str().len() - 1;
            Workspaces::open(&temp.path().join("x".repeat(rest)))
        };
        assert!(base(44).is_ok());
        let error = base(45).unwrap_err();
        assert!(error.to_string().contains("107"), "{error}");
    }
}
