//! Artifacts: what sessions left behind. They outlive their sessions, so they are looked for by themselves.

use std::time::Duration;

use berth_proto::{
    transport::MESSAGE_LIMIT,
    v1::{self, artifact_service_client::ArtifactServiceClient, read_artifact_response::Part},
};
use bytes::Bytes;
use tokio::time::timeout;
use tonic::{Streaming, transport::Channel};

use crate::{
    Client, Error, SessionId,
    connect::Policy,
    model::{ArtifactInfo, ArtifactList},
    upload::STALLED,
};

fn service(channel: Channel) -> ArtifactServiceClient<Channel> {
    ArtifactServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// The coordinator waits 10 s for what a session's last tasks left.
const LIST: Duration = Duration::from_secs(30);
/// Of a listing.
const PAGE: u32 = 500;

/// An artifact's content, as it comes.
pub struct ArtifactReader {
    client: Client,
    info: ArtifactInfo,
    stream: Streaming<v1::ReadArtifactResponse>,
}

impl ArtifactReader {
    pub fn info(&self) -> &ArtifactInfo {
        &self.info
    }

    /// What comes next. `None`: that was all.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match part(&self.client, &mut self.stream).await? {
            Some(Part::Data(data)) => Ok(Some(data)),
            Some(Part::Info(_)) => Err(Error::strange("an artifact was described twice")),
            None => Ok(None),
        }
    }
}

async fn part(
    client: &Client,
    stream: &mut Streaming<v1::ReadArtifactResponse>,
) -> Result<Option<Part>, Error> {
    match timeout(STALLED, stream.message()).await {
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(message))) => {
            message.part.map(Some).ok_or_else(|| Error::strange("an empty part of an artifact"))
        }
        Ok(Err(status)) => Err(client.error(status)),
        Err(_) => Err(Error::deadline(client.address(), STALLED)),
    }
}

impl Client {
    /// All artifacts, or those of one session, newest first. The session may have ended; of one that is up, what the tasks
    /// that have ended left is there when this returns, or the list says that it is `pending`.
    pub async fn artifacts(&self, session: Option<SessionId>) -> Result<ArtifactList, Error> {
        let mut all = ArtifactList::default();
        let mut token = String::new();
        loop {
            let (page, next) = self.artifacts_page(session, PAGE, token).await?;
            if all.artifacts.is_empty() {
                all = page;
            } else {
                all.artifacts.extend(page.artifacts);
            }
            if next.is_empty() {
                return Ok(all);
            }
            token = next;
        }
    }

    /// A page of 1 to 1000 of them, and the token for the next: empty at the end. `token`: empty for the first.
    pub async fn artifacts_page(
        &self,
        session: Option<SessionId>,
        size: u32,
        token: String,
    ) -> Result<(ArtifactList, String), Error> {
        let request = v1::ListArtifactsRequest {
            session_id: session.map(|id| id.to_string()).unwrap_or_default(),
            page_size: size,
            page_token: token,
        };
        let page = self
            .call(Policy::REPEATABLE.deadline(LIST), request, |channel, request| async {
                service(channel).list_artifacts(request).await
            })
            .await?;
        let list = ArtifactList {
            artifacts: page.artifacts.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            not_kept: page.not_kept.into_iter().map(Into::into).collect(),
            more_not_kept: page.more_not_kept,
            pending: page.pending,
        };
        Ok((list, page.next_page_token))
    }

    /// One artifact.
    pub async fn artifact(&self, id: &str) -> Result<ArtifactInfo, Error> {
        let message = v1::GetArtifactRequest { artifact_id: id.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).get_artifact(request).await
        })
        .await?
        .try_into()
    }

    /// An artifact's content as it comes; `length` 0 is to the end.
    pub async fn read_artifact(&self, id: &str, offset: u64, length: u64) -> Result<ArtifactReader, Error> {
        let request = v1::ReadArtifactRequest { artifact_id: id.to_owned(), offset, length };
        let open = |channel, request| async { service(channel).read_artifact(request).await };
        let mut stream = self.open(request, open).await?;
        match part(self, &mut stream).await? {
            Some(Part::Info(info)) => {
                Ok(ArtifactReader { client: self.clone(), info: info.try_into()?, stream })
            }
            _ => Err(Error::strange("an artifact's content came without its description")),
        }
    }

    /// Deletes an artifact. No error if it is gone already.
    pub async fn delete_artifact(&self, id: &str) -> Result<(), Error> {
        let message = v1::DeleteArtifactRequest { artifact_id: id.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).delete_artifact(request).await
        })
        .await
        .map(drop)
    }
}
