//! A file out of a session: read through its agent, hashed, and stored in pieces as it comes. In memory there is one
//! piece at a time.

use std::time::Duration;

use berth_checkpoint::{Digest, PIECE_MAX, seal};
use berth_proto::{
    Code, Error,
    v1::{self, read_response::Part},
    world,
};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::{
    Artifacts, DIRECTORY,
    look::{Found, Inside, Refused, from_status, nanos},
};

/// A file of which nothing comes for so long is given up.
const STALLED: Duration = Duration::from_secs(10);

/// A file's content, as far as it is not in the store.
pub(super) struct Content {
    pub size: u64,
    pub sha256: [u8; 32],
    pub modified: i64,
    /// Each of 1 MiB, but for the last.
    pub pieces: Vec<Digest>,
}

fn stalled<T>(_: T) -> Refused {
    Refused::Because("it could not be read in time".to_owned())
}

/// What the agent refuses is the file's fault, and told; what else fails is not.
fn refused(status: &tonic::Status) -> Refused {
    let error = from_status(status);
    match error.code() {
        Code::NotFound => Refused::Because("it was gone before it could be read".to_owned()),
        Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument => {
            Refused::Because(format!("it can't be read: {}", error.message()))
        }
        _ => Refused::Failed(error),
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::internal("an artifact could not be packed").cause(error)
}

impl Artifacts {
    /// Reads a file and stores what is in it. `None`: it changed meanwhile.
    pub(super) async fn fetch(&self, inside: &Inside, found: &Found) -> Result<Option<Content>, Refused> {
        let path = format!("{DIRECTORY}/{}", found.name);
        let session_id = inside.session.to_string();
        let request = v1::ReadRequest {
            session_id: session_id.clone(),
            path: path.clone(),
            offset: 0,
            // More than there may be is not read, should it grow.
            length: self.settings.file_bytes.saturating_add(1),
            no_links: true,
        };
        let stream = timeout(STALLED, inside.files().read(request)).await.map_err(stalled)?;
        let mut stream = stream.map_err(|status| refused(&status))?.into_inner();
        let mut begun: Option<v1::FileInfo> = None;
        let (mut size, mut hash, mut pieces) = (0, Sha256::new(), Vec::new());
        let mut piece = Vec::with_capacity(PIECE_MAX);
        loop {
            let part = timeout(STALLED, stream.message()).await.map_err(stalled)?;
            let Some(part) = part.map_err(|status| refused(&status))? else { break };
            match part.part {
                Some(Part::Info(info)) => begun = Some(info),
                Some(Part::Data(mut data)) => {
                    size += data.len() as u64;
                    if size > self.settings.file_bytes {
                        let most = self.settings.file_bytes;
                        return Err(Refused::Because(format!("it has more than {most} bytes")));
                    }
                    hash.update(&data);
                    while !data.is_empty() {
                        let take = data.len().min(PIECE_MAX - piece.len());
                        piece.extend_from_slice(&data.split_to(take));
                        if piece.len() == PIECE_MAX {
                            pieces.push(self.store(std::mem::take(&mut piece)).await?);
                        }
                    }
                }
                None => {}
            }
        }
        if !piece.is_empty() {
            pieces.push(self.store(piece).await?);
        }
        let request = v1::StatRequest { session_id, path, follow: false };
        let now = timeout(STALLED, inside.files().stat(request)).await.map_err(stalled)?;
        let now = match now {
            Ok(now) => now.into_inner(),
            Err(status) => return Err(refused(&status)),
        };
        let Some(begun) = begun else { return Ok(None) };
        let modified = nanos(&begun);
        let same = begun.size == size && now.size == size && nanos(&now) == modified;
        let sha256 = hash.finalize().into();
        Ok(same.then_some(Content { size, sha256, modified, pieces }))
    }

    /// Stores a piece, unless it is there.
    async fn store(&self, data: Vec<u8>) -> Result<Digest, Error> {
        let (digest, sealed) =
            world::blocking(move || (Digest::of(&data), seal(&data))).await.map_err(broken)?;
        self.checkpoints.put(digest, sealed.map_err(broken)?).await?;
        Ok(digest)
    }
}
