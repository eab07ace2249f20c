//! Ends of tasks and sessions, taken from the stream of changes that watchers get: nothing else knows all of them.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use berth_proto::{
    convert,
    v1::{self, event::Subject},
    world,
};

use super::{Audit, BERTH, Record, calls::argv};
use crate::{driver::Shared, tenant::Sight};

/// Tasks whose end was recorded, and is not to be again. It may come twice: with the answer to a client and with the worker's
/// report, moments apart.
const REMEMBERED: usize = 4096;

#[derive(Default)]
struct Seen {
    ids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    /// Whether this is the first time.
    fn first(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// Records them as they come, until it is cut off.
pub async fn record(audit: Arc<Audit>, shared: Shared) {
    let mut seen = Seen::default();
    loop {
        // An empty token begins now.
        let Ok(mut watcher) = shared.events.watch(Sight::All, "") else { return };
        loop {
            let Ok(events) = watcher.next().await else { break };
            for record in events.iter().filter_map(|event| end(&audit, &shared, event)) {
                if record.task.is_empty() || seen.first(&record.task) {
                    audit.record(record);
                }
            }
        }
        // It fell so far behind that some are gone.
        audit.record(Record::new(world::now(), BERTH, "lost"));
    }
}

fn end(audit: &Audit, shared: &Shared, event: &v1::Event) -> Option<Record> {
    match event.subject.as_ref()? {
        Subject::Session(session) if session.state() == v1::SessionState::Ended => {
            let mut record = Record::new(world::now(), BERTH, "session ended");
            record.session.clone_from(&session.id);
            record.tenant.clone_from(&session.tenant);
            record.outcome = convert::end_reason(session.end_reason)?.name().to_owned();
            Some(record)
        }
        Subject::Task(task) if task.state() == v1::TaskState::Done => {
            let mut record = Record::new(world::now(), BERTH, "task ended");
            record.session.clone_from(&task.session_id);
            record.task.clone_from(&task.id);
            let id = task.session_id.parse().ok();
            let session = id.and_then(|id| shared.view.session(&Sight::All, &id));
            record.tenant = session.map(|session| session.spec.tenant.to_string()).unwrap_or_default();
            record.outcome = convert::outcome_words(task.end.as_ref()?);
            if let Some(spec) = &task.spec {
                record.details.insert("argv".to_owned(), argv(audit.settings.argv, spec));
            }
            Some(record)
        }
        _ => None,
    }
}
