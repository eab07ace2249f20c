//! Snapshots are checkpoints, and a snapshot's id is a template's: a sandbox made of it has its files. (E2B's have the
//! memory too.) A fork is a checkpoint and sandboxes made of it.

use std::cmp::Reverse;

use berth_client::{CheckpointOptions, CreateOptions, Labels, Session, UpdateOptions, model::SessionInfo};
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    body::{Body, empty, json_response},
    control::{Control, lasting, page_limit, paged},
    problem::Problem,
    sandbox, text,
};

/// As E2B bounds it.
const FORKS: u32 = 100;

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Take {
    name: Option<String>,
    memory: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Fork {
    timeout: Option<i64>,
    count: Option<u32>,
}

/// `project/name:tag` without what Berth does not have.
fn plain(name: &str) -> &str {
    let name = name.rsplit('/').next().unwrap_or_default();
    name.split(':').next().unwrap_or_default()
}

/// The checkpoint that a template's id names, if it is one.
pub fn checkpoint(template: &str) -> Option<&str> {
    let id = plain(template);
    (id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).then_some(id)
}

fn snapshot(id: &str, note: &str) -> Value {
    let names: Vec<&str> = (!note.is_empty()).then_some(note).into_iter().collect();
    json!({"snapshotID": id, "names": names})
}

pub async fn take(session: &Session, take: Take) -> Result<Response<Body>, Problem> {
    // Files are all that there ever is in one.
    let _ = take.memory;
    let options = CheckpointOptions::new().note(take.name.unwrap_or_default());
    let taken = session.checkpoint(options).await?;
    Ok(json_response(StatusCode::CREATED, &snapshot(&taken.id, &taken.note)))
}

/// Those that a caller sees, newest first, in pages.
pub async fn list(control: &Control<'_>, query: &[(String, String)]) -> Result<Response<Body>, Problem> {
    let value = |name| text::value(query, name).filter(|value| !value.is_empty());
    let session = value("sandboxID").map(str::parse).transpose();
    let session = session.map_err(|_| Problem::invalid("sandboxID: no such value"))?;
    let limit = page_limit(value("limit"))?;
    let mut taken = control.lease.checkpoints(session).await?;
    let name = value("name").map(plain);
    taken.retain(|taken| name.is_none_or(|name| taken.note == name || taken.id == name));
    // Ids begin with the time at which they were made: an order that a page can go on from.
    taken.sort_by_cached_key(|taken| Reverse(taken.id.clone()));
    let begin = value("nextToken").map_or(0, |after| taken.partition_point(|taken| *taken.id >= *after));
    let page = &taken[begin..(begin + limit).min(taken.len())];
    let more = begin + page.len() < taken.len();
    let next = page.last().filter(|_| more).map(|last| last.id.as_str());
    Ok(paged(page.iter().map(|taken| snapshot(&taken.id, &taken.note)).collect(), next))
}

/// A sandbox made of a snapshot. Its metadata are those that are given with it: what the session had that the snapshot is of
/// is not told of this one.
pub async fn restore(
    control: &Control<'_>,
    checkpoint: &str,
    options: CreateOptions,
    labels: &Labels,
) -> Result<SessionInfo, Problem> {
    let info = control.lease.restore(checkpoint, options).await?;
    let mut change = UpdateOptions::new();
    let mut changes = false;
    for name in info.labels.keys().filter(|name| sandbox::is_ours(name) && !labels.contains_key(*name)) {
        change = change.remove_label(name);
        changes = true;
    }
    if !changes {
        return Ok(info);
    }
    let session = control.lease.session(info.id);
    match session.update(change).await {
        Ok(info) => Ok(info),
        Err(error) => {
            // Nobody would know of it.
            let _ = session.delete().await;
            Err(error.into())
        }
    }
}

/// E2B's clients delete a snapshot as the template that it is.
pub async fn delete(control: &Control<'_>, template: &str) -> Result<Response<Body>, Problem> {
    let id = checkpoint(template)
        .ok_or_else(|| Problem::unserved("templates are the operator's: only snapshots can be deleted"))?;
    control.lease.checkpoint(id).await?;
    control.lease.delete_checkpoint(id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub async fn fork(control: &Control<'_>, session: &Session, fork: Fork) -> Result<Response<Body>, Problem> {
    let count = fork.count.unwrap_or(1);
    if !(1..=FORKS).contains(&count) {
        return Err(Problem::invalid(format!("count: 1 to {FORKS}")));
    }
    let (made, _) = session.fork(count, lasting(fork.timeout)?).await?;
    let made = made.iter().map(|info| json!({"sandbox": control.handle(info)})).collect();
    Ok(json_response(StatusCode::CREATED, &Value::Array(made)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_told_from_a_template() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(checkpoint(id), Some(id));
        assert_eq!(checkpoint(&format!("{id}:default")), Some(id));
        assert_eq!(checkpoint("base"), None);
        assert_eq!([plain("team/box:v1"), plain("box"), plain("")], ["box", "box", ""]);
    }
}
