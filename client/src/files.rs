//! Files of a session. Paths are relative to the workspace, or absolute inside the
//! sandbox; the kernel there decides what may be touched, as the task's user.

use std::{io::Cursor, time::Duration};

use berth_proto::{
    transport::MESSAGE_LIMIT,
    v1::{self, file_service_client::FileServiceClient, read_response::Part},
};
use bytes::Bytes;
use futures::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tonic::{Streaming, transport::Channel};

use crate::{
    Error, Session,
    connect::Policy,
    model::FileInfo,
    upload::{Body, STALLED},
};

pub(crate) fn service(channel: Channel) -> FileServiceClient<Channel> {
    FileServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// The most that [`Files::read`] takes into memory: a sandbox may hold a file of any size.
const READ_LIMIT: u64 = 256 << 20;
/// Removing or listing a big tree takes its time.
const TREE: Duration = Duration::from_secs(120);

/// How to write a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    mode: Option<u32>,
    make_parents: bool,
}

impl WriteOptions {
    pub fn new() -> Self {
        Self::default()
    }

    /// Permission bits. Without this, 0644, or those of the file that is replaced.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Make missing parent directories.
    #[must_use]
    pub fn make_parents(mut self) -> Self {
        self.make_parents = true;
        self
    }
}

/// A file's content, as it comes.
pub struct FileReader {
    files: Files,
    info: FileInfo,
    stream: Streaming<v1::ReadResponse>,
}

impl FileReader {
    /// The file as it was when the read began.
    pub fn info(&self) -> &FileInfo {
        &self.info
    }

    /// What comes next. `None`: that was all.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(part) = self.files.part(&mut self.stream).await? {
            if let Part::Data(piece) = part {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

/// The files of a session.
#[derive(Clone, Debug)]
pub struct Files {
    pub(crate) session: Session,
}

impl Files {
    pub(crate) fn new(session: Session) -> Self {
        Self { session }
    }

    fn id(&self) -> String {
        self.session.id.to_string()
    }

    async fn open(
        &self,
        path: &str,
        offset: u64,
        length: u64,
    ) -> Result<(FileInfo, Streaming<v1::ReadResponse>), Error> {
        let request =
            v1::ReadRequest { session_id: self.id(), path: path.to_owned(), offset, length, no_links: false };
        let mut stream = self
            .session
            .client
            .open(request, |channel, request| async { service(channel).read(request).await })
            .await?;
        match self.part(&mut stream).await? {
            Some(Part::Info(info)) => Ok((info.try_into()?, stream)),
            _ => Err(Error::strange("a file's content came without its description")),
        }
    }

    async fn part(&self, stream: &mut Streaming<v1::ReadResponse>) -> Result<Option<Part>, Error> {
        match timeout(STALLED, stream.message()).await {
            Ok(Ok(None)) => Ok(None),
            Ok(Ok(Some(message))) => {
                message.part.map(Some).ok_or_else(|| Error::strange("an empty part of a file"))
            }
            Ok(Err(status)) => Err(self.session.client.error(status)),
            Err(_) => Err(Error::deadline(self.session.client.address(), STALLED)),
        }
    }

    /// A whole file, at most 256 MiB; [`Files::read_to`] has no limit.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.read_range(path, 0, 0).await
    }

    /// A whole file as text.
    pub async fn read_text(&self, path: &str) -> Result<String, Error> {
        String::from_utf8(self.read(path).await?).map_err(|_| Error::invalid(format!("{path} is not UTF-8")))
    }

    /// A part of a file; `length` 0 is to the end. At most 256 MiB.
    pub async fn read_range(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        let (info, mut stream) = self.open(path, offset, length).await?;
        let too_big =
            || Error::invalid(format!("{path} is too big to be read into memory")).or_hint("use read_to");
        let expected = info.size.saturating_sub(offset);
        let expected = if length == 0 { expected } else { expected.min(length) };
        if expected > READ_LIMIT {
            return Err(too_big());
        }
        let mut data = Vec::with_capacity(expected as usize);
        while let Some(part) = self.part(&mut stream).await? {
            let Part::Data(piece) = part else { continue };
            // A file may grow while it is read.
            if (data.len() + piece.len()) as u64 > READ_LIMIT {
                return Err(too_big());
            }
            data.extend_from_slice(&piece);
        }
        Ok(data)
    }

    /// A file's content as it comes, of any size.
    pub async fn reader(&self, path: &str) -> Result<FileReader, Error> {
        let (info, stream) = self.open(path, 0, 0).await?;
        Ok(FileReader { files: self.clone(), info, stream })
    }

    /// Copies a file to `sink`, and says what it is.
    pub async fn read_to(&self, path: &str, sink: &mut (impl AsyncWrite + Unpin)) -> Result<FileInfo, Error> {
        let mut reader = self.reader(path).await?;
        let failed = |error: std::io::Error| Error::io("can't write what was read", &error);
        while let Some(piece) = reader.next().await? {
            sink.write_all(&piece).await.map_err(failed)?;
        }
        sink.flush().await.map_err(failed)?;
        Ok(reader.info)
    }

    /// Writes a file, replacing it in one step.
    pub async fn write(&self, path: &str, data: impl Into<Bytes>) -> Result<FileInfo, Error> {
        self.write_with(path, data, WriteOptions::new()).await
    }

    /// The same, with a mode or with parents.
    pub async fn write_with(
        &self,
        path: &str,
        data: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<FileInfo, Error> {
        self.write_from(path, Cursor::new(data.into()), options).await
    }

    /// Writes what `source` gives, replacing the file in one step at its end. If the
    /// source, the connection or this future fails first, the file stays as it was.
    pub async fn write_from(
        &self,
        path: &str,
        source: impl AsyncRead + Send + Unpin + 'static,
        options: WriteOptions,
    ) -> Result<FileInfo, Error> {
        let header = v1::WriteHeader {
            session_id: self.id(),
            path: path.to_owned(),
            mode: options.mode,
            make_parents: options.make_parents,
        };
        let client = &self.session.client;
        let (body, failure, progress) = Body::new(v1::WriteRequest::header(header), source);
        let mut service = service(client.channel());
        tokio::select! {
            biased;
            // The sender is also dropped, unused, when the upload went through.
            Ok(error) = failure => Err(Error::io("can't read what is to be written", &error)),
            // Boxed: else the compiler can't tell that whoever awaits this may move between threads.
            result = service.write(client.authorized(body)).boxed() => {
                result.map_err(|status| client.error(status))?.into_inner().try_into()
            }
            () = progress.stalled() => Err(Error::deadline(client.address(), STALLED)),
        }
    }

    /// What is at a path; of a symbolic link, the link itself.
    pub async fn stat(&self, path: &str) -> Result<FileInfo, Error> {
        self.stat_with(path, false).await
    }

    /// What is at a path; of a symbolic link, what it points to.
    pub async fn stat_follow(&self, path: &str) -> Result<FileInfo, Error> {
        self.stat_with(path, true).await
    }

    async fn stat_with(&self, path: &str, follow: bool) -> Result<FileInfo, Error> {
        let message = v1::StatRequest { session_id: self.id(), path: path.to_owned(), follow };
        self.session
            .client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).stat(request).await
            })
            .await?
            .try_into()
    }

    /// A directory's own entries.
    pub async fn list(&self, path: &str) -> Result<Vec<FileInfo>, Error> {
        self.list_depth(path, 1).await
    }

    /// Entries down to `depth` levels, each directory before what is in it.
    pub async fn list_depth(&self, path: &str, depth: u32) -> Result<Vec<FileInfo>, Error> {
        Ok(self.list_at_most(path, depth, usize::MAX).await?.0)
    }

    /// The first of them, at most `most`; and whether there are more. For trees that may be of any size.
    pub async fn list_at_most(
        &self,
        path: &str,
        depth: u32,
        most: usize,
    ) -> Result<(Vec<FileInfo>, bool), Error> {
        let (mut entries, mut token) = (Vec::new(), String::new());
        loop {
            let (page, next) = self.list_page(path, depth, 1000, token).await?;
            entries.extend(page);
            let more = !next.is_empty();
            if entries.len() > most || !more {
                let more = more || entries.len() > most;
                entries.truncate(most);
                return Ok((entries, more));
            }
            token = next;
        }
    }

    /// One page of them, of 1 to 1000 entries, and the token of the next one; it is empty after the last. `token`: of this
    /// page, empty for the first.
    pub async fn list_page(
        &self,
        path: &str,
        depth: u32,
        size: u32,
        token: String,
    ) -> Result<(Vec<FileInfo>, String), Error> {
        let request = v1::ListRequest {
            session_id: self.id(),
            path: path.to_owned(),
            depth,
            page_size: size,
            page_token: token,
            no_links: false,
        };
        let page = self
            .session
            .client
            .call(Policy::REPEATABLE.deadline(TREE), request, |channel, request| async {
                service(channel).list(request).await
            })
            .await?;
        let entries = page.entries.into_iter().map(FileInfo::try_from).collect::<Result<_, _>>()?;
        Ok((entries, page.next_page_token))
    }

    /// Makes a directory; its parent must be there, and it must not.
    pub async fn mkdir(&self, path: &str) -> Result<FileInfo, Error> {
        self.mkdir_with(path, false, None).await
    }

    /// Makes a directory with all of its parents, and does not mind if it is there.
    pub async fn mkdir_all(&self, path: &str) -> Result<FileInfo, Error> {
        self.mkdir_with(path, true, None).await
    }

    /// Makes a directory with these permission bits.
    pub async fn mkdir_with(&self, path: &str, parents: bool, mode: Option<u32>) -> Result<FileInfo, Error> {
        let message = v1::MakeDirRequest { session_id: self.id(), path: path.to_owned(), parents, mode };
        // Without parents, a second one would find the first's work and fail.
        let policy = if parents { Policy::REPEATABLE } else { Policy::ONCE };
        self.session
            .client
            .call(policy, message, |channel, request| async { service(channel).make_dir(request).await })
            .await?
            .try_into()
    }

    /// Moves a file or directory; with `overwrite`, over what is there.
    pub async fn rename(&self, from: &str, to: &str, overwrite: bool) -> Result<FileInfo, Error> {
        let message = v1::MoveRequest {
            session_id: self.id(),
            source: from.to_owned(),
            destination: to.to_owned(),
            overwrite,
        };
        self.session
            .client
            .call(Policy::ONCE, message, |channel, request| async { service(channel).r#move(request).await })
            .await?
            .try_into()
    }

    /// Removes a file, a link or an empty directory.
    pub async fn remove(&self, path: &str) -> Result<(), Error> {
        self.remove_with(path, false).await
    }

    /// Removes a directory with all that is in it.
    pub async fn remove_all(&self, path: &str) -> Result<(), Error> {
        self.remove_with(path, true).await
    }

    async fn remove_with(&self, path: &str, recursive: bool) -> Result<(), Error> {
        let message = v1::RemoveRequest { session_id: self.id(), path: path.to_owned(), recursive };
        self.session
            .client
            .call(Policy::ONCE.deadline(TREE), message, |channel, request| async {
                service(channel).remove(request).await
            })
            .await?;
        Ok(())
    }
}
