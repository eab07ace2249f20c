//! Bytes both ways between a client and a server, until one of them is done or nothing is said for long.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};

/// A connection on which nothing is said in either direction for so long is over.
pub const IDLE: Duration = Duration::from_secs(600);
const BUFFER: usize = 16 << 10;

/// How much went through.
#[derive(Debug, Default)]
pub struct Carried {
    pub out: AtomicU64,
    pub back: AtomicU64,
}

/// What the client may still send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upload {
    /// As much as it likes; its end is passed on.
    Open,
    /// So many bytes of a body. What comes behind it is not the server's to see.
    Exactly(u64),
}

/// Carries until it is over.
pub async fn carry<C, S>(client: C, server: S, upload: Upload, carried: &Carried) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let begun = Instant::now();
    let last = AtomicU64::new(0);
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    let heard = |count: &AtomicU64, n: usize| {
        count.fetch_add(n as u64, Ordering::Relaxed);
        last.store(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    };
    // The server's half, where its end is not to be passed on.
    let out = async {
        match upload {
            Upload::Open => {
                let mut server = pump(client_read, server_write, |n| heard(&carried.out, n)).await?;
                server.shutdown().await.map(|()| None)
            }
            Upload::Exactly(length) => {
                let body = client_read.take(length);
                pump(body, server_write, |n| heard(&carried.out, n)).await.map(Some)
            }
        }
    };
    let back = async {
        let mut client = pump(server_read, client_write, |n| heard(&carried.back, n)).await?;
        client.shutdown().await
    };
    let both = async {
        match upload {
            // A tunnel lives until both have ended their half.
            Upload::Open => tokio::try_join!(out, back).map(drop),
            // The answer's end is the end, whether or not all of the body was wanted.
            Upload::Exactly(_) => {
                tokio::pin!(back);
                tokio::select! {
                    result = &mut back => result,
                    sent = out => {
                        // A server that takes no more of the body may still have an answer.
                        let _half = sent;
                        back.await
                    }
                }
            }
        }
    };
    tokio::pin!(both);
    loop {
        tokio::select! {
            result = &mut both => return result,
            () = tokio::time::sleep(IDLE / 4) => {
                let quiet = begun.elapsed().saturating_sub(Duration::from_millis(last.load(Ordering::Relaxed)));
                if quiet >= IDLE {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said for 10 minutes"));
                }
            }
        }
    }
}

async fn pump<R, W>(mut from: R, mut to: W, heard: impl Fn(usize)) -> io::Result<W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(to);
        }
        to.write_all(&buffer[..n]).await?;
        heard(n);
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::spawn::spawn;

    use super::*;

    /// Red when the body is not counted: the server reads a second request.
    #[tokio::test]
    async fn what_is_behind_a_body_does_not_go_on() {
        let (mut client, near) = tokio::io::duplex(100);
        let (mut server, far) = tokio::io::duplex(100);
        spawn("carry", async move {
            let _ = carry(near, far, Upload::Exactly(4), &Carried::default()).await;
        });
        client.write_all(b"bodyGET /second").await.unwrap();
        let mut seen = [0; 4];
        server.read_exact(&mut seen).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&seen, &rest[..]), (b"body", &b""[..]));
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_tunnel_ends_and_one_that_talks_in_one_direction_does_not() {
        let (_client, near) = tokio::io::duplex(100);
        let (mut server, far) = tokio::io::duplex(100);
        let begun = Instant::now();
        let talk = async {
            for _ in 0..3 {
                tokio::time::sleep(IDLE * 3 / 4).await;
                server.write_all(b".").await.unwrap();
            }
            std::future::pending::<()>().await
        };
        let carried = Carried::default();
        tokio::select! {
            over = carry(near, far, Upload::Open, &carried) => {
                assert_eq!(over.unwrap_err().kind(), io::ErrorKind::TimedOut);
            }
            () = talk => {}
        }
        assert!(begun.elapsed() >= IDLE * 13 / 4, "{:?}", begun.elapsed());
        assert_eq!(carried.back.into_inner(), 3);
    }
}
