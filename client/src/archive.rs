//! Directories of a session as tar archives, out and in.

use berth_proto::v1::{self, pack_response::Part};
use bytes::Bytes;
use futures::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tonic::Streaming;

use crate::{
    Error,
    files::{Files, service},
    model::Archived,
    upload::{Body, STALLED},
};

/// What of a directory goes into an archive, and under which names.
#[derive(Clone, Debug, Default)]
pub struct PackOptions(v1::PackRequest);

impl PackOptions {
    pub fn new() -> Self {
        Self::default()
    }

    /// What names in the archive begin with, e.g. `results`, and what a file is called.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = prefix.into();
        self
    }

    /// Neither files that fit this glob, nor what is in directories that do. At most 32.
    #[must_use]
    pub fn exclude(mut self, glob: impl Into<String>) -> Self {
        self.0.exclude.push(glob.into());
        self
    }

    /// Content in all that is more than this ends it. Without this, 64 GiB.
    #[must_use]
    pub fn max_bytes(mut self, most: u64) -> Self {
        self.0.max_bytes = most;
        self
    }
}

/// An archive, as it comes. Dropping it ends it.
pub struct PackReader {
    files: Files,
    inner: Streaming<v1::PackResponse>,
    end: Option<Archived>,
}

impl Files {
    /// A directory (or one file) as an uncompressed tar archive. Each file is as it was when it was read; for all of one
    /// moment there are checkpoints.
    pub async fn pack(&self, path: &str, options: PackOptions) -> Result<PackReader, Error> {
        let session_id = self.session.id.to_string();
        let request = v1::PackRequest { session_id, path: path.to_owned(), ..options.0 };
        let open = self
            .session
            .client
            .open(request, |channel, request| async { service(channel).pack(request).await });
        Ok(PackReader { files: self.clone(), inner: open.await?, end: None })
    }

    /// The same, written to `sink`. Without an error the archive is whole.
    pub async fn pack_to(
        &self,
        path: &str,
        options: PackOptions,
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Archived, Error> {
        let mut reader = self.pack(path, options).await?;
        let failed = |error: std::io::Error| Error::io("can't write the archive", &error);
        while let Some(piece) = reader.next().await? {
            sink.write_all(&piece).await.map_err(failed)?;
        }
        sink.flush().await.map_err(failed)?;
        reader.end.ok_or_else(|| Error::strange("an archive ended without a word"))
    }

    /// Puts what is in an uncompressed tar archive into a directory; with `make_parents` that is made if it is not there.
    /// What was there stays: directories are merged, files and links replaced. If the archive is refused on the way, what
    /// came before stays, and the error says how much that is.
    pub async fn unpack_from(
        &self,
        path: &str,
        source: impl AsyncRead + Send + Unpin + 'static,
        make_parents: bool,
    ) -> Result<Archived, Error> {
        let session_id = self.session.id.to_string();
        let header = v1::UnpackHeader { session_id, path: path.to_owned(), make_parents };
        let client = &self.session.client;
        let (body, failure, progress) = Body::new(v1::UnpackRequest::header(header), source);
        let mut service = service(client.channel());
        tokio::select! {
            biased;
            // The sender is also dropped, unused, when the upload went through.
            Ok(error) = failure => Err(Error::io("can't read what is to be unpacked", &error)),
            // Boxed: else the compiler can't tell that whoever awaits this may move between threads.
            result = service.unpack(client.authorized(body)).boxed() => {
                Ok(result.map_err(|status| client.error(status))?.into_inner().into())
            }
            () = progress.stalled() => Err(Error::deadline(client.address(), STALLED)),
        }
    }
}

impl PackReader {
    /// What comes next. `None`: the archive is whole. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let client = &self.files.session.client;
        if self.end.is_some() {
            return Ok(None);
        }
        match timeout(STALLED, self.inner.message()).await {
            Ok(Ok(Some(message))) => match message.part {
                Some(Part::Data(data)) => Ok(Some(data)),
                Some(Part::End(end)) => {
                    self.end = Some(end.into());
                    Ok(None)
                }
                None => Err(Error::strange("an empty part of an archive")),
            },
            Ok(Ok(None)) => Err(Error::strange("an archive ended without a word")),
            Ok(Err(status)) => Err(client.error(status)),
            Err(_) => Err(Error::deadline(client.address(), STALLED)),
        }
    }

    /// What it holds, once it is whole.
    pub fn end(&self) -> Option<&Archived> {
        self.end.as_ref()
    }
}

impl std::fmt::Debug for PackReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackReader").field("end", &self.end).finish_non_exhaustive()
    }
}
