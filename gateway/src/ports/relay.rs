//! Bytes both ways, of a protocol that is none of ours.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{SILENCE, moved::Moved};

/// What is held of one direction.
const PIECE: usize = 32 << 10;
/// Once one side has ended, for the other to move. A closed socket looks like one that has only ended what it sends.
const ENDED: Duration = Duration::from_secs(30);

/// Carries bytes until both sides have ended, or one has and the other stands still. What is dropped before it has ended is
/// reset, so that a part is not taken for the whole.
pub async fn relay<C, S, E>(client: C, server: S) -> Result<(), E>
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
    E: From<io::Error>,
{
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    let moved = Moved::default();
    let mut up = std::pin::pin!(pump(from_client, to_server, &moved));
    let mut down = std::pin::pin!(pump(from_server, to_client, &moved));
    let silent = || E::from(io::Error::from(io::ErrorKind::TimedOut));
    let ended_up = tokio::select! {
        ended = &mut up => ended.map(|()| true)?,
        ended = &mut down => ended.map(|()| false)?,
        () = moved.stood_still(SILENCE) => return Err(silent()),
    };
    moved.touch();
    let other = async { if ended_up { down.await } else { up.await } };
    tokio::select! {
        ended = other => Ok(ended?),
        () = moved.stood_still(ENDED) => Err(silent()),
    }
}

async fn pump(from: impl AsyncRead, to: impl AsyncWrite, moved: &Moved) -> io::Result<()> {
    let (mut from, mut to) = (std::pin::pin!(from), std::pin::pin!(to));
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await?;
        moved.touch();
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..read]).await?;
        to.flush().await?;
        moved.touch();
    }
}
