//! What a command prints. stdout is data, stderr is talk. With `--format json` all of it is JSON:
//! the data one value (what streams, one object a line), and on stderr one object a line: the error
//! that a command ends with, and before it what it warns of. All other talk is for people.
//!
//! Much of what is printed was chosen by code in a sandbox: names, labels, command lines,
//! messages about them. So talk and tables go through [`printable`] here, once for all; only
//! a task's own output and JSON go out as they are.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// How data is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    // No doc comments here: clap would take them for help, and then give each option of each
    // command three lines.
    #[default]
    Text,
    Json,
}

/// Whether all that is printed is JSON. A process has one stdout and one stderr, and errors are
/// also found where no command line was read yet.
static JSON: AtomicBool = AtomicBool::new(false);
/// Whether something was printed that a program can read: data, or an error.
static TOLD: AtomicBool = AtomicBool::new(false);

pub fn set_json(json: bool) {
    JSON.store(json, Ordering::Relaxed);
}

pub fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Whether a program that reads JSON has been told anything.
pub fn has_told() -> bool {
    TOLD.load(Ordering::Relaxed)
}

/// A line of talk, for people.
pub fn say(text: impl Display) {
    if !is_json() {
        line(&mut io::stderr().lock(), &printable_lines(&text.to_string()));
    }
}

/// An error as a program reads it.
pub fn error_json(value: &impl Serialize) {
    TOLD.store(true, Ordering::Relaxed);
    say_json(value);
}

/// A line of stderr for programs.
pub fn say_json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        line(&mut io::stderr().lock(), &text);
    }
}

/// An error and what to do about it: there always is something. As JSON it is a failure's to tell.
pub fn error<H: Display>(text: impl Display, hints: impl IntoIterator<Item = H>) {
    marked("error", "\x1b[1;31m", text);
    hints.into_iter().for_each(hint);
}

/// What is not as it should be, and ends nothing.
pub fn warning(text: impl Display) {
    if is_json() {
        say_json(&serde_json::json!({ "warning": text.to_string() }));
    } else {
        marked("warning", "\x1b[1;33m", text);
    }
}

/// What to do about what was just said, for people.
pub fn hint(text: impl Display) {
    if !is_json() {
        marked("hint", "\x1b[1;36m", text);
    }
}

/// The request that an error is of, for people.
pub fn request(id: &str) {
    marked("request", "\x1b[2m", id);
}

fn marked(mark: &str, color: &str, text: impl Display) {
    let text = printable_lines(&text.to_string());
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() && colors_wanted() {
        line(&mut stderr, &format_args!("{color}{mark}\x1b[0m: {text}"));
    } else {
        line(&mut stderr, &format_args!("{mark}: {text}"));
    }
}

/// As https://no-color.org has it.
pub fn colors_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Talk is never worth dying for.
fn line(to: &mut impl Write, text: &dyn Display) {
    let _ = writeln!(to, "{text}");
}

/// One line of data. The failure is quiet where nobody reads any more.
pub fn data(text: impl Display) -> Result<(), Failure> {
    TOLD.store(true, Ordering::Relaxed);
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(stdout_failure)
}

/// What to make of a failed write to stdout.
pub fn stdout_failure(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::unread()
    } else {
        Failure::io("can't write to stdout", error)
    }
}

/// A value as JSON, on several lines.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    data(serde_json::to_string_pretty(value).map_err(|error| Failure::io("can't print as JSON", error))?)
}

/// A value as JSON, on one line.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    data(serde_json::to_string(value).map_err(|error| Failure::io("can't print as JSON", error))?)
}

/// Ids alone: one a line, or as JSON a list of them.
pub fn ids<T: Display>(ids: impl IntoIterator<Item = T>) -> Result<(), Failure> {
    let mut ids = ids.into_iter().map(|id| id.to_string());
    if is_json() { json(&ids.collect::<Vec<_>>()) } else { ids.try_for_each(data) }
}

/// A listing: a table for people; `none` is said when it is empty.
pub fn table(header: &[&str], rows: Vec<Vec<String>>, none: &str) -> Result<(), Failure> {
    if rows.is_empty() {
        say(none);
        return Ok(());
    }
    data(table_text(header, rows))
}

/// The same of what tenants have, with a third column that says whose each row is. Where all are one tenant's it says
/// nothing, and is left out.
pub fn table_of_tenants(
    header: &[&str],
    mut rows: Vec<Vec<String>>,
    tenants: &[&str],
    none: &str,
) -> Result<(), Failure> {
    let mut header = header.to_vec();
    if tenants.iter().any(|tenant| *tenant != tenants[0]) {
        header.insert(2, "TENANT");
        rows.iter_mut().zip(tenants).for_each(|(row, tenant)| row.insert(2, (*tenant).to_owned()));
    }
    table(&header, rows, none)
}

/// A table as text, with no lines drawn, so that `awk` reads it as well as people do.
pub fn table_text(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    // Wrapped cells can't be read by column: let the terminal wrap.
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    for row in rows {
        table.add_row(row.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { printable(cell) }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Names and values, one a line.
pub fn details(pairs: &[(&str, String)]) -> Result<(), Failure> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| {
            let lines: Vec<String> = value.lines().map(printable).collect();
            format!("{name:width$}  {}", lines.join(&format!("\n{:width$}  ", "")))
        })
        .collect();
    data(lines.join("\n"))
}

/// Bytes in the largest unit that leaves at least 1: `1.5G`.
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["B", "K", "M", "G", "T", "P"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 || scaled.fract() < 0.05 || scaled >= 100.0 {
        format!("{scaled:.0}{}", UNITS[unit])
    } else {
        format!("{scaled:.1}{}", UNITS[unit])
    }
}

/// Thousandths of a core as cores: `1.5`.
pub fn cores(millis: u32) -> String {
    let text = format!("{:.2}", f64::from(millis) / 1000.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A duration to two units: `3m 20s`, `1.4s`, `12ms`.
pub fn span(value: Duration) -> String {
    let seconds = value.as_secs();
    if value < Duration::from_secs(1) {
        format!("{}ms", value.as_millis())
    } else if seconds < 60 {
        format!("{:.1}s", value.as_secs_f64())
    } else {
        let whole = humantime::format_duration(Duration::from_secs(seconds)).to_string();
        whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }
}

/// A duration to the second.
pub fn whole(value: Duration) -> String {
    if value < Duration::from_secs(60) { format!("{}s", value.as_secs()) } else { span(value) }
}

/// How long ago, to the second.
pub fn ago(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return String::new() };
    whole(SystemTime::now().duration_since(time).unwrap_or_default())
}

/// How long until, to the second.
pub fn left(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return String::new() };
    match time.duration_since(SystemTime::now()) {
        Ok(left) => whole(left),
        Err(_) => "over".to_owned(),
    }
}

/// Labels as `a=1,b=2`.
pub fn labels(labels: &berth_client::Labels) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Text that a sandbox chose, made safe for a terminal: control characters, with which it
/// could rewrite what is on the screen, are shown as `\u{1b}`, and so are those that turn the
/// direction of text around.
pub fn printable(text: &str) -> String {
    let unsafe_here = |c: char| {
        let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
    };
    let shown = |c: char| match c {
        '\n' | '\r' | '\t' => c.escape_default().to_string(),
        c if unsafe_here(c) => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// The same for text of several lines. All but the first are indented, so that none can
/// pass for an `error:` or a `hint:` of ours.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n  ")
}

/// `1 session`, `2 sessions`.
pub fn count(number: impl Into<u64>, what: &str) -> String {
    match number.into() {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

/// At most so many characters, with an ellipsis.
pub fn clipped(text: &str, most: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= most {
        return text;
    }
    let mut clipped: String = text.chars().take(most.saturating_sub(1)).collect();
    clipped.push('…');
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_cores_and_spans_read_well() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(512 << 20), "512M");
        assert_eq!(bytes(3 << 29), "1.5G");
        assert_eq!(cores(1500), "1.5");
        assert_eq!(cores(2000), "2");
        assert_eq!(cores(10), "0.01");
        assert_eq!(span(Duration::from_millis(12)), "12ms");
        assert_eq!(span(Duration::from_millis(1400)), "1.4s");
        assert_eq!(span(Duration::from_secs(3 * 3600 + 62)), "3h 1m");
    }

    #[test]
    fn a_table_has_no_lines_and_no_empty_cells() {
        let text = table_text(
            &["ID", "STATE"],
            vec![vec!["a".into(), String::new()], vec!["bbbb".into(), "x".into()]],
        );
        assert_eq!(text, "ID    STATE\na     -\nbbbb  x");
    }

    #[test]
    fn what_a_sandbox_says_does_not_reach_the_terminal_raw() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(clipped("abcdef", 4), "abc…");
        assert_eq!(printable("a\u{9b}31m\u{7f}\u{202e}"), "a\\u{9b}31m\\u{7f}\\u{202e}");
        assert_eq!(printable("a\u{61c}b"), "a\\u{61c}b");
        assert_eq!(printable("grüße, 日本"), "grüße, 日本");
        assert_eq!(printable_lines("a\nhint: b\x1b"), "a\n  hint: b\\u{1b}");
        let text = table_text(&["NAME"], vec![vec!["x\x1b[2J\ny".into()]]);
        assert_eq!(text, "NAME\nx\\u{1b}[2J\\ny");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(count(0u32, "session"), "0 sessions");
        assert_eq!(count(1u32, "session"), "1 session");
        assert_eq!(count(2u64, "file"), "2 files");
    }
}
