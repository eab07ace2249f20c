//! `berth cp`: files into or out of a session, with the manners of `cp`: into a directory
//! that is there, else under the new name; never a directory over a file, nor a file over
//! a directory. Modes are kept, symbolic links stay links, nothing else special is copied.
//!
//! What comes out of a session was written by code that nobody vouches for: see
//! [`download`] for what is done about names and links.

use std::path::{Path, PathBuf};

use berth_client::Client;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::Global;
use crate::{
    failure::{CommandResult, Failure, code},
    output, select,
    signals::Interrupts,
};

mod download;
mod stream;
pub(super) mod tree;
mod upload;

pub use upload::is_helper;

const HELP: &str = "\
One side is SESSION:PATH. A PATH there is relative to the workspace unless it begins with `/`.
A local path with a colon in it is written ./a:b. `-` is a tar archive, to stdout or from stdin.

Examples:
  berth cp notes.txt web:notes.txt
  berth cp -r ./project web:.              makes project/ in the workspace
  berth cp -r ./project/. web:.            its contents into the workspace
  berth cp -r web:results ./out
  berth cp web:/etc/os-release .
  berth cp web:results - > results.tar     an archive of results/
  tar -c ./src | berth cp - web:.          what is in an archive, into the workspace";

/// Copies files into or out of a session.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct CpArgs {
    /// Directories with all that is in them
    #[arg(long, short = 'r', visible_short_alias = 'R')]
    pub recursive: bool,

    /// What to copy: PATH, SESSION:PATH, or - for a tar archive from stdin
    #[arg(value_name = "SRC")]
    pub source: String,

    /// Where to: SESSION:PATH, PATH, or - for a tar archive to stdout
    #[arg(value_name = "DST")]
    pub destination: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
pub enum Side {
    Local(PathBuf),
    /// An archive, from stdin or to stdout.
    Stream,
    Remote {
        session: String,
        path: String,
    },
}

impl Side {
    /// As `scp` reads it: a colon before the first slash makes it remote.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if text.is_empty() {
            return Err(Failure::usage("a path is empty").hint("`.` is this directory"));
        }
        if text == "-" {
            return Ok(Self::Stream);
        }
        match text.split_once(':') {
            Some(("", _)) => Err(Failure::usage(format!("{text:?} names no session"))
                .hint("write SESSION:PATH, or ./ before a local path with a colon in it")),
            Some((session, path)) if !session.contains('/') => {
                let path = if path.is_empty() { "." } else { path };
                Ok(Self::Remote { session: session.to_owned(), path: path.to_owned() })
            }
            _ => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

/// What was copied.
#[derive(Debug, Default, Serialize)]
pub struct Tally {
    pub files: u64,
    pub directories: u64,
    pub links: u64,
    pub bytes: u64,
    /// What could not be copied, each with its reason.
    pub skipped: Vec<String>,
}

impl Tally {
    fn skip(&mut self, what: impl std::fmt::Display, why: impl std::fmt::Display) {
        self.skipped.push(format!("{what}: {why}"));
    }

    /// Whoever uses the copy must not take it for a whole one.
    fn tell_skipped(&self) {
        if !self.skipped.is_empty() {
            let what = match self.skipped.len() {
                1 => "not copied: ".to_owned(),
                number => format!("{number} not copied:\n"),
            };
            let hint =
                "the rest is copied; make each of these a file, a directory or a link with a plain name";
            output::error(format!("{what}{}", self.skipped.join("\n")), [hint]);
        }
    }
}

pub async fn run(global: &Global, args: CpArgs) -> CommandResult {
    let sides = (Side::parse(&args.source)?, Side::parse(&args.destination)?);
    if global.json() && sides.1 == Side::Stream {
        return Err(Failure::usage("stdout is the archive's, and takes no JSON beside it")
            .hint("leave --format json out, or copy to a directory"));
    }
    let client = global.client().await?;
    let mut interrupts = Interrupts::new()?;
    let progress = progress();
    let tally = tokio::select! {
        tally = copy(&client, sides, args.recursive, &progress) => tally,
        _ = interrupts.recv() => {
            progress.finish_and_clear();
            output::warning("stopped; what was copied stays");
            return Ok(code::CANCELLED);
        }
    };
    progress.finish_and_clear();
    let tally = tally?;
    if global.json() {
        output::json(&tally)?;
    } else {
        tally.tell_skipped();
        if super::stderr_is_terminal() {
            output::say(format!("{} in {}", output::bytes(tally.bytes), output::count(tally.files, "file")));
        }
    }
    Ok(if tally.skipped.is_empty() { 0 } else { code::FAILED })
}

async fn copy(
    client: &Client,
    sides: (Side, Side),
    recursive: bool,
    progress: &ProgressBar,
) -> Result<Tally, Failure> {
    match sides {
        (Side::Local(source), Side::Remote { session, path }) => {
            let session = select::session(client, &session).await?;
            upload::copy(&session, &source, &path, recursive, progress).await
        }
        (Side::Remote { session, path }, Side::Local(destination)) => {
            let session = select::session(client, &session).await?;
            download::copy(&session, &path, &destination, recursive, progress).await
        }
        (Side::Remote { session, path }, Side::Stream) => {
            let session = select::session(client, &session).await?;
            stream::out(&session, &path, progress).await
        }
        (Side::Stream, Side::Remote { session, path }) => {
            let session = select::session(client, &session).await?;
            stream::into(&session, &path, progress).await
        }
        (Side::Local(_) | Side::Stream, Side::Local(_) | Side::Stream) => {
            Err(Failure::usage("neither side is in a session")
                .hint("write one side as SESSION:PATH; `berth ps` lists sessions"))
        }
        (Side::Remote { .. }, Side::Remote { .. }) => Err(Failure::usage("both sides are in sessions")
            .hint("copy to a local path first, or use `berth run --session … -- cp` within one session")),
    }
}

/// Hidden until there is a total, and where stderr is no terminal.
fn progress() -> ProgressBar {
    let target =
        if super::stderr_is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style =
        ProgressStyle::with_template("{bar:30} {bytes:>9} of {total_bytes}  {bytes_per_sec}  {eta} left");
    ProgressBar::with_draw_target(Some(0), target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Whether a path asks for the contents of a directory rather than for the directory.
fn means_contents(path: &str) -> bool {
    matches!(path, "." | "..") || path.ends_with("/.") || path.ends_with("/..") || path.ends_with("/./")
}

/// The last name of a path, as text.
fn last_name(path: &str) -> Option<&str> {
    Path::new(path).file_name().and_then(|name| name.to_str())
}

/// `dir` and `name` as one path.
fn joined(dir: &str, name: &str) -> String {
    match dir {
        "." => name.to_owned(),
        dir if dir.ends_with('/') => format!("{dir}{name}"),
        dir => format!("{dir}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(session: &str, path: &str) -> Side {
        Side::Remote { session: session.to_owned(), path: path.to_owned() }
    }

    #[test]
    fn a_colon_before_the_first_slash_makes_a_side_remote() {
        assert_eq!(Side::parse("web:a/b").unwrap(), remote("web", "a/b"));
        assert_eq!(Side::parse("web:/etc/passwd").unwrap(), remote("web", "/etc/passwd"));
        assert_eq!(Side::parse("name=web:a:b").unwrap(), remote("name=web", "a:b"));
        assert_eq!(Side::parse("web:").unwrap(), remote("web", "."));
        assert_eq!(Side::parse("./a:b").unwrap(), Side::Local("./a:b".into()));
        assert_eq!(Side::parse("/x/a:b").unwrap(), Side::Local("/x/a:b".into()));
        assert_eq!(Side::parse("-").unwrap(), Side::Stream);
        assert_eq!(Side::parse("./-").unwrap(), Side::Local("./-".into()));
        assert_eq!(Side::parse("dir/").unwrap(), Side::Local("dir/".into()));
        assert!(Side::parse(":a").is_err() && Side::parse("").is_err());
    }

    #[test]
    fn contents_are_told_from_the_directory() {
        for yes in [".", "..", "a/.", "/.", "a/..", "a/./"] {
            assert!(means_contents(yes), "{yes}");
        }
        for no in ["a", "a/", "a.", "a/b", "/", "..."] {
            assert!(!means_contents(no), "{no}");
        }
    }

    #[test]
    fn paths_are_joined_once() {
        assert_eq!(joined(".", "a"), "a");
        assert_eq!(joined("/", "a"), "/a");
        assert_eq!(joined("d", "a"), "d/a");
        assert_eq!(joined("d/", "a"), "d/a");
    }
}
