//! The agent's events as one stream that survives a broken connection, and knows when to give up.
//!
//! The agent tells what happens from the moment that it is watched. So the watch begins before a session is
//! called ready: a task that is over in a millisecond would be missed otherwise. After a gap the
//! caller is told, and asks for the tasks that ended in it.

use std::time::Duration;

use berth_proto::v1::{self, agent_event::Event, agent_service_client::AgentServiceClient};
use tokio::time::Instant;
use tonic::{Status, Streaming, transport::Channel};

/// An agent may be out of reach for this long (a machine out of breath, a paused container) before
/// its session counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// What the agent told, or that it could not for a while.
pub enum Heard {
    Event(Box<Event>),
    /// The stream was broken and is whole again: something may have been missed.
    Gap,
}

/// Watches one agent.
pub struct Events {
    agent: Channel,
    stream: Option<Streaming<v1::AgentEvent>>,
    unreachable_since: Option<Instant>,
    pause: Duration,
}

impl Events {
    /// Begins to watch.
    pub async fn open(agent: Channel) -> Result<Self, String> {
        let stream = watch(&agent).await?;
        Ok(Self { agent, stream: Some(stream), unreachable_since: None, pause: Duration::ZERO })
    }

    /// What comes next; `None`: the agent has been out of reach for too long. May be dropped and called
    /// anew at any point without losing an event.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(stream) = &mut self.stream {
                match stream.message().await {
                    Ok(Some(v1::AgentEvent { event: Some(event) })) => {
                        return Some(Heard::Event(Box::new(event)));
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) | Err(_) => self.stream = None,
                }
            }
            if self.unreachable_since.is_some_and(|since| since.elapsed() > PATIENCE) {
                return None;
            }
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).clamp(FIRST_RETRY, LAST_RETRY);
            match watch(&self.agent).await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    self.unreachable_since = None;
                    return Some(Heard::Gap);
                }
                Err(_) => {
                    self.unreachable_since.get_or_insert_with(Instant::now);
                }
            }
        }
    }

    /// What still comes on the open stream, until it ends.
    pub async fn rest(&mut self, mut each: impl FnMut(Event)) {
        let Some(stream) = &mut self.stream else { return };
        while let Ok(Some(message)) = stream.message().await {
            if let Some(event) = message.event {
                each(event);
            }
        }
        self.stream = None;
    }
}

async fn watch(agent: &Channel) -> Result<Streaming<v1::AgentEvent>, String> {
    let mut agent = AgentServiceClient::new(agent.clone());
    match tokio::time::timeout(OPEN_TIMEOUT, agent.watch(v1::WatchAgentRequest {})).await {
        Ok(Ok(stream)) => Ok(stream.into_inner()),
        Ok(Err(status)) => Err(Status::message(&status).to_owned()),
        Err(_) => Err("it did not answer".to_owned()),
    }
}
