//! A reader who types a page, command by command, on a machine of his own: mount, PID and network namespaces, in which
//! the paths and ports of the pages are as they are said, all that is written is gone in the end, and no other machine
//! is to be reached (`tests/pages/machine.sh`). One shell types all of a page, so its variables are those of the page.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    left,
    pages::{Kind, Page, checkout},
    process,
};

/// For all of a page, on a busy machine.
const PAGE: Duration = Duration::from_secs(300);
/// Begins a line of ours in what a page prints.
const MARK: char = '\u{1e}';

/// What is in place for who reads a page, each in shell.
#[derive(Clone, Copy, Default)]
pub struct Reader {
    /// Before all of it.
    pub first: &'static str,
    /// Before the one command that begins with these words.
    pub before: &'static [(&'static str, &'static str)],
    /// After all of it: sessions end by this, and what serves.
    pub last: &'static str,
}

impl Reader {
    /// Types the page, with the `bin` of a Python environment before all else in PATH. Without one, blocks of Python are left out.
    ///
    /// # Errors
    /// The first command that failed: the page, its line, itself, and what it printed.
    ///
    /// # Panics
    /// When something of it is left behind.
    pub async fn types(&self, page: &Page, python: Option<&Path>) -> Result<(), String> {
        let dir = tempfile::Builder::new().prefix("berth-t").tempdir().expect("a temporary directory");
        let script = self.script(page, python.is_some(), dir.path())?;
        fs::write(dir.path().join("page.sh"), script).expect("the commands");
        let machine = Machine { dir };
        let (ended, said) = machine.run(python).await;
        let told = report(page, ended, &said);
        drop(machine.swept(told.is_err()));
        told
    }

    fn script(&self, page: &Page, python: bool, dir: &Path) -> Result<String, String> {
        let mut script = format!("page_at first\n{}\npage_ended $?\n", self.first);
        let mut used = vec![0; self.before.len()];
        for block in page.blocks.iter().filter(|block| block.not_run.is_none()) {
            for typed in &block.commands {
                let (line, mut text) = (typed.line, typed.text.clone());
                if block.kind == Kind::Python {
                    let file = dir.join(format!("line-{line}.py"));
                    fs::write(&file, &text).expect("a block of Python");
                    text = format!("python3 {}\n", file.display());
                }
                let left_out = block.kind == Kind::Python && !python;
                for (index, (words, prepare)) in self.before.iter().enumerate() {
                    if typed.text.starts_with(words) {
                        used[index] += 1;
                        if !left_out {
                            script.push_str(&format!("page_at 'before {line}'\n{prepare}\npage_ended $?\n"));
                        }
                    }
                }
                if left_out {
                    continue;
                }
                script.push_str(&format!("page_at {line}\n{text}page_ended $?\n"));
            }
        }
        // What is prepared for words that the page does not have any more is prepared for nobody.
        for ((words, _), used) in self.before.iter().zip(used) {
            if used != 1 {
                return Err(format!("{}: {used} commands begin with {words:?}, and 1 is to", page.name));
            }
        }
        script
            .push_str(&format!("page_at last\n{}\npage_ended $?\nclose_terminals\npage_at end\n", self.last));
        Ok(script)
    }
}

struct Machine {
    dir: TempDir,
}

impl Machine {
    /// How it ended, in words if not well, and all that was printed.
    async fn run(&self, python: Option<&Path>) -> (Result<(), String>, String) {
        let dir = self.dir.path();
        let output = File::create(dir.join("said")).expect("a file");
        let mut path: Vec<PathBuf> = python.map(Path::to_owned).into_iter().collect();
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let programs = process::binary("berth").parent().expect("it is in a directory").to_owned();
        let mut child = tokio::process::Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
            .arg(checkout().join("tests/pages/machine.sh"))
            .args([dir, &checkout(), &programs])
            .env_clear()
            .env("PATH", std::env::join_paths(path).expect("no colons in it"))
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file"))
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .expect("unshare");
        let ended = match tokio::time::timeout(PAGE, child.wait()).await {
            Ok(status) => match status.expect("our child") {
                status if status.success() => Ok(()),
                status => Err(status.to_string()),
            },
            Err(_) => {
                // All that runs in there ends with it.
                child.kill().await.expect("our child");
                Err(format!("the page did not end within {PAGE:?}"))
            }
        };
        let said = fs::read(dir.join("said")).expect("what it said");
        (ended, String::from_utf8_lossy(&said).into_owned())
    }

    /// Its directory, once nothing of it is left. What a page that failed left is ended.
    fn swept(self, failed: bool) -> TempDir {
        match failed {
            true => left::sweep(&self.dir.path().join("state")),
            false => left::assert_nothing(&self.dir.path().join("state")),
        }
        self.dir
    }
}

/// What became of a page: nothing, or its first command that failed.
fn report(page: &Page, ended: Result<(), String>, said: &str) -> Result<(), String> {
    let (mut place, mut printed, mut failed) = ("the machine", "", None);
    for part in said.split(MARK).skip(1) {
        let (mark, rest) = part.split_once('\n').unwrap_or((part, ""));
        match mark.strip_prefix("failed ") {
            Some(code) => failed = Some(format!("ended with {code}")),
            None => (place, printed) = (mark, rest),
        }
    }
    if place == "the machine" {
        printed = said;
    }
    let why = match (failed, ended) {
        (Some(why), _) | (None, Err(why)) => why,
        (None, Ok(())) if place == "end" => return Ok(()),
        (None, Ok(())) => "ended the page".to_owned(),
    };
    let line = place.parse::<usize>().unwrap_or(0);
    let typed = page.blocks.iter().flat_map(|block| &block.commands).find(|typed| typed.line == line);
    let (name, printed) = (&page.name, printed.trim());
    Err(match typed {
        Some(typed) => format!("{name}:{line}: {}\n{why}, and printed:\n{printed}", typed.text.trim_end()),
        None => format!("{name}: {place}: {why}, and printed:\n{printed}"),
    })
}
