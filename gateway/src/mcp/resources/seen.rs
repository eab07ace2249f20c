//! What is compared to find that a resource changed: time and size of a file, length of an output.

use std::{sync::Arc, time::SystemTime};

use berth_client::{
    Reason, Session, Std,
    model::{FileType, TaskState},
};
use tokio::time::Instant;

use super::uri::{Uri, What};
use crate::mcp::{problem::Problem, sessions::Sessions};

/// What a resource was when it was looked at.
#[derive(Clone, PartialEq, Debug)]
pub enum Seen {
    Missing,
    File(FileType, u64, Option<SystemTime>),
    Output { length: u64, done: bool },
}

impl Seen {
    pub async fn look(session: &Session, what: &What) -> Result<Self, Problem> {
        match what {
            What::File(path) => {
                match session.files().stat_follow(if path.is_empty() { "." } else { path }).await {
                    Ok(info) => Ok(Self::File(info.kind, info.size, info.modified_at)),
                    Err(error) if error.is(Reason::FileNotFound) => Ok(Self::Missing),
                    Err(error) => Err(error.into()),
                }
            }
            What::Output(task, stream) => {
                let info = session.task(*task).info().await?;
                let kept = if *stream == Std::Out { info.stdout } else { info.stderr };
                Ok(Self::Output { length: kept.length, done: info.state == TaskState::Done })
            }
        }
    }
}

/// A resource that is subscribed to.
pub struct Subscribed {
    pub session: Session,
    pub what: What,
    pub seen: Seen,
    /// When it was first looked at: a change by what began before that can't be seen by comparing.
    pub since: Instant,
}

impl Subscribed {
    pub async fn new(sessions: &Arc<Sessions>, uri: &str) -> Result<Self, Problem> {
        let uri = Uri::parse(uri)?;
        let session = sessions.find(Some(&uri.session), None).await?;
        let seen = Seen::look(&session, &uri.what).await?;
        Ok(Self { session, what: uri.what, seen, since: Instant::now() })
    }
}
