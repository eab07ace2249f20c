//! fs_search: a regular expression over files.
//!
//! Done here over the file service, and not by a program in the sandbox: it works alike whatever image a session has,
//! what it answers was not made by anything that a task could have replaced, and its bounds are ours. It costs a call for
//! each file (half a millisecond); for trees of tens of thousands of files `grep` in run_shell is faster.

use std::time::Duration;

use berth_client::{Files, model::FileInfo};
use futures::{StreamExt, stream};
use regex::bytes::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::Instant};

use super::SessionArgument;
use crate::mcp::{
    problem::Problem,
    search::{self, Found, Hit},
    text,
    tool::{Answer, Call, Effect, Entry},
};

/// Entries that are looked at.
const MOST_ENTRIES: usize = 20_000;
/// Levels below the directory.
const MOST_DEPTH: u32 = 64;
/// A larger file is passed over.
const LARGEST_FILE: u64 = 4 << 20;
/// Bytes that are read in all.
const MOST_READ: u64 = 256 << 20;
/// For how long.
const LONGEST: Duration = Duration::from_secs(60);
/// Files that are read at once.
const AT_ONCE: usize = 8;
/// Files that are searched at once, for all clients together: this is the only work of the gateway that takes a processor.
static SEARCHING: Semaphore = Semaphore::const_new(2);
const USUAL_MATCHES: usize = 100;
const MOST_MATCHES: usize = 1000;
const MOST_CONTEXT: usize = 20;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SearchArgs {
    /// Session, by id or name; left out: your own.
    session: SessionArgument,
    /// Regular expression, matched against each line (as of Rust's regex crate: no look-around, no back-references).
    pattern: String,
    /// Directory or file to search: relative to /workspace, or absolute in the sandbox. Left out: /workspace.
    #[serde(default = "workspace")]
    path: String,
    /// Only files whose path below that fits, for example *.py or src/**/*.{ts,tsx}. Left out: all but those in .git.
    glob: Option<String>,
    /// Capital and small letters are the same.
    #[serde(default)]
    ignore_case: bool,
    /// Lines before and after each match to answer with. Left out: 0; at most 20.
    #[serde(default)]
    context: usize,
    /// Left out: 100; at most 1000.
    max_matches: Option<usize>,
}

fn workspace() -> String {
    ".".to_owned()
}

#[derive(Serialize, JsonSchema)]
struct Match {
    path: String,
    /// Counted from 1.
    line: u64,
    /// The line, at most 400 bytes of it.
    text: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    before: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    after: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
struct Searched {
    session: String,
    matches: Vec<Match>,
    files_searched: u64,
    /// Not searched: no text, larger than 4 MiB, or not to be read.
    files_skipped: u64,
    /// Why there may be more matches than these; not set where these are all.
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete: Option<String>,
}

pub fn tools() -> Vec<Entry> {
    vec![Entry::new(
        "fs_search",
        "Search files",
        Effect::Reads,
        "Searches the text files below a directory (or one file) for lines that match a regular expression, and answers with \
         path, line number and line. Links are not followed.",
        find,
    )]
}

async fn find(call: Call, args: SearchArgs) -> Result<Answer<Searched>, Problem> {
    let pattern = search::pattern(&args.pattern, args.ignore_case).map_err(|error| {
        Problem::new(
            format!("`pattern` is no regular expression: {error}"),
            "escape what is meant as it is with \\, for example \\( for a parenthesis",
        )
    })?;
    let glob =
        args.glob.as_deref().map(search::glob).transpose().map_err(|_| {
            Problem::new("`glob` is none", "write for example *.py, src/**/*.rs or *.{js,ts}")
        })?;
    let most = args.max_matches.unwrap_or(USUAL_MATCHES);
    if !(1..=MOST_MATCHES).contains(&most) || args.context > MOST_CONTEXT {
        return Err(Problem::new(
            format!("max_matches is {most}, context {}", args.context),
            format!("give 1 to {MOST_MATCHES} matches, and 0 to {MOST_CONTEXT} lines of context"),
        ));
    }
    let session = call.session(args.session.as_deref()).await?;
    let files = session.files();
    let search = Search { files: &files, pattern: &pattern, context: args.context, most };
    let mut searched = call.wait("files are searched", search.run(&args.path, glob.as_ref())).await?;
    searched.session = session.id().to_string();
    let text = shown(&searched);
    Ok(Answer { data: searched, text })
}

struct Search<'a> {
    files: &'a Files,
    pattern: &'a Regex,
    context: usize,
    most: usize,
}

impl Search<'_> {
    async fn run(&self, root: &str, glob: Option<&Regex>) -> Result<Searched, Problem> {
        let (paths, mut searched) = self.paths(root, glob).await?;
        let until = Instant::now() + LONGEST;
        let mut bytes = 0;
        // A byte more than there may be: a file may have grown since it was listed, or be one that never ends.
        let read = |path: String| async move { self.files.read_range(&path, 0, LARGEST_FILE + 1).await };
        let reads = paths.into_iter().map(|(shown, path)| async move { (shown, read(path).await) });
        // In their order, so that the same search answers the same.
        let mut reads = stream::iter(reads).buffered(AT_ONCE);
        while let Some((path, data)) = reads.next().await {
            // It may be gone by now, or not ours to read.
            let Some(data) = data.ok().filter(|data| data.len() as u64 <= LARGEST_FILE) else {
                searched.files_skipped += 1;
                continue;
            };
            let room = self.most - searched.matches.len();
            bytes += data.len() as u64;
            let late = match self.lines(data, room, until).await {
                Found::Binary => {
                    searched.files_skipped += 1;
                    false
                }
                Found::Hits { hits, late } => {
                    searched.files_searched += 1;
                    searched.matches.extend(hits.into_iter().map(|hit| of(&path, hit)));
                    late
                }
            };
            let why = if searched.matches.len() >= self.most {
                format!(
                    "there are {} matches: ask for more with max_matches, or for less with glob",
                    self.most
                )
            } else if late || bytes > MOST_READ || Instant::now() > until {
                "it took too long: search a directory below, or give a glob".to_owned()
            } else {
                continue;
            };
            searched.incomplete = Some(why);
            break;
        }
        Ok(searched)
    }

    /// Off the threads that serve everybody: a hard pattern takes long for a single line.
    async fn lines(&self, data: Vec<u8>, room: usize, until: Instant) -> Found {
        let (pattern, context) = (self.pattern.clone(), self.context);
        let _turn = SEARCHING.acquire().await;
        let search = move || search::lines(&data, &pattern, context, room, until.into_std());
        // Only a panic of it has no answer.
        tokio::task::spawn_blocking(search).await.unwrap_or(Found::Binary)
    }

    /// What to search: as it is shown, and as it is read.
    async fn paths(
        &self,
        root: &str,
        glob: Option<&Regex>,
    ) -> Result<(Vec<(String, String)>, Searched), Problem> {
        let mut searched = Searched {
            session: String::new(),
            matches: Vec::new(),
            files_searched: 0,
            files_skipped: 0,
            incomplete: None,
        };
        if self.files.stat_follow(root).await?.is_file() {
            return Ok((vec![(root.to_owned(), root.to_owned())], searched));
        }
        let (entries, more) = self.files.list_at_most(root, MOST_DEPTH, MOST_ENTRIES).await?;
        if more {
            searched.incomplete =
                Some(format!("there are more than {MOST_ENTRIES} files: search a directory below"));
        }
        let wanted = |file: &FileInfo| match glob {
            Some(glob) => search::fits(glob, &file.path),
            None => !file.path.starts_with(".git/") && !file.path.contains("/.git/"),
        };
        let mut paths = Vec::new();
        for file in entries.into_iter().filter(FileInfo::is_file).filter(wanted) {
            // A name that is no UTF-8 can't be asked for here.
            if file.size > LARGEST_FILE || file.path_bytes.is_some() {
                searched.files_skipped += 1;
            } else {
                let path = format!("{}/{}", root.trim_end_matches('/'), file.path);
                paths.push((file.path, path));
            }
        }
        Ok((paths, searched))
    }
}

fn of(path: &str, hit: Hit) -> Match {
    Match { path: path.to_owned(), line: hit.line, text: hit.text, before: hit.before, after: hit.after }
}

fn shown(searched: &Searched) -> String {
    let mut lines = Vec::new();
    for hit in &searched.matches {
        let path = text::clipped(&hit.path, 4096).replace('\n', "\\n");
        let around = |at: u64, text: &String| format!("{path}-{at}-{text}");
        let first = hit.line - hit.before.len() as u64;
        lines.extend(hit.before.iter().zip(first..).map(|(text, at)| around(at, text)));
        lines.push(format!("{path}:{}:{}", hit.line, hit.text));
        lines.extend(hit.after.iter().zip(hit.line + 1..).map(|(text, at)| around(at, text)));
    }
    if searched.matches.is_empty() {
        lines.push(format!("no line matches in {} files", searched.files_searched));
    }
    if searched.files_skipped > 0 {
        lines.push(format!("[{} files were not searched: no text, or too large]", searched.files_skipped));
    }
    if let Some(why) = &searched.incomplete {
        lines.push(format!("[there may be more: {why}]"));
    }
    lines.join("\n")
}
