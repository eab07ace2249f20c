//! The fake sandbox's file tree, and `FileService` over it. Files and directories only:
//! links and special files need a kernel.

use std::{collections::BTreeMap, pin::Pin, time::SystemTime};

use berth_proto::{
    Code, Error, Reason,
    agent_config::{HOME, WORKSPACE},
    convert,
    transport::CHUNK,
    v1::{self, file_service_server::FileService, read_response, unpack_request, write_request},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{agent::Served, lock, pack};

/// Absolute and without `.` or `..`; relative paths begin at the workspace.
pub(super) fn resolve(path: &str) -> String {
    let full = if path.starts_with('/') { path.to_owned() } else { format!("{WORKSPACE}/{path}") };
    let mut names: Vec<&str> = Vec::new();
    for name in full.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

#[derive(Clone)]
pub(super) struct Node {
    /// `None`: a directory.
    pub(super) content: Option<Bytes>,
    pub(super) mode: u32,
    pub(super) modified_at: SystemTime,
}

impl Node {
    pub(super) fn new(content: Option<Bytes>, mode: u32) -> Self {
        Self { content, mode, modified_at: berth_proto::world::now() }
    }
}

/// Absolute path → what is there.
pub(super) struct Tree {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) quota: u64,
}

impl Tree {
    pub fn new(quota: u64) -> Self {
        let dirs = ["/", "/tmp", WORKSPACE, "/home", HOME];
        let nodes = dirs.into_iter().map(|dir| (dir.to_owned(), Node::new(None, 0o755))).collect();
        Self { nodes, quota }
    }

    pub fn is_dir(&self, path: &str) -> bool {
        self.nodes.get(&resolve(path)).is_some_and(|node| node.content.is_none())
    }

    pub fn content(&self, path: &str) -> Option<Bytes> {
        self.nodes.get(&resolve(path))?.content.clone()
    }

    pub(super) fn get(&self, path: &str) -> Result<&Node, Error> {
        self.nodes.get(path).ok_or_else(|| missing(path))
    }

    /// Files and directories.
    pub fn count(&self) -> u64 {
        self.nodes.len() as u64
    }

    pub fn used(&self) -> u64 {
        self.nodes.values().filter_map(|node| node.content.as_ref()).map(|c| c.len() as u64).sum()
    }

    /// The parent must be a directory; with `make` it is made.
    pub(super) fn need_parent(&mut self, path: &str, make: bool) -> Result<(), Error> {
        let dir = parent(path).to_owned();
        match self.nodes.get(&dir) {
            Some(node) if node.content.is_none() => Ok(()),
            Some(_) => Err(kind(&dir, "is not a directory")),
            None if make => {
                self.need_parent(&dir, true)?;
                self.nodes.insert(dir, Node::new(None, 0o755));
                Ok(())
            }
            None => Err(missing(&dir)),
        }
    }

    pub(super) fn below(&self, path: &str) -> Vec<String> {
        let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
        self.nodes
            .range(prefix.clone()..)
            .map(|(name, _)| name.clone())
            .take_while(|name| name.starts_with(&prefix))
            .filter(|name| *name != prefix)
            .collect()
    }

    pub(super) fn write(&mut self, path: &str, data: Bytes, header: &v1::WriteHeader) -> Result<(), Error> {
        self.need_parent(path, header.make_parents)?;
        let replaced = match self.nodes.get(path) {
            Some(Node { content: None, .. }) => return Err(kind(path, "is a directory")),
            Some(Node { content: Some(old), mode, .. }) => Some((old.len() as u64, *mode)),
            None => None,
        };
        let used = self.used() - replaced.map_or(0, |(size, _)| size) + data.len() as u64;
        if used > self.quota {
            return Err(Error::exhausted(
                Reason::DiskFull,
                format!("{path}: the session's {} bytes are full", self.quota),
            ));
        }
        let mode = header.mode.unwrap_or(replaced.map_or(0o644, |(_, mode)| mode)) & 0o7777;
        self.nodes.insert(path.to_owned(), Node::new(Some(data), mode));
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, overwrite: bool) -> Result<(), Error> {
        let is_dir = self.get(from)?.content.is_none();
        if is_dir && to.starts_with(&format!("{from}/")) {
            return Err(Error::invalid("destination", "is inside of the source"));
        }
        self.need_parent(to, false)?;
        if from == to {
            return Ok(());
        }
        if let Some(there) = self.nodes.get(to) {
            if !overwrite {
                return Err(exists(to));
            }
            if there.content.is_none() != is_dir {
                return Err(kind(to, "is not of the same kind as the source"));
            }
            if is_dir && !self.below(to).is_empty() {
                return Err(not_empty(to));
            }
        }
        for name in self.below(from).into_iter().chain([from.to_owned()]) {
            if let Some(node) = self.nodes.remove(&name) {
                self.nodes.insert(format!("{to}{}", &name[from.len()..]), node);
            }
        }
        Ok(())
    }

    fn info(&self, shown: &str, path: &str) -> Result<v1::FileInfo, Error> {
        let node = self.get(path)?;
        let kind = if node.content.is_some() { v1::FileType::File } else { v1::FileType::Directory };
        Ok(v1::FileInfo {
            path: shown.to_owned(),
            r#type: kind.into(),
            size: node.content.as_ref().map_or(0, |content| content.len() as u64),
            mode: node.mode,
            uid: 1000,
            gid: 1000,
            modified_at: Some(convert::time_out(node.modified_at)),
            ..Default::default()
        })
    }
}

pub(super) fn missing(path: &str) -> Error {
    Error::not_found(Reason::FileNotFound, format!("{path}: no such file or directory"))
}

fn exists(path: &str) -> Error {
    Error::new(Code::AlreadyExists, Reason::FileExists, format!("{path} is there already"))
}

pub(super) fn kind(path: &str, what: &str) -> Error {
    Error::precondition(Reason::FileKind, format!("{path} {what}"))
}

fn not_empty(path: &str) -> Error {
    Error::precondition(Reason::DirectoryNotEmpty, format!("{path} is not empty"))
}

#[tonic::async_trait]
impl FileService for Served {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<v1::ReadResponse, Status>> + Send>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEvent, Status>> + Send>>;
    type SearchStream = Pin<Box<dyn Stream<Item = Result<v1::SearchEvent, Status>> + Send>>;
    type PackStream = Pin<Box<dyn Stream<Item = Result<v1::PackResponse, Status>> + Send>>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let wire = request.into_inner();
        let call = self.0.enter(&wire.session_id)?;
        let shown = convert::path("path", wire.path)?;
        let path = resolve(&shown);
        let (info, content) = {
            let tree = lock(&self.0.files);
            let info = tree.info(&shown, &path)?;
            let content = tree.content(&path).ok_or_else(|| kind(&shown, "is a directory"))?;
            (info, content)
        };
        let size = content.len() as u64;
        if wire.offset > size {
            return Err(Error::new(
                Code::OutOfRange,
                Reason::OffsetBeyondEnd,
                format!("the file has {size} bytes"),
            )
            .with("length", size)
            .into());
        }
        let end = if wire.length == 0 { size } else { wire.offset.saturating_add(wire.length).min(size) };
        let data = content.slice(wire.offset as usize..end as usize);
        let first = v1::ReadResponse { part: Some(read_response::Part::Info(info)) };
        let chunks = futures::stream::unfold((data, call), |(mut data, call)| async move {
            if data.is_empty() {
                return None;
            }
            let chunk = data.split_to(data.len().min(CHUNK));
            Some((Ok(v1::ReadResponse { part: Some(read_response::Part::Data(chunk)) }), (data, call)))
        });
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(first)]).chain(chunks))))
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteRequest>>,
    ) -> Result<Response<v1::FileInfo>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|message| message.part);
        let Some(write_request::Part::Header(mut header)) = first else {
            return Err(Error::invalid("header", "must come first").into());
        };
        let _call = self.0.enter(&header.session_id)?;
        let shown = convert::path("path", std::mem::take(&mut header.path))?;
        let path = resolve(&shown);
        let mut data = BytesMut::new();
        loop {
            let Some(message) = incoming.message().await? else {
                return Err(convert::upload_broken(&shown).into());
            };
            match message.part {
                Some(write_request::Part::Data(chunk)) => data.extend_from_slice(&chunk),
                Some(write_request::Part::End(_)) => break,
                _ => return Err(Error::invalid("header", "comes once").into()),
            }
            if data.len() as u64 > lock(&self.0.files).quota {
                return Err(
                    Error::exhausted(Reason::DiskFull, format!("{shown}: the session is full")).into()
                );
            }
        }
        let mut tree = lock(&self.0.files);
        tree.write(&path, data.freeze(), &header)?;
        Ok(Response::new(tree.info(&shown, &path)?))
    }

    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::FileInfo>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let shown = convert::path("path", wire.path)?;
        Ok(Response::new(lock(&self.0.files).info(&shown, &resolve(&shown))?))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let root = resolve(&convert::path("path", wire.path)?);
        let size = convert::page_size(wire.page_size, convert::bounds::PAGE_MAX)?;
        let depth = wire.depth.max(1) as usize;
        let tree = lock(&self.0.files);
        if tree.get(&root)?.content.is_some() {
            return Err(kind(&root, "is not a directory").into());
        }
        let skip = if root == "/" { 1 } else { root.len() + 1 };
        let mut names: Vec<String> = tree
            .below(&root)
            .into_iter()
            .filter(|path| path[skip..].split('/').count() <= depth)
            .filter(|path| wire.page_token.is_empty() || path[skip..] > *wire.page_token)
            .take(size + 1)
            .collect();
        let more = names.len() > size;
        names.truncate(size);
        let next_page_token =
            names.last().filter(|_| more).map(|path| path[skip..].to_owned()).unwrap_or_default();
        let entries = names.iter().map(|path| tree.info(&path[skip..], path)).collect::<Result<_, _>>()?;
        Ok(Response::new(v1::ListResponse { entries, next_page_token }))
    }

    async fn make_dir(&self, request: Request<v1::MakeDirRequest>) -> Result<Response<v1::FileInfo>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let shown = convert::path("path", wire.path)?;
        let path = resolve(&shown);
        let mut tree = lock(&self.0.files);
        match tree.nodes.get(&path) {
            Some(node) if wire.parents && node.content.is_none() => {}
            Some(_) => return Err(exists(&shown).into()),
            None => {
                tree.need_parent(&path, wire.parents)?;
                tree.nodes.insert(path.clone(), Node::new(None, wire.mode.unwrap_or(0o755) & 0o7777));
            }
        }
        Ok(Response::new(tree.info(&shown, &path)?))
    }

    async fn r#move(&self, request: Request<v1::MoveRequest>) -> Result<Response<v1::FileInfo>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let from = resolve(&convert::path("source", wire.source)?);
        let shown = convert::path("destination", wire.destination)?;
        let to = resolve(&shown);
        let mut tree = lock(&self.0.files);
        tree.rename(&from, &to, wire.overwrite)?;
        Ok(Response::new(tree.info(&shown, &to)?))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveResponse>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let path = resolve(&convert::path("path", wire.path)?);
        let mut tree = lock(&self.0.files);
        tree.get(&path)?;
        if ["/", WORKSPACE, HOME].contains(&path.as_str()) {
            return Err(
                Error::new(Code::PermissionDenied, Reason::FileDenied, format!("{path} stays")).into()
            );
        }
        let below = tree.below(&path);
        if !below.is_empty() && !wire.recursive {
            return Err(not_empty(&path).into());
        }
        for name in below.into_iter().chain([path]) {
            tree.nodes.remove(&name);
        }
        Ok(Response::new(v1::RemoveResponse {}))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let _call = self.0.enter(&request.get_ref().session_id)?;
        Err(Error::new(Code::Unimplemented, Reason::Unsupported, "a fake sandbox can't be watched")
            .hint("use a template of the native or docker backend")
            .into())
    }

    async fn search(
        &self,
        request: Request<v1::SearchRequest>,
    ) -> Result<Response<Self::SearchStream>, Status> {
        let wire = request.into_inner();
        let call = self.0.enter(&wire.session_id)?;
        let shown = convert::path("path", wire.path.clone())?;
        let events = pack::search(&lock(&self.0.files), &shown, &wire)?;
        Ok(Response::new(stream(events, call)))
    }

    async fn pack(&self, request: Request<v1::PackRequest>) -> Result<Response<Self::PackStream>, Status> {
        let wire = request.into_inner();
        let call = self.0.enter(&wire.session_id)?;
        let shown = convert::path("path", wire.path.clone())?;
        let parts = pack::pack(&lock(&self.0.files), &shown, &wire)?;
        Ok(Response::new(stream(parts, call)))
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
        let _call = self.0.enter(&header.session_id)?;
        let shown = convert::path("path", header.path)?;
        let mut unpacking = pack::Unpacking::begin(&mut lock(&self.0.files), &shown, header.make_parents)?;
        loop {
            match incoming.message().await?.map(|message| message.part) {
                Some(Some(unpack_request::Part::Data(data))) => {
                    unpacking.take(&mut lock(&self.0.files), &data)?;
                }
                Some(Some(unpack_request::Part::End(_))) => return Ok(Response::new(unpacking.finish()?)),
                Some(_) => return Err(Error::invalid("header", "comes once").into()),
                None => return Err(convert::unpack_broken(&shown).into()),
            }
        }
    }
}

/// All that is there, for as long as the call holds.
fn stream<T: Send + 'static>(
    all: Vec<T>,
    call: impl Send + 'static,
) -> Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>> {
    let rest = (all.into_iter(), call);
    Box::pin(futures::stream::unfold(
        rest,
        |(mut all, call)| async move { Some((Ok(all.next()?), (all, call))) },
    ))
}
