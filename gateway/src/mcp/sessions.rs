//! In which session a call happens.
//!
//! A client has one session of its own. It is made on the first call that needs one, for that client alone, and ends with
//! the client; should the gateway be killed, its idle timeout ends it. Other sessions a client has only by saying so: by
//! name or id, in the argument `session` that every tool takes. What it may reach is what its token may: the coordinator
//! decides, here nothing is kept that could decide otherwise.
//!
//! Sessions that the client made and did not name end with it too. One with a name is there to be come back to: its idle
//! timeout and its life span end it.
//!
//! To make a session takes a moment, and a call may be cancelled in it. What is then being made must not be lost sight
//! of, so it is made in a task of its own, which no call's end cuts off.

use std::{
    sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError},
    time::Duration,
};

use berth_client::{
    Client, ConnectOptions, CreateOptions, ListOptions, NAME_LABEL, Session, SessionId, model::SessionInfo,
};
use berth_proto::spawn::spawn;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use tokio::{
    sync::{Mutex, OnceCell, oneshot},
    time::timeout,
};

use super::{
    conversations::{Link, Made},
    problem::Problem,
    reached::Reached,
    text,
    venv::Venvs,
};

/// Label of every session that is made here: for which client.
pub const CLIENT_LABEL: &str = "mcp.client";
/// Where nothing else is said: a session nobody uses for so long ends.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Where nothing else is said: the life span. An agent's conversation lasts longer than a template's usual hour.
pub const TTL: Duration = Duration::from_secs(24 * 3600);
/// Sessions with a name that a client made and that are still listed as its own.
const REMEMBERED: usize = 200;
/// To end what the client left may take so long.
const ENDING: Duration = Duration::from_secs(60);

/// How the coordinator is reached. Asked on the first call that needs it, and again after a failure: a client of ours
/// shows no model why its server did not start, so a server starts always, and its tools say what is wrong.
pub type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Client, Problem>> + Send + Sync>;

/// The way to a coordinator.
pub fn connect(options: ConnectOptions) -> Connect {
    Box::new(move || Client::connect(options.clone()).map(|client| client.map_err(Problem::from)).boxed())
}

/// Where calls go that name no session.
pub enum Own {
    /// To a session made for this client with these options.
    Make(Box<CreateOptions>),
    /// To one that was there before, by id or name, and stays.
    Named(String),
    /// Nowhere: this client can't be told from others, and must say which session it means.
    MustSay,
}

impl Own {
    /// Where nothing else is asked for.
    pub fn usual() -> Self {
        Self::Make(Box::new(CreateOptions::new().ttl(TTL).idle_timeout(IDLE_TIMEOUT)))
    }
}

/// The sessions of one client.
pub struct Sessions {
    connect: Connect,
    berth: OnceCell<Client>,
    own: Own,
    /// `None`: not over HTTP.
    pub reached: Option<Reached>,
    made: Mutex<OwnSession>,
    /// Those that were made for it, in their order.
    of_client: StdMutex<Vec<Made>>,
    /// What its conversation is, where it has one that outlives this process.
    link: OnceLock<Arc<Link>>,
    pub venvs: Venvs,
}

/// The client's own session.
#[derive(Default)]
struct OwnSession {
    session: Option<SessionId>,
    /// The client is gone: nothing is made for it any more.
    closed: bool,
}

impl Sessions {
    /// For a client that is not reached over HTTP.
    pub fn new(connect: Connect, own: Own) -> Arc<Self> {
        Self::reached_at(connect, own, None)
    }

    pub(super) fn reached_at(connect: Connect, own: Own, reached: Option<Reached>) -> Arc<Self> {
        let (made, of_client, venvs) = (Mutex::default(), StdMutex::default(), Venvs::default());
        let (berth, link) = (OnceCell::new(), OnceLock::new());
        Arc::new(Self { connect, berth, own, reached, made, of_client, link, venvs })
    }

    /// They are of this conversation, which may have had some before.
    pub(super) async fn belong_to(&self, link: Arc<Link>) {
        let had = link.take_sessions();
        self.made.lock().await.session = had.iter().find(|made| made.own).map(|made| made.id);
        *self.listed() = had;
        let _ = self.link.set(link);
    }

    /// Whether their client may come back to them: nobody has ended its conversation.
    pub(super) fn go_on(&self) -> bool {
        self.link.get().and_then(|link| link.conversation()).is_none_or(|conversation| conversation.goes_on())
    }

    /// What is true of the client's sessions by now is kept for as long as its conversation.
    async fn keep(self: &Arc<Self>) {
        if let Some(conversation) = self.link.get().and_then(|link| link.conversation()) {
            let this = Arc::clone(self);
            conversation.keep(move || this.listed().clone()).await;
        }
    }

    /// The coordinator, as this client's token has it.
    pub async fn berth(&self) -> Result<&Client, Problem> {
        self.berth.get_or_try_init(&self.connect).await
    }

    /// The session that `named` means: an id, or a name. Without one, the client's own, which is made if there is none.
    pub async fn find(
        self: &Arc<Self>,
        named: Option<&str>,
        client: Option<&str>,
    ) -> Result<Session, Problem> {
        if let Some(named) = named {
            return self.named(named).await;
        }
        match &self.own {
            Own::Named(named) => self.named(named).await,
            Own::MustSay => Err(Problem::new(
                "there is no session that calls of this client go to by themselves",
                "call session_create once, and give the `session` that it answers with to every tool",
            )),
            Own::Make(options) => {
                let options = CreateOptions::clone(options).label(CLIENT_LABEL, label(client));
                let (this, (tell, told)) = (Arc::clone(self), oneshot::channel());
                spawn("mcp session", async move {
                    let _ = tell.send(this.own_or_make(options).await);
                });
                told.await.unwrap_or_else(|_| Err(Problem::new("no session could be made", "call again")))
            }
        }
    }

    async fn own_or_make(self: &Arc<Self>, options: CreateOptions) -> Result<Session, Problem> {
        let mut made = self.made.lock().await;
        if let Some(id) = made.session {
            return Ok(self.berth().await?.session(id));
        }
        if made.closed {
            return Err(Problem::cancelled());
        }
        let session = self.berth().await?.create_session(options).await?;
        tracing::info!(session.id = %session.id(), "made a session for an MCP client");
        self.remember(Made { id: session.id(), ends: true, own: true });
        made.session = Some(session.id());
        self.keep().await;
        Ok(session)
    }

    async fn named(&self, named: &str) -> Result<Session, Problem> {
        let berth = self.berth().await?;
        if let Ok(id) = named.parse::<SessionId>() {
            return Ok(berth.session(id));
        }
        let found = berth.sessions(ListOptions::new().label(NAME_LABEL, named)).await?;
        match &found[..] {
            [info] => Ok(berth.session(info.id)),
            // Names are each tenant's own, and some tokens see more than one.
            [_, _, ..] => {
                let ids: Vec<_> = found.iter().take(10).map(|info| info.id.to_string()).collect();
                Err(Problem::new(
                    format!("{} sessions are called {named:?}: {}", found.len(), ids.join(", ")),
                    "give one of these ids as `session`",
                ))
            }
            [] => Err(Problem::new(
                format!("no session is called {named:?}"),
                "make it with session_create and that `name`, or leave `session` out to work in your own",
            )),
        }
    }

    /// Makes one more. `named`: it outlives the client, as does any of one that can't be told from others.
    pub async fn make(
        self: &Arc<Self>,
        options: CreateOptions,
        named: bool,
        client: Option<&str>,
    ) -> Result<SessionInfo, Problem> {
        let options = options.label(CLIENT_LABEL, label(client));
        let stays = named || matches!(self.own, Own::MustSay);
        let berth = self.berth().await?.clone();
        let (this, (tell, told)) = (Arc::clone(self), oneshot::channel());
        spawn("mcp session", async move {
            let made = berth.create(options).await.map_err(Problem::from);
            if let Ok(info) = &made {
                this.remember(Made { id: info.id, ends: !stays, own: false });
                this.keep().await;
            }
            // Nobody waits for it any more: nobody will know of it either.
            if let Err(Ok(info)) = tell.send(made)
                && !stays
            {
                let _ = berth.session(info.id).delete().await;
            }
        });
        told.await.unwrap_or_else(|_| Err(Problem::new("no session could be made", "call again")))
    }

    /// A call found `session` ended: if it was the client's own, the next call gets a new one.
    pub async fn failed(self: &Arc<Self>, problem: Problem) -> Problem {
        if !problem.is_gone() {
            return problem;
        }
        let Some(own) = self.made.lock().await.session else { return problem };
        let Ok(berth) = self.berth().await else { return problem };
        match berth.session(own).info().await {
            Ok(info) if info.end_reason.is_none() => problem,
            _ => {
                self.forget(own).await;
                problem.with_hint(
                    "what was in it is gone; the next call without `session` starts in a new, empty session",
                )
            }
        }
    }

    /// It has been ended: it is nobody's own any more.
    pub async fn forget(self: &Arc<Self>, id: SessionId) {
        let mut made = self.made.lock().await;
        if made.session == Some(id) {
            made.session = None;
        }
        self.listed().retain(|made| made.id != id);
        self.venvs.forget(id);
        self.keep().await;
    }

    /// The sessions of this client: its own, if there is one by now, and those that it made and did not end. Those that it
    /// only named are not.
    pub async fn mine(&self) -> Result<Vec<SessionId>, Problem> {
        let mut all: Vec<SessionId> = self.listed().iter().map(|made| made.id).collect();
        if let Own::Named(named) = &self.own {
            let named = self.named(named).await?.id();
            all.retain(|id| *id != named);
            all.insert(0, named);
        }
        Ok(all)
    }

    /// Its client can't be told from others: what it made before is not known here.
    pub fn is_alone(&self) -> bool {
        matches!(self.own, Own::MustSay)
    }

    fn remember(&self, made: Made) {
        let mut all = self.listed();
        all.push(made);
        // Those with a name end by themselves, and nobody says so here.
        if all.len() > REMEMBERED
            && let Some(oldest) = all.iter().position(|made| !made.ends)
        {
            all.remove(oldest);
        }
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, Vec<Made>> {
        self.of_client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client is gone: ends what was made for it, also what is just being made.
    pub async fn end(&self) {
        if let Some(conversation) = self.link.get().and_then(|link| link.conversation()) {
            conversation.end().await;
        }
        let ended = timeout(ENDING, async {
            let mut made = self.made.lock().await;
            made.closed = true;
            made.session = None;
            let ids: Vec<_> = std::mem::take(&mut *self.listed())
                .into_iter()
                .filter(|made| made.ends)
                .map(|made| made.id)
                .collect();
            if ids.is_empty() {
                return;
            }
            let berth = match self.berth().await {
                Ok(berth) => berth,
                Err(error) => {
                    tracing::warn!(%error, "a client's sessions were not ended; their idle timeouts end them");
                    return;
                }
            };
            join_all(ids.into_iter().map(async |id| {
                if let Err(error) = berth.session(id).delete().await {
                    tracing::warn!(session.id = %id, ?error, "a session was not ended; its idle timeout ends it");
                }
            }))
            .await;
        });
        if ended.await.is_err() {
            tracing::warn!("sessions were not ended within a minute; their idle timeouts end them");
        }
    }
}

/// What a client calls itself is its own affair, up to a label's size.
fn label(client: Option<&str>) -> String {
    text::clipped(client.unwrap_or("unknown"), 200)
}
