//! What a container needs on disk before it is created: the agent's directory and
//! configuration, the few files of /etc that name the session's user, mount points, and
//! the right owners.
//!
//! The session's own files may have been written by an earlier life of it, so they are
//! walked by descriptor and never through a link.

use std::{
    ffi::CStr,
    fs, io,
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use berth_proto::agent_config::{AgentConfig, User};
use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
    unistd::{Gid, Uid, fchown, fchownat},
};

use crate::sandbox::SessionDirs;

/// Deepest tree whose owner is changed: a level takes a descriptor.
const DEPTH: usize = 128;
const DIR_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Files of /etc that are mounted over the image's: name inside, and text.
fn etc(user: &User, hostname: &str) -> [(&'static str, String); 5] {
    let User { name, uid, gid, home } = user;
    let home = home.display();
    [
        (
            "passwd",
            format!(
                "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                 {name}:x:{uid}:{gid}:{name}:{home}:/bin/bash\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        ("group", format!("root:x:0:\ntty:x:5:\n{name}:x:{gid}:\nnogroup:x:65534:\n")),
        ("hostname", format!("{hostname}\n")),
        ("hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost\n")),
        // Docker would copy the host's, which says where the host's name servers are.
        ("resolv.conf", String::new()),
    ]
}

/// The files of /etc that [`prepare`] writes: host path and path inside.
pub fn etc_binds(dirs: &SessionDirs) -> Vec<(PathBuf, String)> {
    ["passwd", "group", "hostname", "hosts", "resolv.conf"]
        .map(|name| (etc_dir(dirs).join(name), format!("/etc/{name}")))
        .to_vec()
}

fn etc_dir(dirs: &SessionDirs) -> PathBuf {
    dirs.root.join("etc")
}

/// Writes it all; owners are [`own`]'s. `mount_points` are directories below `/.berth`. `by_engine`: the engine mounts the
/// session's own files.
pub fn prepare(
    dirs: &SessionDirs,
    config: &AgentConfig,
    hostname: &str,
    mount_points: &[PathBuf],
    by_engine: bool,
) -> io::Result<()> {
    for dir in [dirs.berth(), dirs.run(), dirs.spool()] {
        make_dir(&dir, 0o700)?;
    }
    // In an image that the engine mounts, they are made with it.
    for dir in [dirs.workspace(), dirs.home()].iter().filter(|_| !by_engine) {
        make_dir(dir, 0o755)?;
    }
    // What the agent's binary and its cgroups are mounted on.
    write_new(&dirs.berth().join("agent"), b"", 0o500)?;
    make_dir(&dirs.berth().join("cg"), 0o700)?;
    for point in mount_points {
        make_dir(&dirs.berth().join(point), 0o700)?;
    }
    crate::weaken::tell_agent(&dirs.berth())?;
    let text = serde_json::to_vec_pretty(config).map_err(io::Error::other)?;
    write_new(&dirs.berth().join("config.json"), &text, 0o400)?;

    make_dir(&etc_dir(dirs), 0o755)?;
    for (name, text) in etc(&config.user, hostname) {
        write_new(&etc_dir(dirs).join(name), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Copies the agent's binary.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o555))
}

/// Gives the agent's directory to container root and the session's files to its own user.
/// `base` are the host's ids of container root.
pub fn own(dirs: &SessionDirs, base: (u32, u32), uid: u32) -> io::Result<()> {
    for path in [
        dirs.berth(),
        dirs.run(),
        dirs.spool(),
        dirs.berth().join("cg"),
        dirs.berth().join("agent"),
        dirs.berth().join("config.json"),
    ] {
        chown(path, Some(base.0), Some(base.1))?;
    }
    for path in [dirs.workspace(), dirs.home()].iter().filter(|path| path.is_dir()) {
        give(path, base.0 + uid, base.1 + uid)?;
    }
    Ok(())
}

/// Gives a tree to a user and group. What is theirs already is not touched.
fn give(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let top = Dir::open(path, DIR_FLAGS, Mode::empty())?;
    give_dir(top, Uid::from_raw(uid), Gid::from_raw(gid), DEPTH)
}

fn give_dir(mut dir: Dir, uid: Uid, gid: Gid, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the session's files are nested too deep"));
    }
    let theirs = |stat: &FileStat| stat.st_uid == uid.as_raw() && stat.st_gid == gid.as_raw();
    let copy = dir.as_fd().try_clone_to_owned()?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = fstatat(&copy, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            give_dir(open_below(copy.as_fd(), name)?, uid, gid, depth - 1)?;
        } else if !theirs(&stat) {
            fchownat(&copy, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
    }
    if !theirs(&fstat(&copy)?) {
        fchown(&copy, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn open_below(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Dir> {
    Ok(Dir::openat(dir, name, DIR_FLAGS, Mode::empty())?)
}

/// A directory of this mode, whatever the umask.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A file of this mode, replaced in one step.
fn write_new(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".new");
    match fs::remove_file(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
    file.write_all(data)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    fs::rename(&temp, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_name_is_found_for_the_sessions_user_and_no_host_is_told() {
        let user = User { name: "user".into(), uid: 70_001, gid: 70_001, home: "/home/user".into() };
        let files = etc(&user, "abc");
        assert!(files[0].1.contains("\nuser:x:70001:70001:user:/home/user:/bin/bash\n"));
        assert!(files[1].1.contains("\nuser:x:70001:\n"));
        assert_eq!(files[4], ("resolv.conf", String::new()));
        let dirs = SessionDirs { root: "/s".into() };
        let mounted: Vec<_> = etc_binds(&dirs).into_iter().map(|(_, inside)| inside).collect();
        let written: Vec<_> = files.iter().map(|(name, _)| format!("/etc/{name}")).collect();
        assert_eq!(mounted, written);
    }

    #[test]
    fn a_tree_is_given_away_but_not_what_its_links_point_to() {
        if !nix::unistd::geteuid().is_root() {
            return crate::sandbox::docker::tests::skip("giving files away needs root");
        }
        let temp = tempfile::tempdir().expect("a directory");
        let (tree, canary) = (temp.path().join("tree"), temp.path().join("canary"));
        fs::create_dir_all(tree.join("a/b")).expect("made");
        fs::create_dir(&canary).expect("made");
        fs::write(canary.join("f"), "x").expect("written");
        symlink(&canary, tree.join("a/l")).expect("linked");
        symlink(canary.join("f"), tree.join("f")).expect("linked");
        give(&tree, 70_001, 70_001).expect("given");
        let owner = |path: PathBuf| fs::symlink_metadata(path).expect("there").uid();
        for path in ["", "a", "a/b", "a/l", "f"] {
            assert_eq!(owner(tree.join(path)), 70_001, "{path}");
        }
        assert_eq!((owner(canary.clone()), owner(canary.join("f"))), (0, 0));
        symlink(&canary, temp.path().join("top")).expect("linked");
        assert!(give(&temp.path().join("top"), 70_001, 70_001).is_err(), "a link is no tree");
    }
}
