//! What sessions may reach. A sandbox has no network but its own loopback; what leaves it goes as a request to a
//! proxy, through the agent's port there and over a Unix socket in the session's directory, and the proxy is here.
//! Everything behind that socket is hostile input, and everything about it is decided on this side of it.
//!
//! | file | what |
//! |---|---|
//! | [`http`], [`sni`] | what a client says: pure, bounded parsers |
//! | [`policy`], [`address`] | whether that may be: pure |
//! | [`resolve`] | which addresses a name has |
//! | [`conversation`], [`carry`] | one connection, from its request to its end |
//! | [`audit`] | every decision is told |
//! | [`pip`] | the package index that this worker's pip is set up for |
//!
//! The order is what counts: a name is looked up only when a rule allows it (a look-up is a message, too), the
//! addresses that came of it are checked, and the connection is made to one of these very addresses, never to the name
//! again. A policy that changes is looked at by open connections as well.

pub mod address;
#[cfg(test)]
mod attempts;
pub mod audit;
mod carry;
mod conversation;
pub mod http;
pub mod pip;
pub mod policy;
mod resolve;
pub mod sni;

use std::{
    fmt, fs, io,
    net::IpAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_proto::{
    Epoch, SessionId,
    agent_config::{CA_PATH, DOOR_NAME},
    domain::{Egress, Preset},
    egress::Target,
    spawn::spawn,
};
use nix::{
    fcntl::{AtFlags, OFlag, open},
    sys::stat::Mode,
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat},
};
use tokio::{
    net::UnixListener,
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use self::{audit::Audit, pip::Packages, policy::Rules, resolve::Resolver};
use crate::{link::outbox::Outbox, metrics::Metrics, sandbox::SessionDirs, sessions::Desired};

/// Connections of one session at a time.
const PER_SESSION: usize = 64;
/// ... and of all together: each takes two descriptors.
const IN_ALL: usize = 400;
/// A session may open so many connections in a row, and then one in each of these: so much can it write into logs.
const BURST: u32 = 100;
const PACE: Duration = Duration::from_millis(20);
/// More is no bundle of certificates.
const CA_MAX: u64 = 4 << 20;

/// What an operator says of egress on this worker.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Sessions may have the preset `full`.
    pub full: bool,
    /// Exactly these may be reached wherever they lead, by sessions whose rules name them.
    pub exempt: Vec<Target>,
    /// What the preset `packages` allows beside the index that pip is set up for.
    pub packages: Vec<Target>,
    /// Names with addresses of their own, which go before the resolver's.
    pub hosts: Vec<(String, IpAddr)>,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    pub session: SessionId,
    pub epoch: Epoch,
}

/// Makes ways out of sandboxes. A cheap handle.
#[derive(Clone)]
pub struct Exits {
    shared: Arc<Shared>,
}

struct Shared {
    rules: Rules,
    packages: Packages,
    resolver: Resolver,
    audit: Audit,
    places: Arc<Semaphore>,
}

/// One session's way out; dropped it is gone, with all that goes through it.
pub struct Exit {
    socket: PathBuf,
    _stop: DropGuard,
}

impl fmt::Debug for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exits").field("rules", &self.shared.rules).finish_non_exhaustive()
    }
}

impl Exits {
    pub(crate) fn new(settings: &Settings, outbox: Arc<Outbox>, metrics: Arc<Metrics>) -> Self {
        let packages = pip::packages(&settings.packages);
        let rules = Rules {
            full: settings.full,
            exempt: settings.exempt.iter().cloned().collect(),
            packages: packages.targets.clone(),
        };
        let shared = Shared {
            rules,
            packages,
            resolver: Resolver::new(&settings.hosts),
            audit: Audit::new(outbox, metrics),
            places: Arc::new(Semaphore::new(IN_ALL)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Why a session can't have this here, if so.
    pub fn refuses(&self, egress: &Egress) -> Option<&'static str> {
        (egress.preset == Preset::Full && !self.shared.rules.full).then_some(policy::NO_FULL)
    }

    /// For every task of such a session.
    pub fn env(&self, egress: &Egress) -> std::collections::HashMap<String, String> {
        let mut env = std::collections::HashMap::new();
        if egress.preset != Preset::None {
            env.extend(self.shared.packages.env.clone());
        }
        if self.shared.packages.ca.is_some() {
            let names = ["PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
            env.extend(names.map(|name| (name.to_owned(), CA_PATH.to_owned())));
        }
        env
    }

    /// Puts a copy of the certificates that this worker trusts into a session's directory, for its sandbox to see.
    pub fn prepare(&self, dirs: &SessionDirs) -> io::Result<()> {
        let Some(ca) = &self.shared.packages.ca else { return Ok(()) };
        let meta = fs::metadata(ca)?;
        if !meta.is_file() || meta.len() > CA_MAX {
            return Err(io::Error::other(format!("{} is no bundle of certificates", ca.display())));
        }
        fs::write(dirs.ca(), fs::read(ca)?)?;
        fs::set_permissions(dirs.ca(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
    }

    /// Opens the way out of a sandbox whose agent has its directory.
    pub(crate) fn open(
        &self,
        who: Who,
        dirs: &SessionDirs,
        wanted: watch::Receiver<Desired>,
    ) -> io::Result<Exit> {
        let listener = listen(&dirs.run())?;
        let stop = CancellationToken::new();
        spawn("egress", accept(self.shared.clone(), who, listener, wanted, stop.clone()));
        Ok(Exit { socket: dirs.run().join(DOOR_NAME), _stop: stop.drop_guard() })
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

/// Listens in the agent's directory. That is the agent's to change, so nothing there is reached through a link.
fn listen(run: &Path) -> io::Result<UnixListener> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = open(run, flags, Mode::empty())?;
    match unlinkat(&dir, DOOR_NAME, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}/{DOOR_NAME}", dir.as_raw_fd()));
    let listener = UnixListener::bind(&path)?;
    let owner = nix::sys::stat::fstat(&dir)?;
    let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
    if fchownat(&dir, DOOR_NAME, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).is_err() {
        // A worker without root: the agent is in its group, and nobody else gets into the directory.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o660))?;
    }
    Ok(listener)
}

async fn accept(
    shared: Arc<Shared>,
    who: Who,
    listener: UnixListener,
    wanted: watch::Receiver<Desired>,
    stop: CancellationToken,
) {
    let own = Arc::new(Semaphore::new(PER_SESSION));
    let mut pace = Pace::new();
    loop {
        let taken = tokio::select! {
            () = stop.cancelled() => return,
            taken = async {
                pace.wait().await;
                let place = own.clone().acquire_owned().await.ok()?;
                Some((listener.accept().await, place, shared.places.clone().acquire_owned().await.ok()?))
            } => taken,
        };
        match taken {
            Some((Ok((client, _)), own, all)) => {
                let (shared, wanted, stop) = (shared.clone(), wanted.clone(), stop.clone());
                spawn("egress connection", async move {
                    let _places = (own, all);
                    tokio::select! {
                        () = stop.cancelled() => debug!(session.id = %who.session, "cut: its way out is closed"),
                        () = conversation::hold(&shared, who, client, wanted) => {}
                    }
                });
            }
            Some((Err(error), ..)) => {
                warn!(session.id = %who.session, %error, "a connection out of a sandbox could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            None => return,
        }
    }
}

/// How fast one after the other may come.
struct Pace {
    /// When the next would be due, had all come in step.
    due: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { due: Instant::now() }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        self.due = self.due.max(now) + PACE;
        let ahead = self.due.saturating_duration_since(now + PACE * BURST);
        if !ahead.is_zero() {
            tokio::time::sleep(ahead).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when [`Pace::wait`] never sleeps: a session then writes as much into the logs as it can connect.
    #[tokio::test(start_paused = true)]
    async fn connections_come_no_faster_than_their_pace() {
        let begun = Instant::now();
        let mut pace = Pace::new();
        for _ in 0..BURST {
            pace.wait().await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "a few at once are nobody's harm");
        for _ in 0..500 {
            pace.wait().await;
        }
        assert_eq!(begun.elapsed(), PACE * 500);
    }

    #[tokio::test]
    async fn nothing_is_made_through_a_link() {
        let temp = tempfile::tempdir().unwrap();
        let (real, run) = (temp.path().join("real"), temp.path().join("run"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &run).unwrap();
        assert!(listen(&run).is_err());
        assert_eq!(fs::read_dir(&real).unwrap().count(), 0);
        // One that is there already, of an earlier process, is replaced.
        drop(listen(&real).unwrap());
        assert!(listen(&real).is_ok());
    }
}
