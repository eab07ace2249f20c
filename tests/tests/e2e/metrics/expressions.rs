//! What the alert rules and the dashboard ask for is there: each metric that they name is in a scrape, with the labels that
//! they name. A metric that is renamed would else leave an alert that never comes.

use std::{collections::BTreeSet, fs, path::PathBuf};

use berth_tests::skip;
use serde_json::Value;

use super::scrape::Seen;

/// What Prometheus adds to each sample by itself.
const OF_THE_TARGET: [&str; 2] = ["job", "instance"];
/// Words of its language that are no function and no metric.
const WORDS: [&str; 14] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "sum",
    "max",
    "min",
];

pub fn deployed(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(deployed(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A part of an expression.
#[derive(Clone, PartialEq, Debug)]
enum Token {
    Word(String),
    Text,
    Sign(char),
}

fn tokens(expression: &str) -> Vec<Token> {
    let mut rest = expression.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(next) = rest.next() {
        match next {
            '"' => {
                while rest.next_if(|c| *c != '"').is_some() {}
                assert_eq!(rest.next(), Some('"'), "{expression}");
                tokens.push(Token::Text);
            }
            // A span of time, or the variable of a dashboard.
            '[' => while rest.next().is_some_and(|c| c != ']') {},
            c if c.is_ascii_alphabetic() || "_:".contains(c) => {
                let mut word = c.to_string();
                while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || "_:".contains(*c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
            c if c.is_ascii_digit() => {
                while rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '.').is_some() {}
            }
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Sign(c)),
        }
    }
    tokens
}

/// Metrics of an expression, each with the labels that are asked of it; and labels by which it groups.
fn asked(expression: &str) -> (Vec<(String, BTreeSet<String>)>, BTreeSet<String>) {
    let tokens = tokens(expression);
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => Some(word.as_str()),
        _ => None,
    };
    let (mut metrics, mut groups) = (Vec::<(String, BTreeSet<String>)>::new(), BTreeSet::new());
    let mut at = 0;
    while at < tokens.len() {
        let next = tokens.get(at + 1);
        match word(at) {
            Some("by" | "without" | "on" | "ignoring" | "group_left" | "group_right")
                if next == Some(&Token::Sign('(')) =>
            {
                at += 2;
                while tokens[at] != Token::Sign(')') {
                    groups.extend(word(at).map(str::to_owned));
                    at += 1;
                }
            }
            // A function.
            Some(_) if next == Some(&Token::Sign('(')) => {}
            Some(name) if !WORDS.contains(&name) => {
                let mut labels = BTreeSet::new();
                if next == Some(&Token::Sign('{')) {
                    while tokens[at] != Token::Sign('}') {
                        if matches!(tokens.get(at + 1), Some(Token::Sign('=' | '!'))) {
                            labels.extend(word(at).map(str::to_owned));
                        }
                        at += 1;
                    }
                }
                metrics.push((name.to_owned(), labels));
            }
            _ => {}
        }
        at += 1;
    }
    (metrics, groups)
}

/// The expressions of the alert rules, each with its alert's name; one a line in the file.
fn of_alerts() -> Vec<(String, String)> {
    let (mut alert, mut found) = (String::new(), Vec::new());
    for line in read("prometheus/alerts.yml").lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            alert = name.to_owned();
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            found.push((alert.clone(), expression.to_owned()));
        }
    }
    found
}

/// Those of the dashboard, each with its panel's title.
fn of_dashboard() -> Vec<(String, String)> {
    fn walk(value: &Value, title: &str, found: &mut Vec<(String, String)>) {
        match value {
            Value::Object(object) => {
                let title = object.get("title").and_then(Value::as_str).unwrap_or(title);
                if let Some(expression) = object.get("expr").and_then(Value::as_str) {
                    found.push((title.to_owned(), expression.to_owned()));
                }
                object.values().for_each(|value| walk(value, title, found));
            }
            Value::Array(array) => array.iter().for_each(|value| walk(value, title, found)),
            _ => {}
        }
    }
    let dashboard: Value = serde_json::from_str(&read("grafana/berth.json")).expect("JSON");
    let mut found = Vec::new();
    walk(&dashboard, "", &mut found);
    found
}

/// # Panics
/// When one of them asks for what no scrape has.
pub fn hold(seen: &Seen) {
    let (alerts, panels) = (of_alerts(), of_dashboard());
    assert!(alerts.len() >= 12 && panels.len() >= 20, "{} {}", alerts.len(), panels.len());
    let mut wrong = Vec::new();
    for (of, expression) in alerts.iter().chain(&panels) {
        let (metrics, groups) = asked(expression);
        assert!(!metrics.is_empty(), "{of}: {expression}");
        let mut known: BTreeSet<&str> = OF_THE_TARGET.into();
        for (metric, labels) in &metrics {
            // That one is Prometheus' own.
            let series = seen.series.get(metric);
            if series.is_none() && metric != "up" {
                wrong.push(format!("{of}: no scrape has {metric}"));
            }
            known.extend(series.into_iter().flatten().map(String::as_str));
            let has = |label: &&String| {
                !series.is_some_and(|of| of.contains(*label)) && !OF_THE_TARGET.contains(&label.as_str())
            };
            wrong.extend(
                labels.iter().filter(has).map(|label| format!("{of}: {metric} has no label {label}")),
            );
        }
        let lacking = groups.iter().filter(|label| !known.contains(label.as_str()));
        wrong.extend(lacking.map(|label| format!("{of}: nothing in {expression} has the label {label}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Red when what is named in an expression is not found in it.
#[test]
fn what_an_expression_asks_for_is_found() {
    let (metrics, groups) = asked(
        "sum by (job, code) (rate(a_total{x=\"y, {z}\", w!~\"v\"}[5m])) / on (job) b > 0.5 and time() - c_seconds > 2e3",
    );
    let names: Vec<_> = metrics.iter().map(|(name, labels)| (name.as_str(), labels.len())).collect();
    assert_eq!(names, [("a_total", 2), ("b", 0), ("c_seconds", 0)]);
    assert_eq!(groups, BTreeSet::from(["job".to_owned(), "code".to_owned()]));
}

/// Each alert says what to read, and that is there. Red when a section is renamed.
#[test]
fn every_alert_has_a_runbook() {
    let text = read("prometheus/alerts.yml");
    let alerts: Vec<&str> = text.split("- alert: ").skip(1).collect();
    assert_eq!(alerts.len(), of_alerts().len());
    for alert in alerts {
        let name = alert.lines().next().expect("a name");
        let (_, rest) = alert.split_once("runbook_url: ").unwrap_or_else(|| panic!("{name} has no runbook"));
        let (file, section) = rest.lines().next().and_then(|url| url.split_once('#')).expect("a section");
        assert!(alert.contains("severity: ") && alert.contains("summary: "), "{name}");
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(file);
        let document = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
        let anchor = |heading: &str| heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        let headings: Vec<String> =
            document.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
        assert!(
            headings.iter().any(|heading| heading == section),
            "{name}: {file} has no {section}: {headings:?}"
        );
    }
}

/// By Prometheus' own tool, where it is.
#[test]
fn promtool_takes_the_rules_and_the_configuration() {
    // Where `scripts/setup.sh test` puts it: target/tools, beside target/debug/deps.
    let test = std::env::current_exe().expect("this executable");
    let fetched = test.ancestors().nth(3).expect("it is in target/<profile>/deps").join("tools/promtool");
    let promtool = if fetched.is_file() { fetched } else { PathBuf::from("promtool") };
    let run = |args: &[&str], file: &str| {
        let dir = deployed("prometheus");
        std::process::Command::new(&promtool).args(args).arg(file).current_dir(dir).output()
    };
    if run(&["--version"], "--help").is_err() {
        return skip::note(
            "e2e promtool_takes_the_rules_and_the_configuration",
            "no promtool: `scripts/setup.sh test` fetches it where there is apt",
        );
    }
    for (args, file) in [(["check", "rules"], "alerts.yml"), (["check", "config"], "prometheus.yml")] {
        let seen = run(&args, file).expect("it starts");
        let said =
            String::from_utf8_lossy(&seen.stdout).into_owned() + &String::from_utf8_lossy(&seen.stderr);
        assert!(seen.status.success(), "{file}: {said}");
    }
}
