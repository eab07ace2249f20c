//! What a page of the documentation has its reader type: its blocks of shell (and of Python), command by command, each with
//! its line. [`crate::reader`] types them.
//!
//! A block is run, unless a comment before it, which a reader of the page does not see, says why it is not, and which
//! test has what it says: `<!-- not run: REASON; tested by MODULE::TEST, MODULE::TEST -->`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A page of the tree.
pub struct Page {
    /// As it is called from the root: `docs/http.md`.
    pub name: String,
    pub blocks: Vec<Block>,
}

/// What stands between two fences.
pub struct Block {
    /// Of its first fence.
    pub line: usize,
    pub kind: Kind,
    pub not_run: Option<NotRun>,
    /// Of Python there is one: all of it.
    pub commands: Vec<Typed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Shell,
    Python,
}

/// One command, of as many lines as the shell wants for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Typed {
    pub line: usize,
    pub text: String,
}

/// Why a block is not run.
#[derive(Debug, PartialEq, Eq)]
pub struct NotRun {
    pub reason: String,
    /// `module::test` of the e2e suite.
    pub tested_by: Vec<String>,
}

/// The root of the tree.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the tree")
}

/// The pages that people read, as they are called from the root.
pub fn names() -> Vec<String> {
    let root = checkout();
    let mut all = vec!["README.md".to_owned()];
    for dir in ["docs", "client/python", "docker/component", "docker/sandbox", "examples"] {
        for entry in fs::read_dir(root.join(dir)).expect("a directory of pages").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                all.push(format!("{dir}/{name}"));
            }
        }
    }
    all.sort();
    all
}

impl Page {
    /// # Panics
    /// When there is no such page, or what it says is nothing that can be typed: with its line.
    pub fn read(name: &str) -> Self {
        let text = fs::read_to_string(checkout().join(name)).expect("the page");
        Self::of(name, &text).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same of a text.
    pub fn of(name: &str, text: &str) -> Result<Self, String> {
        let (mut blocks, mut lines) = (Vec::new(), text.lines().enumerate());
        let mut before = "";
        while let Some((number, line)) = lines.next() {
            let Some(language) = line.trim_start().strip_prefix("```") else {
                before = line;
                continue;
            };
            let inside: Vec<(usize, &str)> = lines
                .by_ref()
                .take_while(|(_, line)| !line.trim_start().starts_with("```"))
                .map(|(number, line)| (number + 1, line))
                .collect();
            let (kind, commands) = match language.trim() {
                "sh" | "bash" | "shell" => (Kind::Shell, commands(inside.into_iter())),
                // The rest is what they print.
                "console" => {
                    let typed =
                        inside.iter().filter_map(|(number, line)| Some((*number, line.strip_prefix("$ ")?)));
                    (Kind::Shell, commands(typed))
                }
                "python" => (Kind::Python, Ok(whole(number + 2, &inside))),
                _ => continue,
            };
            let at = |(line, why): (usize, String)| format!("{name}:{line}: {why}");
            let not_run = not_run(before).map_err(|why| at((number, why)))?;
            blocks.push(Block { line: number + 1, kind, not_run, commands: commands.map_err(at)? });
        }
        Ok(Self { name: name.to_owned(), blocks })
    }

    pub fn shell(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter(|block| block.kind == Kind::Shell)
    }
}

fn whole(line: usize, inside: &[(usize, &str)]) -> Vec<Typed> {
    let text: String = inside.iter().map(|(_, line)| format!("{line}\n")).collect();
    vec![Typed { line, text }]
}

/// Line by line, as a shell takes them: one that it can't take yet goes on in the next. Comments alone are none.
fn commands<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Vec<Typed>, (usize, String)> {
    let (mut all, mut open) = (Vec::new(), None::<Typed>);
    for (number, line) in lines {
        let empty = line.trim().is_empty() || line.trim_start().starts_with('#');
        if open.is_none() && empty {
            continue;
        }
        let mut typed = open.take().unwrap_or(Typed { line: number, text: String::new() });
        typed.text.push_str(line.trim_end());
        typed.text.push('\n');
        match !line.trim_end().ends_with('\\') && parses(&typed.text) {
            true => all.push(typed),
            false => open = Some(typed),
        }
    }
    match open {
        Some(Typed { line, text }) => Err((line, format!("no command that ends: {text}"))),
        None => Ok(all),
    }
}

fn parses(text: &str) -> bool {
    let mut bash = Command::new("bash");
    bash.args(["-n", "-c", text]).stdin(Stdio::null()).stderr(Stdio::null());
    bash.status().expect("bash").success()
}

/// What the comment before a block says.
fn not_run(line: &str) -> Result<Option<NotRun>, String> {
    let Some(said) = line.trim().strip_prefix("<!-- not run") else { return Ok(None) };
    let said = said.strip_prefix(':').and_then(|said| said.strip_suffix("-->"));
    let said = said.ok_or("write <!-- not run: REASON; tested by MODULE::TEST -->")?.trim();
    let (reason, tests) = said.split_once("; tested by ").unwrap_or((said, ""));
    if reason.split_whitespace().count() < 3 {
        return Err("a block that is not run has a reason, in words".to_owned());
    }
    let tested_by = tests.split(", ").map(str::trim).filter(|test| !test.is_empty()).map(str::to_owned);
    Ok(Some(NotRun { reason: reason.to_owned(), tested_by: tested_by.collect() }))
}

/// Whether the e2e suite has the test `module::test`.
pub fn is_a_test(name: &str) -> bool {
    let Some((module, test)) = name.split_once("::") else { return false };
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
    let file = [suite.join(format!("{module}.rs")), suite.join(module).join("mod.rs")];
    let text = file.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    let mut above = "";
    text.lines().any(|line| {
        let declared = line.trim_start().trim_start_matches("async ").strip_prefix("fn ");
        let found =
            declared.and_then(|rest| rest.strip_prefix(test)).is_some_and(|rest| rest.starts_with('('));
        let marked = std::mem::replace(&mut above, line).contains("test");
        found && marked
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "Text.\n\n```sh\n# first\nberth ps   # why\nfor i in 1 2; do\n    echo $i\ndone\nA=1 \\\n  berth ls\n```\n\
                        <!-- not run: needs a cluster; tested by start::up_runs, a::b -->\n```bash\nkubectl get\n```\n```\nnone\n```\n\
                        ```python\nx = 1\n\nprint(x)\n```\n";

    #[test]
    fn a_page_is_its_blocks_and_their_commands() {
        let page = Page::of("p.md", PAGE).unwrap();
        let lines: Vec<_> = page.blocks.iter().map(|block| (block.line, block.kind)).collect();
        assert_eq!(lines, [(3, Kind::Shell), (13, Kind::Shell), (19, Kind::Python)]);
        let typed: Vec<_> =
            page.blocks[0].commands.iter().map(|typed| (typed.line, typed.text.as_str())).collect();
        let whole = "for i in 1 2; do\n    echo $i\ndone\n";
        assert_eq!(typed, [(5, "berth ps   # why\n"), (6, whole), (9, "A=1 \\\n  berth ls\n")]);
        assert_eq!(page.blocks[0].not_run, None);
        let why = page.blocks[1].not_run.as_ref().unwrap();
        assert_eq!(why.reason, "needs a cluster");
        assert_eq!(why.tested_by, ["start::up_runs", "a::b"]);
        assert_eq!(page.blocks[2].commands, [Typed { line: 20, text: "x = 1\n\nprint(x)\n".to_owned() }]);
    }

    #[test]
    fn what_cannot_be_typed_is_named_with_its_line() {
        let why = |text| Page::of("p.md", text).map(|_| ()).unwrap_err();
        assert!(why("\n```sh\necho 'open\n```\n").starts_with("p.md:3: no command that ends"));
        assert!(why("<!-- not run -->\n```sh\nls\n```\n").starts_with("p.md:1: write <!-- not run: REASON"));
        assert!(why("<!-- not run: no -->\n```sh\nls\n```\n").contains("has a reason"));
    }

    #[test]
    fn a_test_is_known_by_its_module_and_name() {
        assert!(is_a_test("start::up_runs_stops_and_leaves_nothing"));
        assert!(!is_a_test("start::env") && !is_a_test("start::up_runs") && !is_a_test("nowhere::up_runs"));
    }
}
