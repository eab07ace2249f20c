//! The fake sandbox's tree as an archive. It holds no finished tasks: a fake agent's do not outlive it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_proto::{
    Code, Error, Reason,
    agent_config::{HOME, WORKSPACE},
    archive::check_entry,
    transport::CHUNK,
    v1::{self, ArchiveKind, ArchiveRoot, archive_part::Part},
};
use bytes::{Bytes, BytesMut};

use super::files::{Node, Tree};

const ROOTS: [(ArchiveRoot, &str); 2] = [(ArchiveRoot::Workspace, WORKSPACE), (ArchiveRoot::Home, HOME)];

fn damaged(what: &str) -> Error {
    Error::new(Code::DataLoss, Reason::CheckpointFailed, format!("the archive is damaged: {what}"))
}

impl Tree {
    /// All parts of it, the end included.
    pub fn archive(&self, max_bytes: u64) -> Result<Vec<v1::ArchivePart>, Error> {
        let mut parts = Vec::new();
        let mut bytes = 0;
        for (root, base) in ROOTS {
            let inside = format!("{base}/");
            for (path, node) in self.nodes.iter().filter(|(p, _)| *p == base || p.starts_with(&inside)) {
                let size = node.content.as_ref().map_or(0, |content| content.len() as u64);
                bytes += size;
                let kind = if node.content.is_some() { ArchiveKind::File } else { ArchiveKind::Directory };
                let since = node.modified_at.duration_since(UNIX_EPOCH).unwrap_or_default();
                parts.push(Part::Entry(v1::ArchiveEntry {
                    root: root.into(),
                    path: path.strip_prefix(&inside).unwrap_or_default().as_bytes().to_vec().into(),
                    kind: kind.into(),
                    mode: node.mode,
                    mtime_ns: since.as_nanos() as i64,
                    size,
                    target: Bytes::new(),
                }));
                let content = node.content.as_deref().unwrap_or_default();
                parts.extend(content.chunks(CHUNK).map(|piece| Part::Data(Bytes::copy_from_slice(piece))));
            }
        }
        if bytes > max_bytes {
            let text = format!("the session's files have more than {max_bytes} bytes");
            return Err(Error::exhausted(Reason::DiskFull, text));
        }
        parts.push(Part::End(v1::ArchiveEnd { skipped: 0, frozen_for: Some(Default::default()) }));
        Ok(parts.into_iter().map(|part| v1::ArchivePart { part: Some(part) }).collect())
    }

    /// Makes what the parts say.
    pub fn unarchive(&mut self, parts: Vec<v1::ArchivePart>) -> Result<v1::ImportResponse, Error> {
        let mut made = v1::ImportResponse::default();
        let mut file: Option<(String, v1::ArchiveEntry, BytesMut)> = None;
        for part in parts.into_iter().filter_map(|part| part.part) {
            if let Part::Data(data) = part {
                let Some((_, _, content)) = &mut file else { return Err(damaged("content without a file")) };
                content.extend_from_slice(&data);
                continue;
            }
            if let Some((path, entry, content)) = file.take() {
                self.put(path, &entry, content, &mut made)?;
            }
            match part {
                Part::Entry(entry) => {
                    check_entry(&entry).map_err(|what| damaged(&format!("an entry {what}")))?;
                    made.entries += 1;
                    let base =
                        ROOTS.iter().find(|(root, _)| *root == entry.root()).map_or("/", |(_, base)| base);
                    let name = String::from_utf8_lossy(&entry.path).into_owned();
                    let path = if name.is_empty() { base.to_owned() } else { format!("{base}/{name}") };
                    match entry.kind() {
                        ArchiveKind::Directory => {
                            let node = Node { content: None, mode: entry.mode, modified_at: time_of(&entry) };
                            self.nodes.insert(path, node);
                        }
                        ArchiveKind::File => file = Some((path, entry, BytesMut::new())),
                        _ => {
                            return Err(Error::precondition(
                                Reason::Unsupported,
                                "a fake sandbox has no links",
                            ));
                        }
                    }
                }
                Part::End(_) => return Ok(made),
                Part::Task(_) | Part::Key(_) | Part::Data(_) => {}
            }
        }
        Err(damaged("it ends before its end"))
    }

    fn put(
        &mut self,
        path: String,
        entry: &v1::ArchiveEntry,
        content: BytesMut,
        made: &mut v1::ImportResponse,
    ) -> Result<(), Error> {
        if content.len() as u64 != entry.size {
            return Err(damaged("a file has another length than its entry says"));
        }
        made.bytes += entry.size;
        let content = Some(content.freeze());
        self.nodes.insert(path, Node { content, mode: entry.mode, modified_at: time_of(entry) });
        Ok(())
    }
}

fn time_of(entry: &v1::ArchiveEntry) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(entry.mtime_ns.max(0) as u64)
}
