//! What a resource holds: text where it is some, else base64, and never more than an answer should have.
//!
//! A file that is larger is refused with the way to read it in parts. A task's output is always a part, from an offset to
//! where `_meta` says that it goes on: one reads it while it grows.

use std::sync::Arc;

use berth_client::{
    Session, Std, TaskId,
    model::{FileType, TaskState},
};
use rmcp::model::{JsonObject, MetaObject, ReadResourceResult, ResourceContents};

use super::{
    listing,
    uri::{Uri, What},
};
use crate::mcp::{media, problem::Problem, room, sessions::Sessions, text, tools::tasks::pieces};

/// Bytes of a file in one answer: as base64 there is room for them.
pub const MOST: u64 = 700 << 10;
/// Bytes of a directory's list in one answer.
const MOST_LISTED: usize = 500 << 10;
/// Bytes of a task's output in one answer.
const MOST_OUTPUT: usize = 256 << 10;
/// In `_meta`: the URI to read on from.
const NEXT: &str = "berth/next";
/// In `_meta`: all bytes that there are.
const SIZE: &str = "berth/size";

/// A part of something.
struct Part {
    data: Vec<u8>,
    media_type: &'static str,
    /// All bytes that there are.
    size: u64,
    /// Where to read on. `None`: there is no more.
    next: Option<u64>,
    /// Where it begins. `None`: it is told whole or not at all.
    from: Option<u64>,
}

impl Part {
    /// Less of it.
    fn cut(&mut self, from: u64, limit: usize) {
        let whole = text::whole_characters(&self.data[..limit]);
        let is_text = text::exact(&self.data[..whole]).is_some() && whole > 0;
        self.data.truncate(if is_text { whole } else { limit });
        self.next = Some(from + self.data.len() as u64);
    }
}

pub async fn read(sessions: &Arc<Sessions>, named: &str) -> Result<ReadResourceResult, Problem> {
    let uri = Uri::parse(named)?;
    let session = sessions.find(Some(&uri.session), None).await?;
    let mut part = match &uri.what {
        What::File(path) => file(&session, path, uri.offset).await?,
        What::Output(task, stream) => output(&session, *task, *stream, uri.offset).await?,
    };
    loop {
        let answer = told(&uri, named, &part);
        let (needed, length) = (room::size(&answer), part.data.len());
        match part.from {
            _ if needed <= room::MOST => return Ok(answer),
            Some(from) if length > text::LONGEST_CHARACTER => {
                part.cut(from, room::less(length, needed).max(text::LONGEST_CHARACTER));
            }
            Some(_) => return Err(room::too_large(needed)),
            None => return Err(too_large(named, part.size)),
        }
    }
}

fn too_large(what: &str, size: u64) -> Problem {
    Problem::new(
        format!(
            "{} has {size} bytes, and a resource is read whole up to {MOST}, or less where it is written with escapes",
            text::clipped(what, 500)
        ),
        "read it in parts: with the tool fs_read (path, offset, length), or with ?offset=0 at the end of the URI and on",
    )
}

fn told(uri: &Uri, named: &str, part: &Part) -> ReadResourceResult {
    let mut meta = JsonObject::from_iter([(SIZE.to_owned(), part.size.into())]);
    if let Some(next) = part.next {
        meta.insert(NEXT.to_owned(), uri.at(next).to_string().into());
    }
    let contents = match text::exact(&part.data) {
        Some(text) => ResourceContents::text(text, named).with_mime_type(media::text(part.media_type)),
        None => ResourceContents::blob(text::base64(&part.data), named)
            .with_mime_type(media::blob(part.media_type)),
    };
    ReadResourceResult::new(vec![contents.with_meta(MetaObject(meta))])
}

async fn file(session: &Session, path: &str, offset: Option<u64>) -> Result<Part, Problem> {
    let (path, files) = (if path.is_empty() { "." } else { path }, session.files());
    let info = files.stat_follow(path).await?;
    if info.kind == FileType::Directory {
        return directory(session, path).await;
    }
    let from = offset.unwrap_or(0);
    // It may be larger by now than it was a moment ago, and some files never say how large they are.
    let mut data = files.read_range(path, from, MOST + 1).await?;
    let size = info.size.max(from.saturating_add(data.len() as u64));
    let more = data.len() as u64 > MOST;
    if more && offset.is_none() {
        return Err(too_large(path, size));
    }
    data.truncate(MOST as usize);
    let whole = text::whole_characters(&data);
    if more && text::exact(&data[..whole]).is_some() {
        data.truncate(whole);
    }
    let next = more.then(|| from + data.len() as u64);
    Ok(Part { data, media_type: media::of_name(path), size, next, from: offset })
}

/// What is in it, a URI a line.
async fn directory(session: &Session, path: &str) -> Result<Part, Problem> {
    let (entries, next) = session.files().list_page(path, 1, listing::PAGE, String::new()).await?;
    let below = path.trim_end_matches('/');
    let mut lines = String::new();
    let mut more = !next.is_empty();
    for entry in entries.iter().filter(|entry| entry.path_bytes.is_none()) {
        if lines.len() > MOST_LISTED {
            more = true;
            break;
        }
        let path = if path == "." { entry.path.clone() } else { format!("{below}/{}", entry.path) };
        lines.push_str(&format!("{}\n", Uri::file(session.id(), &path)));
    }
    if more {
        lines.push_str("# and more: fs_list tells them all\n");
    }
    let (size, data) = (lines.len() as u64, lines.into_bytes());
    Ok(Part { size, data, media_type: "text/uri-list", next: None, from: None })
}

async fn output(session: &Session, task: TaskId, stream: Std, offset: Option<u64>) -> Result<Part, Problem> {
    let task = session.task(task);
    let info = task.info().await?;
    let lengths = [info.stdout.length, info.stderr.length];
    let kept = if stream == Std::Out { info.stdout } else { info.stderr };
    let from = offset.unwrap_or(kept.first_kept);
    if from < kept.first_kept {
        return Err(Problem::new(
            format!("bytes below {} of it are no longer kept", kept.first_kept),
            format!("read from there: ?offset={}", kept.first_kept),
        ));
    }
    let mut at = lengths;
    at[stream as usize] = from;
    let mut read = pieces(&task, at, MOST_OUTPUT).await?;
    let piece = &mut read[stream as usize];
    let done = info.state == TaskState::Done;
    // A character whose other half is yet to come is read next time.
    if piece.next < kept.length || !done {
        let whole = text::whole_characters(&piece.data);
        piece.next -= (piece.data.len() - whole) as u64;
        piece.data.truncate(whole);
    }
    let next = (piece.next < kept.length || !done).then_some(piece.next);
    let size = kept.length.max(piece.next);
    let data = std::mem::take(&mut piece.data);
    Ok(Part { data, media_type: "text/plain", size, next, from: Some(from) })
}
