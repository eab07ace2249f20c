//! What the server and init say to each other, and what init and a task's first
//! process do, over SEQPACKET sockets: packets keep their bounds, and carry descriptors.
//!
//! A packet is a fixed head (kind, task number) and a protobuf body. Init forwards the
//! body of a spawn untouched: it needs the number only. A body too big for a packet
//! travels in a memfd. Rejected: JSON (paths are bytes), and one pipe per direction
//! (no descriptors).

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{AddressFamily, SockFlag, SockType, socketpair},
};
use prost::Message;

use crate::sys;

/// Bytes of a packet, head included. Below the kernel's default socket buffer (208 KiB).
pub const PACKET_MAX: usize = 96 << 10;
/// Bytes of the head: kind, then the task's number.
pub const HEAD: usize = 9;

/// What a packet to init asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The body is a [`Spawn`].
    Spawn,
    /// The body is a [`Spawn`] in a memfd, the last descriptor.
    SpawnSpilled,
    /// The body is a [`Signal`].
    Signal,
}

/// Everything that a task's first process needs, prebuilt.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Spawn {
    /// One descriptor comes, a terminal. Otherwise three: stdin, stdout, stderr.
    #[prost(bool, tag = "1")]
    pub pty: bool,
    #[prost(bytes = "vec", tag = "2")]
    pub cwd: Vec<u8>,
    /// Paths to try, in order.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub programs: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` each.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub env: Vec<Vec<u8>>,
}

/// A signal for the process group of a task's main process.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Signal {
    #[prost(int32, tag = "1")]
    pub signal: i32,
}

/// Where the start of a task failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Stage {
    Fork = 0,
    Cgroup = 1,
    Prepare = 2,
    Privileges = 3,
    Message = 4,
    Terminal = 5,
    Cwd = 6,
}

/// From init to the server, and from a task's first process to init.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Report {
    #[prost(oneof = "Event", tags = "1, 2, 3, 4")]
    pub event: Option<Event>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Event {
    #[prost(message, tag = "1")]
    Spawned(Spawned),
    #[prost(message, tag = "2")]
    Failed(Failed),
    #[prost(message, tag = "3")]
    Exited(Exited),
    /// Init was asked to stop: end everything.
    #[prost(message, tag = "4")]
    Terminate(Terminate),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Terminate {}

/// The program runs (or the first process wrote why it can't, and exits 126 or 127).
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Spawned {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Number of the cgroup that it is in. Absent: no cgroups here.
    #[prost(uint64, optional, tag = "2")]
    pub group: Option<u64>,
    /// Without cgroups: the subreaper above all that the task starts.
    #[prost(int32, optional, tag = "3")]
    pub guard: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Failed {
    #[prost(enumeration = "Stage", tag = "1")]
    pub stage: i32,
    #[prost(int32, tag = "2")]
    pub errno: i32,
}

/// How the main process ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Exited {
    /// As wait4 gives it.
    #[prost(int32, tag = "1")]
    pub status: i32,
    #[prost(uint64, tag = "2")]
    pub user_nanos: u64,
    #[prost(uint64, tag = "3")]
    pub system_nanos: u64,
    #[prost(uint64, tag = "4")]
    pub peak_bytes: u64,
}

impl From<sys::Reaped> for Exited {
    fn from(reaped: sys::Reaped) -> Self {
        Self {
            status: reaped.status,
            user_nanos: reaped.user.as_nanos() as u64,
            system_nanos: reaped.system.as_nanos() as u64,
            peak_bytes: reaped.peak_bytes,
        }
    }
}

/// A connected pair, close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A packet: head and body.
pub fn packet(kind: Kind, task: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.push(match kind {
        Kind::Spawn => 1,
        Kind::SpawnSpilled => 2,
        Kind::Signal => 3,
    });
    bytes.extend_from_slice(&task.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Takes a packet apart. `None`: not one of ours.
pub fn open(bytes: &[u8]) -> Option<(Kind, u64, &[u8])> {
    let kind = match bytes.first()? {
        1 => Kind::Spawn,
        2 => Kind::SpawnSpilled,
        3 => Kind::Signal,
        _ => return None,
    };
    let task = u64::from_le_bytes(bytes.get(1..HEAD)?.try_into().ok()?);
    Some((kind, task, &bytes[HEAD..]))
}

/// A spawn as packet, and the memfd that goes behind its descriptors when it is large.
pub fn spawn_packet(task: u64, spawn: &Spawn) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let body = spawn.encode_to_vec();
    if body.len() + HEAD <= PACKET_MAX {
        return Ok((packet(Kind::Spawn, task, &body), None));
    }
    let mut file = File::from(memfd_create("spawn", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&body)?;
    file.rewind()?;
    Ok((packet(Kind::SpawnSpilled, task, &[]), Some(file.into())))
}

/// Reads a spawn from its packet and descriptors; what is left are the task's own.
pub fn read_spawn(bytes: &[u8], fds: &mut Vec<OwnedFd>) -> io::Result<Spawn> {
    let bad = || io::Error::other("not a spawn");
    let (kind, _, body) = open(bytes).ok_or_else(bad)?;
    let spawn = match kind {
        Kind::Spawn => Spawn::decode(body),
        Kind::SpawnSpilled => {
            let mut body = Vec::new();
            File::from(fds.pop().ok_or_else(bad)?).read_to_end(&mut body)?;
            Spawn::decode(&body[..])
        }
        Kind::Signal => return Err(bad()),
    };
    spawn.map_err(io::Error::other)
}

/// Sends a report, blocking.
pub fn report(socket: BorrowedFd<'_>, task: u64, event: Event) -> io::Result<()> {
    let mut bytes = task.to_le_bytes().to_vec();
    bytes.extend_from_slice(&Report { event: Some(event) }.encode_to_vec());
    sys::send(socket, &bytes, &[])
}

/// Reads a report's packet.
pub fn read_report(bytes: &[u8]) -> Option<(u64, Event)> {
    let task = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    Some((task, Report::decode(&bytes[8..]).ok()?.event?))
}

/// Raw numbers of descriptors, for sending.
pub fn raw(fds: &[impl AsFd]) -> Vec<RawFd> {
    fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn(argument: usize) -> Spawn {
        Spawn {
            pty: false,
            cwd: b"/w\xff".to_vec(),
            programs: vec![b"/bin/x".to_vec()],
            argv: vec![vec![b'a'; argument]],
            env: vec![b"A=1".to_vec()],
        }
    }

    #[test]
    fn a_spawn_survives_small_and_large() {
        for size in [3, 900_000] {
            let sent = spawn(size);
            let (bytes, spilled) = spawn_packet(7, &sent).unwrap();
            assert_eq!(spilled.is_some(), size > PACKET_MAX);
            assert!(bytes.len() <= PACKET_MAX);
            let (a, b) = pair().unwrap();
            let null = File::open("/dev/null").unwrap();
            let mut fds = vec![null.as_raw_fd()];
            fds.extend(spilled.iter().map(|fd| fd.as_raw_fd()));
            sys::send(a.as_fd(), &bytes, &fds).unwrap();
            let mut buffer = vec![0; PACKET_MAX];
            let (n, mut fds) = sys::receive(b.as_fd(), &mut buffer).unwrap();
            assert_eq!(open(&buffer[..n]).unwrap().1, 7);
            assert_eq!(read_spawn(&buffer[..n], &mut fds).unwrap(), sent);
            assert_eq!(fds.len(), 1);
        }
    }

    #[test]
    fn the_end_of_a_peer_is_length_zero() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert_eq!(sys::receive(b.as_fd(), &mut [0; 64]).unwrap().0, 0);
    }

    #[test]
    fn junk_is_refused() {
        assert!(open(&[]).is_none() && open(&[9; 20]).is_none() && open(&[1, 2]).is_none());
        assert!(read_report(&[1, 2, 3]).is_none());
    }
}
