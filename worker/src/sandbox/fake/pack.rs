//! Searching the fake's tree, and archives of it. It has files and directories only, so an archive with links is refused.

use std::collections::VecDeque;

use berth_files::{
    search::{Exclude, Hit, Next, Search, Text},
    tar::{self, Bad, Entry, Event, Kind},
};
use berth_proto::{
    Code, Error, Reason,
    convert::time_out,
    transport::CHUNK,
    v1::{self, pack_response::Part, search_event},
};
use bytes::Bytes;

use super::files::{Node, Tree, kind, resolve};

/// What is below a path and not left out: names below it, and what is there.
fn below<'t>(tree: &'t Tree, root: &str, exclude: &Exclude) -> Vec<(String, &'t Node)> {
    let skip = if root == "/" { 1 } else { root.len() + 1 };
    let mut left_out: Vec<String> = Vec::new();
    let mut all = Vec::new();
    for path in tree.below(root) {
        let name = path[skip..].to_owned();
        if left_out.iter().any(|dir| name.starts_with(dir)) {
            continue;
        }
        if exclude.fits(name.as_bytes()) {
            left_out.push(format!("{name}/"));
        } else if let Ok(node) = tree.get(&path) {
            all.push((name, node));
        }
    }
    all
}

/// All that a search finds.
pub fn search(tree: &Tree, shown: &str, wire: &v1::SearchRequest) -> Result<Vec<v1::SearchEvent>, Error> {
    let search = Search::new(wire)?;
    let root = resolve(shown);
    let mut files: VecDeque<(String, Bytes)> = match &tree.get(&root)?.content {
        Some(content) => VecDeque::from([(shown.to_owned(), content.clone())]),
        None => {
            let all = below(tree, &root, search.exclude());
            let wanted = all.into_iter().filter(|(name, _)| search.wants(name.as_bytes()));
            wanted.filter_map(|(name, node)| Some((name, node.content.clone()?))).collect()
        }
    };
    let (mut found, mut left, mut end) = (Vec::new(), search.most, v1::SearchEnd::default());
    while let Some((path, content)) = files.pop_front().filter(|_| left > 0) {
        let small = content.len() as u64 <= search.largest;
        let Some(mut text) = Text::new(content.to_vec()).filter(|_| small) else {
            end.files_skipped += 1;
            continue;
        };
        end.files_searched += 1;
        while let Next::Hit(Hit { line, text, before, after }) = text.next(&search, &mut left, || false) {
            let path = path.clone();
            found.push(search_event::Event::Match(v1::SearchMatch {
                path,
                line,
                text,
                before,
                after,
                ..Default::default()
            }));
        }
    }
    if left == 0 {
        end.limit = v1::SearchLimit::Matches.into();
    }
    found.push(search_event::Event::End(end));
    Ok(found.into_iter().map(|event| v1::SearchEvent { event: Some(event) }).collect())
}

/// All of an archive.
pub fn pack(tree: &Tree, shown: &str, wire: &v1::PackRequest) -> Result<Vec<v1::PackResponse>, Error> {
    let exclude = Exclude::new(&wire.exclude)?;
    let root = resolve(shown);
    let prefix = wire.prefix.trim_end_matches('/');
    let at = tree.get(&root)?;
    let all = match at.content {
        Some(_) if prefix.is_empty() => vec![(root[root.rfind('/').map_or(0, |at| at + 1)..].to_owned(), at)],
        Some(_) => vec![(String::new(), at)],
        None if prefix.is_empty() => below(tree, &root, &exclude),
        None => [(String::new(), at)].into_iter().chain(below(tree, &root, &exclude)).collect(),
    };
    let (mut archive, mut end) = (Vec::new(), v1::PackEnd::default());
    for (name, node) in all {
        let parts: Vec<&str> = [prefix, &name].into_iter().filter(|part| !part.is_empty()).collect();
        let content = node.content.clone().unwrap_or_default();
        let is_file = node.content.is_some();
        let time = time_out(node.modified_at);
        archive.extend(tar::header(&Entry {
            path: parts.join("/").into_bytes(),
            kind: if is_file { Kind::File } else { Kind::Directory },
            mode: node.mode & 0o777,
            uid: 1000,
            gid: 1000,
            mtime: (time.seconds, time.nanos.max(0) as u32),
            size: content.len() as u64,
            target: Vec::new(),
        }));
        archive.extend_from_slice(&content);
        archive.resize(archive.len() + tar::padding(content.len() as u64), 0);
        *(if is_file { &mut end.files } else { &mut end.directories }) += 1;
        end.bytes += content.len() as u64;
    }
    archive.extend_from_slice(&tar::END);
    let data = archive.chunks(CHUNK).map(|data| Part::Data(Bytes::copy_from_slice(data)));
    Ok(data.chain([Part::End(end)]).map(|part| v1::PackResponse { part: Some(part) }).collect())
}

/// An archive on its way in.
pub struct Unpacking {
    root: String,
    reader: tar::Reader,
    file: Option<(String, Entry, Vec<u8>)>,
    done: v1::UnpackResponse,
}

impl Unpacking {
    pub fn begin(tree: &mut Tree, shown: &str, make_parents: bool) -> Result<Self, Error> {
        let root = resolve(shown);
        if make_parents {
            tree.need_parent(&format!("{root}/x"), true)?;
        }
        if tree.get(&root)?.content.is_some() {
            return Err(kind(shown, "is not a directory"));
        }
        Ok(Self { root, reader: tar::Reader::default(), file: None, done: v1::UnpackResponse::default() })
    }

    pub fn take(&mut self, tree: &mut Tree, mut data: &[u8]) -> Result<(), Error> {
        while let Some(event) = self.reader.next(&mut data).map_err(|bad| refused(&bad))? {
            match event {
                Event::Entry(entry) => self.entry(tree, entry)?,
                Event::Data(data) => {
                    if let Some((_, _, content)) = &mut self.file {
                        content.extend_from_slice(data);
                    }
                }
            }
            self.put(tree)?;
        }
        Ok(())
    }

    fn entry(&mut self, tree: &mut Tree, entry: Entry) -> Result<(), Error> {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let path =
            if name.is_empty() { self.root.clone() } else { resolve(&format!("{}/{name}", self.root)) };
        match entry.kind {
            Kind::File if entry.size > tree.quota => {
                return Err(Error::exhausted(Reason::DiskFull, format!("{name}: the session is full")));
            }
            Kind::File => self.file = Some((path, entry, Vec::new())),
            Kind::Directory => {
                if tree.nodes.get(&path).is_some_and(|node| node.content.is_some()) {
                    return Err(kind(&name, "is not a directory"));
                }
                tree.need_parent(&path, true)?;
                tree.nodes.entry(path).or_insert_with(|| Node::new(None, entry.mode));
                self.done.directories += 1;
            }
            Kind::Symlink | Kind::HardLink => {
                let text = format!("{name}: a fake sandbox has no links");
                return Err(Error::new(Code::Unimplemented, Reason::Unsupported, text)
                    .hint("use a template of the native or docker backend"));
            }
        }
        Ok(())
    }

    /// The file, once it is whole.
    fn put(&mut self, tree: &mut Tree) -> Result<(), Error> {
        let whole = |(_, entry, content): &mut (String, Entry, Vec<u8>)| content.len() as u64 == entry.size;
        let Some((path, entry, content)) = self.file.take_if(whole) else { return Ok(()) };
        let header = v1::WriteHeader { mode: Some(entry.mode), make_parents: true, ..Default::default() };
        tree.write(&path, content.into(), &header)?;
        self.done.files += 1;
        self.done.bytes += entry.size;
        Ok(())
    }

    pub fn finish(self) -> Result<v1::UnpackResponse, Error> {
        self.reader.finish().map_err(|bad| refused(&bad))?;
        Ok(self.done)
    }
}

fn refused(bad: &Bad) -> Error {
    Error::invalid("archive", bad).hint("send an uncompressed tar archive (POSIX or GNU)")
}
