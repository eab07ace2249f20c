//! What a search asks for, and which lines of a text that is.
//!
//! Nothing here takes more than time in proportion to the text (the regex crate knows no back-references), and a pattern
//! takes bounded memory. Still a hard one takes a hundred thousand steps a byte: hence only so much of a line is looked at,
//! and the clock is asked before each.

use std::{collections::VecDeque, ops::Range, time::Duration};

use berth_proto::{Error, convert, v1};
use regex::bytes::{Regex, RegexBuilder};

/// Bytes of a pattern.
const PATTERN: usize = 4096;
/// Memory that a compiled pattern may take.
const PATTERN_SIZE: usize = 256 << 10;
/// Globs of one kind.
const GLOBS: usize = 32;
/// Bytes of a glob.
const GLOB: usize = 1024;
/// Bytes of a line that are searched: a pattern may take its size times the line's.
const SEARCHED: usize = 16 << 10;
/// Bytes of a line that are told.
const LINE: usize = 512;
/// A file with a zero byte among its first is taken for no text.
const LOOKED_AT: usize = 8 << 10;
const CONTEXT_MAX: u32 = 20;
const MATCHES_DEFAULT: u32 = 1000;
const MATCHES_MAX: u32 = 10_000;
const FILE_DEFAULT: u64 = 4 << 20;
const FILE_MAX: u64 = 16 << 20;
const TIME_MAX: Duration = Duration::from_secs(60);

/// What a search asks for, checked.
pub struct Search {
    pattern: Regex,
    globs: Option<Regex>,
    exclude: Exclude,
    context: usize,
    /// Matches that are told.
    pub most: u64,
    /// Bytes of the largest file that is searched.
    pub largest: u64,
    pub time_limit: Duration,
}

impl Search {
    /// From the wire. Compiles the patterns, which takes milliseconds.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with the field, and what is wrong with it.
    pub fn new(wire: &v1::SearchRequest) -> Result<Self, Error> {
        let most = if wire.max_matches == 0 { MATCHES_DEFAULT } else { wire.max_matches };
        if most > MATCHES_MAX {
            return Err(Error::invalid("max_matches", format!("is more than {MATCHES_MAX}"))
                .hint("search with a narrower pattern, or with globs"));
        }
        if wire.context > CONTEXT_MAX {
            return Err(Error::invalid("context", format!("is more than {CONTEXT_MAX} lines"))
                .hint("read the file around the match"));
        }
        let largest = if wire.max_file_bytes == 0 { FILE_DEFAULT } else { wire.max_file_bytes };
        if largest > FILE_MAX {
            return Err(Error::invalid("max_file_bytes", format!("is more than {FILE_MAX}"))
                .hint("search larger files with a program in the session"));
        }
        let limit = wire.time_limit.map(|limit| convert::duration("time_limit", limit)).transpose()?;
        let limit = limit.filter(|limit| !limit.is_zero()).unwrap_or(TIME_MAX);
        if limit > TIME_MAX {
            return Err(Error::invalid("time_limit", "is more than 60 seconds")
                .hint("search one directory after the other"));
        }
        Ok(Self {
            pattern: pattern(wire)?,
            globs: globs("globs", &wire.globs)?,
            exclude: Exclude::new(&wire.exclude)?,
            context: wire.context as usize,
            most: most.into(),
            largest,
            time_limit: limit,
        })
    }

    /// Whether the file of this path, below where the search began, is searched.
    pub fn wants(&self, path: &[u8]) -> bool {
        self.globs.as_ref().is_none_or(|globs| fits(globs, path)) && !self.exclude.fits(path)
    }

    /// What is left out.
    pub fn exclude(&self) -> &Exclude {
        &self.exclude
    }
}

/// What a walk leaves out.
#[derive(Clone)]
pub struct Exclude(Option<Regex>);

impl Exclude {
    /// From the wire.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub fn new(wire: &[String]) -> Result<Self, Error> {
        Ok(Self(globs("exclude", wire)?))
    }

    /// Whether this path, below where the walk began, is left out; if it is a directory's, with what is in it.
    pub fn fits(&self, path: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|globs| fits(globs, path))
    }
}

fn fits(globs: &Regex, path: &[u8]) -> bool {
    globs.is_match(String::from_utf8_lossy(path).as_bytes())
}

fn pattern(wire: &v1::SearchRequest) -> Result<Regex, Error> {
    let given = &wire.pattern;
    if given.len() > PATTERN {
        return Err(Error::invalid("pattern", format!("has more than {PATTERN} bytes")).hint("shorten it"));
    }
    let text = if wire.literal { regex::escape(given) } else { given.clone() };
    compiled(&text, wire.ignore_case).map_err(|error| {
        Error::invalid("pattern", format!("is no regular expression: {}", said(&error)))
            .hint("escape what is meant as it is with \\, or set `literal`")
    })
}

fn compiled(text: &str, ignore_case: bool) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text)
        .case_insensitive(ignore_case)
        .size_limit(PATTERN_SIZE)
        .dfa_size_limit(PATTERN_SIZE)
        .build()
}

/// In a line, and without the pattern that the caller knows.
fn said(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default().trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

/// All as one expression. `None`: there are none.
fn globs(field: &str, wire: &[String]) -> Result<Option<Regex>, Error> {
    if wire.len() > GLOBS || wire.iter().any(|glob| glob.len() > GLOB) {
        return Err(Error::invalid(field, format!("more than {GLOBS}, or one of more than {GLOB} bytes"))
            .hint("write several as one, as in *.{js,ts}"));
    }
    if wire.is_empty() {
        return Ok(None);
    }
    let all: Vec<String> = wire.iter().map(|glob| expression(glob)).collect();
    compiled(&format!("(?s:{})", all.join("|")), false).map(Some).map_err(|_| {
        Error::invalid(field, "is no glob").hint("write for example *.py, src/**/*.rs or *.{js,ts}")
    })
}

/// A glob as a regular expression. One without a slash is for names at any depth.
fn expression(glob: &str) -> String {
    let mut out = String::from(if glob.contains('/') { "^(?:" } else { "^(?:.*/)?(?:" });
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
                let (not, class) = class.strip_prefix('!').map_or(("", class.as_str()), |class| ("^", class));
                let class: String = class.chars().map(in_class).collect();
                out.push_str(&format!("[[{not}{class}]&&[^/]]"));
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
    out.push_str(")$");
    out
}

/// In a class only the range is an operator.
fn in_class(c: char) -> String {
    if c == '-' || c.is_alphanumeric() { c.to_string() } else { regex::escape(&c.to_string()) }
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

/// What comes next of a text.
#[derive(Debug, PartialEq)]
pub enum Next {
    Hit(Hit),
    /// There is no more, or no more is wanted.
    End,
    /// It was asked to stop before.
    Stopped,
}

/// A file's content, on the way from its first line to its last.
pub struct Text {
    data: Vec<u8>,
    /// Where the next line begins; past the end after the last.
    at: usize,
    /// Lines so far.
    line: u64,
    before: VecDeque<Range<usize>>,
    /// Those that wait for the lines after them.
    open: VecDeque<Hit>,
}

impl Text {
    /// `None`: it is no text.
    pub fn new(mut data: Vec<u8>) -> Option<Self> {
        if data[..data.len().min(LOOKED_AT)].contains(&0) {
            return None;
        }
        // An empty file has no line, and the last line needs no end.
        let at = usize::from(data.is_empty());
        if data.last() == Some(&b'\n') {
            data.pop();
        }
        Some(Self { data, at, line: 0, before: VecDeque::new(), open: VecDeque::new() })
    }

    /// The next match. `left`: matches that are wanted yet; counts down when one is found. `stop` is asked before each
    /// line, which may take seconds.
    pub fn next(&mut self, search: &Search, left: &mut u64, mut stop: impl FnMut() -> bool) -> Next {
        loop {
            let over = self.at > self.data.len() || (*left == 0 && self.open.is_empty());
            if over || self.open.front().is_some_and(|hit| hit.after.len() == search.context) {
                return self.open.pop_front().map_or(Next::End, Next::Hit);
            }
            if stop() {
                return Next::Stopped;
            }
            self.step(search, left);
        }
    }

    fn step(&mut self, search: &Search, left: &mut u64) {
        let rest = &self.data[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let range = self.at..self.at + length;
        self.at = range.end + 1;
        self.line += 1;
        let line = self.data[range.clone()].strip_suffix(b"\r").unwrap_or(&self.data[range.clone()]);
        for hit in &mut self.open {
            hit.after.push(told(line));
        }
        if *left > 0 && search.pattern.is_match(&line[..line.len().min(SEARCHED)]) {
            *left -= 1;
            let before = self.before.iter().map(|range| told(&self.data[range.clone()])).collect();
            self.open.push_back(Hit { line: self.line, text: told(line), before, after: Vec::new() });
        }
        if search.context > 0 {
            if self.before.len() == search.context {
                self.before.pop_front();
            }
            self.before.push_back(range);
        }
    }
}

/// The beginning of a line.
fn told(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut text = String::from_utf8_lossy(&line[..line.len().min(LINE)]).into_owned();
    // What is cut within a character is U+FFFD, and that takes three bytes.
    let end = (0..=LINE.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(pattern: &str, change: impl FnOnce(&mut v1::SearchRequest)) -> Result<Search, Error> {
        let mut wire = v1::SearchRequest { pattern: pattern.into(), ..Default::default() };
        change(&mut wire);
        Search::new(&wire)
    }

    fn hits(text: &[u8], search: &Search, mut left: u64) -> Vec<Hit> {
        let mut text = Text::new(text.to_vec()).expect("it is text");
        let mut found = Vec::new();
        loop {
            match text.next(search, &mut left, || false) {
                Next::Hit(hit) => found.push(hit),
                Next::End => return found,
                Next::Stopped => panic!("nobody stopped it"),
            }
        }
    }

    #[test]
    fn globs_mean_what_they_mean_in_a_shell() {
        for (glob, fitting, others) in [
            ("*.rs", &["a.rs", "src/a.rs"][..], &["a.rs.bak", "a.py"][..]),
            ("src/*.rs", &["src/a.rs"], &["src/b/a.rs", "a.rs"]),
            ("src/**/*.rs", &["src/a.rs", "src/b/c/a.rs"], &["a.rs"]),
            ("**/test_*", &["test_a", "x/y/test_b"], &["x/atest_b"]),
            ("a.{py,pyi}", &["a.py", "x/a.pyi"], &["a.pyc", "axpy"]),
            ("{a,b}/c", &["a/c", "b/c"], &["c", "x/b/c"]),
            ("[a-c]?.[!x]", &["ab.y"], &["db.y", "ab.x", "a/.y"]),
            ("a[!b]c", &["axc"], &["a/c", "abc"]),
            ("[.^&~]x", &[".x", "^x", "&x", "~x"], &["ax"]),
            ("a+(b)", &["a+(b)"], &["aab"]),
            ("ä*", &["äh"], &["ah"]),
        ] {
            let wanted = search("x", |wire| wire.globs = vec!["nothing".into(), glob.into()]).unwrap();
            for path in fitting {
                assert!(wanted.wants(path.as_bytes()), "{glob} {path}");
            }
            for path in others {
                assert!(!wanted.wants(path.as_bytes()), "{glob} {path}");
            }
        }
        assert!(search("x", |wire| wire.globs = vec!["{a".into()]).is_err());
        let without = search("x", |wire| wire.exclude = vec![".git".into()]).unwrap();
        assert!(
            without.wants(b"a") && without.exclude().fits(b"a/.git") && !without.exclude().fits(b".github")
        );
        assert!(without.wants(b"a\xff"), "a name need not be text");
    }

    #[test]
    fn lines_come_with_their_context_and_bounded() {
        let text = b"one\r\ntwo\nthree\nfour\n";
        let found = hits(text, &search("^T", |w| (w.ignore_case, w.context) = (true, 1)).unwrap(), 10);
        assert_eq!(found.iter().map(|hit| hit.line).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((&found[0].before[..], &found[0].after[..]), (&["one".into()][..], &["three".into()][..]));
        let around = hits(text, &search("o", |wire| wire.context = 2).unwrap(), 2);
        let [first, second] = &around[..] else { panic!("{around:?}") };
        assert_eq!((first.before.len(), &first.after[..]), (0, &["two".into(), "three".into()][..]));
        assert_eq!((&second.before[..], second.after.len()), (&["one".into()][..], 2));
        let plain = search("x", |_| {}).unwrap();
        assert_eq!(hits(&b"x\n".repeat(100), &plain, 7).len(), 7);
        let long = [&"ä".repeat(1 << 20).into_bytes()[..], b"\xff"].concat();
        assert_eq!(hits(&long, &search("^ä", |_| {}).unwrap(), 7)[0].text.len(), 512);
        let literal = search("a.b", |wire| wire.literal = true).unwrap();
        assert_eq!(hits(b"axb\na.b\n", &literal, 7)[0].line, 2);
        assert_eq!(hits(b"", &search("^$", |_| {}).unwrap(), 7), []);
        assert_eq!(hits(b"\n\n", &search("^$", |_| {}).unwrap(), 7).len(), 2);
    }

    #[test]
    fn it_stops_when_asked_and_goes_on() {
        let one = search("x", |_| {}).unwrap();
        let mut text = Text::new(b"a\nx\n".to_vec()).unwrap();
        assert_eq!(text.next(&one, &mut 9, || true), Next::Stopped);
        assert!(matches!(text.next(&one, &mut 9, || false), Next::Hit(Hit { line: 2, .. })));
        assert_eq!(text.next(&one, &mut 9, || false), Next::End);
        assert!(Text::new(b"a\0x".to_vec()).is_none());
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        let refused = |error: Result<Search, Error>| error.err().expect("it is refused").message().to_owned();
        assert!(refused(search("(", |_| {})).contains("unclosed"));
        assert!(
            refused(search(r"\w{1000}{1000}", |_| {})).contains("too large"),
            "no pattern takes all memory"
        );
        assert!(refused(search(&"x".repeat(5000), |_| {})).contains("4096"));
        assert!(refused(search("x", |wire| wire.context = 21)).contains("context"));
        assert!(refused(search("x", |wire| wire.max_matches = 10_001)).contains("max_matches"));
        assert!(refused(search("x", |wire| wire.max_file_bytes = 1 << 30)).contains("max_file_bytes"));
        let long = convert::duration_out(Duration::from_secs(61));
        assert!(refused(search("x", |wire| wire.time_limit = Some(long))).contains("time_limit"));
        assert!(refused(search("x", |wire| wire.exclude = vec!["x".into(); 33])).contains("exclude"));
    }
}
