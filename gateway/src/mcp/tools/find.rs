//! fs_search: a regular expression over files.
//!
//! The session's agent searches, by `FileService.Search`, and not a program in the sandbox: so it works alike whatever image
//! a session has, and what it answers was not made by anything that a task could have replaced.

use berth_client::{
    SearchOptions,
    model::{SearchEnd, SearchLimit, SearchMatch},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SessionArgument;
use crate::mcp::{
    problem::Problem,
    room, text,
    tool::{Answer, Call, Effect, Entry},
};

const USUAL_MATCHES: u32 = 100;
const MOST_MATCHES: u32 = 1000;
const MOST_CONTEXT: u32 = 20;
/// Bytes of a line that are shown.
const LINE: usize = 400;

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
    context: u32,
    /// Left out: 100; at most 1000.
    max_matches: Option<u32>,
}

fn workspace() -> String {
    ".".to_owned()
}

#[derive(Clone, Serialize, JsonSchema)]
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
    let most = args.max_matches.unwrap_or(USUAL_MATCHES);
    if !(1..=MOST_MATCHES).contains(&most) || args.context > MOST_CONTEXT {
        return Err(Problem::new(
            format!("max_matches is {most}, context {}", args.context),
            format!("give 1 to {MOST_MATCHES} matches, and 0 to {MOST_CONTEXT} lines of context"),
        ));
    }
    let options = SearchOptions::new().ignore_case(args.ignore_case).context(args.context).max_matches(most);
    let options = match args.glob {
        Some(glob) => options.glob(glob),
        None => options.exclude(".git"),
    };
    let session = call.session(args.session.as_deref()).await?;
    let files = session.files();
    let search = async {
        let search = files.search(&args.path, &args.pattern, options).await?;
        Ok::<_, Problem>(search.collect().await?)
    };
    let (matches, end) = call.wait("files are searched", search).await?;
    let matches: Vec<Match> = matches.into_iter().map(of).collect();
    Ok(room::fitting(matches.len(), 0, |limit| {
        let no_room = (limit < matches.len()).then(|| {
            format!("an answer has room for {limit} of these: search below a directory, or with a glob or less context")
        });
        let data = Searched {
            session: session.id().to_string(),
            matches: matches[..limit].to_vec(),
            files_searched: end.files_searched,
            files_skipped: end.files_skipped,
            incomplete: no_room.or_else(|| incomplete(&end, most)),
        };
        let text = shown(&data);
        Answer { data, text }
    }))
}

fn incomplete(end: &SearchEnd, most: u32) -> Option<String> {
    Some(match end.limit? {
        SearchLimit::Matches => {
            format!("there are {most} matches: ask for more with max_matches, or for less with glob")
        }
        SearchLimit::Time => "it took too long: search a directory below, or give a glob".to_owned(),
    })
}

fn of(found: SearchMatch) -> Match {
    let line = |line: String| text::clipped(&line, LINE);
    Match {
        path: found.path,
        line: found.line,
        text: line(found.text),
        before: found.before.into_iter().map(line).collect(),
        after: found.after.into_iter().map(line).collect(),
    }
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
