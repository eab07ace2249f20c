//! Checkpoints: taken of a session, listed, and made into new sessions.
//!
//! None of these calls is quick: the files of a session are read or written whole. Restoring is safe to repeat, since
//! its request id names the new session; taking and forking are not, since each makes a checkpoint of its own, so they
//! are tried once.

use std::time::Duration;

use berth_proto::{
    convert::{bounds, duration_out},
    transport::MESSAGE_LIMIT,
    v1::{self, checkpoint_service_client::CheckpointServiceClient},
};
use tonic::transport::Channel;

use crate::{
    Client, CreateOptions, Error, Session, SessionId,
    connect::Policy,
    model::{CheckpointInfo, SessionInfo},
};

fn service(channel: Channel) -> CheckpointServiceClient<Channel> {
    CheckpointServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// What the coordinator gives a checkpoint, and some time to wait for others that go first.
pub(crate) const TAKE: Duration = Duration::from_secs(1200);
/// What a session may take to be restored, on top of the wait for a place.
pub(crate) const RESTORE: Duration = Duration::from_secs(900 + 60);
/// Of a listing.
const PAGE: u32 = 500;

/// How to take a checkpoint. All of it may be left out.
#[derive(Clone, Debug, Default)]
pub struct CheckpointOptions {
    /// For people; at most 256 bytes.
    pub note: String,
    /// `None`: it is kept until it is deleted.
    pub keep_for: Option<Duration>,
}

impl CheckpointOptions {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Removed after this long.
    #[must_use]
    pub fn keep_for(mut self, time: Duration) -> Self {
        self.keep_for = Some(time);
        self
    }
}

impl Client {
    /// All checkpoints, or those of one session, newest first. The session may have ended.
    pub async fn checkpoints(&self, session: Option<SessionId>) -> Result<Vec<CheckpointInfo>, Error> {
        let mut request = v1::ListCheckpointsRequest {
            session_id: session.map(|id| id.to_string()).unwrap_or_default(),
            page_size: PAGE,
            page_token: String::new(),
        };
        let mut checkpoints = Vec::new();
        loop {
            let page = self
                .call(Policy::REPEATABLE, request.clone(), |channel, request| async {
                    service(channel).list_checkpoints(request).await
                })
                .await?;
            for checkpoint in page.checkpoints {
                checkpoints.push(checkpoint.try_into()?);
            }
            if page.next_page_token.is_empty() {
                return Ok(checkpoints);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// One checkpoint.
    pub async fn checkpoint(&self, id: &str) -> Result<CheckpointInfo, Error> {
        let message = v1::GetCheckpointRequest { checkpoint_id: id.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).get_checkpoint(request).await
        })
        .await?
        .try_into()
    }

    /// Deletes a checkpoint. No error if it is gone already.
    pub async fn delete_checkpoint(&self, id: &str) -> Result<(), Error> {
        let message = v1::DeleteCheckpointRequest { checkpoint_id: id.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).delete_checkpoint(request).await
        })
        .await
        .map(drop)
    }

    /// Makes a session of a checkpoint and waits until it is ready. What the options leave out stays as it was:
    /// template (no other is possible), limits, env, labels but the name, task defaults, and what is said of
    /// checkpoints and of the loss of a worker. Life span and idle timeout are the template's.
    pub async fn restore(&self, checkpoint: &str, options: CreateOptions) -> Result<SessionInfo, Error> {
        let policy = Policy::REPEATABLE.deadline(patience(&options).saturating_add(RESTORE));
        let message = v1::RestoreSessionRequest {
            checkpoint_id: checkpoint.to_owned(),
            session: Some(options.into_wire()),
        };
        self.call(policy, message, |channel, request| async {
            service(channel).restore_session(request).await
        })
        .await?
        .try_into()
    }
}

impl Session {
    /// Takes a checkpoint and returns when it is stored. Meanwhile the session's tasks stand still for as long as its
    /// files are read.
    pub async fn checkpoint(&self, options: CheckpointOptions) -> Result<CheckpointInfo, Error> {
        let message = v1::CheckpointSessionRequest {
            session_id: self.id.to_string(),
            note: options.note,
            keep_for: options.keep_for.map(duration_out),
        };
        self.client
            .call(Policy::ONCE.deadline(TAKE), message, |channel, request| async {
                service(channel).checkpoint_session(request).await
            })
            .await?
            .try_into()
    }

    /// Takes a checkpoint and makes so many sessions of it, 1 to 100, each as [`Client::restore`] does. The checkpoint
    /// stays until it is deleted. Should one session fail, the others stay: the error's detail `sessions` has their
    /// ids, with commas between them.
    pub async fn fork(
        &self,
        count: u32,
        options: CreateOptions,
    ) -> Result<(Vec<SessionInfo>, CheckpointInfo), Error> {
        if count == 0 {
            return Err(Error::invalid("a fork makes at least one session"));
        }
        let policy = Policy::ONCE.deadline(patience(&options).saturating_add(TAKE + RESTORE));
        let message = v1::ForkSessionRequest {
            session_id: self.id.to_string(),
            count,
            session: Some(options.into_wire_unkeyed()),
        };
        let forked = self
            .client
            .call(policy, message, |channel, request| async { service(channel).fork_session(request).await })
            .await?;
        let sessions = forked.sessions.into_iter().map(SessionInfo::try_from).collect::<Result<_, _>>()?;
        let checkpoint = forked.checkpoint.ok_or_else(|| Error::strange("a fork without a checkpoint"))?;
        Ok((sessions, checkpoint.try_into()?))
    }
}

/// How long a new session waits for a place.
fn patience(options: &CreateOptions) -> Duration {
    options.wait.unwrap_or(bounds::WAIT_FOR_PLACE)
}
