//! fs_list, fs_stat, fs_move and fs_remove.

use berth_client::model::{FileInfo, FileType, json::time_text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SessionArgument;
use crate::mcp::{
    problem::Problem,
    room, text,
    tool::{Answer, Call, Effect, Entry},
};

/// Entries of a listing in an answer.
const MOST_ENTRIES: usize = 1000;
/// Levels that a listing goes down.
const MOST_DEPTH: u32 = 64;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListArgs {
    /// Session, by id or name; left out: your own.
    session: SessionArgument,
    /// Directory: relative to /workspace, or absolute in the sandbox. Left out: /workspace.
    #[serde(default = "workspace")]
    path: String,
    /// Levels to go down. Left out: 1, the directory's own entries; at most 64.
    #[serde(default = "one")]
    depth: u32,
}

fn workspace() -> String {
    ".".to_owned()
}

fn one() -> u32 {
    1
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StatArgs {
    /// Session, by id or name; left out: your own.
    session: SessionArgument,
    /// Relative to /workspace, or absolute in the sandbox.
    path: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MoveArgs {
    /// Session, by id or name; left out: your own.
    session: SessionArgument,
    /// What to move: relative to /workspace, or absolute in the sandbox.
    source: String,
    /// Its new path.
    destination: String,
    /// Replace what is there.
    #[serde(default)]
    overwrite: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RemoveArgs {
    /// Session, by id or name; left out: your own.
    session: SessionArgument,
    /// Relative to /workspace, or absolute in the sandbox.
    path: String,
    /// With all that is in it.
    #[serde(default)]
    recursive: bool,
}

#[derive(Clone, Serialize, JsonSchema)]
struct Told {
    /// In a listing, relative to the listed directory. A name that is no UTF-8 has U+FFFD in it.
    path: String,
    /// file, directory, symlink or other.
    #[serde(rename = "type")]
    kind: &'static str,
    /// In bytes.
    size: u64,
    /// Permission bits in octal.
    mode: String,
    /// In RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_at: Option<String>,
    /// Where a symbolic link points to.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Listing {
    session: String,
    /// In the order of their paths, each directory before what is in it.
    entries: Vec<Told>,
    /// There are more than these.
    truncated: bool,
}

#[derive(Serialize, JsonSchema)]
struct Stat {
    session: String,
    #[serde(flatten)]
    file: Told,
}

#[derive(Serialize, JsonSchema)]
struct Removed {
    session: String,
    path: String,
    removed: bool,
}

impl From<FileInfo> for Told {
    fn from(info: FileInfo) -> Self {
        Self {
            path: info.path,
            kind: match info.kind {
                FileType::File => "file",
                FileType::Directory => "directory",
                FileType::Symlink => "symlink",
                FileType::Other => "other",
            },
            size: info.size,
            mode: format!("{:o}", info.mode),
            modified_at: info.modified_at.map(time_text),
            target: info.symlink_target,
        }
    }
}

impl Told {
    fn line(&self) -> String {
        let end = match (self.kind, &self.target) {
            ("directory", _) => "/".to_owned(),
            (_, Some(target)) => format!(" -> {}", text::clipped(target, 500)),
            _ => format!("  {} bytes", self.size),
        };
        format!("{}{end}", text::clipped(&self.path, 4096).replace('\n', "\\n"))
    }
}

pub fn tools() -> Vec<Entry> {
    vec![
        Entry::new(
            "fs_list",
            "List files",
            Effect::Reads,
            "Lists a directory of the sandbox, with `depth` also what is below it. At most 1000 entries, as far as one answer has room.",
            list,
        ),
        Entry::new(
            "fs_stat",
            "Look at a file",
            Effect::Reads,
            "What is at a path: its type, size, mode and time. Of a symbolic link, the link itself.",
            stat,
        ),
        Entry::new(
            "fs_move",
            "Move a file",
            Effect::Destroys,
            "Moves or renames a file or directory. Over what is there only with `overwrite`.",
            rename,
        ),
        Entry::new(
            "fs_remove",
            "Remove a file",
            Effect::Destroys,
            "Removes a file, a link, an empty directory, or with `recursive` a directory with all that is in it.",
            remove,
        ),
    ]
}

async fn list(call: Call, args: ListArgs) -> Result<Answer<Listing>, Problem> {
    if !(1..=MOST_DEPTH).contains(&args.depth) {
        let hint = format!("give 1 to {MOST_DEPTH}");
        return Err(Problem::new(format!("depth is {}", args.depth), hint));
    }
    let session = call.session(args.session.as_deref()).await?;
    let files = session.files();
    let listing = async { Ok(files.list_at_most(&args.path, args.depth, MOST_ENTRIES).await?) };
    let (entries, truncated) = call.wait("the directory is listed", listing).await?;
    let entries: Vec<Told> = entries.into_iter().map(Told::from).collect();
    Ok(room::fitting(entries.len(), 0, |limit| {
        let (entries, truncated) = (entries[..limit].to_vec(), truncated || limit < entries.len());
        let mut text: Vec<String> = entries.iter().map(Told::line).collect();
        if truncated {
            text.push(format!("[… only the first {limit} are shown: list a directory below …]"));
        }
        if text.is_empty() {
            text.push("(empty)".to_owned());
        }
        let data = Listing { session: session.id().to_string(), entries, truncated };
        Answer { data, text: text.join("\n") }
    }))
}

async fn stat(call: Call, args: StatArgs) -> Result<Answer<Stat>, Problem> {
    let session = call.session(args.session.as_deref()).await?;
    let file = Told::from(session.files().stat(&args.path).await?);
    let time = file.modified_at.clone().unwrap_or_default();
    let text = format!("{} ({}, mode {}, {time})", file.line(), file.kind, file.mode);
    Ok(Answer { data: Stat { session: session.id().to_string(), file }, text })
}

async fn rename(call: Call, args: MoveArgs) -> Result<Answer<Stat>, Problem> {
    let session = call.session(args.session.as_deref()).await?;
    let moved = session.files().rename(&args.source, &args.destination, args.overwrite).await?;
    let text =
        format!("moved {} to {}", text::clipped(&args.source, 500), text::clipped(&args.destination, 500));
    Ok(Answer { data: Stat { session: session.id().to_string(), file: moved.into() }, text })
}

async fn remove(call: Call, args: RemoveArgs) -> Result<Answer<Removed>, Problem> {
    let session = call.session(args.session.as_deref()).await?;
    let files = session.files();
    match args.recursive {
        true => files.remove_all(&args.path).await?,
        false => files.remove(&args.path).await?,
    }
    let text = format!("removed {}", text::clipped(&args.path, 500));
    Ok(Answer { data: Removed { session: session.id().to_string(), path: args.path, removed: true }, text })
}
