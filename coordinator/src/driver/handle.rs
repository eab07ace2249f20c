//! The way to the driver: a bounded queue, and answers with a deadline.

use std::time::Duration;

use berth_proto::{
    Error, Reason,
    trace::{self, TraceContext},
};
use tokio::sync::{mpsc, oneshot};

use super::links::Link;
use crate::fleet::{Event, Hello, LinkId, Refused};

/// Events that may wait for the driver. A full queue slows its senders down.
const INBOX: usize = 1024;
/// How long a call waits for the driver: it only does so when the disk hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// What comes to the driver.
pub(super) enum Message {
    Call {
        event: Event,
        /// The request that it is made for.
        request: Option<TraceContext>,
        answer: oneshot::Sender<Result<(), CallError>>,
    },
    /// From a worker's link: nobody waits for an answer.
    Told {
        event: Event,
        link: LinkId,
    },
    Attach {
        hello: Box<Hello>,
        link: Link,
        answer: oneshot::Sender<Result<(), CallError>>,
    },
    Stop {
        done: oneshot::Sender<()>,
    },
}

/// Why a call did not go through.
#[derive(Debug)]
pub enum CallError {
    Refused(Refused),
    Failed(Error),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Error {
        match error {
            CallError::Refused(refused) => refused.into(),
            CallError::Failed(error) => error,
        }
    }
}

/// To the driver. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Message>,
}

/// A new queue and its two ends.
pub(super) fn queue() -> (Handle, mpsc::Receiver<Message>) {
    let (inbox, receiver) = mpsc::channel(INBOX);
    (Handle { inbox }, receiver)
}

impl Handle {
    /// Applies an event. When this returns, it is in the store and in the view.
    pub async fn call(&self, event: Event) -> Result<(), CallError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Message::Call { event, request: trace::current(), answer }, answered).await
    }

    /// Makes `link` the worker's, if the fleet takes it. The welcome is then on its way.
    pub async fn attach(&self, hello: Hello, link: Link) -> Result<(), CallError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Message::Attach { hello: Box::new(hello), link, answer }, answered).await
    }

    /// The same, if there is room for it now: for what is better known and can be done without.
    pub fn note(&self, event: Event) {
        let (answer, _) = oneshot::channel();
        let _ = self.inbox.try_send(Message::Call { event, request: trace::current(), answer });
    }

    /// Passes on what a worker said.
    pub async fn tell(&self, event: Event, link: LinkId) {
        // Without a driver the coordinator is coming down: there is nobody to tell.
        let _ = self.inbox.send(Message::Told { event, link }).await;
    }

    /// Commits what is under way and ends the driver.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.inbox.send(Message::Stop { done }).await.is_ok() {
            let _ = stopped.await;
        }
    }

    async fn ask(
        &self,
        message: Message,
        answered: oneshot::Receiver<Result<(), CallError>>,
    ) -> Result<(), CallError> {
        let stopping =
            || CallError::Failed(Error::unavailable(Reason::ShuttingDown, "the coordinator is stopping"));
        let exchange = async {
            self.inbox.send(message).await.map_err(|_| stopping())?;
            answered.await.map_err(|_| stopping())?
        };
        tokio::time::timeout(ANSWER_WITHIN, exchange).await.unwrap_or_else(|_| {
            Err(CallError::Failed(
                Error::unavailable(Reason::StoreFailed, "the coordinator's store does not answer")
                    .hint("look at the disk under the coordinator's state directory"),
            ))
        })
    }
}
