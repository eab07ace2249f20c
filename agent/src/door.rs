//! The way out of a sandbox, for a session that has one: a port on the sandbox's own loopback, behind which lies the
//! worker's socket. Bytes are carried and not looked at. What they say, and whether it may be, is the worker's to judge,
//! since that is where the policy is, out of the tasks' reach. Without a policy nothing listens.
//!
//! Rejected: a listener of the worker's in the sandbox's network namespace, which only root could make, and which would
//! have to be made anew after each restart of the worker.

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_proto::{agent_config::DOOR_NAME, domain::Labels, spawn::spawn};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    sync::Semaphore,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info};

/// The usual port of a proxy. Where a task has it already, another.
const PORT: u16 = 3128;
/// Connections at a time; the worker takes no more either.
const CONNECTIONS: usize = 64;

/// See the module.
pub struct Door {
    socket: PathBuf,
    open: Mutex<Option<Open>>,
}

struct Open {
    port: u16,
    /// Dropped: the listener and all that came through it are gone.
    _stop: DropGuard,
}

impl Door {
    pub fn new(run_dir: &Path) -> Self {
        Self { socket: run_dir.join(DOOR_NAME), open: Mutex::new(None) }
    }

    /// Opens it unless it is open, and says what tasks need to know of it.
    pub async fn open(&self) -> io::Result<Labels> {
        if let Some(port) = self.port() {
            return Ok(variables(port));
        }
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?
            }
            bound => bound?,
        };
        let port = listener.local_addr()?.port();
        let stop = CancellationToken::new();
        spawn("door", listen(listener, self.socket.clone(), stop.clone()));
        info!(port, "the door is open");
        *self.lock() = Some(Open { port, _stop: stop.drop_guard() });
        Ok(variables(port))
    }

    /// Where it is, while it is open.
    pub fn port(&self) -> Option<u16> {
        self.lock().as_ref().map(|open| open.port)
    }

    pub fn close(&self) {
        if self.lock().take().is_some() {
            info!("the door is closed");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Programs know these names, some in capitals and some not.
fn variables(port: u16) -> Labels {
    let proxy = format!("http://127.0.0.1:{port}");
    let local = "localhost,127.0.0.1,::1";
    let pairs = [("http_proxy", proxy.as_str()), ("https_proxy", &proxy), ("no_proxy", local)];
    let named = |(name, value): (&str, &str)| {
        [(name.to_owned(), value.to_owned()), (name.to_ascii_uppercase(), value.to_owned())]
    };
    pairs.into_iter().flat_map(named).collect()
}

async fn listen(listener: TcpListener, socket: PathBuf, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Whoever has all places waits for itself alone.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (socket, stop) = (socket.clone(), stop.clone());
                spawn("through the door", async move {
                    let _place = place;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        carried = carry(stream, &socket) => if let Err(error) = carried {
                            debug!(%error, "a connection through the door broke");
                        },
                    }
                });
            }
            Err(error) => {
                error!(%error, "the door could not take a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn carry(mut inside: TcpStream, socket: &Path) -> io::Result<()> {
    let mut outside = UnixStream::connect(socket).await?;
    inside.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut inside, &mut outside).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    fn port(env: &Labels) -> u16 {
        env["HTTPS_PROXY"].rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Red when `close` does not drop what `open` made: the connection stays, and so does the listener.
    #[tokio::test]
    async fn what_is_closed_does_not_listen_and_carries_no_more() {
        let dir = tempfile();
        let worker = UnixListener::bind(dir.join(DOOR_NAME)).unwrap();
        let door = Door::new(&dir);
        let env = door.open().await.unwrap();
        assert_eq!(door.open().await.unwrap(), env, "it is open already");
        assert_eq!(env["http_proxy"], env["HTTPS_PROXY"]);
        let mut task = TcpStream::connect((Ipv4Addr::LOCALHOST, port(&env))).await.unwrap();
        let (mut there, _) = worker.accept().await.unwrap();
        task.write_all(b"ping").await.unwrap();
        let mut heard = [0; 4];
        there.read_exact(&mut heard).await.unwrap();
        there.write_all(b"pong").await.unwrap();
        task.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"pong");

        door.close();
        assert_eq!(task.read(&mut heard).await.unwrap_or(0), 0, "it is cut");
        // The listener goes with its task, a moment later.
        for _ in 0..1000 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port(&env))).await.is_err() {
                std::fs::remove_dir_all(&dir).unwrap();
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("something still listens");
    }

    fn tempfile() -> PathBuf {
        let dir = std::env::temp_dir().join(format!("berth-door-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }
}
