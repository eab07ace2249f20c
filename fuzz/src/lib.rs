//! What Berth's parsers of hostile input promise, as functions of bytes that panic when a promise is broken.
//!
//! Two things call them. A fuzzer (`make fuzz`; `fuzz/targets` are its executables, three lines each) looks for bytes
//! that break one. The test of this crate, which is part of `make test` and needs no fuzzer, feeds them all that a
//! fuzzer ever found worth keeping (`fuzz/corpus`), whole, cut short and with bits flipped. So what was found once stays
//! found, and a property that no longer holds is seen without anybody running a fuzzer.
//!
//! A target says more than that nothing panics: what is read is the same when it is written and read again, what is
//! taken is within its bounds, nothing is written outside, and another's reading agrees where there is one (rustls for a
//! ClientHello, httparse for what goes on to a server, `inet_aton`'s rules for names).
//!
//! Not here: what needs processes or a kernel to answer (`make abuse` attacks those).

mod archives;
mod disk;
mod egress;
mod frames;
mod input;
mod requests;
mod scratch;
pub mod seeds;
mod words;

pub use requests::{MESSAGES, messages_of_the_contract};

/// A function that bytes are fed to.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// All targets. Each has an executable of its name in `fuzz/targets`, and a directory in `fuzz/corpus`.
pub const TARGETS: [Target; 17] = [
    Target { name: "requests", run: requests::requests },
    Target { name: "validation", run: requests::validation },
    Target { name: "status", run: requests::status },
    Target { name: "egress_rules", run: egress::egress_rules },
    Target { name: "proxy_request", run: egress::proxy_request },
    Target { name: "client_hello", run: egress::client_hello },
    Target { name: "manifest", run: archives::manifest },
    Target { name: "archive_import", run: archives::archive_import },
    Target { name: "tarball", run: archives::tarball },
    Target { name: "search", run: archives::search },
    Target { name: "spool", run: disk::spool },
    Target { name: "ledger", run: disk::ledger },
    Target { name: "packets", run: disk::packets },
    Target { name: "names", run: words::names },
    Target { name: "worker_words", run: words::worker_words },
    Target { name: "terminal", run: words::terminal },
    Target { name: "frames", run: frames::frames },
];

/// Feeds an input to a target.
///
/// # Panics
/// If there is none of that name, and if a promise is broken: that is what it is for.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("there is no target {name}")).run)(bytes);
}
