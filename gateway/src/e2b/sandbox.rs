//! Sessions as E2B's clients know them: sandboxes, with metadata, a state of two, and an end that is always set.
//!
//! Metadata are labels `e2b.<piece>/<key>`, so that `berth ps` shows and finds them too. A label's value is shorter than
//! what agents keep in metadata, so a long one is in pieces.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use berth_client::{Egress, Labels, SessionState, domain::Preset, model::SessionInfo};
use berth_proto::convert::bounds;
use serde_json::{Value, json};

use super::{problem::Problem, public, text};

/// What the SDKs switch features on by. Built are: a default user (0.4.0), the end of input (0.5.2), uploads without
/// multipart (0.5.7). Not built: metadata of files (0.6.2).
pub const ENVD: &str = "0.6.1";
/// Berth's client libraries know no such thing.
const CLIENT: &str = "berth";
/// Of a sandbox without an end: the SDKs want one.
const NEVER: Duration = bounds::DURATION_MAX;

/// Metadata, key to value.
pub type Metadata = BTreeMap<String, String>;

/// The labels that hold these metadata.
pub fn labels(metadata: &Metadata) -> Result<Labels, Problem> {
    let mut labels = Labels::new();
    for (key, value) in metadata {
        for (number, piece) in pieces(value).into_iter().enumerate() {
            let name = format!("e2b.{number}/{key}");
            if name.len() > bounds::LABEL {
                return Err(Problem::invalid(format!(
                    "metadata: a key has at most {} bytes",
                    bounds::LABEL - 8
                )));
            }
            labels.insert(name, piece.to_owned());
        }
    }
    if labels.len() > bounds::LABELS {
        let most = bounds::LABELS;
        return Err(Problem::invalid(format!(
            "metadata: at most {most} entries, where each {} bytes of a value count as one (hint: keep data in files)",
            bounds::LABEL
        )));
    }
    Ok(labels)
}

/// At least one, each as long as a label's value may be.
fn pieces(mut value: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    loop {
        let (piece, rest) = value.split_at(value.floor_char_boundary(bounds::LABEL));
        pieces.push(piece);
        if rest.is_empty() {
            return pieces;
        }
        value = rest;
    }
}

/// Whether a label is kept here for E2B's clients: of one session, and not of those that are made of it.
pub fn is_ours(name: &str) -> bool {
    name.starts_with("e2b.") && name.contains('/') || name == public::LABEL
}

/// The metadata that these labels hold.
pub fn metadata(labels: &Labels) -> Metadata {
    let mut found: BTreeMap<&str, BTreeMap<usize, &str>> = BTreeMap::new();
    for (name, piece) in labels {
        let parsed = name.strip_prefix("e2b.").and_then(|name| name.split_once('/'));
        if let Some((number, key)) = parsed
            && let Ok(number) = number.parse()
        {
            found.entry(key).or_default().insert(number, piece);
        }
    }
    found.into_iter().map(|(key, pieces)| (key.to_owned(), pieces.into_values().collect())).collect()
}

/// `running` or `paused`. `None`: it is over.
pub fn state(info: &SessionInfo) -> Option<&'static str> {
    match info.state {
        SessionState::Pending | SessionState::Placed | SessionState::Ready => Some("running"),
        SessionState::Paused | SessionState::Parked => Some("paused"),
        SessionState::Ending | SessionState::Ended => None,
    }
}

pub fn started_at(info: &SessionInfo) -> SystemTime {
    info.created_at.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// As a create or a connect answers. Of a domain it says nothing: the SDKs go on with the one that they were given.
pub fn handle(info: &SessionInfo, access: &str, traffic: &str) -> Value {
    json!({
        "templateID": info.template,
        "sandboxID": info.id.to_string(),
        "clientID": CLIENT,
        "alias": info.template,
        "envdVersion": ENVD,
        "envdAccessToken": access,
        "trafficAccessToken": traffic,
        "domain": null,
    })
}

/// As it is listed.
pub fn listed(info: &SessionInfo) -> Value {
    let started = started_at(info);
    json!({
        "templateID": info.template,
        "alias": info.template,
        "sandboxID": info.id.to_string(),
        "clientID": CLIENT,
        "startedAt": text::time(started),
        "endAt": text::time(info.expires_at.unwrap_or(started + NEVER)),
        "cpuCount": info.limits.cpu_millis.div_ceil(1000),
        "memoryMB": info.limits.memory_bytes >> 20,
        "diskSizeMB": info.limits.disk_bytes >> 20,
        "state": state(info).unwrap_or("running"),
        "envdVersion": ENVD,
        "metadata": metadata(&info.labels),
    })
}

/// All that is known of it.
pub fn detailed(info: &SessionInfo, access: &str) -> Value {
    let mut told = listed(info);
    told["envdAccessToken"] = json!(access);
    let Egress { preset, allow } = &info.egress;
    told["allowInternetAccess"] = match preset {
        Preset::None => json!(false),
        Preset::Full => json!(true),
        Preset::Packages => Value::Null,
    };
    if !allow.is_empty() {
        let allow: Vec<String> = allow.iter().map(ToString::to_string).collect();
        told["network"] = json!({ "allowOut": allow });
    }
    if info.labels.contains_key(public::LABEL) {
        told["network"]["allowPublicTraffic"] = json!(true);
    }
    told["lifecycle"] = json!({"onTimeout": "kill", "autoResume": false});
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// Red when two metadata come out as one, or one is cut.
    #[test]
    fn metadata_come_back_as_they_were() {
        let long = "ä".repeat(1000);
        let all = [("", "x"), ("a/b", ""), ("e2b.1/a", "1"), ("name", "n"), ("ключ", "🦀"), ("long", &long)];
        let all = pairs(&all);
        let mut kept = labels(&all).unwrap();
        assert!(kept.iter().all(|(name, value)| name.len() <= 256 && value.len() <= 256 && !name.is_empty()));
        kept.insert("name".to_owned(), "a label of Berth's own".to_owned());
        kept.insert("e2b.x/y".to_owned(), "no piece".to_owned());
        assert_eq!(metadata(&kept), all);
    }

    #[test]
    fn metadata_are_bounded() {
        let many: Metadata = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert!(labels(&many).unwrap_err().is("invalid_argument"));
        assert!(labels(&pairs(&[(&"k".repeat(300), "")])).is_err());
        assert!(labels(&pairs(&[("k", &"v".repeat(1 << 20))])).is_err());
    }
}
