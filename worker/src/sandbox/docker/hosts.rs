//! Paths as the engine sees them. It mounts what is on the *host*; a worker that itself
//! runs in a container sees its state directory elsewhere. So it asks the engine about its
//! own container, once, and translates by that container's mounts.
//!
//! The own container is found by what the engine mounts into each: `/etc/hostname` comes
//! from `.../containers/<id>/hostname`. (Rejected: the host name, which an operator sets;
//! /proc/self/cgroup, which is `/` in a cgroup namespace.)

use std::path::{Path, PathBuf};

use berth_proto::{Code, Error, Reason};
use bollard::Docker;

use super::engine::{CallError, LOOK, call};

/// How this process's paths relate to the engine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPaths {
    /// The same.
    Same,
    /// Mounts of our container: path here, path there. Longest first.
    Mounted(Vec<(PathBuf, PathBuf)>),
}

/// Id of the container that this process runs in.
pub fn own_container() -> Option<String> {
    container_of(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

fn container_of(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        if mount != "/etc/hostname" {
            return None;
        }
        let id = root.strip_suffix("/hostname")?.rsplit('/').next()?;
        (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
    })
}

impl HostPaths {
    /// Finds out. A container that this engine does not know is another engine's: paths are taken as they are.
    pub async fn learn(docker: &Docker) -> Result<Self, Error> {
        let Some(id) = own_container() else { return Ok(Self::Same) };
        let seen = match call("look at the worker's own container", LOOK, docker.inspect_container(&id, None))
            .await
        {
            Err(CallError::NotFound) => return Ok(Self::Same),
            other => other?,
        };
        let pairs = seen.mounts.unwrap_or_default().into_iter();
        Ok(Self::mounted(pairs.filter_map(|m| Some((m.destination?.into(), m.source?.into())))))
    }

    /// Where the host's cgroup file systems are mounted in our container, if they are.
    pub fn cgroups(&self) -> Option<&Path> {
        let Self::Mounted(mounts) = self else { return None };
        let host = mounts.iter().find(|(_, there)| there == Path::new("/sys/fs/cgroup"))?;
        Some(&host.0)
    }

    fn mounted(pairs: impl Iterator<Item = (PathBuf, PathBuf)>) -> Self {
        let mut mounts: Vec<_> = pairs.filter(|(_, source)| source.is_absolute()).collect();
        mounts.sort_by_key(|(here, _)| std::cmp::Reverse(here.components().count()));
        Self::Mounted(mounts)
    }

    /// The engine's path for one of ours.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when it is on none of our container's volumes.
    pub fn there(&self, path: &Path) -> Result<PathBuf, Error> {
        let Self::Mounted(mounts) = self else { return Ok(path.to_owned()) };
        let found = mounts.iter().find_map(|(here, there)| match path.strip_prefix(here) {
            Ok(rest) if rest.as_os_str().is_empty() => Some(there.clone()),
            Ok(rest) => Some(there.join(rest)),
            Err(_) => None,
        });
        found.ok_or_else(|| {
            Error::new(
                Code::FailedPrecondition,
                Reason::BackendUnavailable,
                "the worker runs in a container, and its files are on no volume that the engine could share",
            )
            .hint("mount a volume at the worker's BASE_WORKSPACE")
            .cause(format!("{} is on none of {mounts:?}", path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_container_is_found() {
        let id = "0123456789abcdef".repeat(4);
        let line = format!(
            "700 600 8:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw,relatime - ext4 /dev/sda1 rw"
        );
        assert_eq!(container_of(&line), Some(id));
        assert_eq!(container_of("1 2 8:1 /etc/hostname /etc/hostname rw - ext4 /dev/sda1 rw"), None);
        assert_eq!(container_of("22 1 8:1 / / rw - ext4 /dev/sda1 rw"), None);
    }

    #[test]
    fn paths_are_translated_by_the_innermost_mount() {
        let pair = |here: &str, there: &str| (PathBuf::from(here), PathBuf::from(there));
        let paths =
            HostPaths::mounted([pair("/state", "/v/a/_data"), pair("/state/deep", "/v/b")].into_iter());
        assert_eq!(paths.there(Path::new("/state/x/y")).expect("it is mounted"), Path::new("/v/a/_data/x/y"));
        assert_eq!(paths.there(Path::new("/state/deep")).expect("it is mounted"), Path::new("/v/b"));
        let error = paths.there(Path::new("/statement")).expect_err("another directory");
        assert_eq!(error.reason(), Reason::BackendUnavailable);
        assert_eq!(paths.cgroups(), None);
        let paths = HostPaths::mounted([pair("/host/cgroup", "/sys/fs/cgroup")].into_iter());
        assert_eq!(paths.cgroups(), Some(Path::new("/host/cgroup")));
        assert_eq!(HostPaths::Same.there(Path::new("/x")).expect("as it is"), Path::new("/x"));
    }
}
