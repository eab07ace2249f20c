//! Who calls, and what with. Tokens are in the store as hashes, and here in memory as a map from hash to token: a call costs
//! one SHA-256 and one look-up, and no read of the store. (A hash of 256 random bits can't be steered, so how long the
//! look-up takes tells nothing; the hash that was found is still compared over all of its bytes.)
//!
//! Beside them the two tokens in the credential files ([`crate::auth`]) work as ever: `admin.token` is an admin of the tenant
//! `default`, `join.token` registers any number of workers, and neither expires nor can be revoked while its file is there.
//!
//! **A token that is over** is refused at the next call. What is under way with it ends too: each call holds its token's
//! [`Caller::ended`], which comes at once with a revocation, and with an expiry when that time comes, at the latest
//! [`LOOK_EVERY`] after a wall clock that was put forward.
//!
//! **A worker** that registers with a token of its scope is given a credential that is good for its worker id alone
//! ([`Identity::register`]), and shows that from then on. So a token for one worker can be for one worker: it is used up by
//! the worker id, and not by the attach. Should the answer that carries the credential be lost, the same token gives the same
//! worker id another one, until the worker has said that it keeps it.
//!
//! A change is made in a task of its own, one after the other: first in the store, then in memory. A caller that goes away
//! in between leaves no token that is revoked in the one and good in the other.

mod token;
mod tokens;

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, SystemTime},
};

use berth_proto::{Code, Error, Reason, TokenId, WorkerId, spawn::spawn, world};
use tokio::sync::{Mutex, oneshot};
use tokio_util::sync::CancellationToken;

pub use token::{Kind, State, Token};
use tokens::Tokens;

use crate::{
    auth::{Credentials, Digest, digest, random_hex, same},
    store::{Batch, Store},
    tenant::{Sight, Tenant},
};

/// Tokens that are kept, those included that are over.
const TOKENS_MAX: usize = 10_000;
/// How often the wall clock is looked at by what ends with a token.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What a call may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// What a tenant has: sessions, tasks, files, checkpoints.
    Client,
    /// What workers do.
    Worker,
    /// Everything that clients and operators do.
    Admin,
}

/// Who makes a call, as its token says. Nothing in the call itself can change it.
#[derive(Clone, Debug)]
pub struct Caller {
    pub scope: Scope,
    /// Whose sessions it makes.
    pub tenant: Tenant,
    /// `None`: from the credential files.
    pub token: Option<Arc<Token>>,
    over: CancellationToken,
}

impl Caller {
    /// Whose things it sees.
    pub fn sight(&self) -> Sight {
        match self.scope {
            Scope::Admin => Sight::All,
            Scope::Client | Scope::Worker => Sight::Of(self.tenant.clone()),
        }
    }

    /// Whether it is a worker that is registered, or may be any.
    pub fn is_registered(&self) -> bool {
        let kind = self.token.as_ref().map(|token| &token.kind);
        self.scope == Scope::Worker && !matches!(kind, Some(Kind::Join))
    }

    /// Comes when the token is over. `None`: it never is.
    pub fn ended(&self) -> Option<impl Future<Output = Error> + Send + use<>> {
        let token = self.token.as_ref()?;
        // What a worker registered with says nothing of the link that it made: that has a credential of its own.
        (token.kind != Kind::Join).then(|| ended(token.expires_at, self.over.clone()))
    }
}

async fn ended(expires_at: Option<SystemTime>, over: CancellationToken) -> Error {
    loop {
        let now = world::now();
        if expires_at.is_some_and(|at| at <= now) {
            return expired();
        }
        let left = expires_at.and_then(|at| at.duration_since(now).ok()).unwrap_or(LOOK_EVERY);
        tokio::select! {
            () = over.cancelled() => return revoked(),
            () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
        }
    }
}

/// A token to be made.
#[derive(Clone, Debug)]
pub struct New {
    pub name: String,
    pub kind: Kind,
    pub tenant: Tenant,
    pub ttl: Option<Duration>,
    pub uses: Option<u32>,
}

/// A worker's own credential, as it is handed over: the only time that it is seen.
pub struct Credential {
    pub token: Arc<Token>,
    pub value: String,
    pub over: CancellationToken,
}

/// See the module.
pub struct Identity {
    admin: Digest,
    join: Digest,
    store: Arc<dyn Store>,
    tokens: RwLock<Tokens>,
    changing: Mutex<()>,
}

impl Identity {
    pub fn new(credentials: &Credentials, store: Arc<dyn Store>, tokens: Vec<Token>) -> Arc<Self> {
        Arc::new(Self {
            admin: digest(credentials.admin_token.as_bytes()),
            join: digest(credentials.join_token.as_bytes()),
            store,
            tokens: RwLock::new(tokens.into_iter().collect()),
            changing: Mutex::default(),
        })
    }

    fn tokens(&self) -> RwLockReadGuard<'_, Tokens> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose call this is, by its `authorization` header.
    pub fn check(&self, header: Option<&[u8]>) -> Result<Caller, Error> {
        let Some(header) = header else {
            return Err(Error::new(Code::Unauthenticated, Reason::TokenMissing, "the call carries no token"));
        };
        let token = header.split_at_checked(7).filter(|(kind, _)| kind.eq_ignore_ascii_case(b"bearer "));
        let presented = digest(token.map_or(&[][..], |(_, token)| token.trim_ascii()));
        let of_file =
            |scope| Caller { scope, tenant: Tenant::default(), token: None, over: CancellationToken::new() };
        match (same(&presented, &self.admin), same(&presented, &self.join)) {
            (true, _) => return Ok(of_file(Scope::Admin)),
            (_, true) => return Ok(of_file(Scope::Worker)),
            (false, false) => {}
        }
        let Some((token, over)) = self.tokens().of_digest(&presented) else {
            let text = "the token is not known here";
            return Err(Error::new(Code::Unauthenticated, Reason::TokenInvalid, text));
        };
        match token.state(world::now()) {
            State::Revoked => return Err(revoked()),
            State::Expired => return Err(expired()),
            // Whether a worker may still register with one that is used up depends on which worker it is.
            State::Active | State::UsedUp => {}
        }
        let scope = match &token.kind {
            Kind::Client => Scope::Client,
            Kind::Admin => Scope::Admin,
            Kind::Join | Kind::Worker(_) => Scope::Worker,
        };
        Ok(Caller { scope, tenant: token.tenant.clone(), token: Some(token), over })
    }

    /// The tokens, newest first; `all`: those too that are over.
    pub fn list(&self, all: bool) -> Vec<Arc<Token>> {
        let now = world::now();
        let wanted = |token: &&Arc<Token>| all || token.state(now) == State::Active;
        self.tokens().iter().rev().filter(wanted).cloned().collect()
    }

    /// Makes a token: with it the one and only copy of what is to be sent.
    pub async fn create(self: &Arc<Self>, new: New) -> Result<(Arc<Token>, String), Error> {
        let this = self.clone();
        self.apart(async move {
            let _alone = this.changing.lock().await;
            this.forget_old().await?;
            if this.tokens().len() >= TOKENS_MAX {
                let text = format!("there are {TOKENS_MAX} tokens already");
                return Err(Error::exhausted(Reason::TooManyTokens, text));
            }
            let (token, value) = drawn(new);
            let token = Arc::new(token);
            this.save(vec![token.clone()]).await?;
            Ok((token, value))
        })
        .await
    }

    /// Ends a token, and all that is under way with it. With whether it was good until now.
    pub async fn revoke(self: &Arc<Self>, id: TokenId) -> Result<(Arc<Token>, bool), Error> {
        let this = self.clone();
        self.apart(async move {
            let _alone = this.changing.lock().await;
            let no_such = || Error::not_found(Reason::TokenNotFound, format!("no token has the id {id}"));
            let token = this.tokens().get(&id).ok_or_else(no_such)?;
            if token.revoked_at.is_some() {
                return Ok((token, false));
            }
            let token = Arc::new(Token { revoked_at: Some(world::now()), ..(*token).clone() });
            this.save(vec![token.clone()]).await?;
            tracing::info!(token.id = %id, name = token.name, "token revoked");
            Ok((token, true))
        })
        .await
    }

    /// A worker attaches, with its own credential or with what it registers with. Then there is a credential for it, unless
    /// that is `join.token`, which it can go on with.
    pub async fn register(
        self: &Arc<Self>,
        caller: &Caller,
        worker: &WorkerId,
    ) -> Result<Option<Credential>, Error> {
        let now = world::now();
        if let Some(Kind::Worker(own)) = caller.token.as_ref().map(|token| &token.kind) {
            return if own == worker { Ok(None) } else { Err(of_another(own, worker)) };
        }
        let holder = self.tokens().iter().find(|token| token.is_credential_of(worker, now)).cloned();
        let Some(join) = &caller.token else {
            return match holder {
                Some(holder) if holder.kept => Err(taken(worker, &holder)),
                _ => Ok(None),
            };
        };
        let (this, join, worker) = (self.clone(), join.id, worker.clone());
        self.apart(async move { this.issue(join, worker).await.map(Some) }).await
    }

    async fn issue(&self, join: TokenId, worker: WorkerId) -> Result<Credential, Error> {
        let _alone = self.changing.lock().await;
        let now = world::now();
        let join = self.tokens().get(&join).ok_or_else(revoked)?;
        let holder = self.tokens().iter().find(|token| token.is_credential_of(&worker, now)).cloned();
        let mut writes = Vec::new();
        match holder {
            // Its answer was lost: what it carried is good for nobody.
            Some(holder) if !holder.kept && holder.issued_by == Some(join.id) => {
                writes.push(Arc::new(Token { revoked_at: Some(now), ..(*holder).clone() }));
            }
            Some(holder) => return Err(taken(&worker, &holder)),
            None => match join.uses_left {
                Some(0) => return Err(used_up()),
                Some(left) => writes.push(Arc::new(Token { uses_left: Some(left - 1), ..(*join).clone() })),
                None => {}
            },
        }
        let name = format!("worker {worker}");
        let new = New { name, kind: Kind::Worker(worker), tenant: Tenant::default(), ttl: None, uses: None };
        let (token, value) = drawn(new);
        let token = Arc::new(Token { issued_by: Some(join.id), ..token });
        writes.push(token.clone());
        self.save(writes).await?;
        tracing::info!(token.id = %token.id, name = token.name, "a worker has registered");
        let over = self.tokens().of_digest(&token.digest).map(|(_, over)| over).unwrap_or_default();
        Ok(Credential { token, value, over })
    }

    /// The worker keeps its credential: what it registered with gives it no other.
    pub async fn kept(self: &Arc<Self>, id: TokenId) -> Result<(), Error> {
        let this = self.clone();
        self.apart(async move {
            let _alone = this.changing.lock().await;
            let known = this.tokens().get(&id).filter(|token| !token.kept);
            match known {
                Some(token) => this.save(vec![Arc::new(Token { kept: true, ..(*token).clone() })]).await,
                None => Ok(()),
            }
        })
        .await
    }

    /// Forgets what has been over for long.
    async fn forget_old(&self) -> Result<(), Error> {
        let now = world::now();
        let old: Vec<TokenId> =
            self.tokens().iter().filter(|token| token.is_forgotten(now)).map(|token| token.id).collect();
        if old.is_empty() {
            return Ok(());
        }
        let batch = Batch { forget_tokens: old.clone(), ..Batch::default() };
        self.store.commit(&batch).await.map_err(unsaved)?;
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).forget(&old);
        Ok(())
    }

    async fn save(&self, tokens: Vec<Arc<Token>>) -> Result<(), Error> {
        let batch = Batch { tokens, ..Batch::default() };
        self.store.commit(&batch).await.map_err(unsaved)?;
        let mut known = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        batch.tokens.into_iter().for_each(|token| known.put(token));
        Ok(())
    }

    /// Does it whether or not somebody waits for it.
    async fn apart<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, done) = oneshot::channel();
        spawn("identity", async move { drop(sender.send(change.await)) });
        let stopping = |_| Error::unavailable(Reason::ShuttingDown, "the coordinator is stopping");
        done.await.map_err(stopping)?
    }
}

/// A token, and what is to be sent for it.
fn drawn(new: New) -> (Token, String) {
    let value = format!("{}{}", new.kind.prefix(), random_hex());
    let now = world::now();
    let token = Token {
        id: TokenId::new(),
        digest: digest(value.as_bytes()),
        name: new.name,
        kind: new.kind,
        tenant: new.tenant,
        created_at: now,
        expires_at: new.ttl.map(|ttl| now + ttl),
        revoked_at: None,
        uses_left: new.uses,
        issued_by: None,
        kept: false,
    };
    (token, value)
}

/// What is said of a revoked token, and to whoever holds something open with it.
pub fn revoked() -> Error {
    Error::new(Code::Unauthenticated, Reason::TokenRevoked, "the token was revoked")
}

fn expired() -> Error {
    Error::new(Code::Unauthenticated, Reason::TokenExpired, "the token has expired")
}

fn used_up() -> Error {
    let text = "as many workers as this token is for have registered with it";
    Error::new(Code::Unauthenticated, Reason::TokenUsedUp, text)
}

fn of_another(own: &WorkerId, asked: &WorkerId) -> Error {
    let text = format!("this is the credential of worker {own}, and can't register worker {asked}");
    Error::new(Code::PermissionDenied, Reason::WorkerIdBound, text).hint(
        "give it the WORKER_ID back that it registered with, or a state directory and a token of its own",
    )
}

fn taken(worker: &WorkerId, holder: &Token) -> Error {
    let text = format!("worker {worker} has a credential of its own, and only that registers this id");
    Error::new(Code::PermissionDenied, Reason::WorkerIdBound, text).hint(format!(
        "give this worker another WORKER_ID; or, if that one's state directory is lost: berth token revoke {}",
        holder.id
    ))
}

fn unsaved(error: crate::store::StoreError) -> Error {
    Error::unavailable(Reason::StoreFailed, "the coordinator's store refused a write")
        .hint("nothing was changed: look at the disk under the coordinator's state directory, and try again")
        .cause(error.to_string())
}

#[cfg(test)]
mod tests;
