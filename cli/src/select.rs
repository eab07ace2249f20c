//! Which session a user means: a full id, the beginning or the end of one (at least four
//! characters; the end tells sessions apart better, since ids begin with their time), a
//! name, or a label `NAME=VALUE`. Never a guess: what fits two sessions is an error that
//! lists both.

use std::str::FromStr;

use berth_client::{
    Client, Code, ListOptions, Reason, Session, SessionId, TaskHandle, TaskId,
    model::{ArtifactInfo, CheckpointInfo, SessionInfo, TaskInfo},
};

use crate::{
    commands::{is_helper, program_text},
    failure::Failure,
    output,
};

/// Label that `--name` sets.
pub use berth_client::NAME_LABEL;
/// Fewer characters of an id are not enough to mean it.
const LEAST: usize = 4;
/// Characters of an id that a table shows.
const SHORT: usize = 12;

/// The end of an id, enough to tell and to type.
pub fn short(id: impl ToString) -> String {
    let id = id.to_string();
    id[id.len().saturating_sub(SHORT)..].to_owned()
}

/// The session that `text` means.
pub async fn session(client: &Client, text: &str) -> Result<Session, Failure> {
    if let Ok(id) = SessionId::from_str(text) {
        return Ok(client.session(id));
    }
    let sessions = client.sessions(ListOptions::new()).await?;
    Ok(client.session(pick_session(&sessions, text)?))
}

/// The task that `text` means; the newest that a user started if it is `None`.
pub async fn task(session: &Session, text: Option<&str>) -> Result<TaskHandle, Failure> {
    if let Some(Ok(id)) = text.map(TaskId::from_str) {
        return Ok(session.task(id));
    }
    let tasks = session.tasks().await?;
    Ok(session.task(pick_task(&tasks, text)?))
}

/// The id of the checkpoint that `text` means.
pub async fn checkpoint(client: &Client, text: &str) -> Result<String, Failure> {
    // The same form as a session's.
    if SessionId::from_str(text).is_ok() {
        return Ok(text.to_owned());
    }
    pick_checkpoint(&client.checkpoints(None).await?, text)
}

/// The id of the artifact that `text` means.
pub async fn artifact(client: &Client, text: &str) -> Result<String, Failure> {
    // The same form as a session's.
    if SessionId::from_str(text).is_ok() {
        return Ok(text.to_owned());
    }
    let all = client.artifacts(None).await?.artifacts;
    let found: Vec<&ArtifactInfo> = all.iter().filter(|artifact| is_part(&artifact.id, text)).collect();
    match found[..] {
        [one] => Ok(one.id.clone()),
        [] => Err(Failure::new(format!("no artifact fits {text:?}"))
            .with_reason(Code::NotFound, Reason::ArtifactNotFound)
            .hint("give an id, or at least 4 characters of its beginning or end")
            .hint("`berth artifact list` shows them")),
        _ => Err(fits_several(text, "artifacts", &found, |artifact| {
            format!("{}  {}", artifact.id, output::clipped(&artifact.name, 40))
        })),
    }
}

/// Whether `text` means the session of a checkpoint, as it was then.
pub fn is_of(checkpoint: &CheckpointInfo, text: &str) -> bool {
    let (label, value) = text.split_once('=').unwrap_or((NAME_LABEL, text));
    checkpoint.labels.get(label).is_some_and(|label| label == value)
        || is_part(&checkpoint.session.to_string(), text)
}

fn pick_checkpoint(checkpoints: &[CheckpointInfo], text: &str) -> Result<String, Failure> {
    let found: Vec<&CheckpointInfo> = checkpoints.iter().filter(|c| is_part(&c.id, text)).collect();
    match found[..] {
        [one] => Ok(one.id.clone()),
        [] => Err(Failure::new(format!("no checkpoint fits {text:?}"))
            .with_reason(Code::NotFound, Reason::CheckpointNotFound)
            .hint("give an id, or at least 4 characters of its beginning or end")
            .hint("`berth checkpoint list` shows them")),
        _ => Err(fits_several(text, "checkpoints", &found, |checkpoint| {
            let ago = output::ago(checkpoint.created_at);
            format!("{}  of {}, {ago} ago", checkpoint.id, short(checkpoint.session))
        })),
    }
}

fn pick_session(sessions: &[SessionInfo], text: &str) -> Result<SessionId, Failure> {
    let by_label: Vec<&SessionInfo> = match text.split_once('=') {
        Some((name, value)) => {
            sessions.iter().filter(|s| s.labels.get(name).is_some_and(|label| label == value)).collect()
        }
        None => {
            sessions.iter().filter(|s| s.labels.get(NAME_LABEL).is_some_and(|name| name == text)).collect()
        }
    };
    // A name goes before a piece of an id: it was chosen to be used here.
    let found = if by_label.is_empty() {
        sessions.iter().filter(|s| is_part(&s.id.to_string(), text)).collect()
    } else {
        by_label
    };
    match found[..] {
        [one] => Ok(one.id),
        [] => Err(Failure::new(format!("no session fits {text:?}"))
            .with_reason(Code::NotFound, Reason::SessionNotFound)
            .hint("give an id, at least 4 characters of its beginning or end, a name, or a label NAME=VALUE")
            .hint("`berth ps` lists the sessions that there are")),
        _ => Err(fits_several(text, "sessions", &found, |session| {
            let name = session.labels.get(NAME_LABEL).map(|name| format!("  {}", output::clipped(name, 40)));
            format!("{}{}", session.id, name.unwrap_or_default())
        })),
    }
}

fn pick_task(tasks: &[TaskInfo], text: Option<&str>) -> Result<TaskId, Failure> {
    let Some(text) = text else {
        // Newest first. What a copy started is nobody's.
        return tasks.iter().find(|task| !is_helper(&task.program)).map(|task| task.id).ok_or_else(|| {
            Failure::new("the session has had no task yet")
                .with_reason(Code::NotFound, Reason::TaskNotFound)
                .hint("`berth run --session SESSION -- PROGRAM` starts one")
        });
    };
    let found: Vec<&TaskInfo> = tasks.iter().filter(|task| is_part(&task.id.to_string(), text)).collect();
    match found[..] {
        [one] => Ok(one.id),
        [] => Err(Failure::new(format!("no task of the session fits {text:?}"))
            .with_reason(Code::NotFound, Reason::TaskNotFound)
            .hint("`berth tasks SESSION` lists them")),
        _ => Err(fits_several(text, "tasks", &found, |task| {
            format!("{}  {}", task.id, output::clipped(&program_text(&task.program), 40))
        })),
    }
}

/// Never a guess: those that it may mean are listed.
fn fits_several<T>(text: &str, what: &str, found: &[&T], show: impl Fn(&T) -> String) -> Failure {
    let failure = Failure::new(format!("{text:?} fits {} {what}", found.len()));
    failure.hints(found.iter().take(10).map(|one| show(one)), "give more of the id")
}

fn is_part(id: &str, text: &str) -> bool {
    text.len() >= LEAST && (id.starts_with(text) || id.ends_with(text))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use berth_client::{Labels, SessionState, domain, model};

    pub fn info(id: u128, labels: &[(&str, &str)]) -> SessionInfo {
        SessionInfo {
            id: SessionId::from_u128(id),
            state: SessionState::Ready,
            end_reason: None,
            message: String::new(),
            template: "base".into(),
            worker: None,
            epoch: 1,
            backend: "fake".into(),
            limits: domain::Limits { cpu_millis: 1, memory_bytes: 1, disk_bytes: 1, pids: 1 },
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>(),
            priority: 0,
            created_at: None,
            ready_at: None,
            ended_at: None,
            expires_at: None,
            idle_timeout: None,
            worker_selector: Labels::new(),
            task_defaults: domain::TaskDefaultsPatch::default(),
            on_worker_loss: domain::OnWorkerLoss::End,
            checkpoints: domain::CheckpointPolicy::default(),
            checkpoint_id: None,
            checkpointed_at: None,
            recovered_from: None,
            recovered_to: None,
            parked_at: None,
            tenant: "default".into(),
            waits_since: None,
            waits_until: None,
            queue_position: None,
            egress: domain::Egress::default(),
        }
    }

    const A: u128 = 0x0190_aaaa_0000_0000_0000_0000_0000_1111;
    const B: u128 = 0x0190_bbbb_0000_0000_0000_0000_0000_2222;

    #[test]
    fn the_beginning_and_the_end_of_an_id_are_enough() {
        let all = [info(A, &[]), info(B, &[])];
        assert_eq!(pick_session(&all, "0190aa").unwrap(), all[0].id);
        assert_eq!(pick_session(&all, "2222").unwrap(), all[1].id);
        assert!(pick_session(&all, "222").unwrap_err().message.contains("no session fits"));
        assert!(pick_session(&all, "0000").is_err(), "the middle of an id is no way to mean it");
    }

    #[test]
    fn what_fits_two_is_refused_and_lists_them() {
        let all = [info(A, &[("name", "x")]), info(B, &[])];
        let failure = pick_session(&all, "0190").unwrap_err();
        assert_eq!(failure.message, "\"0190\" fits 2 sessions");
        assert_eq!(failure.hints.len(), 2);
        assert!(failure.hints[0].ends_with("  x"), "{:?}", failure.hints);
    }

    #[test]
    fn names_and_labels_fit_whole() {
        let all =
            [info(A, &[("name", "2222"), ("team", "red")]), info(B, &[("name", "web"), ("team", "red")])];
        assert_eq!(pick_session(&all, "web").unwrap(), all[1].id);
        assert_eq!(pick_session(&all, "name=web").unwrap(), all[1].id);
        assert_eq!(pick_session(&all, "2222").unwrap(), all[0].id, "a name goes before a piece of an id");
        assert!(pick_session(&all, "we").is_err());
        assert!(pick_session(&all, "team=red").unwrap_err().message.contains("fits 2"));
    }

    #[test]
    fn a_checkpoint_is_meant_by_its_id_and_listed_by_its_session() {
        let checkpoint = |id: &str, session: u128, name: &str| model::CheckpointInfo {
            id: id.repeat(8),
            session: SessionId::from_u128(session),
            created_at: None,
            template: "base".into(),
            labels: Labels::from([(NAME_LABEL.to_owned(), name.to_owned())]),
            note: String::new(),
            cause: model::CheckpointCause::Requested,
            entries: 0,
            content_bytes: 0,
            stored_bytes: 0,
            frozen_for: None,
            skipped: 0,
            expires_at: None,
            tenant: "default".into(),
        };
        let all = [checkpoint("01a2", A, "web"), checkpoint("01b3", B, "db")];
        assert_eq!(pick_checkpoint(&all, "01b3").unwrap(), all[1].id);
        let failure = pick_checkpoint(&all, "web").unwrap_err();
        assert_eq!(failure.reason, Some("CHECKPOINT_NOT_FOUND"), "a session is no checkpoint");
        assert!(pick_checkpoint(&all, "01").is_err(), "too short");
        let two = [all[0].clone(), checkpoint("01a2", B, "db")];
        assert!(pick_checkpoint(&two, "01a2").unwrap_err().message.contains("fits 2 checkpoints"));
        let of = |text: &str| all.iter().map(|c| is_of(c, text)).collect::<Vec<_>>();
        assert_eq!(of("web"), [true, false]);
        assert_eq!(of("name=db"), [false, true]);
        assert_eq!(of("1111"), [true, false]);
        assert_eq!(of("team=red"), [false, false]);
    }

    #[test]
    fn the_newest_task_is_one_that_a_user_started() {
        let task = |id: u128, argv: &[&str]| TaskInfo {
            id: TaskId::from_u128(id),
            session: SessionId::from_u128(A),
            state: model::TaskState::Done,
            program: model::TaskProgram {
                argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
                shell: None,
                cwd: String::new(),
                pty: false,
                stdin: false,
                detached: false,
            },
            pid: 1,
            started_at: None,
            stdout: model::StreamPosition::default(),
            stderr: model::StreamPosition::default(),
            end: None,
        };
        let copied = task(2, &["/bin/sh", "-c", "ln -s", "berth-cp", "a", "b"]);
        let own = task(1, &["/bin/sh", "-c", "ln -s", "sh", "a", "b"]);
        assert_eq!(pick_task(&[copied.clone(), own.clone()], None).unwrap(), own.id);
        assert!(pick_task(std::slice::from_ref(&copied), None).is_err());
        let named = copied.id.to_string();
        assert_eq!(
            pick_task(&[copied.clone(), own], Some(&named)).unwrap(),
            copied.id,
            "asked for, it is there"
        );
    }

    #[test]
    fn an_id_is_shown_by_its_end() {
        assert_eq!(short(SessionId::from_u128(A)), "000000001111");
    }
}
