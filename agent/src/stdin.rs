//! A task's standard input: a pipe or a terminal, written by offset so that a retry
//! never writes twice, and never by blocking anyone: a task that does not read makes
//! its writer wait, for a bounded time.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use berth_proto::{Code, Error, Reason};
use nix::{
    errno::Errno,
    sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr},
    unistd,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Mutex,
};
use tokio_util::sync::CancellationToken;

/// How long a write waits for the task to read.
pub const WRITE_WAIT: Duration = Duration::from_secs(30);

enum Sink {
    Absent,
    Pipe(AsyncFd<OwnedFd>),
    Terminal(Arc<AsyncFd<OwnedFd>>),
    Closed,
}

struct Inner {
    sink: Sink,
    taken: u64,
    /// The last byte taken: an end of input counts at the beginning of a line only.
    last: u8,
}

/// Standard input of one task.
pub struct Stdin {
    inner: Mutex<Inner>,
}

impl Stdin {
    /// No input: what a task starts with.
    pub fn new() -> Self {
        Self { inner: Mutex::new(Inner { sink: Sink::Absent, taken: 0, last: b'\n' }) }
    }

    pub async fn open_pipe(&self, pipe: AsyncFd<OwnedFd>) {
        self.inner.lock().await.sink = Sink::Pipe(pipe);
    }

    pub async fn open_terminal(&self, master: Arc<AsyncFd<OwnedFd>>) {
        self.inner.lock().await.sink = Sink::Terminal(master);
    }

    /// Writes what of `data` was not taken before. Returns the next offset.
    pub async fn write(
        &self,
        offset: Option<u64>,
        data: &[u8],
        done: &CancellationToken,
    ) -> Result<u64, Error> {
        let mut inner = self.inner.lock().await;
        let skip = match offset {
            None => 0,
            Some(offset) if offset > inner.taken => {
                return Err(Error::new(
                    Code::OutOfRange,
                    Reason::OffsetBeyondEnd,
                    format!("offset {offset} is past the {} bytes of input so far", inner.taken),
                )
                .with("offset", inner.taken));
            }
            Some(offset) => (inner.taken - offset) as usize,
        };
        let Some(mut rest) = data.get(skip..).filter(|rest| !rest.is_empty()) else { return Ok(inner.taken) };
        let deadline = tokio::time::sleep(WRITE_WAIT);
        tokio::pin!(deadline);
        while !rest.is_empty() {
            let written = tokio::select! {
                biased;
                () = done.cancelled() => return Err(task_done()),
                written = inner.sink.write(rest) => written?,
                () = &mut deadline => return Err(full(inner.taken)),
            };
            inner.taken += written as u64;
            inner.last = rest[written - 1];
            rest = &rest[written..];
        }
        Ok(inner.taken)
    }

    /// Ends the input. On a terminal that is its end-of-file character.
    pub async fn close(&self, done: &CancellationToken) -> Result<(), Error> {
        let mut inner = self.inner.lock().await;
        let Inner { sink, last, .. } = &mut *inner;
        match sink {
            Sink::Absent => return Err(no_stdin("it was started without `stdin`")),
            Sink::Closed => return Ok(()),
            Sink::Pipe(_) => {}
            Sink::Terminal(master) => {
                let end = end_characters(master, *last);
                let write = sink.write_all(&end);
                tokio::select! {
                    () = done.cancelled() => {}
                    result = tokio::time::timeout(WRITE_WAIT, write) => {
                        result.unwrap_or_else(|_| Err(full(0)))?;
                    }
                }
            }
        }
        *sink = Sink::Closed;
        Ok(())
    }

    /// The task is done: nobody reads any more.
    pub async fn drop_sink(&self) {
        let mut inner = self.inner.lock().await;
        if !matches!(inner.sink, Sink::Absent) {
            inner.sink = Sink::Closed;
        }
    }
}

impl Default for Stdin {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink {
    async fn write(&self, data: &[u8]) -> Result<usize, Error> {
        let fd = match self {
            Sink::Pipe(fd) => fd,
            Sink::Terminal(fd) => fd.as_ref(),
            Sink::Absent => return Err(no_stdin("it was started without `stdin`")),
            Sink::Closed => return Err(no_stdin("its input was closed")),
        };
        let written = fd.async_io(Interest::WRITABLE, |fd| Ok(unistd::write(fd, data)?)).await;
        written.map_err(|error| match error.raw_os_error() {
            Some(errno) if errno == Errno::EPIPE as i32 || errno == Errno::EIO as i32 => {
                no_stdin("it has closed its input")
            }
            _ => Error::internal("the task's input failed").cause(error),
        })
    }

    async fn write_all(&self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            data = &data[self.write(data).await?..];
        }
        Ok(())
    }
}

/// What ends the input of a terminal that is in line mode: once at the beginning of a
/// line; once more to push an unfinished line out first.
fn end_characters(master: &AsyncFd<OwnedFd>, last: u8) -> Vec<u8> {
    let (end, lines) = match tcgetattr(master.get_ref().as_fd()) {
        Ok(settings) => (
            settings.control_chars[SpecialCharacterIndices::VEOF as usize],
            settings.local_flags.contains(LocalFlags::ICANON),
        ),
        Err(_) => (4, true),
    };
    if lines && last != b'\n' && last != b'\r' && last != end { vec![end; 2] } else { vec![end] }
}

fn no_stdin(why: &str) -> Error {
    Error::precondition(Reason::NoStdin, format!("the task takes no input: {why}"))
}

/// The task is done and takes neither input nor signals.
pub fn task_done() -> Error {
    Error::precondition(Reason::TaskDone, "the task is done")
}

fn full(taken: u64) -> Error {
    Error::exhausted(
        Reason::StdinFull,
        format!("the task has not read its input for {} s; {taken} bytes were taken", WRITE_WAIT.as_secs()),
    )
    .with("offset", taken)
    .hint("write on from that offset when the task reads again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;

    async fn pipe() -> (Stdin, OwnedFd) {
        let (read, write) = unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let stdin = Stdin::new();
        stdin.open_pipe(crate::sys::watch(write, Interest::WRITABLE).unwrap()).await;
        (stdin, read)
    }

    fn content(fd: &OwnedFd) -> Vec<u8> {
        let mut buffer = vec![0; 4096];
        let n = unistd::read(fd, &mut buffer).unwrap_or(0);
        buffer.truncate(n);
        buffer
    }

    #[tokio::test]
    async fn a_retry_never_writes_twice() {
        let (stdin, read) = pipe().await;
        let done = CancellationToken::new();
        assert_eq!(stdin.write(Some(0), b"abc", &done).await.unwrap(), 3);
        assert_eq!(stdin.write(Some(0), b"abc", &done).await.unwrap(), 3);
        assert_eq!(stdin.write(Some(1), b"bcde", &done).await.unwrap(), 5);
        assert_eq!(stdin.write(None, b"f", &done).await.unwrap(), 6);
        let error = stdin.write(Some(9), b"x", &done).await.unwrap_err();
        assert_eq!(error.reason(), Reason::OffsetBeyondEnd);
        assert_eq!(content(&read), b"abcdef");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_read_is_waited_for_and_no_longer() {
        let (stdin, read) = pipe().await;
        let done = CancellationToken::new();
        let big = vec![7; 1 << 20];
        let error = stdin.write(Some(0), &big, &done).await.unwrap_err();
        assert_eq!(error.reason(), Reason::StdinFull);
        assert!(!content(&read).is_empty());
        done.cancel();
        let error = stdin.write(Some(0), &big, &done).await.unwrap_err();
        assert_eq!(error.reason(), Reason::TaskDone);
    }

    #[tokio::test]
    async fn closed_is_closed() {
        let (stdin, read) = pipe().await;
        let done = CancellationToken::new();
        stdin.close(&done).await.unwrap();
        stdin.close(&done).await.unwrap();
        assert_eq!(stdin.write(None, b"x", &done).await.unwrap_err().reason(), Reason::NoStdin);
        assert!(content(&read).is_empty());
        let (stdin, read) = pipe().await;
        drop(read);
        assert_eq!(stdin.write(None, b"x", &done).await.unwrap_err().reason(), Reason::NoStdin);
        assert_eq!(Stdin::new().close(&done).await.unwrap_err().reason(), Reason::NoStdin);
    }
}
