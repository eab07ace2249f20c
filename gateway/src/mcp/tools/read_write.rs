//! fs_read and fs_write. Files are bytes, and JSON has only text: what is no text goes as base64, and says so.

use berth_client::WriteOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SessionArgument;
use crate::mcp::{
    arguments::{self, Encoding},
    part::Part,
    problem::Problem,
    room, text,
    tool::{Answer, Call, Effect, Entry},
};

/// Bytes of a file in an answer, where nothing else is asked for.
const USUAL_READ: u64 = 256 << 10;
/// ... and at most, as far as there is room.
const MOST_READ: u64 = 1 << 20;
/// Bytes of a file that fs_write takes. Larger ones are made by a program, or copied by `berth cp`.
pub const MOST_WRITTEN: usize = 16 << 20;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReadArgs {
    /// Session of the file, by id or name; left out: your own.
    session: SessionArgument,
    /// Relative to /workspace, or absolute in the sandbox.
    path: String,
    /// First byte to read. Left out: 0.
    #[serde(default)]
    offset: u64,
    /// Bytes to read. Left out: 262144; at most 1048576, as far as one answer has room: next_offset says where it ends.
    length: Option<u64>,
    /// base64: always as base64. Left out: as text, and as base64 only where it is no text.
    #[serde(default)]
    encoding: Encoding,
}

#[derive(Serialize, JsonSchema)]
struct Content {
    session: String,
    path: String,
    /// The file's size in bytes.
    size: u64,
    offset: u64,
    /// Bytes that were read.
    length: u64,
    /// text, or base64 where it is no text.
    encoding: &'static str,
    contents: String,
    /// Offset to read on from; not set at the file's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WriteArgs {
    /// Session of the file, by id or name; left out: your own.
    session: SessionArgument,
    /// Relative to /workspace, or absolute in the sandbox. Missing directories are made.
    path: String,
    /// The whole new content, at most 16 MiB. (`content` is taken too.)
    #[serde(alias = "content")]
    contents: String,
    /// text, or base64 for bytes that are no text. Left out: text.
    #[serde(default)]
    encoding: Encoding,
    /// Permission bits in octal, for example "755". Left out: 644, or those of the file that is replaced.
    mode: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Written {
    session: String,
    path: String,
    /// In bytes.
    size: u64,
    /// Permission bits in octal.
    mode: String,
}

pub fn tools() -> Vec<Entry> {
    vec![
        Entry::new(
            "fs_read",
            "Read a file",
            Effect::Reads,
            "Reads a file of the sandbox, or a part of it. Text comes as it is; what is no text (no UTF-8, or with zero \
             bytes) comes as base64, which `encoding` in the answer says. Of a long file read the next part from next_offset.",
            read,
        ),
        Entry::new(
            "fs_write",
            "Write a file",
            Effect::Overwrites,
            "Writes a whole file in the sandbox, in one step: a new one, or over what is there. To change a part of a file, \
             fs_edit is surer and shorter.",
            write,
        ),
    ]
}

async fn read(call: Call, args: ReadArgs) -> Result<Answer<Content>, Problem> {
    let length = arguments::bytes("length", args.length, USUAL_READ, MOST_READ)?;
    let session = call.session(args.session.as_deref()).await?;
    let files = session.files();
    let reading = async {
        let size = files.stat_follow(&args.path).await?.size;
        // Where nothing is left there is nothing to ask for (a length of zero means all).
        let data = files.read_range(&args.path, args.offset, length as u64).await?;
        Ok((size, data))
    };
    let (size, data) = call.wait("the file is read", reading).await?;
    // It may have grown.
    let size = size.max(args.offset + data.len() as u64);
    Ok(room::fitting(data.len(), 0, |limit| {
        let part = Part::of(data[..limit].to_vec(), args.offset, size, args.encoding);
        let data = Content {
            session: session.id().to_string(),
            path: args.path.clone(),
            size,
            offset: args.offset,
            length: part.length,
            encoding: part.encoding,
            contents: part.contents,
            next_offset: part.next_offset,
        };
        Answer { data, text: part.text }
    }))
}

async fn write(call: Call, args: WriteArgs) -> Result<Answer<Written>, Problem> {
    let data = args.encoding.decode("contents", args.contents)?;
    if data.len() > MOST_WRITTEN {
        return Err(Problem::new(
            format!("`contents` has {} bytes, more than {MOST_WRITTEN}", data.len()),
            "write it in parts with run_shell (`cat >> file`, with `input`), or let a program make it",
        ));
    }
    let mut options = WriteOptions::new().make_parents();
    if let Some(mode) = &args.mode {
        options = options.mode(octal(mode)?);
    }
    let session = call.session(args.session.as_deref()).await?;
    // Should this be dropped halfway, the file stays as it was.
    let files = session.files();
    let writing = async { Ok(files.write_with(&args.path, data, options).await?) };
    let info = call.wait("the file is written", writing).await?;
    let text = format!("wrote {} bytes to {}", info.size, text::clipped(&args.path, 500));
    let data = Written {
        session: session.id().to_string(),
        path: args.path,
        size: info.size,
        mode: format!("{:o}", info.mode),
    };
    Ok(Answer { data, text })
}

fn octal(mode: &str) -> Result<u32, Problem> {
    u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
        Problem::new(
            format!("mode is {:?}", text::clipped(mode, 20)),
            "give three octal digits, for example \"755\"",
        )
    })
}
