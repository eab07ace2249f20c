//! One connection of a session, from its request to its end.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{OnceLock, atomic::Ordering},
    time::Duration,
};

use berth_proto::{
    egress::{Host, Target},
    world::TcpStream,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
    time::Instant,
};
use tracing::debug;

use super::{
    Shared, Who,
    audit::{Decision, Went},
    carry::{Carried, Upload, carry},
    http::{self, Bad, HEAD_MAX, Request},
    policy::{self, Allowed},
    sni::{self, HELLO_MAX},
};
use crate::sessions::Desired;

/// For a request's head, and for a ClientHello.
pub(super) const SAY_WITHIN: Duration = Duration::from_secs(10);
/// For one address to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// So many of a name's addresses are tried.
const ADDRESSES_TRIED: usize = 4;
/// For a client that is refused to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a connection ends before anything was carried.
struct Refusal {
    status: u16,
    why: String,
    address: Option<IpAddr>,
    /// It was not the policy that was against it.
    allowed: bool,
}

impl Refusal {
    fn denied(status: u16, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), address: None, allowed: false }
    }
}

struct Conversation<'a> {
    shared: &'a Shared,
    who: Who,
    wanted: &'a watch::Receiver<Desired>,
    /// Known before it is decided on, so that no change of the policy comes in between unseen.
    target: &'a OnceLock<Target>,
}

/// Holds it until its end, or until the policy is against it.
pub(super) async fn hold(shared: &Shared, who: Who, client: UnixStream, wanted: watch::Receiver<Desired>) {
    let target = OnceLock::new();
    let talk = Conversation { shared, who, wanted: &wanted, target: &target };
    tokio::select! {
        () = talk.run(client) => {}
        why = revoked(shared, &target, wanted.clone()) => {
            let decision = Decision { allowed: false, target: target.get(), address: None, why };
            shared.audit.decided(who, decision);
        }
    }
}

/// Returns when the policy has changed so that it does not allow the target any more.
async fn revoked(
    shared: &Shared,
    target: &OnceLock<Target>,
    mut wanted: watch::Receiver<Desired>,
) -> &'static str {
    loop {
        if wanted.changed().await.is_err() {
            return "the session is over: cut";
        }
        let now = wanted.borrow_and_update();
        if let Some(target) = target.get()
            && policy::decide(&now.egress, &shared.rules, target).is_err()
        {
            return "the session's rules were changed, and allow it no more: cut";
        }
    }
}

impl Conversation<'_> {
    async fn run(&self, mut client: UnixStream) {
        let Err(refusal) = self.talk(&mut client).await else { return };
        self.tell(refusal.allowed, refusal.address, &refusal.why);
        if refusal.status > 0 {
            say(&mut client, refusal.status, &refusal.why, self.target.get()).await;
        }
    }

    fn tell(&self, allowed: bool, address: Option<IpAddr>, why: &str) {
        self.shared.audit.decided(self.who, Decision { allowed, target: self.target.get(), address, why });
    }

    async fn talk(&self, client: &mut UnixStream) -> Result<(), Refusal> {
        let mut heard = Vec::new();
        let read = tokio::time::timeout(SAY_WITHIN, read_request(client, &mut heard)).await;
        let read = read.map_err(|_| Refusal::denied(408, "no request came in time"))?;
        let Some(request) = read.map_err(|Bad { status, why }| Refusal::denied(status, why))? else {
            // Whoever only looks whether something listens asked for nothing.
            return Ok(());
        };
        let target = self.target.get_or_init(|| request.target().clone());
        let decided = policy::decide(&self.wanted.borrow().egress, &self.shared.rules, target);
        let allowed = decided.map_err(|why| Refusal::denied(403, why))?;
        let (server, address) = self.connect(target, &allowed).await?;
        match request {
            Request::Connect(_) => self.tunnel(client, server, &allowed, address, heard).await,
            Request::Plain { head, body, .. } => {
                self.tell(true, Some(address), &allowed.why);
                self.pass_on(client, server, address, &head, (body, heard)).await;
                Ok(())
            }
        }
    }

    /// To one of its addresses, each looked at just before.
    async fn connect(&self, target: &Target, allowed: &Allowed) -> Result<(TcpStream, IpAddr), Refusal> {
        let unknown = |error: io::Error| Refusal {
            allowed: true,
            ..Refusal::denied(502, format!("{}, but it could not be looked up: {error}", allowed.why))
        };
        let addresses = self.shared.resolver.addresses(&target.host).await.map_err(unknown)?;
        let mut against = None;
        let mut failed = None;
        for address in addresses.into_iter().take(ADDRESSES_TRIED) {
            if let Some(why) = policy::refuses(allowed, address) {
                against.get_or_insert((why, address));
                continue;
            }
            match connect(SocketAddr::new(address, target.port)).await {
                Ok(server) => return Ok((server, address)),
                Err(error) => failed = Some((error, address)),
            }
        }
        Err(match (failed, against) {
            (Some((error, address)), _) => Refusal {
                status: 502,
                why: format!("{}, but it can't be reached: {error}", allowed.why),
                address: Some(address),
                allowed: true,
            },
            (None, Some((why, address))) => Refusal { address: Some(address), ..Refusal::denied(403, why) },
            (None, None) => Refusal::denied(502, "it has no address"),
        })
    }

    async fn tunnel(
        &self,
        client: &mut UnixStream,
        mut server: TcpStream,
        allowed: &Allowed,
        address: IpAddr,
        mut heard: Vec<u8>,
    ) -> Result<(), Refusal> {
        // What was said is too late to be answered with a status from here on.
        let cut = |why: &str| Refusal { address: Some(address), ..Refusal::denied(0, why) };
        if client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_err() {
            return Err(cut("the client went away"));
        }
        if allowed.by_name {
            let read = tokio::time::timeout(SAY_WITHIN, read_hello(client, &mut heard)).await;
            let named = read.map_err(|_| cut("no TLS ClientHello came in time"))?.map_err(cut)?;
            let own = self.target.get().map(|target| &target.host);
            match named {
                Some(name) if Some(&name) == own => {}
                Some(name) => return Err(cut(&format!("its ClientHello is for {name}"))),
                None => return Err(cut("its ClientHello names no server")),
            }
        }
        self.tell(true, Some(address), &allowed.why);
        let going = self.going(address);
        if going.say(&mut server, &heard).await {
            going.carry(client, server, Upload::Open).await;
        }
        Ok(())
    }

    async fn pass_on(
        &self,
        client: &mut UnixStream,
        mut server: TcpStream,
        address: IpAddr,
        head: &[u8],
        (body, heard): (u64, Vec<u8>),
    ) {
        let begun = &heard[..heard.len().min(usize::try_from(body).unwrap_or(usize::MAX))];
        let going = self.going(address);
        if going.say(&mut server, head).await && going.say(&mut server, begun).await {
            going.carry(client, server, Upload::Exactly(body - begun.len() as u64)).await;
        }
    }

    fn going(&self, address: IpAddr) -> Going<'_> {
        Going { talk: self, address, begun: Instant::now(), carried: Carried::default() }
    }
}

/// What was allowed and goes on. When it is over, however that comes, it is told what it carried.
struct Going<'a> {
    talk: &'a Conversation<'a>,
    address: IpAddr,
    begun: Instant,
    carried: Carried,
}

impl Going<'_> {
    /// What was heard of the client before. Whether the server takes it.
    async fn say(&self, server: &mut TcpStream, bytes: &[u8]) -> bool {
        let said = server.write_all(bytes).await.is_ok();
        if said {
            self.carried.out.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        said
    }

    async fn carry(&self, client: &mut UnixStream, server: TcpStream, upload: Upload) {
        let ended = carry(client, server, upload, &self.carried).await;
        debug!(session.id = %self.talk.who.session, ?ended, "carried");
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        let went = Went {
            sent: self.carried.out.load(Ordering::Relaxed),
            received: self.carried.back.load(Ordering::Relaxed),
            lasted: self.begun.elapsed(),
        };
        self.talk.shared.audit.ended(self.talk.who, self.talk.target.get(), self.address, went);
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let address = address.to_string();
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
    let server =
        tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address.as_str())).await.map_err(late)??;
    server.set_nodelay(true)?;
    Ok(server)
}

/// Leaves in `heard` what came behind the head. `None`: nothing at all came.
async fn read_request(client: &mut UnixStream, heard: &mut Vec<u8>) -> Result<Option<Request>, Bad> {
    const BROKEN: Bad = Bad { status: 400, why: "the request broke off" };
    loop {
        if let Some((request, length)) = http::parse(heard)? {
            heard.drain(..length);
            return Ok(Some(request));
        }
        match read_some(client, heard, HEAD_MAX).await {
            Ok(0) if heard.is_empty() => return Ok(None),
            Ok(0) | Err(_) => return Err(BROKEN),
            Ok(_) => {}
        }
    }
}

async fn read_hello(client: &mut UnixStream, heard: &mut Vec<u8>) -> Result<Option<Host>, &'static str> {
    loop {
        if let Some(name) = sni::server_name(heard)? {
            return Ok(name);
        }
        match read_some(client, heard, HELLO_MAX).await {
            Ok(0) | Err(_) => return Err("its ClientHello broke off"),
            Ok(_) => {}
        }
    }
}

async fn read_some(client: &mut UnixStream, heard: &mut Vec<u8>, most: usize) -> io::Result<usize> {
    let room = most.saturating_sub(heard.len()).max(1);
    let mut part = vec![0; room.min(4096)];
    let n = client.read(&mut part).await?;
    heard.extend_from_slice(&part[..n]);
    Ok(n)
}

/// Tells a client why not, and lets it read that.
async fn say(client: &mut UnixStream, status: u16, why: &str, target: Option<&Target>) {
    let reason = match status {
        403 => "Forbidden",
        408 => "Request Timeout",
        411 => "Length Required",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        _ => "Bad Request",
    };
    let target = target.map(|target| format!("{target}: ")).unwrap_or_default();
    let body = format!("berth: {target}{why}\n");
    let text = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\
         X-Berth-Egress: refused\r\n\r\n{body}",
        body.len()
    );
    let last = async {
        client.write_all(text.as_bytes()).await?;
        client.shutdown().await?;
        // Closed with something unread, it would lose what it was told.
        let mut rest = [0; 4096];
        while client.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(LAST_WORDS, last).await;
}
