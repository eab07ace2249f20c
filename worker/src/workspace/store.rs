//! What holds a session's files, `/workspace` and the home together, to their size:
//!
//! | kind | how | needs |
//! |---|---|---|
//! | `ext4` | an [`image`](super::image) for each session, allocated in full | root, loop devices, `mkfs.ext4` |
//! | `volume` | the same image, mounted by the container engine: for a worker that can't mount, or whose mounts the engine does not see | root, loop devices, `mkfs.ext4`, the docker backend |
//! | `tmpfs` | a file system in memory, which counts as the session's memory | root |
//! | `directory` | **nothing**: a plain directory | |
//!
//! A kind is only used after it was tried. `directory` is never fallen back to: an operator asks for it by name, who
//! thereby takes it upon them that one session can fill the disk. (Rejected: project quotas, which most root file systems
//! are not mounted with, and which no worker can turn on.)

use std::{fmt, fs, io, path::Path, str::FromStr};

use berth_proto::{
    SessionId,
    domain::{Backend, BackendChoice, Capacity, Limits},
};
use nix::mount::{MsFlags, mount};

use super::{
    image::{self, BLOCK, Blanks},
    loops::{self, Attached},
    mounts, remove_tree,
};
use crate::{
    config::Config,
    health::machine,
    sandbox::{Preflight, Problem, SessionDirs, memory_files},
};

/// For the rehearsal; as small as a session's limit may be.
const TRIAL_BYTES: u64 = 1 << 20;
/// The directories of an image that the engine mounts: what `/workspace` and the home are there.
pub const IN_IMAGE: [&str; 2] = ["workspace", "home"];
/// Output that an agent keeps on the worker's disk: half as much as the session may have of files, within these.
const SPOOLS_MIN: u64 = 16 << 20;
const SPOOLS_MAX: u64 = 512 << 20;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Volume,
    Tmpfs,
    Directory,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
            Self::Directory => "directory",
        }
    }

    /// The worker mounts something: whoever starts sandboxes has to see it.
    pub fn mounts(self) -> bool {
        matches!(self, Self::Ext4 | Self::Tmpfs)
    }
}

/// `BERTH_WORKSPACE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best one that works and holds.
    #[default]
    Auto,
    Only(Kind),
}

impl Choice {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Only(kind) => kind.as_str(),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kinds = [Kind::Ext4, Kind::Volume, Kind::Tmpfs, Kind::Directory].map(Self::Only);
        [Self::Auto]
            .into_iter()
            .chain(kinds)
            .find(|choice| choice.as_str() == text)
            .ok_or_else(|| "it is none of auto, ext4, volume, tmpfs, directory".to_owned())
    }
}

/// Makes and holds sessions' file systems, all of one kind.
#[derive(Debug)]
pub struct Store {
    kind: Kind,
    blanks: Blanks,
}

/// Bytes of the worker's own disk that a session takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Allocated when its workspace is made.
    pub files: u64,
    /// What it may still take: its output.
    pub later: u64,
}

impl Store {
    /// Chooses by trying, in `dir`, in which nothing stays. Blocks for some milliseconds.
    ///
    /// # Errors
    /// When nothing that was asked for works.
    pub fn choose(choice: Choice, dir: &Path) -> Result<Self, Problem> {
        let wanted = match choice {
            Choice::Auto => &[Kind::Ext4, Kind::Volume, Kind::Tmpfs][..],
            Choice::Only(Kind::Ext4) => &[Kind::Ext4],
            Choice::Only(Kind::Volume) => &[Kind::Volume],
            Choice::Only(Kind::Tmpfs) => &[Kind::Tmpfs],
            Choice::Only(Kind::Directory) => return Ok(Self::plain()),
        };
        let mut why = Vec::new();
        for kind in wanted {
            let store = Self { kind: *kind, blanks: Blanks::default() };
            match store.rehearse(dir) {
                Ok(()) => return Ok(store),
                Err(error) => why.push(format!("{kind}: {error}")),
            }
        }
        Err(Problem {
            what: format!("sessions can't be held to their disk limit here: {}", why.join("; ")),
            hint: "run the worker as root on a machine with loop devices and mkfs.ext4 (the package e2fsprogs), in a \
                   container with /dev/loop-control and the device rule `b 7:* rwm`; or, if any session may fill \
                   this disk, say so: BERTH_WORKSPACE=directory"
                .to_owned(),
        })
    }

    /// Without limits: for who has asked for that, and for sandboxes that hold their files themselves.
    pub fn plain() -> Self {
        Self { kind: Kind::Directory, blanks: Blanks::default() }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn rehearse(&self, dir: &Path) -> io::Result<()> {
        if !nix::unistd::geteuid().is_root() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it needs root"));
        }
        // Named as a session is: should we be killed now, the next start removes it as the rest of one.
        let dirs = SessionDirs { root: dir.join(SessionId::new().to_string()) };
        fs::create_dir(&dirs.root)?;
        let tried = fs::create_dir(dirs.files()).and_then(|()| self.provide(&dirs, TRIAL_BYTES));
        // The engine's part is the first session's to try: the worker's own.
        let tried = tried.and_then(|()| match self.kind {
            Kind::Volume => furnished(&dirs, 0).map(drop),
            _ => Ok(()),
        });
        mounts::unmount_below(&dirs.root)?;
        remove_tree(&dirs.root)?;
        tried
    }

    /// Makes `files/` of a session a file system of this size, or the image of one. The directory is there, and empty.
    pub fn provide(&self, dirs: &SessionDirs, bytes: u64) -> io::Result<()> {
        let target = dirs.files();
        // The kernel would round a tmpfs up, and so hold it to more than its limit.
        let bytes = bytes / BLOCK * BLOCK;
        match self.kind {
            Kind::Directory => return Ok(()),
            Kind::Volume => return image::reserve(&dirs.image(), bytes).map(drop),
            Kind::Ext4 => self.blanks.mount(&dirs.image(), bytes, &target)?,
            Kind::Tmpfs => {
                let options = format!("size={bytes},nr_inodes={},mode=755", memory_files::files(bytes));
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
                mount(Some("berth"), &target, Some("tmpfs"), flags, Some(options.as_str()))?;
            }
        }
        // What sandboxes mount below it is theirs alone.
        mount(None::<&str>, &target, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
        match fs::remove_dir(target.join("lost+found")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What a session of these limits takes of the worker's disk.
    pub fn footprint(&self, limits: &Limits) -> Footprint {
        match self.kind {
            Kind::Ext4 | Kind::Volume => Footprint { files: limits.disk_bytes, later: spools(limits) },
            Kind::Tmpfs => Footprint { files: 0, later: spools(limits) },
            // Nothing is held, so nothing can be counted on.
            Kind::Directory => Footprint::default(),
        }
    }

    /// Bytes of disk to offer to sessions, of so much that is free: beside its files, a session has its output there.
    pub fn offer(&self, free: u64) -> u64 {
        match self.kind {
            Kind::Ext4 | Kind::Volume => free / 3 * 2,
            Kind::Tmpfs | Kind::Directory => free,
        }
    }

    /// Memory that a session's files take.
    pub fn memory(&self, limits: &Limits) -> u64 {
        match self.kind {
            Kind::Tmpfs => memory_files::charge(limits.disk_bytes),
            Kind::Ext4 | Kind::Volume | Kind::Directory => 0,
        }
    }

    /// What is in force, for a status.
    pub fn describe(&self) -> Preflight {
        let (facts, weaker) = match self.kind {
            Kind::Ext4 => (vec!["disk limits held (ext4 image per session)".to_owned()], vec![]),
            Kind::Volume => {
                (vec!["disk limits held (ext4 image per session, a volume of the engine)".to_owned()], vec![])
            }
            Kind::Tmpfs => (
                vec!["disk limits held (tmpfs per session)".to_owned()],
                vec!["sessions' files are in memory, and count as memory".to_owned()],
            ),
            Kind::Directory => {
                (vec![], vec!["disk limits are not held (BERTH_WORKSPACE=directory)".to_owned()])
            }
        };
        Preflight { facts, weaker, ..Preflight::default() }
    }
}

/// Bytes of all output of a session that its agent keeps: the cap that it is told.
pub fn spools(limits: &Limits) -> u64 {
    (limits.disk_bytes / 2).clamp(SPOOLS_MIN, SPOOLS_MAX)
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether sessions can be held to their disk limit here, for `berth doctor`: tried in the directory for temporary files.
/// Fake sandboxes need nothing.
/// And how: what can't be held is held by nothing.
pub async fn preflight(config: &Config) -> (Preflight, Kind) {
    if config.sandbox == BackendChoice::Only(Backend::Fake) {
        return (Preflight::default(), Kind::Directory);
    }
    let (choice, dir) = (config.workspace, std::env::temp_dir());
    let chosen = berth_proto::world::blocking(move || Store::choose(choice, &dir)).await;
    match chosen {
        Ok(Ok(store)) => (store.describe(), store.kind()),
        Ok(Err(problem)) => (broken(problem), Kind::Directory),
        Err(error) => {
            (broken(Problem { what: error.to_string(), hint: "try again".to_owned() }), Kind::Directory)
        }
    }
}

fn broken(problem: Problem) -> Preflight {
    Preflight { problems: vec![problem], ..Preflight::default() }
}

/// What this machine offers with this configuration: for several workers that share it. `dir` is where their sessions
/// will live. Blocks for some milliseconds.
pub fn machine_offers(config: &Config, dir: &Path) -> io::Result<Capacity> {
    // What can't be held is for each worker's start to say.
    let store = match config.sandbox {
        BackendChoice::Only(Backend::Fake) => Store::plain(),
        _ => Store::choose(config.workspace, &std::env::temp_dir()).unwrap_or_else(|_| Store::plain()),
    };
    let offer = store.offer(machine::disk_free(dir)?.saturating_sub(config.disk_margin_bytes));
    Ok(machine::capacity(&config.capacity, config.max_sessions, store.kind(), offer))
}

/// Makes the image of a session's files ready to be mounted: a file system with `workspace/` and `home/` of this host user,
/// behind a loop device.
pub fn furnished(dirs: &SessionDirs, uid: u32) -> io::Result<Attached> {
    let image = dirs.image();
    image::furnish(&image, &IN_IMAGE, uid, uid)?;
    loops::attach(&fs::OpenOptions::new().read(true).write(true).open(&image)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspaces;

    fn limits(disk_bytes: u64) -> Limits {
        Limits { cpu_millis: 1, memory_bytes: 1, disk_bytes, pids: 1 }
    }

    fn root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: mounting needs root");
        }
        root
    }

    /// Bytes and files that are free in a session's file system.
    fn room(dirs: &SessionDirs) -> (u64, u64) {
        let stat = nix::sys::statvfs::statvfs(&dirs.workspace()).unwrap();
        (stat.blocks_available() * stat.fragment_size(), stat.files_free())
    }

    #[test]
    fn a_choice_is_written_as_it_is_read() {
        for text in ["auto", "ext4", "volume", "tmpfs", "directory"] {
            assert_eq!(text.parse::<Choice>().unwrap().as_str(), text);
        }
        assert!("".parse::<Choice>().is_err() && "xfs".parse::<Choice>().is_err());
    }

    #[tokio::test]
    async fn each_kind_gives_what_was_asked_for_and_takes_it_back() {
        if !root() {
            return;
        }
        for kind in [Kind::Ext4, Kind::Tmpfs] {
            let temp = tempfile::tempdir().unwrap();
            let workspaces = Workspaces::open(temp.path(), Choice::Only(kind)).unwrap();
            assert_eq!(workspaces.list().unwrap().0, [], "a rehearsal leaves nothing");
            // The smallest that a session may ask for, and one that is no whole number of blocks.
            for size in [1 << 20, 1 << 20, (16 << 20) + 1] {
                let session = SessionId::new();
                let dirs = workspaces.create(session, size).await.unwrap();
                let (bytes, files) = room(&dirs);
                assert!(bytes <= size && bytes > size / 20 * 17, "{kind}: {bytes} of {size}");
                assert!(
                    files <= size / 8192 + 1 && files > size / 8192 * 9 / 10,
                    "{kind}: {files} files in {size}"
                );
                assert_eq!(fs::read_dir(dirs.files()).unwrap().count(), 2, "{kind}: nothing of mkfs's own");
                workspaces.remove(session).await.unwrap();
                assert!(mounts::below(temp.path()).unwrap().is_empty());
                assert_eq!(workspaces.list().unwrap().0, []);
            }
        }
    }

    #[tokio::test]
    async fn what_has_no_room_leaves_nothing() {
        if !root() {
            return;
        }
        // A disk of its own: what root may take of the machine's is more than what is said to be free.
        let temp = tempfile::tempdir().unwrap();
        mount(Some("berth"), temp.path(), Some("tmpfs"), MsFlags::empty(), Some("size=16m")).unwrap();
        let workspaces = Workspaces::open(temp.path(), Choice::Only(Kind::Ext4)).unwrap();
        let tried = workspaces.create(SessionId::new(), 32 << 20).await;
        let left = (workspaces.list().unwrap().0, mounts::below(temp.path()).unwrap().len());
        mounts::unmount_below(temp.path()).unwrap();
        assert_eq!(tried.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(left, (vec![], 1), "the disk alone");
    }

    /// Somebody looks at a session's files while it ends.
    #[tokio::test]
    async fn a_workspace_that_is_in_use_goes_all_the_same() {
        if !root() {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let workspaces = Workspaces::open(temp.path(), Choice::Only(Kind::Ext4)).unwrap();
        let session = SessionId::new();
        let dirs = workspaces.create(session, 1 << 20).await.unwrap();
        let open = fs::File::create(dirs.workspace().join("f")).unwrap();
        workspaces.remove(session).await.unwrap();
        assert!(!dirs.root.exists() && mounts::below(temp.path()).unwrap().is_empty());
        drop(open);
    }

    /// What is allocated when a session starts is not counted again while it lives; its output always is.
    #[test]
    fn a_footprint_is_all_that_a_session_may_take() {
        let ext4 = Store { kind: Kind::Ext4, blanks: Blanks::default() };
        assert_eq!(ext4.footprint(&limits(1 << 30)), Footprint { files: 1 << 30, later: 512 << 20 });
        assert_eq!(ext4.footprint(&limits(1 << 20)).later, SPOOLS_MIN);
        assert_eq!(ext4.footprint(&limits(1 << 50)).later, SPOOLS_MAX);
        // So many as are offered fit, with their output.
        let offer = ext4.offer(300 << 30);
        assert!(offer / (1 << 30) * ((1 << 30) + (512 << 20)) <= 300 << 30);
        let tmpfs = Store { kind: Kind::Tmpfs, blanks: Blanks::default() };
        assert_eq!(tmpfs.footprint(&limits(1 << 30)).files, 0);
        assert!(tmpfs.memory(&limits(1 << 30)) > 1 << 30 && ext4.memory(&limits(1 << 30)) == 0);
    }
}
