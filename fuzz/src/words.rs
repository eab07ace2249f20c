//! Short texts with a form (ids, names, cursors, sizes), what a worker says of itself, and what a terminal is shown.

use std::{os::unix::ffi::OsStrExt, path::Path, str::FromStr};

use berth_agent::files::{list::cursor, path::split};
use berth_checkpoint::Digest;
use berth_cli::{
    output::{clipped, printable, table_text},
    value,
};
use berth_coordinator::{fleet::LinkId, tenant::Tenant, wire};
use berth_proto::{
    SessionId, WorkerId,
    convert::{self, bounds},
    domain::BackendChoice,
    egress::Preset,
    v1,
};
use prost::Message;

use crate::input::Input;

/// Ids and names have one spelling; a path's last name is a name; a cursor says again what it came from.
pub fn names(bytes: &[u8]) {
    if let Ok((dir, name)) = split(Path::new(std::ffi::OsStr::from_bytes(bytes))) {
        let name = name.as_bytes();
        assert!(!name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/'), "{name:?}");
        let whole = dir.join(std::ffi::OsStr::from_bytes(name));
        let (again, last) = split(&whole).expect("it has a last name");
        assert_eq!(
            (again.components().collect::<Vec<_>>(), last.as_bytes()),
            (dir.components().collect(), name)
        );
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    same_again::<WorkerId>(text);
    same_again::<SessionId>(text);
    same_again::<Tenant>(text);
    same_again::<Preset>(text);
    if let Ok(choice) = text.parse::<BackendChoice>() {
        assert!(choice.as_str() == text || text.is_empty());
    }
    if let Some(digest) = Digest::from_hex(text) {
        assert_eq!(digest.hex(), text.to_ascii_lowercase());
    }
    if let Ok(Some(after)) = cursor(text) {
        let token: String = after.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(token, text, "a token is one that was made here");
        assert!(!after.starts_with(b"/") && !after.split(|b| *b == b'/').any(|name| name == b".."));
    }
    if let Ok(path) = convert::path("path", text.to_owned()) {
        assert!(!path.contains('\0') && (1..=bounds::PATH).contains(&path.len()));
        assert!(path.split('/').all(|name| name.len() <= bounds::NAME));
    }
}

fn same_again<T: FromStr + ToString>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

/// Nothing that a sandbox chose moves a cursor or turns text around, and values of the command line are within reason.
pub fn terminal(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    harmless(&printable(&text), "");
    let mut input = Input::new(bytes);
    let most = input.choice(80);
    let short = clipped(&text, most);
    harmless(&short, "");
    assert!(short.chars().count() <= most.max(1));
    let table = table_text(&["NAME"], vec![vec![text.to_string()], vec!["second".to_owned()]]);
    harmless(&table, "\n");
    assert_eq!(table.lines().count(), 3, "a cell is one line");
    let _ = value::size(&text);
    if let Ok(millis) = value::cores(&text) {
        assert!((1..=100_000_000).contains(&millis) || text.ends_with('m'));
    }
    if let Ok(span) = value::some_duration(&text) {
        assert!(!span.is_zero());
    }
    if let Ok(number) = value::signal(&text) {
        assert!((1..=64).contains(&number));
        assert_eq!(value::signal(&number.to_string()), Ok(number));
    }
    if let Ok((name, value)) = value::pair(&text) {
        assert_eq!(format!("{name}={value}"), text);
    }
    let _ = (value::pty_size(&text), value::known_host(&text), value::rule(&text), value::target(&text));
}

/// Unicode's controls, and all that has the property Bidi_Control.
fn harmless(shown: &str, but: &str) {
    for c in shown.chars().filter(|c| !but.contains(*c)) {
        let turns = matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        );
        assert!(!c.is_control() && !turns && !matches!(c, '\u{2028}' | '\u{2029}'), "{c:?} of {shown:?}");
    }
}

/// What a worker says is kept within bounds, or refused.
pub fn worker_words(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.choice(4);
    let bytes = input.rest();
    let (link, worker) = (LinkId(1), "w".parse::<WorkerId>().expect("it is one"));
    match kind {
        0 => {
            let Ok(Ok(hello)) = v1::Hello::decode(bytes).map(|wire| wire::hello(wire, link)) else { return };
            assert!(hello.labels.len() <= bounds::LABELS && hello.version.len() < 4096);
            assert!(hello.backends.iter().all(|one| one.name.len() < 4096 && one.message.len() < 4096));
            assert!(hello.incarnation.0 <= 1 << 53 && hello.running.iter().all(|one| one.epoch.0 <= 1 << 53));
            assert!(hello.stopping_within.is_none_or(|within| within <= bounds::DURATION_MAX));
        }
        1 => drop(v1::Heartbeat::decode(bytes).map(|wire| wire::heartbeat(&worker, link, wire))),
        2 => {
            let Ok(Ok(report)) =
                v1::SessionReport::decode(bytes).map(|wire| wire::report(&worker, link, wire))
            else {
                return;
            };
            assert!(report.epoch.0 <= 1 << 53, "an epoch has its place in the store");
            assert!(report.message.len() < 4096 && report.backend.len() < 4096);
        }
        _ => {
            let Ok(Ok(report)) =
                v1::TaskReport::decode(bytes).map(|wire| wire::task_report(&worker, link, wire))
            else {
                return;
            };
            assert!(report.epoch.0 <= 1 << 53);
            assert!(report.summary.encoded_len() <= 8 << 10, "a task is kept short");
            assert!(report.summary.spec.as_ref().is_none_or(|spec| spec.env.is_empty()), "env is not kept");
        }
    }
}
