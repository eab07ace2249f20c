//! Snapshots are checkpoints, and a snapshot's id is a template's: a sandbox made of it has its files. (E2B's have the
//! memory too.) A fork is a checkpoint and sandboxes made of it.

use berth_client::{CheckpointOptions, Session};
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    body::{Body, empty, json_response},
    control::{Control, lasting, listed},
    problem::Problem,
    text,
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

/// The checkpoint that a template's id names, if it is one.
pub fn checkpoint(template: &str) -> Option<&str> {
    let id = template.split(':').next().unwrap_or_default();
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

pub async fn list(control: &Control<'_>, query: &[(String, String)]) -> Result<Response<Body>, Problem> {
    let session = text::value(query, "sandboxID").map(str::parse).transpose();
    let session = session.map_err(|_| Problem::invalid("sandboxID: no such value"))?;
    let taken = control.lease.checkpoints(session).await?;
    Ok(listed(taken.iter().map(|taken| snapshot(&taken.id, &taken.note)).collect()))
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
    }
}
