//! What is known of the fleet at one moment.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use berth_client::{
    Client, Code, Error, ListOptions, SessionId, SessionState,
    model::{CoordinatorInfo, SessionInfo, SessionUsage, WorkerInfo},
};
use futures::StreamExt;
use serde::Serialize;

/// Sessions that are asked for their usage at once.
const AT_ONCE: usize = 8;
/// A session whose worker does not answer by then is shown without.
const WITHIN: Duration = Duration::from_secs(2);

/// A session, and what it takes.
#[derive(Clone, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub session: SessionInfo,
    /// `None`: it was not asked, or could not be.
    pub usage: Option<SessionUsage>,
    /// Of cores, since the look before. `None`: there was none.
    pub cpu: Option<f64>,
}

/// All of it.
#[derive(Clone, Serialize)]
pub struct Look {
    pub coordinator: CoordinatorInfo,
    /// `None`: they are not for this token.
    pub workers: Option<Vec<WorkerInfo>>,
    /// But those that have ended.
    pub sessions: Vec<Row>,
    /// Ids of those that wait for a place, the next first.
    pub queue: Vec<String>,
    /// Why it is not of now.
    #[serde(skip)]
    pub away: Option<String>,
}

/// CPU time at the last readings.
#[derive(Default)]
pub struct Rates(HashMap<SessionId, (SystemTime, Duration)>);

impl Rates {
    /// Cores that it kept busy since the reading before this one.
    fn of(&mut self, id: SessionId, usage: &SessionUsage) -> Option<f64> {
        let now = (usage.read_at, usage.cpu?);
        let (at, cpu) = self.0.insert(id, now)?;
        let passed = now.0.duration_since(at).ok().filter(|passed| !passed.is_zero())?;
        // A session that was placed anew begins at zero.
        Some(now.1.saturating_sub(cpu).as_secs_f64() / passed.as_secs_f64())
    }
}

impl Look {
    /// Looks. `asked`: the sessions that are asked for their usage.
    pub async fn take(client: &Client, rates: &mut Rates, asked: &[SessionId]) -> Result<Self, Error> {
        let workers = async {
            match client.workers().await {
                Ok(mut workers) => {
                    workers.sort_by(|a, b| a.id.cmp(&b.id));
                    Ok(Some(workers))
                }
                Err(error) if error.code() == Code::PermissionDenied => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (coordinator, workers, sessions) =
            tokio::try_join!(client.info(), workers, client.sessions(ListOptions::new()))?;
        let mut usages = usages(client, asked).await;
        rates.0.retain(|id, _| sessions.iter().any(|session| session.id == *id));
        let mut waiting: Vec<&SessionInfo> =
            sessions.iter().filter(|session| session.state == SessionState::Pending).collect();
        waiting.sort_by_key(|session| (session.queue_position.unwrap_or(u32::MAX), session.id));
        let queue = waiting.iter().map(|session| session.id.to_string()).collect();
        let row = |session: SessionInfo| {
            let usage = usages.remove(&session.id);
            let cpu = usage.as_ref().and_then(|usage| rates.of(session.id, usage));
            Row { session, usage, cpu }
        };
        let sessions = sessions.into_iter().map(row).collect();
        Ok(Self { coordinator, workers, sessions, queue, away: None })
    }

    /// The same, of before.
    pub fn away(self, why: String) -> Self {
        Self { away: Some(why), ..self }
    }
}

async fn usages(client: &Client, asked: &[SessionId]) -> HashMap<SessionId, SessionUsage> {
    futures::stream::iter(asked)
        .map(|id| async move {
            let usage = tokio::time::timeout(WITHIN, client.session(*id).usage()).await;
            Some((*id, usage.ok()?.ok()?))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a session that begins anew has had less than no time.
    #[test]
    fn a_rate_is_of_two_readings() {
        let (mut rates, id) = (Rates::default(), SessionId::new());
        let usage = |at: u64, cpu: u64| SessionUsage {
            read_at: SystemTime::UNIX_EPOCH + Duration::from_secs(at),
            cpu: Some(Duration::from_millis(cpu)),
            cpu_limit_millis: None,
            memory_bytes: None,
            memory_cache_bytes: None,
            memory_peak_bytes: None,
            memory_limit_bytes: None,
            pids: None,
            pids_limit: None,
            disk_bytes: None,
            disk_limit_bytes: None,
            inodes: None,
            inodes_limit: None,
            tasks: 0,
            tasks_limit: 0,
            summed: false,
        };
        assert_eq!(rates.of(id, &usage(10, 1000)), None);
        assert_eq!(rates.of(id, &usage(12, 4000)), Some(1.5));
        assert_eq!(rates.of(id, &usage(12, 4000)), None, "no time has passed");
        assert_eq!(rates.of(id, &usage(14, 0)), Some(0.0));
    }
}
