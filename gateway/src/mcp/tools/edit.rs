//! fs_edit: exact text for exact text, and never by guess.
//!
//! Done here and not by a program in the sandbox: it needs nothing that an image may lack, and nothing that a task could
//! have replaced. The file is read, changed and written back in one step; so if a program of the session changes it in
//! between, that change is lost. Whoever shares a file with a running program uses run_shell.

use berth_client::WriteOptions;
use regex::bytes::{NoExpand, Regex};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SessionArgument, read_write::MOST_WRITTEN};
use crate::mcp::{
    problem::Problem,
    text,
    tool::{Answer, Call, Effect, Entry},
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EditArgs {
    /// Session of the file, by id or name; left out: your own.
    session: SessionArgument,
    /// Relative to /workspace, or absolute in the sandbox.
    path: String,
    /// The text to replace, exactly as it is in the file, white space included.
    old_text: String,
    /// What takes its place. Empty: it is removed.
    new_text: String,
    /// How often old_text must be there; all of them are replaced. Left out: 1. Any other number is an error, and changes
    /// nothing.
    expected_count: Option<u64>,
    /// Replace it however often it is there (at least once).
    #[serde(default)]
    all: bool,
}

#[derive(Serialize, JsonSchema)]
struct Edited {
    session: String,
    path: String,
    /// How often old_text was there, and was replaced.
    replaced: u64,
    /// The file's size after it, in bytes.
    size: u64,
}

pub fn tools() -> Vec<Entry> {
    vec![Entry::new(
        "fs_edit",
        "Edit a file",
        Effect::Destroys,
        "Replaces exact text in a file, and says how often. It must be there exactly once, or expected_count times; else \
         nothing is changed. Give enough of the lines around it to mean one place.",
        edit,
    )]
}

async fn edit(call: Call, args: EditArgs) -> Result<Answer<Edited>, Problem> {
    if args.old_text.is_empty() {
        return Err(Problem::new(
            "`old_text` is empty",
            "give the text to replace, or write the file with fs_write",
        ));
    }
    if args.all && args.expected_count.is_some() || args.expected_count == Some(0) {
        return Err(Problem::new(
            "`expected_count` and `all` say different things, or nothing",
            "give one of them: a count of at least 1, or `all`",
        ));
    }
    let session = call.session(args.session.as_deref()).await?;
    let files = session.files();
    let editing = async {
        let before = files.read_range(&args.path, 0, MOST_WRITTEN as u64 + 1).await?;
        if before.len() > MOST_WRITTEN {
            return Err(Problem::new(
                format!("the file has more than {MOST_WRITTEN} bytes"),
                "edit it with a program, for example sed in run_shell",
            ));
        }
        let (count, after) = replace(&before, &args)?;
        // The file keeps its mode.
        let info = files.write_with(&args.path, after, WriteOptions::new()).await?;
        Ok((count, info.size))
    };
    let (replaced, size) = call.wait("the file is edited", editing).await?;
    let times = if replaced == 1 { "once".to_owned() } else { format!("{replaced} times") };
    let text = format!("replaced it {times} in {}", text::clipped(&args.path, 500));
    Ok(Answer { data: Edited { session: session.id().to_string(), path: args.path, replaced, size }, text })
}

fn replace(before: &[u8], args: &EditArgs) -> Result<(u64, Vec<u8>), Problem> {
    let pattern = Regex::new(&regex::escape(&args.old_text)).map_err(|_| {
        Problem::new("`old_text` is too long", "give less of it, or write the file with fs_write")
    })?;
    let count = pattern.find_iter(before).count() as u64;
    let expected = args.expected_count.unwrap_or(1);
    match count {
        0 => Err(Problem::new(
            "`old_text` is not in the file: nothing was changed",
            "read the place with fs_read or fs_search, and give it exactly as it is there, white space included",
        )),
        count if !args.all && count != expected => Err(Problem::new(
            format!("`old_text` is there {count} times, and not {expected}: nothing was changed"),
            "give more of the lines around it to mean one place, or `expected_count`, or `all`",
        )),
        count if after(before.len(), count, args) > MOST_WRITTEN => Err(Problem::new(
            format!("the file would have more than {MOST_WRITTEN} bytes: nothing was changed"),
            "edit it with a program, for example sed in run_shell",
        )),
        count => Ok((count, pattern.replace_all(before, NoExpand(args.new_text.as_bytes())).into_owned())),
    }
}

/// Bytes that a file of so many has once it is edited.
fn after(before: usize, count: u64, args: &EditArgs) -> usize {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    (before - count * args.old_text.len()).saturating_add(count.saturating_mul(args.new_text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(old: &str, new: &str) -> EditArgs {
        EditArgs {
            session: None,
            path: "f".into(),
            old_text: old.into(),
            new_text: new.into(),
            expected_count: None,
            all: false,
        }
    }

    #[test]
    fn exact_text_takes_the_place_of_exact_text() {
        let (count, after) = replace(b"a.c abc \xff", &args("a.c", "$0\\1")).unwrap();
        assert_eq!((count, &after[..]), (1, &b"$0\\1 abc \xff"[..]), "neither is a pattern");
        assert_eq!(replace(b"x\r\ny", &args("x\r\n", "")).unwrap().1, b"y");
    }

    /// Red when what comes of it is not looked at before it is made: here it would be 64 GiB.
    #[test]
    fn what_comes_of_it_is_bounded_too() {
        let all = EditArgs { all: true, ..args("a", &"b".repeat(64 << 10)) };
        assert!(replace(&b"a".repeat(1 << 20), &all).unwrap_err().to_string().contains("more than"));
        assert_eq!(replace(&b"a".repeat(256), &all).unwrap().1.len(), 16 << 20);
    }

    /// Red when a count that does not fit changes something.
    #[test]
    fn another_count_than_the_expected_one_changes_nothing() {
        assert!(replace(b"aa", &args("a", "b")).unwrap_err().to_string().contains("2 times"));
        assert!(replace(b"aa", &args("c", "b")).unwrap_err().to_string().contains("not in the file"));
        let twice = EditArgs { expected_count: Some(2), ..args("a", "b") };
        assert_eq!(replace(b"aa", &twice).unwrap(), (2, b"bb".to_vec()));
        assert!(replace(b"a", &twice).is_err());
        let all = EditArgs { all: true, ..args("a", "b") };
        assert_eq!(replace(b"aaa", &all).unwrap().0, 3);
        assert!(replace(b"x", &all).is_err());
    }
}
