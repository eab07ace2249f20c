//! Host ids for sessions. Each native session has a range of 65,536 of its own, so that
//! no two sessions, and no host account, share a uid: what a kernel counts by uid
//! (inotify, message queues, keys) is counted apart.
//!
//! A range is claimed by binding an abstract Unix socket named after it. The claim is then
//! standard input of the sandbox's PID 1, so it lives exactly as long as the sandbox does,
//! through any crash of the worker, and two workers of one machine can't draw the same.
//! (A registry file was rejected: it needs its own cleaning after a crash.)

use std::{
    io,
    os::fd::OwnedFd,
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixDatagram},
};

use rand::RngExt;

/// Where the ranges begin: above systemd's container ranges (which end at 0x6FFF_FFFF) and
/// below 2^31, where some tools see negative numbers. See systemd's "Users, Groups, UIDs and GIDs".
pub const FIRST: u32 = 0x7000_0000;
/// Ids in a range: what an image may expect to exist.
pub const SIZE: u32 = 0x1_0000;
/// Ranges up to 0x7FFC_FFFF; the one at 0x7FFD_0000 is the docker backend's, and systemd
/// uses some just below 2^31.
pub const COUNT: u32 = 0x0FFD;

/// A claimed range.
#[derive(Debug)]
pub struct UidRange {
    /// Host id of the sandbox's uid 0, and of its gid 0.
    pub base: u32,
    /// Holds the claim while it, or a copy of it, is open.
    pub claim: OwnedFd,
}

/// Draws a free range.
///
/// # Errors
/// AddrInUse when all are taken; others from the kernel.
pub fn claim() -> io::Result<UidRange> {
    let start = rand::rng().random_range(0..COUNT);
    for i in 0..COUNT {
        match claim_slot((start + i) % COUNT) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "all ranges of host ids are in use"))
}

fn claim_slot(slot: u32) -> io::Result<UidRange> {
    let base = FIRST + slot * SIZE;
    let address = SocketAddr::from_abstract_name(format!("berth-uids-{base}"))?;
    Ok(UidRange { base, claim: UnixDatagram::bind_addr(&address)?.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap_and_stay_below_two_to_the_31() {
        assert!(FIRST.checked_add(COUNT * SIZE).is_some_and(|end| end < 1 << 31));
    }

    #[test]
    fn a_claimed_range_is_not_given_twice_and_is_free_again_after() {
        let first = claim().expect("a range is free");
        let slot = (first.base - FIRST) / SIZE;
        assert_eq!(claim_slot(slot).expect_err("it is taken").kind(), io::ErrorKind::AddrInUse);
        drop(first);
        claim_slot(slot).expect("it is free again");
    }
}
