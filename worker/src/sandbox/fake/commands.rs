//! What a fake task can run: a handful of programs, and just enough of a shell for
//! `sh -c "echo a; exit 3"`.

use std::time::Duration;

use berth_proto::{agent_config::WORKSPACE, domain::Program};
use bytes::Bytes;

use super::{files::resolve, tasks::Task};

/// How a command ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
    OutOfMemory,
}

/// A program that is not among ours, as a shell tells it.
pub(super) const NOT_FOUND: i32 = 127;

/// Runs the task's program to its end.
pub(super) async fn run(task: &Task, program: &Program, cwd: &str) -> Exit {
    match program {
        Program::Argv(argv) => run_argv(task, argv, cwd).await,
        Program::Shell(line) => run_shell(task, line, cwd).await,
    }
}

async fn run_argv(task: &Task, argv: &[String], cwd: &str) -> Exit {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["sh" | "bash" | "/bin/sh" | "/bin/bash", "-c", line, ..] => run_shell(task, line, cwd).await,
        words => simple(task, words, false, cwd).await,
    }
}

/// Commands joined by `;`, `&&` or a line break.
async fn run_shell(task: &Task, line: &str, cwd: &str) -> Exit {
    let mut last = Exit::Code(0);
    for (join, words) in parse(line) {
        if join == Join::And && last != Exit::Code(0) {
            continue;
        }
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        let to_stderr = words.last() == Some(&">&2");
        if to_stderr {
            words.pop();
        }
        match words.as_slice() {
            [] => continue,
            ["exit"] => return last,
            ["exit", code, ..] => return Exit::Code(code.parse::<i32>().map_or(2, |code| code & 0xff)),
            ["kill", signal, "$$"] => {
                return match signal.trim_start_matches('-').parse() {
                    Ok(signal) => Exit::Signal(signal),
                    Err(_) => Exit::Code(1),
                };
            }
            words => last = simple(task, words, to_stderr, cwd).await,
        }
        if !matches!(last, Exit::Code(_)) {
            return last;
        }
    }
    last
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Join {
    Then,
    And,
}

/// Splits a line into commands and words. Quotes keep words together; nothing is expanded.
fn parse(line: &str) -> Vec<(Join, Vec<String>)> {
    let mut commands = vec![(Join::Then, Vec::new())];
    let (mut word, mut in_word, mut quote) = (String::new(), false, None);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                in_word = true;
            }
            (None, ';' | '\n' | ' ' | '\t') | (None, '&') if c != '&' || chars.peek() == Some(&'&') => {
                if std::mem::take(&mut in_word) {
                    commands.last_mut().expect("never empty").1.push(std::mem::take(&mut word));
                }
                match c {
                    '&' => {
                        chars.next();
                        commands.push((Join::And, Vec::new()));
                    }
                    ';' | '\n' => commands.push((Join::Then, Vec::new())),
                    _ => {}
                }
            }
            (None, c) => {
                word.push(c);
                in_word = true;
            }
        }
    }
    if in_word {
        commands.last_mut().expect("never empty").1.push(word);
    }
    commands
}

/// One program with its arguments.
async fn simple(task: &Task, words: &[&str], to_stderr: bool, cwd: &str) -> Exit {
    task.thawed().await;
    let (program, args) = words.split_first().expect("checked by the caller");
    let out = async |data: &[u8]| task.write(to_stderr, data).await;
    let name = program.rsplit('/').next().unwrap_or(program);
    match name {
        "true" => Exit::Code(0),
        "false" => Exit::Code(1),
        "echo" => {
            out(format!("{}\n", args.join(" ")).as_bytes()).await;
            Exit::Code(0)
        }
        "printf" => {
            out(&printf(args)).await;
            Exit::Code(0)
        }
        "pwd" => {
            out(format!("{}\n", resolve(cwd)).as_bytes()).await;
            Exit::Code(0)
        }
        "env" => {
            for (name, value) in task.env() {
                out(format!("{name}={value}\n").as_bytes()).await;
            }
            Exit::Code(0)
        }
        "cat" => cat(task, args, to_stderr, cwd).await,
        "sleep" => match args.first().and_then(|n| n.parse::<f64>().ok()).filter(|n| *n >= 0.0) {
            Some(seconds) => {
                let seconds = seconds.min(1e9);
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                task.thawed().await;
                Exit::Code(0)
            }
            None => {
                task.write(true, b"sleep: give a number of seconds\n").await;
                Exit::Code(1)
            }
        },
        "yes" => {
            let line = format!("{}\n", if args.is_empty() { "y".to_owned() } else { args.join(" ") });
            let block = line.repeat((32 << 10) / line.len() + 1);
            loop {
                out(block.as_bytes()).await;
                task.thawed().await;
                // Not faster than a pipe would be, and others get their turn.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        "fail" => {
            task.write(true, b"fail: as asked\n").await;
            Exit::Code(1)
        }
        "oom" => Exit::OutOfMemory,
        _ => {
            task.write(true, format!("{program}: not found\n").as_bytes()).await;
            Exit::Code(NOT_FOUND)
        }
    }
}

async fn cat(task: &Task, args: &[&str], to_stderr: bool, cwd: &str) -> Exit {
    if args.is_empty() || args == ["-"] {
        while let Some(data) = task.read_stdin().await {
            task.write(to_stderr, &data).await;
        }
        return Exit::Code(0);
    }
    let mut code = 0;
    for path in args {
        let full =
            if path.starts_with('/') { (*path).to_owned() } else { format!("{}/{path}", resolve(cwd)) };
        let content: Option<Bytes> = task.file(&full);
        match content {
            Some(content) => task.write(to_stderr, &content).await,
            None => {
                code = 1;
                task.write(true, format!("cat: {path}: No such file or directory\n").as_bytes()).await;
            }
        }
    }
    Exit::Code(code)
}

/// `\n`, `\t`, `\\`, `\0` and `%s`.
fn printf(args: &[&str]) -> Vec<u8> {
    let Some((format, mut rest)) = args.split_first() else { return Vec::new() };
    let mut out = Vec::new();
    let mut bytes = format.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek().copied()) {
            (b'\\', Some(escaped)) => {
                bytes.next();
                match escaped {
                    b'n' => out.push(b'\n'),
                    b't' => out.push(b'\t'),
                    b'0' => out.push(0),
                    b'\\' => out.push(b'\\'),
                    other => out.extend([b'\\', other]),
                }
            }
            (b'%', Some(b's')) => {
                bytes.next();
                if let Some((first, others)) = rest.split_first() {
                    out.extend(first.bytes());
                    rest = others;
                }
            }
            (b'%', Some(b'%')) => {
                bytes.next();
                out.push(b'%');
            }
            (byte, _) => out.push(byte),
        }
    }
    out
}

/// Whether a task can start there. The fake knows the directories of its tree only.
pub(super) fn cwd_or_workspace(cwd: &str) -> &str {
    if cwd.is_empty() { WORKSPACE } else { cwd }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_into_commands_and_words() {
        let commands = parse("echo 'a; b' && exit 3; x\ny \"\"");
        let words = |i: usize| commands[i].1.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((commands[0].0, words(0)), (Join::Then, vec!["echo", "a; b"]));
        assert_eq!((commands[1].0, words(1)), (Join::And, vec!["exit", "3"]));
        assert_eq!(words(2), ["x"]);
        assert_eq!(words(3), ["y", ""]);
        assert_eq!(parse("echo x >&2")[0].1, ["echo", "x", ">&2"]);
    }

    #[test]
    fn printf_knows_its_escapes() {
        assert_eq!(printf(&["a\\n%s-%s\\0", "x", "y"]), b"a\nx-y\0");
    }
}
