//! `SessionService`.
//!
//! CreateSession is the one call that waits for the world: the session is in the store
//! before its worker is told, and the call returns when the worker says that it is ready.
//! If the client goes away meanwhile, nobody will ever ask for the session, so it is ended
//! (`Abandoned`); with a request id the client can come back, and the session stays.

use std::time::Duration;

use berth_proto::{
    Code, Error, Reason, SessionId,
    convert::{self, bounds},
    domain::{CreateSession, Egress, EndReason, Labels, SessionState},
    spawn::spawn,
    v1::{self, session_service_server::SessionService},
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{
    Context,
    guard::{sight_of, tenant_of},
};
use crate::{
    audit::about,
    auth::Digest,
    checkpoints::{Record, Wanted},
    driver::{CallError, Handle},
    fleet::{
        Create, Event, NAME_LABEL, Refused, Session, Spec, Update, no_place, no_session, session_ended,
        session_parked,
    },
    templates::Template,
    tenant::{Sight, Tenant},
    wire,
};

/// Beyond the time for a place and for the start, in which the worker and the fleet decide.
const CREATE_MARGIN: Duration = Duration::from_secs(15);
/// How long DeleteSession waits for the worker to say that all is gone.
const DELETE_WITHIN: Duration = Duration::from_secs(10);
/// How long PauseSession and ResumeSession wait for the worker.
const PAUSE_WITHIN: Duration = Duration::from_secs(10);

pub struct Sessions {
    context: Context,
}

impl Sessions {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    fn session(&self, by: &Sight, id: &SessionId) -> Result<std::sync::Arc<Session>, Error> {
        self.context.shared.view.session(by, id).ok_or_else(|| no_session(id))
    }

    /// Says of those that wait where they stand in the queue.
    fn number(&self, sessions: &mut [v1::Session]) {
        let waits = |s: &&mut v1::Session| s.state() == v1::SessionState::Pending;
        let mut waiting = sessions.iter_mut().filter(waits).peekable();
        // Nearly always nobody does, and then nobody counts.
        if waiting.peek().is_none() {
            return;
        }
        let queue = self.context.shared.view.queue();
        for session in waiting {
            let id = session.id.parse::<SessionId>().ok();
            session.queue_position = id.and_then(|id| queue.get(&id)).copied().unwrap_or_default();
        }
    }

    /// Makes a session and waits until it is ready: of a template, or of a checkpoint.
    pub async fn create(
        &self,
        tenant: Tenant,
        wanted: CreateSession,
        from: Option<Origin<'_>>,
    ) -> Result<v1::Session, Status> {
        let keyed = wanted.request_id.is_some();
        let start = if from.is_some() { self.context.restore_timeout } else { self.context.start_timeout };
        let longest = (wanted.wait_for_place + start + CREATE_MARGIN).min(bounds::DURATION_MAX);
        // Armed before the driver is asked: the client may go away while it works.
        let fresh = SessionId::new();
        about("session", fresh);
        let sight = Sight::Of(tenant.clone());
        let abandoned = Abandoned::arm(&self.context.driver, fresh, keyed);
        let id = match self.enqueue(fresh, tenant, wanted, from).await {
            Ok(id) => id,
            Err(error) => {
                abandoned.disarm();
                return Err(error.into());
            }
        };
        let outcome = self.context.shared.view.wait(&sight, id, Instant::now() + longest, created).await;
        abandoned.disarm();
        let late = || {
            Error::new(Code::DeadlineExceeded, Reason::StartTimeout, "the session was not ready in time")
                .hint(format!("see how it stands: session {id}"))
        };
        Ok(outcome.unwrap_or_else(|| Err(late()))?)
    }

    /// Takes the checkpoint that a session's policy asks for before its end. Without it the session stays.
    async fn before_delete(&self, by: &Sight, id: SessionId) -> Result<(), Error> {
        let session = self.session(by, &id)?;
        let up = matches!(session.state, SessionState::Ready | SessionState::Paused);
        if !up || !session.spec.checkpoints.before_delete {
            return Ok(());
        }
        let wanted = Wanted::by_policy(v1::CheckpointCause::Delete, &session.spec.checkpoints);
        let taken = self.context.checkpoints.take(by, id, wanted).await;
        let refused = |error: Error| {
            let text =
                format!("the checkpoint before its end failed, so the session stays: {}", error.message());
            Error::new(error.code(), error.reason(), text)
                .hint("try again, or delete it without one (skip_checkpoint, `berth rm --no-checkpoint`)")
        };
        taken.map(drop).map_err(refused)
    }

    /// What a session has where its request says nothing.
    fn base(&self, template: &str, from: Option<&Record>) -> Result<Template, Error> {
        let Some(record) = from else { return Ok(self.context.templates.get(template)?.clone()) };
        // The template may have changed since, or be gone: the checkpoint's own stands.
        let clocks = self.context.templates.get(template).cloned().unwrap_or_else(|_| Template::base());
        Ok(Template {
            spec: record.spec.template.clone(),
            limits: record.spec.limits,
            env: record.spec.env.clone(),
            task_defaults: record.spec.task_defaults,
            egress: record.spec.egress.clone(),
            ..clocks
        })
    }

    /// Makes the session, or finds the one that the same request made before.
    async fn enqueue(
        &self,
        id: SessionId,
        tenant: Tenant,
        wanted: CreateSession,
        from: Option<Origin<'_>>,
    ) -> Result<SessionId, Error> {
        let body = body_hash(&wanted, from.map(|from| from.named));
        let from = from.map(|from| from.record);
        let template = self.base(&wanted.template, from)?;
        let mut env = template.env.clone();
        env.extend(wanted.env);
        let limits = wanted.limits.over(template.limits);
        if let Some(content) = from.map(|r| r.shown.content_bytes).filter(|bytes| *bytes > limits.disk_bytes)
        {
            let text =
                format!("the checkpoint's files have {content} bytes: {} are not enough", limits.disk_bytes);
            return Err(
                Error::invalid("session.limits.disk_bytes", text).hint("ask for more disk, or leave it out")
            );
        }
        let mut labels = from.map(inherited).unwrap_or_default();
        labels.extend(wanted.labels);
        let create = Create {
            id,
            labels,
            ttl: wanted.ttl.unwrap_or(template.ttl),
            idle_timeout: wanted.idle_timeout.unwrap_or(template.idle_timeout),
            restore: from.map(Record::kept),
            spec: Spec {
                tenant,
                template: template.spec.clone(),
                limits,
                env,
                on_worker_loss: wanted.on_worker_loss,
                checkpoints: wanted.checkpoints,
                selector: wanted.worker_selector,
                priority: wanted.priority,
                wait_for_place: wanted.wait_for_place,
                patient: wanted.patient,
                task_defaults: wanted.task_defaults.or(template.task_defaults),
                keyed: wanted.request_id.is_some(),
                from_checkpoint: from.is_some(),
                egress: wanted.egress.unwrap_or(template.egress),
            },
            key: wanted.request_id.map(|key| (key, body)),
        };
        match self.context.driver.call(Event::Create(Box::new(create))).await {
            Ok(()) => Ok(id),
            Err(CallError::Refused(Refused::AlreadyCreated(known))) => Ok(known),
            Err(error) => Err(error.into()),
        }
    }

    /// Pauses or resumes, and waits for it. To resume a parked session takes as long as to make one.
    async fn set_paused(&self, by: Sight, id: &str, paused: bool) -> Result<Response<v1::Session>, Status> {
        about("session", id);
        let id: SessionId = id.parse()?;
        self.context
            .driver
            .call(Event::Pause { by: by.clone(), session: id, paused })
            .await
            .map_err(Error::from)?;
        let wanted = if paused { SessionState::Paused } else { SessionState::Ready };
        let session = self.session(&by, &id)?;
        let longest = match session.comes_from_park() {
            true => session.spec.wait_for_place + self.context.restore_timeout + CREATE_MARGIN,
            false => PAUSE_WITHIN,
        };
        let deadline = Instant::now() + longest;
        let settled = self.context.shared.view.wait(&by, id, deadline, |session| match session {
            None => Some(Err(no_session(&id))),
            Some(s) if s.state == wanted => Some(Ok(wire::session(s))),
            // It stands as still as can be.
            Some(s) if s.state == SessionState::Parked && paused => Some(Ok(wire::session(s))),
            // With a worker its sandbox there still ends; without one it is back after a resume that failed.
            Some(s) if s.state == SessionState::Parked && s.worker.is_none() => Some(Err(not_resumed(s))),
            Some(s) if matches!(s.state, SessionState::Ending | SessionState::Ended) => {
                Some(Err(session_ended(s.end, &s.message)))
            }
            Some(_) => None,
        });
        let late = || {
            let what = if paused { "paused" } else { "resumed" };
            let words = format!("the worker did not say within {} s that it is {what}", longest.as_secs());
            Error::new(Code::DeadlineExceeded, Reason::WorkerUnreachable, words)
                .hint("it may be done yet: see the state with `berth ps`")
        };
        Ok(Response::new(settled.await.unwrap_or_else(|| Err(late()))?))
    }
}

#[tonic::async_trait]
impl SessionService for Sessions {
    async fn create_session(
        &self,
        request: Request<v1::CreateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let tenant = tenant_of(&request)?;
        let wanted = CreateSession::try_from(request.into_inner())?;
        Ok(Response::new(self.create(tenant, wanted, None).await?))
    }

    async fn get_session(
        &self,
        request: Request<v1::GetSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let by = sight_of(&request)?;
        let id: SessionId = request.into_inner().session_id.parse()?;
        let session = self.session(&by, &id)?;
        let mut shown = [wire::session(&session)];
        self.number(&mut shown);
        let [shown] = shown;
        Ok(Response::new(shown))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let by = sight_of(&request)?;
        let request = request.into_inner();
        let size = convert::page_size(request.page_size, bounds::PAGE_DEFAULT)?;
        let labels = convert::labels("labels", request.labels)?;
        let states: Vec<SessionState> =
            request.states.iter().map(|s| convert::session_state("states", *s)).collect::<Result<_, _>>()?;
        // The token is the last id of the page: ids grow with the time of creation.
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<SessionId>().map_err(|_| convert::bad_page_token())?),
        };
        let wanted = |s: &Session| {
            let state =
                if states.is_empty() { s.state != SessionState::Ended } else { states.contains(&s.state) };
            state && crate::placement::selected(&labels, &s.labels)
        };
        let found = self.context.shared.view.list(&by, before, size + 1, wanted);
        let mut sessions: Vec<v1::Session> = found.iter().map(|s| wire::session(s)).collect();
        self.number(&mut sessions);
        let more = wire::cut_page(&mut sessions, size);
        let last = sessions.last().filter(|_| more).map(|s| s.id.clone());
        Ok(Response::new(v1::ListSessionsResponse { sessions, next_page_token: last.unwrap_or_default() }))
    }

    async fn update_session(
        &self,
        request: Request<v1::UpdateSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        about("session", &request.get_ref().session_id);
        let by = sight_of(&request)?;
        let request = request.into_inner();
        let id: SessionId = request.session_id.parse()?;
        let set_labels = convert::labels("set_labels", request.set_labels)?;
        let known = self.session(&by, &id)?;
        let mut labels: Labels = known.labels.clone();
        labels.retain(|name, _| !request.remove_labels.contains(name));
        labels.extend(set_labels.clone());
        if labels.len() > bounds::LABELS {
            return Err(Error::invalid("set_labels", format!("more than {} labels", bounds::LABELS))
                .hint("remove some in the same call (remove_labels)")
                .into());
        }
        let update = Update {
            by: by.clone(),
            session: id,
            set_labels,
            remove_labels: request.remove_labels,
            ttl: convert::optional_limit("ttl", request.ttl)?,
            idle_timeout: convert::optional_limit("idle_timeout", request.idle_timeout)?,
            egress: request.egress.map(Egress::try_from).transpose()?,
        };
        self.context.driver.call(Event::Update(Box::new(update))).await.map_err(Error::from)?;
        Ok(Response::new(wire::session(&*self.session(&by, &id)?)))
    }

    async fn pause_session(
        &self,
        request: Request<v1::PauseSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        self.set_paused(sight_of(&request)?, &request.get_ref().session_id, true).await
    }

    async fn resume_session(
        &self,
        request: Request<v1::ResumeSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        self.set_paused(sight_of(&request)?, &request.get_ref().session_id, false).await
    }

    async fn delete_session(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        about("session", &request.get_ref().session_id);
        let by = sight_of(&request)?;
        let request = request.into_inner();
        let id: SessionId = request.session_id.parse()?;
        // What its tasks left is kept before it is gone, as far as that doesn't take long.
        if !self.context.artifacts.settle(&by, id, true).await {
            tracing::warn!(session.id = %id, "a session ends before all its artifacts are known to be kept");
        }
        if !request.skip_checkpoint {
            self.before_delete(&by, id).await?;
        }
        let reason = EndReason::Deleted;
        let delete = Event::Delete { by: by.clone(), session: id, reason };
        self.context.driver.call(delete).await.map_err(Error::from)?;
        let deadline = Instant::now() + DELETE_WITHIN;
        let ended = self.context.shared.view.wait(&by, id, deadline, |session| match session {
            None => Some(Err(no_session(&id))),
            Some(s) if s.state == SessionState::Ended => Some(Ok(wire::session(s))),
            Some(_) => None,
        });
        match ended.await {
            Some(session) => Ok(Response::new(session?)),
            // It will end: the worker is told again and again, or is gone. ENDING says so.
            None => Ok(Response::new(wire::session(&*self.session(&by, &id)?))),
        }
    }
}

/// What a session is made of that is not new.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub record: &'a Record,
    /// What the client named: a checkpoint, or the session that it forks. Part of the request, for its id.
    pub named: &'a str,
}

/// Labels of a checkpoint that go to a session made of it: all but the name, which is one session's alone.
fn inherited(record: &Record) -> Labels {
    let labels = record.shown.labels.iter().filter(|(name, _)| *name != NAME_LABEL);
    labels.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What CreateSession has to say of a session, once there is something to say.
fn created(session: Option<&Session>) -> Option<Result<v1::Session, Error>> {
    let Some(session) = session else {
        return Some(Err(Error::precondition(
            Reason::SessionEnded,
            "the session of this request id is over and forgotten",
        )
        .hint("draw a new request id")));
    };
    match session.state {
        SessionState::Pending | SessionState::Placed => None,
        SessionState::Ready | SessionState::Paused | SessionState::Parked => Some(Ok(wire::session(session))),
        SessionState::Ending | SessionState::Ended => Some(Err(failed(session))),
    }
}

fn failed(session: &Session) -> Error {
    let error = match session.end {
        Some(EndReason::NoPlace) if session.unservable => {
            Refused::TemplateUnavailable(session.message.clone()).into()
        }
        Some(EndReason::NoPlace) => no_place(&session.message),
        Some(EndReason::SandboxFailed) if session.start_timed_out => Error::new(
            Code::DeadlineExceeded,
            Reason::StartTimeout,
            words(session, "the sandbox was not ready in time"),
        )
        .hint("see the worker's log, and `berth workers`"),
        Some(EndReason::SandboxFailed) if session.ready_at.is_none() => {
            Error::new(Code::Internal, Reason::SandboxFailed, words(session, "the sandbox did not start"))
                .hint("see the worker's log, and `berth workers`")
        }
        reason => session_ended(reason, &session.message),
    };
    error.with("session_id", session.id)
}

/// Why a session is parked still.
fn not_resumed(session: &Session) -> Error {
    let error = match session.resume_failed {
        Some(EndReason::NoPlace) if session.unservable => {
            Refused::TemplateUnavailable(session.message.clone()).into()
        }
        Some(EndReason::NoPlace) => no_place(&session.message),
        Some(_) => Error::new(Code::Internal, Reason::SandboxFailed, session.message.clone())
            .hint("its files are safe: try again, or see the worker's log"),
        None => session_parked(&session.id),
    };
    error.with("session_id", session.id)
}

fn words(session: &Session, otherwise: &str) -> String {
    if session.message.is_empty() { otherwise.to_owned() } else { session.message.clone() }
}

/// Ends the session when the call is dropped before its end.
struct Abandoned {
    armed: Option<(Handle, SessionId)>,
}

impl Abandoned {
    fn arm(driver: &Handle, id: SessionId, keyed: bool) -> Self {
        Self { armed: (!keyed).then(|| (driver.clone(), id)) }
    }

    fn disarm(mut self) {
        self.armed = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let Some((driver, session)) = self.armed.take() else { return };
        spawn("abandoned session", async move {
            tracing::info!(session.id = %session, "the client went away before its session was ready");
            let delete = Event::Delete { by: Sight::All, session, reason: EndReason::Abandoned };
            if let Err(error) = driver.call(delete).await {
                tracing::warn!(session.id = %session, ?error, "an abandoned session was not ended");
            }
        });
    }
}

/// SHA-256 of what the client asked for, its request id apart. Fields are named and
/// lengths written out, so that two different bodies never look the same; maps are sorted.
fn body_hash(wanted: &CreateSession, from: Option<&str>) -> Digest {
    let mut text = String::new();
    let mut field = |name: &str, value: String| {
        text.push_str(&format!("{name}:{}:{value};", value.len()));
    };
    let limits = &wanted.limits;
    field("template", wanted.template.clone());
    field("cpu", format!("{:?}", limits.cpu_millis));
    field("memory", format!("{:?}", limits.memory_bytes));
    field("disk", format!("{:?}", limits.disk_bytes));
    field("pids", format!("{:?}", limits.pids));
    for (name, map) in
        [("env", &wanted.env), ("labels", &wanted.labels), ("selector", &wanted.worker_selector)]
    {
        field(name, map.len().to_string());
        for (key, value) in map {
            field("k", key.clone());
            field("v", value.clone());
        }
    }
    let nanos = |d: Option<Duration>| d.map(|d| d.as_nanos());
    field("ttl", format!("{:?}", wanted.ttl.map(nanos)));
    field("idle", format!("{:?}", wanted.idle_timeout.map(nanos)));
    field("priority", wanted.priority.to_string());
    field("wait", wanted.wait_for_place.as_nanos().to_string());
    let defaults = &wanted.task_defaults;
    field("timeout", format!("{:?}", defaults.timeout.map(nanos)));
    field("pty", format!("{:?}", defaults.pty_size.map(|p| (p.cols, p.rows))));
    field("tasks", format!("{:?}", defaults.max_concurrent));
    field("loss", format!("{:?}", wanted.on_worker_loss));
    let policy = &wanted.checkpoints;
    field("interval", format!("{:?}", nanos(policy.interval)));
    field("taken", format!("{} {}", policy.on_drain, policy.before_delete));
    field("kept", format!("{} {}", policy.keep, policy.keep_for.as_nanos()));
    field("from", from.unwrap_or_default().to_owned());
    // Only where it is given: the hash of what a client sent before there was any stays what it was.
    if let Some(egress) = &wanted.egress {
        field("egress", egress.preset.to_string());
        egress.allow.iter().for_each(|rule| field("allow", rule.to_string()));
    }
    crate::auth::digest(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(change: impl FnOnce(&mut v1::CreateSessionRequest)) -> Digest {
        let mut request = v1::CreateSessionRequest {
            env: (0..50).map(|n| (format!("k{n}"), format!("v{n}"))).collect(),
            ..Default::default()
        };
        change(&mut request);
        body_hash(&CreateSession::try_from(request).unwrap(), None)
    }

    /// Red when the hash is of nothing.
    #[test]
    fn the_same_body_has_the_same_hash_and_no_other() {
        let plain = wanted(|_| {});
        assert_eq!(plain, wanted(|r| r.request_id = "x".into()));
        assert_eq!(plain, wanted(|r| r.template = "base".into()));
        assert_ne!(plain, wanted(|r| r.priority = 1));
        assert_ne!(plain, wanted(|r| r.egress = Some(v1::Egress::default())));
        assert_ne!(plain, wanted(|r| r.ttl = Some(prost_types::Duration { seconds: 0, nanos: 0 })));
        assert_ne!(plain, wanted(|r| drop(r.labels.insert("a".into(), "b".into()))));
        assert_ne!(plain, wanted(|r| drop(r.env.insert("k0".into(), "other".into()))));
    }
}
