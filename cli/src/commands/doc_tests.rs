//! The commands of README and `docs/` are commands: each `berth`, `coordinator` and `worker` in a block of shell is one that
//! the command line takes, each `make` a target that there is, each script a file.
//!
//! Here commands are parsed alone, those within sentences too, on any machine and at once. That the blocks of a page work as they
//! stand, typed from its top to its end, is `tests/tests/e2e/documentation.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory, Parser, error::ErrorKind};

use super::Cli;
use crate::serve::{coordinator::CoordinatorArgs, worker::WorkerArgs};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Lines of the blocks of shell of a page, with their number; one that ends with `\` goes on in the next.
fn shell_lines(page: &str) -> Vec<(usize, String)> {
    let (mut lines, mut inside, mut open) = (Vec::<(usize, String)>::new(), false, false);
    for (number, line) in page.lines().enumerate() {
        let fence = line.trim_start();
        if let Some(kind) = fence.strip_prefix("```") {
            inside = !inside && matches!(kind.trim(), "sh" | "bash" | "shell" | "console");
            continue;
        }
        if !inside {
            continue;
        }
        let (text, goes_on) = match line.trim_end().strip_suffix('\\') {
            Some(text) => (text, true),
            None => (line, false),
        };
        match lines.last_mut().filter(|_| open) {
            Some((_, last)) => last.push_str(text),
            None => lines.push((number + 1, text.to_owned())),
        }
        open = goes_on;
    }
    lines
}

/// Commands of ours within the text, in backquotes.
fn inline(page: &str) -> Vec<(usize, String)> {
    let (mut all, mut fenced) = (Vec::new(), false);
    for (number, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let quoted = line.split('`').skip(1).step_by(2).filter(|_| !fenced);
        let ours = quoted.filter(|text| ["berth ", "make "].iter().any(|name| text.starts_with(name)));
        // What goes by a pattern is none that anybody types.
        let typed =
            ours.filter(|text| !text.contains(['…', '*', '|', '[', '(']) && !text.contains("COMMAND"));
        all.extend(typed.map(|text| (number + 1, text.to_owned())));
    }
    all
}

/// Words as a shell makes them, each command by itself. Not a shell: what is in `$(…)` is looked at as a command of its own,
/// and stands for one word where it was.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut all, mut words, mut word, mut some) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    let mut quote = None;
    let end_word = |words: &mut Vec<String>, word: &mut String, some: &mut bool| {
        if std::mem::take(some) {
            words.push(std::mem::take(word));
        }
    };
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (Some('"') | None, '$') if chars.peek() == Some(&'(') => {
                chars.next();
                let (mut depth, mut inner) = (1, String::new());
                for c in chars.by_ref() {
                    depth += match c {
                        '(' => 1,
                        ')' => -1,
                        _ => 0,
                    };
                    if depth == 0 {
                        break;
                    }
                    inner.push(c);
                }
                all.extend(commands(&inner));
                word.push_str("substituted");
                some = true;
            }
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, some) = (Some(c), true),
            (None, '#') if !some => break,
            (None, '|' | ';' | '&' | '<' | '>') => {
                // A file descriptor's number belongs to the redirection, and its file is no command.
                let redirects = matches!(c, '<' | '>');
                if redirects && word.chars().all(|c| c.is_ascii_digit()) {
                    (word, some) = (String::new(), false);
                }
                end_word(&mut words, &mut word, &mut some);
                if redirects {
                    while chars.peek().is_some_and(|c| matches!(c, '>' | '&' | ' ')) {
                        chars.next();
                    }
                    while chars.peek().is_some_and(|c| !c.is_whitespace() && !matches!(c, '|' | ';')) {
                        chars.next();
                    }
                } else {
                    all.push(std::mem::take(&mut words));
                }
            }
            (None, c) if c.is_whitespace() => end_word(&mut words, &mut word, &mut some),
            (None, c) => {
                word.push(c);
                some = true;
            }
        }
    }
    end_word(&mut words, &mut word, &mut some);
    all.push(words);
    all.retain(|words: &Vec<String>| !words.is_empty());
    all
}

/// The command itself: without variables before it, and without what runs it.
fn bare(words: &[String]) -> &[String] {
    let is_set = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    let mut words = words;
    while let Some((first, rest)) = words.split_first() {
        if is_set(first) || matches!(first.as_str(), "$" | "sudo" | "export" | "exec" | "env" | "time") {
            words = rest;
        } else {
            break;
        }
    }
    words
}

/// Why it is none. `whole`: nothing that it needs may be left out, as it may within a sentence.
fn problem(words: &[String], makefile: &str, whole: bool) -> Option<String> {
    let (program, args) = words.split_first()?;
    let name = program.rsplit('/').next().unwrap_or(program);
    // An ellipsis says that more belongs there.
    if args.iter().any(|arg| arg.contains('…') || arg == "...") {
        return None;
    }
    let all = std::iter::once(name.to_owned()).chain(args.iter().cloned());
    let said = |error: clap::Error| {
        let unknown = matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand);
        (error.use_stderr() && (whole || unknown)).then(|| error.to_string())
    };
    match name {
        "berth" => Cli::try_parse_from(all).err().and_then(said),
        "coordinator" => match args.first().map(String::as_str) {
            Some("health") => None,
            _ => CoordinatorArgs::command().try_get_matches_from(all).err().and_then(said),
        },
        "worker" => match args.first().map(String::as_str) {
            Some("health") => None,
            _ => WorkerArgs::command().try_get_matches_from(all).err().and_then(said),
        },
        "make" => {
            let targets = args.iter().filter(|arg| !arg.contains('=') && !arg.starts_with('-'));
            let unknown: Vec<_> = targets
                .filter(|target| !makefile.lines().any(|line| line.starts_with(&format!("{target}:"))))
                .collect();
            (!unknown.is_empty()).then(|| format!("no target {unknown:?}"))
        }
        "sh" | "bash" if args.first().is_some_and(|arg| arg.starts_with("scripts/")) => {
            (!workspace().join(&args[0]).is_file()).then(|| format!("no file {}", args[0]))
        }
        _ => None,
    }
}

fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(workspace().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    [workspace().join("README.md"), workspace().join("client/python/README.md")]
        .into_iter()
        .chain(docs)
        .collect()
}

#[test]
fn each_command_of_the_documentation_is_one() {
    let makefile = fs::read_to_string(workspace().join("Makefile")).unwrap();
    let (mut wrong, mut looked_at) = (Vec::new(), 0);
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let whole = shell_lines(&text).into_iter().map(|(number, line)| (number, line, true));
        let inline = inline(&text).into_iter().map(|(number, line)| (number, line, false));
        for (number, line, whole) in whole.chain(inline) {
            for words in commands(&line) {
                let words = bare(&words);
                looked_at += usize::from(words.first().is_some_and(|first| {
                    ["berth", "coordinator", "worker", "make", "sh"]
                        .contains(&first.rsplit('/').next().unwrap_or(""))
                }));
                if let Some(why) = problem(words, &makefile, whole) {
                    let name = page.file_name().unwrap().to_string_lossy();
                    wrong.push(format!("{name}:{number}: {}\n    {}", words.join(" "), why.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(looked_at > 300, "only {looked_at} were found");
}

#[test]
fn a_wrong_command_is_found() {
    let page = "text `berth nonsense`\n```sh\nA=1 berth run --no-such-flag -- true   # why\nberth ps | berth rm \\\n  $(berth what)\n```\nberth nothing\n";
    let found: Vec<String> = shell_lines(page)
        .iter()
        .flat_map(|(_, line)| commands(line))
        .filter(|words| problem(bare(words), "all:\n", true).is_some())
        .map(|words| words.join(" "))
        .collect();
    assert_eq!(found, ["A=1 berth run --no-such-flag -- true", "berth what"]);
    assert!(problem(&["make".to_owned(), "nothing".to_owned()], "all:\n", false).is_some());
}
