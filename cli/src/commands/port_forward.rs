//! `berth port-forward`: a port here for one in a session. Each connection that comes in is one of its own to the server
//! inside; what becomes of one concerns no other.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use berth_client::{Error, PortStream, Reason, Session, SessionState};
use berth_proto::{
    spawn::spawn,
    transport::{PORT_CHUNK, PORT_CONNECTIONS},
};
use clap::Args;
use serde::Serialize;
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};

use super::Global;
use crate::{
    failure::{CommandResult, Failure, code},
    output, select,
    signals::Interrupts,
};

const HELP: &str = "\
Goes on until Ctrl-C, or until the session has ended. The server must listen on 127.0.0.1, ::1 or all
addresses in the session. A session takes 64 connections at a time; more wait.

Examples:
  berth run -d -s web -- python3 -m http.server 8000
  berth port-forward web 8000               127.0.0.1:8000 here
  berth port-forward web 9000:8000 5432     two of them, one at another port
  berth port-forward web 0:8000             at a free port, which is printed";

/// Listens here for servers in a session.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct PortForwardArgs {
    /// Session that has the servers
    #[arg(value_name = "SESSION")]
    pub session: String,

    /// Port here (0: a free one) and in the session
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub ports: Vec<Pair>,

    /// Address to listen on here
    #[arg(long = "listen", value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,

    /// Let other machines connect too, if --listen is an address that they reach. They need no token
    #[arg(long)]
    pub expose: bool,
}

/// A port here, and one in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    local: u16,
    remote: u16,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
        let remote = number(remote)?;
        // As kubectl has it: nothing before the colon is any port.
        let local = if local.is_empty() { 0 } else { number(local)? };
        if remote == 0 {
            return Err("a port in a session is 1 to 65535".to_owned());
        }
        Ok(Self { local, remote })
    }
}

/// A port that is listened on, as JSON.
#[derive(Serialize)]
struct Told {
    address: SocketAddr,
    port: u16,
}

pub async fn run(global: &Global, args: PortForwardArgs) -> CommandResult {
    if !args.listen.is_loopback() && !args.expose {
        let text = format!("{} can be reached from other machines", args.listen);
        return Err(Failure::usage(text)
            .hint("whoever reaches it reaches the server in the session, without a token: --expose if that is meant"));
    }
    let client = global.client().await?;
    let mut interrupts = Interrupts::new()?;
    let session = select::session(&client, &args.session).await?;
    is_there(&session).await?;
    let mut listeners = Vec::new();
    for pair in &args.ports {
        listeners.push((listen(args.listen, pair.local).await?, pair.remote));
    }
    let places = Arc::new(Semaphore::new(PORT_CONNECTIONS));
    let (ends, mut ended) = mpsc::channel(1);
    for (listener, port) in listeners {
        let address = listener.local_addr().map_err(|error| Failure::io("can't listen", error))?;
        match global.json() {
            true => output::json_line(&Told { address, port })?,
            false => output::data(format!("Forwarding {address} -> {port}"))?,
        }
        let forward = Forward { session: session.clone(), port, places: places.clone(), ends: ends.clone() };
        spawn("port-forward", forward.accept(listener));
    }
    tokio::select! {
        error = ended.recv() => match error {
            Some(error) => Err(Failure::from(error)),
            None => Ok(code::CANCELLED),
        },
        _ = interrupts.recv() => Ok(code::CANCELLED),
    }
}

/// Told now, and not with the first connection.
async fn is_there(session: &Session) -> Result<(), Failure> {
    let info = session.info().await?;
    if matches!(info.state, SessionState::Ended | SessionState::Ending) {
        return Err(Failure::new(format!("session {} is over", session.id()))
            .with_reason(berth_client::Code::FailedPrecondition, Reason::SessionEnded)
            .hint("`berth ps` lists those that are not; `berth create` makes one"));
    }
    Ok(())
}

async fn listen(address: IpAddr, port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind((address, port)).await.map_err(|error| {
        let what = format!("can't listen on {}", SocketAddr::new(address, port));
        let in_use = error.kind() == io::ErrorKind::AddrInUse;
        let failure = Failure::io(what, error);
        if in_use {
            failure.hint("name another port here: OTHER:REMOTE, or 0:REMOTE for a free one")
        } else {
            failure
        }
    })
}

/// One port.
#[derive(Clone)]
struct Forward {
    session: Session,
    port: u16,
    places: Arc<Semaphore>,
    /// Hears that the session is over.
    ends: mpsc::Sender<Error>,
}

impl Forward {
    async fn accept(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((local, from)) => {
                    // As many as the session takes; others wait in the kernel.
                    let Ok(place) = self.places.clone().acquire_owned().await else { return };
                    let forward = self.clone();
                    spawn("forwarded connection", async move {
                        forward.carry(local, from).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    output::warning(format!("a connection could not be taken: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// One connection, to its end.
    async fn carry(&self, mut local: TcpStream, from: SocketAddr) {
        // Small answers are not to wait for one another.
        let _ = local.set_nodelay(true);
        let broken = match self.session.connect_port(self.port).await {
            Ok(mut remote) => self.pass(&mut local, &mut remote).await,
            Err(error) => Some(error),
        };
        let Some(error) = broken else { return };
        // What is not whole must not look so.
        let _ = local.set_zero_linger();
        drop(local);
        if error.is(Reason::SessionEnded) || error.is(Reason::SessionNotFound) {
            // One word is enough.
            let _ = self.ends.try_send(error);
            return;
        }
        output::warning(format!("{from} -> {}: {}", self.port, error.message()));
        if let Some(hint) = error.hint() {
            output::hint(hint);
        }
    }

    /// Whatever comes, either way. What broke inside; that somebody here went away is no news.
    async fn pass(&self, local: &mut TcpStream, remote: &mut PortStream) -> Option<Error> {
        let passed = copy_bidirectional_with_sizes(local, remote, PORT_CHUNK, PORT_CHUNK).await;
        let error = passed.err()?;
        let _ = local.set_zero_linger();
        match error.into_inner()?.downcast::<Error>() {
            Ok(error) => Some(*error),
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_kubectl_has_them() {
        let pair = |local, remote| Ok(Pair { local, remote });
        assert_eq!("8000".parse::<Pair>(), pair(8000, 8000));
        assert_eq!("9000:8000".parse::<Pair>(), pair(9000, 8000));
        assert_eq!(":8000".parse::<Pair>(), pair(0, 8000));
        assert_eq!("0:8000".parse::<Pair>(), pair(0, 8000));
        for wrong in ["", "0", "x", "8000:", "8000:0", "1:2:3", "65536", "-1", "8000:x", " 8000"] {
            assert!(wrong.parse::<Pair>().is_err(), "{wrong:?}");
        }
    }
}
