//! FileService, as the agent serves it: conversion here, the work on the file threads.

use std::{pin::Pin, sync::Arc};

use berth_proto::{
    Error, Reason,
    convert::{self, bounds},
    v1::{self, file_service_server::FileService, read_response, unpack_request, write_request},
};
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    deadline::Busy,
    files::{
        Files,
        list::{self, Listing},
        path,
        pieces::Pieces,
        read::{self, Part, Reading},
        remove,
        tree::{self, Named},
        unpack,
        watch::{Wanted, Watcher},
        write::{self, Target},
    },
    tasks::Tasks,
};

/// The service.
pub struct FileApi {
    pub tasks: Arc<Tasks>,
    pub files: Arc<Files>,
    pub watcher: Watcher,
    pub pieces: Pieces,
}

type Changes = Pin<Box<dyn Stream<Item = Result<v1::WatchEvent, Status>> + Send>>;
type Found = Pin<Box<dyn Stream<Item = Result<v1::SearchEvent, Status>> + Send>>;
type Packed = Pin<Box<dyn Stream<Item = Result<v1::PackResponse, Status>> + Send>>;
type Chunks = Pin<Box<dyn Stream<Item = Result<v1::ReadResponse, Status>> + Send>>;

impl FileApi {
    fn named(&self, field: &str, path: String) -> Result<Named, Error> {
        let shown = convert::path(field, path)?;
        Ok(Named { absolute: self.files.absolute(&shown), shown })
    }

    /// For calls that name a session: the mark of activity, if it is ours.
    fn enter(&self, session: &str) -> Result<Busy, Error> {
        self.tasks.session(session)?;
        Ok(self.tasks.busy())
    }
}

enum Next {
    First(bytes::Bytes),
    More,
    End,
}

struct ReadState {
    files: Arc<Files>,
    reading: Reading,
    next: Next,
    _busy: Busy,
}

fn data(bytes: bytes::Bytes) -> Result<v1::ReadResponse, Status> {
    Ok(v1::ReadResponse { part: Some(read_response::Part::Data(bytes)) })
}

async fn next_chunk(mut state: ReadState) -> Option<(Result<v1::ReadResponse, Status>, ReadState)> {
    match std::mem::replace(&mut state.next, Next::More) {
        Next::End => None,
        Next::First(bytes) if bytes.is_empty() => None,
        Next::First(bytes) => Some((data(bytes), state)),
        Next::More => match state.reading.next(&state.files).await {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some((data(bytes), state)),
            Err(error) => {
                state.next = Next::End;
                Some((Err(error.into()), state))
            }
        },
    }
}

#[tonic::async_trait]
impl FileService for FileApi {
    type ReadStream = Chunks;
    type WatchStream = Changes;
    type SearchStream = Found;
    type PackStream = Packed;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Chunks>, Status> {
        let v1::ReadRequest { session_id, path, offset, length, no_links } = request.into_inner();
        let busy = self.enter(&session_id)?;
        let named = self.named("path", path)?;
        if offset > i64::MAX as u64 {
            return Err(Error::invalid("offset", "is larger than any file").into());
        }
        let part = Part { offset, length, no_links };
        let (info, first, reading) = read::begin(&self.files, named.absolute, named.shown, part).await?;
        let head = Ok(v1::ReadResponse { part: Some(read_response::Part::Info(info)) });
        let state = ReadState { files: self.files.clone(), reading, next: Next::First(first), _busy: busy };
        let rest = futures::stream::unfold(state, next_chunk);
        Ok(Response::new(Box::pin(futures::StreamExt::chain(futures::stream::iter([head]), rest))))
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteRequest>>,
    ) -> Result<Response<v1::FileInfo>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|message| message.part);
        let Some(write_request::Part::Header(header)) = first else {
            return Err(Error::invalid("header", "must come first").into());
        };
        let _busy = self.enter(&header.session_id)?;
        let named = self.named("path", header.path)?;
        if header.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(Error::invalid("mode", "has bits that are no permission bits").into());
        }
        let shown = named.shown.clone();
        let target = Target {
            absolute: named.absolute,
            shown: named.shown,
            mode: header.mode,
            make_parents: header.make_parents,
        };
        let mut writing = write::begin(&self.files, target).await?;
        // Whatever does not reach the end drops `writing`, which cleans up. That the stream is
        // over is not enough: tonic makes a clean end of a client's reset.
        loop {
            let Some(message) = incoming.message().await? else {
                return Err(convert::upload_broken(&shown).into());
            };
            match message.part {
                Some(write_request::Part::Data(bytes)) if bytes.is_empty() => {}
                Some(write_request::Part::Data(bytes)) => writing.append(bytes).await?,
                Some(write_request::Part::End(_)) => break,
                Some(write_request::Part::Header(_)) => {
                    return Err(Error::invalid("header", "came twice").into());
                }
                None => return Err(Error::invalid("part", "is missing").into()),
            }
        }
        Ok(Response::new(writing.finish().await?))
    }

    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::FileInfo>, Status> {
        let request = request.into_inner();
        let _busy = self.enter(&request.session_id)?;
        let named = self.named("path", request.path)?;
        let follow = request.follow;
        let info = self.files.run(move |_| path::stat(&named.absolute, &named.shown, follow)).await?;
        Ok(Response::new(info))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let request = request.into_inner();
        let _busy = self.enter(&request.session_id)?;
        let named = self.named("path", request.path)?;
        let listing = Listing {
            depth: request.depth.max(1) as usize,
            page: convert::page_size(request.page_size, bounds::PAGE_MAX)?,
            after: list::cursor(&request.page_token)?,
            no_links: request.no_links,
        };
        let run = move |gone: &_| list::list(&named.absolute, &named.shown, listing, gone);
        Ok(Response::new(self.files.run(run).await?))
    }

    async fn make_dir(&self, request: Request<v1::MakeDirRequest>) -> Result<Response<v1::FileInfo>, Status> {
        let request = request.into_inner();
        let _busy = self.enter(&request.session_id)?;
        let named = self.named("path", request.path)?;
        let (parents, mode) = (request.parents, request.mode);
        let run = move |_: &_| tree::make_dir(&named.absolute, &named.shown, parents, mode);
        Ok(Response::new(self.files.run(run).await?))
    }

    async fn r#move(&self, request: Request<v1::MoveRequest>) -> Result<Response<v1::FileInfo>, Status> {
        let request = request.into_inner();
        let _busy = self.enter(&request.session_id)?;
        let from = self.named("source", request.source)?;
        let to = self.named("destination", request.destination)?;
        let overwrite = request.overwrite;
        let run = move |gone: &_| {
            tree::rename((&from.absolute, &from.shown), (&to.absolute, &to.shown), overwrite, gone)
        };
        Ok(Response::new(self.files.run(run).await?))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveResponse>, Status> {
        let request = request.into_inner();
        let _busy = self.enter(&request.session_id)?;
        let named = self.named("path", request.path)?;
        let recursive = request.recursive;
        let run = move |gone: &_| remove::remove(&named.absolute, &named.shown, recursive, gone);
        self.files.run(run).await.map_err(|error| match error.reason() {
            Reason::FileKind => error.hint("the path leads through something that is no directory"),
            _ => error,
        })?;
        Ok(Response::new(v1::RemoveResponse {}))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Changes>, Status> {
        let v1::WatchRequest { session_id, path, recursive, include_entry } = request.into_inner();
        let busy = self.enter(&session_id)?;
        let Named { absolute, shown } = self.named("path", path)?;
        let wanted = Wanted { absolute, shown, recursive, include_entry };
        Ok(Response::new(Box::pin(self.watcher.watch(wanted, busy).await?)))
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<Found>, Status> {
        let mut request = request.into_inner();
        let busy = self.enter(&request.session_id)?;
        let named = self.named("path", std::mem::take(&mut request.path))?;
        Ok(Response::new(Box::pin(self.pieces.search(&self.files, named, request, busy).await?)))
    }

    async fn pack(&self, request: Request<v1::PackRequest>) -> Result<Response<Packed>, Status> {
        let mut request = request.into_inner();
        let busy = self.enter(&request.session_id)?;
        let named = self.named("path", std::mem::take(&mut request.path))?;
        Ok(Response::new(Box::pin(self.pieces.pack(&self.files, named, request, busy).await?)))
    }

    async fn unpack(
        &self,
        request: Request<Streaming<v1::UnpackRequest>>,
    ) -> Result<Response<v1::UnpackResponse>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|message| message.part);
        let Some(unpack_request::Part::Header(header)) = first else {
            return Err(Error::invalid("header", "must come first").into());
        };
        let _busy = self.enter(&header.session_id)?;
        let named = self.named("path", header.path)?;
        let (shown, files, parents) = (named.shown.clone(), self.files.clone(), header.make_parents);
        let begin = move |_: &_| unpack::begin(files, named.absolute, named.shown, parents);
        let mut unpacking = self.files.run(begin).await?;
        loop {
            // As with an upload, that the stream is over is not enough.
            let error = match incoming.message().await?.map(|message| message.part) {
                Some(Some(unpack_request::Part::Data(data))) => {
                    let take = move |gone: &_| unpacking.take(&data, gone).map(|()| unpacking);
                    unpacking = self.files.run(take).await?;
                    continue;
                }
                Some(Some(unpack_request::Part::End(_))) => {
                    return Ok(Response::new(self.files.run(move |_| unpacking.finish()).await?));
                }
                Some(Some(unpack_request::Part::Header(_))) => Error::invalid("header", "came twice"),
                Some(None) => Error::invalid("part", "is missing"),
                None => convert::unpack_broken(&shown),
            };
            return Err(self.files.run(move |_| Ok(unpacking.failed(error))).await?.into());
        }
    }
}
