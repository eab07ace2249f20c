//! The pure part of fs_search: which paths are meant, and which lines of a file match.

use std::{collections::VecDeque, time::Instant};

use regex::bytes::{Regex, RegexBuilder};

use super::text;

/// Memory that a compiled pattern may take.
const PATTERN_SIZE: usize = 256 << 10;
/// Bytes of a line that are searched. A pattern may take its size times the line's, and between lines we look at the clock.
const SEARCHED: usize = 64 << 10;
/// Bytes of a line that are shown.
const LINE: usize = 400;
/// A file with a zero byte among its first is taken for no text.
const LOOKED_AT: usize = 8 << 10;

/// A regular expression over lines. (Of the kind that takes time in proportion to the text, whatever it is.)
pub fn pattern(pattern: &str, ignore_case: bool) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .case_insensitive(ignore_case)
        .size_limit(PATTERN_SIZE)
        .dfa_size_limit(PATTERN_SIZE)
        .build()
        .map_err(|error| error.to_string())
}

/// `*` and `?` stay within a name, `**` goes over directories, `[a-z]` and `{a,b}` are as in a shell. A glob without a
/// slash is for names at any depth.
pub fn glob(glob: &str) -> Result<Regex, String> {
    let mut out = String::from(if glob.contains('/') { "^" } else { "^(?:.*/)?" });
    let mut rest = glob.trim_start_matches("./").chars().peekable();
    let mut braces = 0;
    while let Some(c) = rest.next() {
        match c {
            '*' if rest.peek() == Some(&'*') => {
                rest.next();
                match rest.peek() {
                    Some('/') => {
                        rest.next();
                        out.push_str("(?:.*/)?");
                    }
                    _ => out.push_str(".*"),
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' => {
                let class: String = rest.by_ref().take_while(|c| *c != ']').collect();
                let class = class.replace('\\', "\\\\").replace('[', "\\[").replace("&&", "&\\&");
                let class = class.strip_prefix('!').map_or(class.clone(), |class| format!("^{class}"));
                out.push_str(&format!("[{class}]"));
            }
            '{' => {
                braces += 1;
                out.push_str("(?:");
            }
            ',' if braces > 0 => out.push('|'),
            '}' if braces > 0 => {
                braces -= 1;
                out.push(')');
            }
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    out.push('$');
    pattern(&format!("(?s:{out})"), false)
}

/// Whether a glob means this path.
pub fn fits(glob: &Regex, path: &str) -> bool {
    glob.is_match(path.as_bytes())
}

/// A line that matches, with those around it.
#[derive(Debug, PartialEq)]
pub struct Hit {
    /// Counted from 1.
    pub line: u64,
    pub text: String,
    pub before: Vec<String>,
    pub after: Vec<String>,
}

/// What a file has.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// It is no text.
    Binary,
    /// At most as many as were asked for. `late`: the time was over before its end.
    Hits { hits: Vec<Hit>, late: bool },
}

/// The lines of `data` that match, at most `most`, each with `context` lines before and after it. Looks no longer than `until`.
///
/// It takes time, as long as a hundred thousand steps a byte: not for a thread that serves others.
pub fn lines(data: &[u8], pattern: &Regex, context: usize, most: usize, until: Instant) -> Found {
    if data[..data.len().min(LOOKED_AT)].contains(&0) {
        return Found::Binary;
    }
    let body = data.strip_suffix(b"\n").unwrap_or(data);
    let mut before: VecDeque<&[u8]> = VecDeque::with_capacity(context);
    let mut hits: Vec<Hit> = Vec::new();
    for (at, line) in body.split(|b| *b == b'\n').enumerate() {
        if Instant::now() >= until {
            return Found::Hits { hits, late: true };
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // Of those before, only the newest can lack lines after it.
        for hit in hits.iter_mut().rev().take_while(|hit| hit.after.len() < context) {
            hit.after.push(one(line));
        }
        if hits.len() < most {
            if pattern.is_match(&line[..line.len().min(SEARCHED)]) {
                let before = before.iter().map(|line| one(line)).collect();
                hits.push(Hit { line: at as u64 + 1, text: one(line), before, after: Vec::new() });
            }
        } else if hits.last().is_none_or(|hit| hit.after.len() == context) {
            break;
        }
        if before.len() == context {
            before.pop_front();
        }
        if context > 0 {
            before.push_back(line);
        }
    }
    Found::Hits { hits, late: false }
}

fn one(line: &[u8]) -> String {
    text::clipped(&String::from_utf8_lossy(&line[..line.len().min(LINE + 4)]), LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_mean_what_they_mean_in_a_shell() {
        for (text, fitting, others) in [
            ("*.rs", &["a.rs", "src/a.rs"][..], &["a.rs.bak", "a.py"][..]),
            ("src/*.rs", &["src/a.rs"], &["src/b/a.rs", "a.rs"]),
            ("src/**/*.rs", &["src/a.rs", "src/b/c/a.rs"], &["a.rs"]),
            ("**/test_*", &["test_a", "x/y/test_b"], &["x/atest_b"]),
            ("a.{py,pyi}", &["a.py", "x/a.pyi"], &["a.pyc", "axpy"]),
            ("[a-c]?.[!x]", &["ab.y"], &["db.y", "ab.x", "a/.y"]),
            ("a+(b)", &["a+(b)"], &["aab"]),
            ("ä*", &["äh"], &["ah"]),
        ] {
            let glob = glob(text).unwrap();
            for path in fitting {
                assert!(fits(&glob, path), "{text} {path}");
            }
            for path in others {
                assert!(!fits(&glob, path), "{text} {path}");
            }
        }
        assert!(glob("{a").is_err());
    }

    #[test]
    fn lines_come_with_their_context_and_bounded() {
        let hits = |text: &[u8], pattern: &Regex, context: usize, most: usize| {
            let until = Instant::now() + std::time::Duration::from_secs(600);
            match lines(text, pattern, context, most, until) {
                Found::Hits { hits, late: false } => hits,
                other => panic!("{other:?}"),
            }
        };
        let text = b"one\r\ntwo\nthree\nfour\n";
        let found = hits(text, &pattern("^T", true).unwrap(), 1, 10);
        assert_eq!(found.iter().map(|hit| hit.line).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(
            (&found[0].before[..], &found[0].after[..]),
            (&["one".to_owned()][..], &["three".to_owned()][..])
        );
        let around = hits(text, &pattern("o", false).unwrap(), 2, 2);
        let [first, second] = &around[..] else { panic!("{around:?}") };
        assert_eq!((first.before.len(), &first.after[..]), (0, &["two".to_owned(), "three".to_owned()][..]));
        assert_eq!((&second.before[..], second.after.len()), (&["one".to_owned()][..], 2));
        assert_eq!(hits(&b"x\n".repeat(100), &pattern("x", false).unwrap(), 0, 7).len(), 7);
        let long = [&b"x".repeat(1 << 20)[..], b"\x1b[2J"].concat();
        assert!(hits(&long, &pattern("x", false).unwrap(), 0, 7)[0].text.len() < 500);
        let all = pattern("x", false).unwrap();
        let now = Instant::now();
        assert_eq!(lines(b"x", &all, 0, 7, now), Found::Hits { hits: Vec::new(), late: true });
        assert_eq!(lines(b"a\0x", &all, 0, 7, now), Found::Binary);
        assert!(pattern("(", false).unwrap_err().contains("unclosed"));
        assert!(pattern(r"\w{1000}{1000}", false).is_err(), "no pattern takes all memory");
    }
}
