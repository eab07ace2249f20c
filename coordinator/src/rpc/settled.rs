//! One end for each task, whoever tells it.
//!
//! A client may hear of a task's end before the coordinator does: it comes over a data connection, past the driver. Should
//! the machine be lost then, the recovered session knows of a task that ran, and would tell another end. So what a client
//! is told is noted on its way ([`Settled::noted`]), and where a recovered session says that a task was lost, the
//! store is asked whether somebody knew better ([`Settled::known`]).
//!
//! Nobody waits for that note to be in the store: only if machine and coordinator are lost within the same moment can a
//! client have been told what nobody remembers.

use std::{pin::Pin, sync::Arc};

use berth_proto::{
    Epoch, SessionId, TaskId,
    domain::Outcome,
    v1::{self, task_event},
};
use futures::{Stream, StreamExt};
use tonic::{Response, Status};

use super::{Context, recovered};
use crate::{
    fleet::{Event, Session},
    tenant::Sight,
    wire::short_task,
};

/// A task's events, on their way to a client.
pub type TaskEvents = Pin<Box<dyn Stream<Item = Result<v1::TaskEvent, Status>> + Send>>;

/// The session that a call is about, as it was when the call came.
pub struct Settled {
    context: Context,
    /// `None`: there is no such session; whoever the call goes to says so.
    session: Option<Arc<Session>>,
}

impl Settled {
    pub fn new(context: &Context, by: &Sight, session: &str) -> Self {
        let id = session.parse::<SessionId>().ok();
        let session = id.and_then(|id| context.shared.view.session(by, &id));
        Self { context: context.clone(), session }
    }

    /// The session, if its worker may not know how all of its tasks ended.
    fn recovered(&self) -> Option<&Arc<Session>> {
        self.session.as_ref().filter(|session| session.recovered.is_some())
    }

    /// A task's end is noted, if this is one.
    fn noted(&self, told: &v1::Task) {
        let Some(session) = &self.session else { return };
        let Ok(task) = told.id.parse::<TaskId>() else { return };
        if told.end.is_some() {
            let (id, epoch): (_, Epoch) = (session.id, session.epoch);
            let summary = Arc::new(short_task(told.clone()));
            self.context.driver.note(Event::TaskEnded { session: id, epoch, task, summary });
        }
    }

    /// The task as it was told before, if it was.
    async fn known(&self, told: v1::Task) -> v1::Task {
        let Some(session) = self.recovered() else {
            self.noted(&told);
            return told;
        };
        let lost = told.end.as_ref().is_some_and(|end| end.outcome == Some(Outcome::WorkerLost.into()));
        let Ok(id) = told.id.parse::<TaskId>() else { return told };
        let stored =
            if lost { self.context.shared.store.task(session.id, id).await.ok().flatten() } else { None };
        match stored {
            Some(stored) => recovered::record(stored, session),
            None => {
                self.noted(&told);
                told
            }
        }
    }

    /// The same for an answer.
    pub async fn answer(&self, answer: Response<v1::Task>) -> Response<v1::Task> {
        let (metadata, task, extensions) = answer.into_parts();
        Response::from_parts(metadata, self.known(task).await, extensions)
    }

    /// The same for a list. What it says of tasks that ended is no news, and is not noted.
    pub async fn list(&self, mut answer: Response<v1::ListTasksResponse>) -> Response<v1::ListTasksResponse> {
        if self.recovered().is_some() {
            for task in std::mem::take(&mut answer.get_mut().tasks) {
                answer.get_mut().tasks.push(self.known(task).await);
            }
        }
        answer
    }

    /// The same for a stream of events.
    pub fn events<S>(self, events: S) -> TaskEvents
    where
        S: Stream<Item = Result<v1::TaskEvent, Status>> + Send + 'static,
    {
        let this = Arc::new(self);
        Box::pin(events.then(move |event| {
            let this = this.clone();
            async move {
                match event {
                    Ok(v1::TaskEvent { event: Some(task_event::Event::Ended(task)) }) => {
                        let task = this.known(task).await;
                        Ok(v1::TaskEvent { event: Some(task_event::Event::Ended(task)) })
                    }
                    other => other,
                }
            }
        }))
    }
}
