//! The worker's state directory: one process at a time (an flock, which the kernel drops
//! with the process, however it ends), and the few things that survive a restart.
//!
//! | file | what |
//! |---|---|
//! | `lock` | held by the process that uses the directory; its pid is in it, for messages |
//! | `worker_id` | the worker's id where none was configured |
//! | `instance` | random; marks everything that this worker's backends make |
//! | `credential` | 0600; what the coordinator gave it, if it registered with a token that is used up ([`crate::credential`]) |
//! | `data_token` | 0600; the bearer token of the optional data-plane listener |
//! | `sessions_at` | where its sessions are, for who looks while it does not run ([`crate::orphans`]) |
//! | `sessions/` | unless BASE_WORKSPACE is elsewhere |
//! | `quarantine/` | session directories whose record can't be read: kept for people |

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use berth_proto::WorkerId;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::{
    config::StartError,
    workspace::{make_dir, write_atomic},
};

/// The state directory, locked for as long as this value lives.
pub struct State {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl State {
    /// Makes the directory if need be and takes its lock.
    pub fn open(dir: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::State { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        make_dir(dir, 0o711).map_err(failed)?;
        let dir = dir.canonicalize().map_err(failed)?;
        let failed = |source| StartError::State { path: dir.clone(), source };
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join("lock"))
            .map_err(failed)?;
        let mut lock = match Flock::lock(file.try_clone().map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(StartError::Locked { path: dir, pid: holder.trim().parse().ok() });
            }
            Err((_, error)) => return Err(failed(error.into())),
        };
        lock.set_len(0).map_err(failed)?;
        lock.rewind().map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { dir, _lock: lock })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configured id, else the stored one, else a new one that is stored.
    pub fn worker_id(&self, configured: Option<&WorkerId>) -> Result<WorkerId, StartError> {
        if let Some(id) = configured {
            return Ok(id.clone());
        }
        let text = self.stored("worker_id", || WorkerId::generate().to_string())?;
        text.parse().map_err(|error| StartError::State {
            path: self.dir.join("worker_id"),
            source: io::Error::new(io::ErrorKind::InvalidData, format!("{error}")),
        })
    }

    /// Marks what this worker makes. Short, and fit for a cgroup's or a container's name.
    pub fn instance(&self) -> Result<String, StartError> {
        let text = self.stored("instance", || format!("{:012x}", berth_proto::world::random_u64() >> 16))?;
        if text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(text);
        }
        Err(StartError::State {
            path: self.dir.join("instance"),
            source: io::Error::new(io::ErrorKind::InvalidData, "is not 12 hex digits"),
        })
    }

    /// The token of the data-plane listener, and the file that it is in.
    pub fn data_token(&self) -> Result<(String, PathBuf), StartError> {
        let token = self.stored("data_token", || {
            format!("{:032x}", u128::from_le_bytes(berth_proto::world::random_bytes()))
        })?;
        Ok((token, self.dir.join("data_token")))
    }

    /// Where the sessions of this worker are from now on.
    pub fn remember_sessions(&self, dir: &Path) -> Result<(), StartError> {
        let path = self.dir.join(SESSIONS_AT);
        write_atomic(&path, dir.as_os_str().as_bytes()).map_err(|source| StartError::State { path, source })
    }

    /// Keeps a thing whose records can't be understood out of the way, for people to look at.
    pub fn quarantine(&self, path: &Path) -> io::Result<PathBuf> {
        quarantine(&self.dir, path)
    }

    fn stored(&self, name: &str, make: impl FnOnce() -> String) -> Result<String, StartError> {
        let path = self.dir.join(name);
        let read = match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                let text = make();
                write_atomic(&path, format!("{text}\n").as_bytes()).map(|()| text)
            }
        };
        read.map_err(|source| StartError::State { path, source })
    }
}

const SESSIONS_AT: &str = "sessions_at";

/// What marks what the worker of a state directory makes, if there has been one. Takes no lock.
pub fn known_instance(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join("instance")).ok()?;
    Some(text.trim().to_owned())
        .filter(|text| text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Where its sessions are, as it said last.
pub fn known_sessions(dir: &Path) -> Option<PathBuf> {
    let path = std::fs::read(dir.join(SESSIONS_AT)).ok()?;
    Some(PathBuf::from(OsString::from_vec(path))).filter(|path| path.is_absolute())
}

/// Moves `path` into `<dir>/quarantine`, under a name that nothing there has.
pub fn quarantine(dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let dir = dir.join("quarantine");
    make_dir(&dir, 0o700)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let target = dir.join(format!("{name}-{:08x}", berth_proto::world::random_u64() as u32));
    std::fs::rename(path, &target)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_and_a_second_worker_is_kept_out() {
        let temp = tempfile::tempdir().unwrap();
        let state = State::open(temp.path()).unwrap();
        let (id, instance) = (state.worker_id(None).unwrap(), state.instance().unwrap());
        match State::open(temp.path()) {
            Err(StartError::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("the lock was given twice"),
        }
        drop(state);
        let state = State::open(temp.path()).unwrap();
        assert_eq!(state.worker_id(None).unwrap(), id);
        assert_eq!(state.instance().unwrap(), instance);
        let named: WorkerId = "worker-1".parse().unwrap();
        assert_eq!(state.worker_id(Some(&named)).unwrap(), named);
    }

    #[test]
    fn a_broken_id_is_told_and_not_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let state = State::open(temp.path()).unwrap();
        std::fs::write(temp.path().join("instance"), "rubbish").unwrap();
        assert!(state.instance().unwrap_err().to_string().contains("instance"));
        assert_eq!(std::fs::read_to_string(temp.path().join("instance")).unwrap(), "rubbish");
    }
}
