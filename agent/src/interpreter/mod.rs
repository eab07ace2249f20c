//! Contexts: interpreters that live on between executions. Here is how many there are; one is a [`context`], moved on by its
//! [`life`], which talks in [`frame`]s to the bridge in its [`process`] and writes each execution's [`record`].
//!
//! A context's process is started, confined, counted, frozen and ended as a task's is; it is no task, since it has no end
//! of its own, does not keep the session from being idle, and is in no list of tasks.
//!
//! Rejected: a kernel's own protocol spoken by the agent. Its parsers would stand where the agent's rights are; the bridge
//! has none but the task's, and what it sends is six kinds of frames.

pub mod context;
pub mod frame;
pub mod life;
pub mod process;
pub mod record;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use berth_proto::{
    ContextId, Error, Reason,
    domain::{ContextSpec, Execution},
    v1::{self, agent_event},
};

use self::{
    context::{Context, gone},
    life::Life,
    record::{Record, Stored},
};
use crate::{
    cgroup::Group,
    deadline::Busy,
    driver::Leftover,
    tasks::{Tasks, lock},
};

/// Contexts of one session.
const CONTEXTS_MAX: usize = 8;

/// All contexts of the session.
pub struct Contexts {
    tasks: Arc<Tasks>,
    table: Mutex<BTreeMap<ContextId, Arc<Context>>>,
    stored: Arc<Stored>,
}

impl Contexts {
    pub fn new(tasks: Arc<Tasks>) -> Arc<Self> {
        Arc::new(Self { tasks, table: Mutex::default(), stored: Arc::default() })
    }

    /// Makes a context, or finds the one that the request made before. Returns when it takes code.
    pub async fn create(
        self: &Arc<Self>,
        wire: v1::CreateContextRequest,
    ) -> Result<v1::InterpreterContext, Error> {
        let session = self.tasks.session(&wire.session_id)?;
        let spec = ContextSpec::try_from(wire)?;
        self.tasks.freezer.archives_over().await;
        let context = {
            let mut table = lock(&self.table);
            let same = |context: &&Arc<Context>| {
                spec.request_id.is_some() && context.spec.request_id == spec.request_id && context.is_there()
            };
            match table.values().find(same) {
                Some(known) if known.spec == spec => known.clone(),
                Some(known) => {
                    let text = "the request id was used for another context";
                    return Err(Error::new(berth_proto::Code::AlreadyExists, Reason::RequestIdReused, text)
                        .with("context_id", known.id));
                }
                None => {
                    self.tasks.refuse_contexts()?;
                    if table.values().filter(|context| context.is_there()).count() >= CONTEXTS_MAX {
                        let text = format!("the session has {CONTEXTS_MAX} contexts, as many as it may");
                        return Err(
                            Error::exhausted(Reason::TooManyContexts, text).with("limit", CONTEXTS_MAX)
                        );
                    }
                    let id = ContextId::new();
                    let context = Context::new(id, session.id.to_string(), spec);
                    table.insert(id, context.clone());
                    let (all, life) = (self.clone(), Life::new(context.clone(), self.tasks.clone(), session));
                    berth_proto::spawn::spawn("context", async move {
                        life.run().await;
                        if let Some(context) = lock(&all.table).remove(&id) {
                            context.gone.cancel();
                        }
                    });
                    context
                }
            }
        };
        context.up().await
    }

    /// All of them, oldest first.
    pub fn list(&self, session: &str) -> Result<Vec<v1::InterpreterContext>, Error> {
        self.tasks.session(session)?;
        let table = lock(&self.table);
        Ok(table.values().filter(|context| context.is_there()).map(|context| context.to_wire()).collect())
    }

    fn get(&self, session: &str, id: &str) -> Result<Arc<Context>, Error> {
        self.tasks.session(session)?;
        let id: ContextId = id.parse()?;
        let found = lock(&self.table).get(&id).cloned();
        found.filter(|context| context.is_there()).ok_or_else(|| gone(id))
    }

    /// Runs code.
    pub async fn execute(
        &self,
        wire: v1::ExecuteRequest,
    ) -> Result<(Arc<Record>, v1::ExecutionStarted), Error> {
        let session = self.tasks.session(&wire.session_id)?;
        let context = self.get(&wire.session_id, &wire.context_id)?;
        let execution = Execution::try_from(wire)?;
        self.tasks.freezer.archives_over().await;
        self.tasks.refuse_contexts()?;
        let busy = || Box::new(Executing::new(&self.tasks)) as Box<dyn Send>;
        context.execute(execution, session.defaults.timeout, &self.stored, busy)
    }

    /// An execution that was begun before.
    pub fn execution(
        &self,
        wire: &v1::WatchExecutionRequest,
    ) -> Result<(Arc<Record>, v1::ExecutionStarted), Error> {
        self.get(&wire.session_id, &wire.context_id)?.execution(wire.execution)
    }

    /// Interrupts what runs in a context, or the execution that is meant. Its number; zero if there is none.
    pub fn interrupt(&self, session: &str, id: &str, meant: u64) -> Result<u64, Error> {
        Ok(self.get(session, id)?.interrupt(meant))
    }

    /// Starts a context's interpreter anew. Returns when it takes code.
    pub async fn restart(&self, session: &str, id: &str) -> Result<v1::InterpreterContext, Error> {
        let context = self.get(session, id)?;
        self.tasks.freezer.archives_over().await;
        self.tasks.refuse_contexts()?;
        context.wish(|wishes| wishes.restart = true);
        context.up().await
    }

    /// Ends a context. Returns when nothing of it is left.
    pub async fn delete(&self, session: &str, id: &str) -> Result<(), Error> {
        match self.get(session, id) {
            Ok(context) => {
                context.wish(|wishes| wishes.delete = true);
                context.gone.cancelled().await;
                Ok(())
            }
            Err(error) if error.reason() == Reason::ContextNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The session is not idle while this lives.
    pub fn busy(&self) -> Busy {
        self.tasks.busy()
    }
}

/// An execution that waits or runs: the session is not idle, and its worker is told that something is under way.
struct Executing {
    tasks: Arc<Tasks>,
    _busy: Busy,
}

impl Executing {
    fn new(tasks: &Arc<Tasks>) -> Self {
        tasks.executes(1);
        Self { tasks: tasks.clone(), _busy: tasks.busy() }
    }
}

impl Drop for Executing {
    fn drop(&mut self) {
        self.tasks.executes(-1);
    }
}

impl Tasks {
    /// Refuses what would stand still at once, or come too late.
    fn refuse_contexts(&self) -> Result<(), Error> {
        if lock(&self.table).ending {
            return Err(Error::precondition(Reason::SessionEnded, "the session is ending"));
        }
        self.freezer.refuse_held()
    }

    /// So many executions more are under way. Told when it is the first, or was the last.
    fn executes(&self, more: isize) {
        let mut table = lock(&self.table);
        let before = table.executing > 0;
        table.executing = table.executing.saturating_add_signed(more);
        let busy = table.executing > 0;
        if busy != before {
            // Under the lock, so that the last word is the right one.
            self.publish(agent_event::Event::Executing(agent_event::Executing { busy }));
        }
    }

    /// These processes are frozen, and end with the session.
    fn hold_group(&self, group: &Arc<Group>) {
        lock(&self.table).contexts.push(group.clone());
    }

    /// They are dead.
    async fn release_group(&self, group: &Arc<Group>) {
        lock(&self.table).contexts.retain(|held| !Arc::ptr_eq(held, group));
        self.tidy(Leftover { group: group.clone() }).await;
    }
}
