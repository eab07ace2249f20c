//! What the launcher is asked to do: plain data, made by the backend, read by the launcher.
//! The launcher decides nothing, so all that can be got wrong is visible and testable here.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::sys;
use crate::sandbox::memory_files::MemoryFiles;

/// A sandbox to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub hostname: String,
    /// Host id of uid 0 and gid 0 inside.
    pub uid_base: u32,
    pub uid_count: u32,
    /// Entries of the root directory that are links, e.g. `bin` → `usr/bin`.
    pub links: Vec<(String, String)>,
    /// Mounted in this order.
    pub mounts: Vec<Mount>,
    /// The agent's cgroup of v2, in which PID 1 is born.
    pub cgroup: Option<PathBuf>,
    /// `tasks` of the agent's cgroups of v1, which PID 1 joins once it is root inside.
    pub cgroup_tasks: Vec<PathBuf>,
    /// Where PID 1 prints to.
    pub log: PathBuf,
    /// Sizes of /tmp, /var/tmp and /dev/shm.
    pub memory_files: MemoryFiles,
    /// Program of PID 1, inside. Empty: set everything up, then exit 0 (the preflight).
    pub program: String,
}

/// What the launcher is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// A cgroup namespace, counted for this host id, whose root is this directory of v2, before that has controllers, and those of v1.
    CgroupNamespace { owner: u32, cgroup: PathBuf, v1: Vec<PathBuf> },
    /// A sandbox. The claim of its range comes beside it, and its cgroup namespace where one was made.
    Sandbox(Box<Plan>),
}

/// Part of the host that the sandbox sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    /// Absolute, inside. Missing directories are made on the sandbox's own root only.
    pub target: String,
    /// `MOUNT_ATTR_*`.
    pub attributes: u64,
    /// With what is mounted below it.
    pub recursive: bool,
    /// Leave it out when the source or the place for it is missing.
    pub optional: bool,
}

/// The answer of the launcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// PID 1, as the host sees it, and its start time (field 22 of /proc/PID/stat).
    Started { pid: i32, start_time: u64 },
    /// The cgroup namespace, which comes beside this.
    Namespace,
    /// What failed, in words.
    Failed { stage: String, error: String },
}

impl Mount {
    /// Read-only, without set-user-id programs and devices.
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            attributes: sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV,
            recursive: true,
            optional: false,
        }
    }

    /// Writable, without set-user-id programs and devices.
    pub fn writable(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self {
            attributes: sys::ATTR_NOSUID | sys::ATTR_NODEV,
            recursive: false,
            ..Self::read_only(source, target)
        }
    }

    /// A device file.
    pub fn device(name: &str) -> Self {
        Self {
            attributes: sys::ATTR_NOSUID | sys::ATTR_NOEXEC,
            recursive: false,
            ..Self::read_only(format!("/dev/{name}"), format!("/dev/{name}"))
        }
    }

    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    #[must_use]
    pub fn no_exec(mut self) -> Self {
        self.attributes |= sys::ATTR_NOEXEC;
        self
    }
}

/// Devices that programs expect. Each is harmless to share.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// What is taken from the host's /etc, read-only: how programs find libraries,
/// alternatives, certificates and the time zone. No accounts, no secrets, no configuration
/// of services.
const HOST_ETC: [&str; 15] = [
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ssl/certs",
    "ssl/openssl.cnf",
    "ca-certificates",
    "ca-certificates.conf",
    "pki",
    "localtime",
    // Debian's matplotlib has its defaults there, and does not start without them.
    "matplotlibrc",
    "mime.types",
    // Usually a link to /usr/lib/os-release: the file behind it is mounted.
    "os-release",
    "protocols",
    "services",
];

/// Directories of a root that are ours to make, never taken from a host or an image.
const OURS: [&str; 11] =
    ["proc", "sys", "dev", "tmp", "run", "workspace", "home", "root", ".berth", "lost+found", "boot"];

/// A root: links in its top directory (name, target), and mounts.
pub type Root = (Vec<(String, String)>, Vec<Mount>);

/// The default root: the host's /usr, its links, and an /etc of our own.
///
/// # Errors
/// When the host's layout can't be read.
pub fn host_root(etc: &Path) -> io::Result<Root> {
    let mut links = Vec::new();
    let mut mounts = vec![Mount::read_only("/usr", "/usr")];
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = Path::new("/").join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_symlink() => {
                links.push((name.to_owned(), fs::read_link(&path)?.to_string_lossy().into_owned()));
            }
            Ok(meta) if meta.is_dir() => mounts.push(Mount::read_only(path, format!("/{name}"))),
            _ => {}
        }
    }
    mounts.push(Mount::read_only(etc, "/etc"));
    for name in HOST_ETC {
        mounts.push(Mount::read_only(format!("/etc/{name}"), format!("/etc/{name}")).optional());
    }
    Ok((links, mounts))
}

/// A root from an unpacked image: its top-level entries, with our accounts over its own.
///
/// # Errors
/// When the directory can't be read.
pub fn image_root(root: &Path, etc: &Path) -> io::Result<Root> {
    let (mut links, mut mounts) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if OURS.contains(&name.as_str()) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            links.push((name, fs::read_link(entry.path())?.to_string_lossy().into_owned()));
        } else if kind.is_dir() {
            mounts.push(Mount::read_only(entry.path(), format!("/{name}")));
        }
    }
    for name in ["passwd", "group", "hosts", "hostname", "resolv.conf", "nsswitch.conf"] {
        mounts.push(Mount::read_only(etc.join(name), format!("/etc/{name}")).optional());
    }
    Ok((links, mounts))
}

/// What every sandbox has on top of its root.
pub fn common_mounts() -> Vec<Mount> {
    DEVICES.iter().map(|name| Mount::device(name)).collect()
}

/// Writes the files of a sandbox's own /etc to `dir`, and the empty places on which the
/// host's parts are mounted.
///
/// # Errors
/// From the file system.
pub fn write_etc(dir: &Path, user: &str, hostname: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let files = [
        (
            "passwd",
            format!(
                "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                 {user}:x:1000:1000:{user}:/home/user:/bin/bash\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        ("group", format!("root:x:0:\ntty:x:5:\n{user}:x:1000:\nnogroup:x:65534:\n")),
        ("hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost\n")),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", String::new()),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("profile", "PS1='\\u@\\h:\\w\\$ '\n".to_owned()),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text)?;
    }
    for name in HOST_ETC {
        let (source, target) = (Path::new("/etc").join(name), dir.join(name));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::metadata(&source) {
            Ok(meta) if meta.is_dir() => fs::create_dir_all(&target)?,
            Ok(_) => fs::write(&target, "")?,
            Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_root_shows_nothing_but_programs() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mounts) = host_root(dir.path()).unwrap();
        for mount in &mounts {
            assert!(mount.attributes & sys::ATTR_RDONLY != 0, "{} can be written", mount.target);
            let source = mount.source.to_str().unwrap();
            let secret =
                ["/etc/shadow", "/etc/passwd", "/root", "/home", "/var", "/etc/ssl/private", "/etc/ssh"];
            assert!(
                !secret.contains(&source) && source != "/etc" && source != "/etc/ssl",
                "{source} is shown"
            );
        }
    }

    /// `cp --help`'s example reads it, and so do installers.
    #[test]
    fn the_host_root_says_which_system_it_is() {
        let dir = tempfile::tempdir().unwrap();
        write_etc(dir.path(), "user", "h").unwrap();
        let (_, mounts) = host_root(dir.path()).unwrap();
        assert!(mounts.iter().any(|mount| mount.target == "/etc/os-release"));
        // A mount needs a place: the root is read-only by then.
        assert_eq!(dir.path().join("os-release").exists(), Path::new("/etc/os-release").exists());
    }

    #[test]
    fn an_image_can_not_bring_what_is_ours() {
        let root = tempfile::tempdir().unwrap();
        for name in ["usr", "etc", "proc", "dev", "home", ".berth"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("usr/bin", root.path().join("bin")).unwrap();
        std::os::unix::fs::symlink("/", root.path().join("tmp")).unwrap();
        let (links, mounts) = image_root(root.path(), Path::new("/etc-of-ours")).unwrap();
        assert_eq!(links, [("bin".to_owned(), "usr/bin".to_owned())]);
        let mut targets: Vec<&str> =
            mounts.iter().map(|m| m.target.as_str()).filter(|t| t.len() <= 4).collect();
        targets.sort_unstable();
        assert_eq!(targets, ["/etc", "/usr"]);
    }
}
