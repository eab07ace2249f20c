//! The user's terminal: raw mode that is always left again, and its size.
//!
//! The guard restores on drop, so a return, a `?` and a panic all leave the terminal as
//! it was. Signals that would end the process are taken by the caller and become returns.

use std::{
    io::{self, Read},
    os::fd::AsFd,
};

use berth_client::PtySize;
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};

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

/// A line that is typed without being shown. `None`: Ctrl-C, which ends the line here and not the process, since that would
/// leave the terminal without an echo.
pub fn hidden_line(prompt: &str) -> io::Result<Option<Vec<u8>>> {
    const CTRL_C: u8 = 3;
    let stdin = io::stdin();
    let before = termios::tcgetattr(&stdin)?;
    let mut hidden = before.clone();
    hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
    hidden.local_flags.insert(LocalFlags::ECHONL);
    hidden.control_chars[SpecialCharacterIndices::VEOL as usize] = CTRL_C;
    let restore = RawMode { before };
    termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden)?;
    eprint!("{prompt}");
    let mut line = Vec::new();
    let mut byte = [0];
    let mut input = stdin.lock();
    while input.read(&mut byte)? == 1 && byte[0] != b'\n' {
        if byte[0] == CTRL_C {
            eprintln!();
            return Ok(None);
        }
        line.push(byte[0]);
    }
    drop(restore);
    Ok(Some(line))
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
