//! The user's terminal: raw mode that is always left again, and its size.
//!
//! The guard restores on drop, so a return, a `?` and a panic all leave the terminal as
//! it was. Signals that would end the process are taken by the caller and become returns.

use std::{io, os::fd::AsFd};

use berth_client::PtySize;
use nix::sys::termios::{self, SetArg, Termios};

use crate::sys;

/// The terminal in raw mode, for as long as this lives.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Each key goes through as it is: no echo, no lines, no signals.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // DRAIN: what is still to be shown was meant for raw mode. If it fails, the
        // terminal is gone, and nobody is left to tell.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// The size of the terminal behind `fd`. `None`: it is none, or doesn't know.
pub fn size(fd: impl AsFd) -> Option<PtySize> {
    let (cols, rows) = sys::window_size(fd)?;
    (cols > 0 && rows > 0).then_some(PtySize { cols, rows })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_has_no_terminal_size() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(super::size(&file), None);
    }
}
