//! The control plane: sandboxes made, found, changed and ended. A sandbox is a session, whoever made it.

use std::time::{Duration, SystemTime};

use berth_client::{
    CreateOptions, Labels, ListOptions, Reason, Session, SessionId, UpdateOptions, model::SessionInfo,
};
use berth_proto::{convert::bounds, world};
use http::{HeaderMap, Method, Response, StatusCode};
use ring::digest;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    access::Access,
    body::{Body, Upload, empty, json_response, message},
    metrics,
    network::{self, Network},
    pool::Lease,
    problem::Problem,
    public::Public,
    sandbox::{self, Metadata},
    snapshots, text,
};

/// Bytes of a request: env and metadata are in it.
const REQUEST_MAX: usize = 1 << 20;
/// Of a sandbox that does not say how long it lives.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How long a paused sandbox is kept, as E2B keeps it.
const PAUSED_FOR: Duration = Duration::from_secs(30 * 86_400);
const PAGE_MAX: usize = 100;
/// What the code interpreter's SDK asks for unless it is told otherwise.
const INTERPRETER: &str = "code-interpreter-v1";

/// One request.
pub struct Call {
    pub method: Method,
    /// Below `/`, or below `/v2`.
    pub path: Vec<String>,
    pub v2: bool,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Upload,
}

/// The control plane for one caller.
pub struct Control<'a> {
    pub lease: Lease,
    pub token: String,
    pub access: &'a Access,
    pub public: &'a Public,
    pub series: &'a metrics::Series,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct New {
    #[serde(rename = "templateID")]
    template_id: String,
    timeout: Option<i64>,
    metadata: Option<Metadata>,
    env_vars: Option<Metadata>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    network: Option<Network>,
    auto_pause: Option<bool>,
    mcp: Option<Value>,
    iam: Option<Value>,
    volume_mounts: Option<Vec<Value>>,
}

/// Of connect, pause, resume, timeout and refreshes: each uses some of it.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Change {
    timeout: Option<i64>,
    duration: Option<i64>,
    memory: Option<bool>,
    auto_pause: Option<bool>,
}

impl Control<'_> {
    pub async fn answer(&self, call: Call) -> Result<Response<Body>, Problem> {
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        match (call.method.as_str(), &path[..]) {
            ("POST", ["sandboxes"]) => Box::pin(self.create(&call.headers, call.body)).await,
            ("GET", ["sandboxes"]) => self.list(&call.query, call.v2).await,
            ("GET", ["snapshots"]) => snapshots::list(self, &call.query).await,
            ("DELETE", ["templates", id]) => snapshots::delete(self, id).await,
            // No SDK asks for the metrics of several.
            (method, ["sandboxes", "metrics"]) => Err(unserved(method, &path)),
            ("GET", ["sandboxes", id, "metrics"]) => {
                let session = self.session(id)?;
                metrics::of(self.series, &session, &self.live(&session).await?, &call.query).await
            }
            (_, ["sandboxes", _, "logs"]) => Err(Problem::unserved(
                "a sandbox has no log of its own (hint: `commands.connect` gives the output of a command, `berth logs` too)",
            )),
            (_, ["sandboxes", id, rest @ ..]) => {
                let session = self.session(id)?;
                self.about(&session, call.method.as_str(), rest, call.body).await
            }
            (method, _) => Err(unserved(method, &path)),
        }
    }

    async fn about(
        &self,
        session: &Session,
        method: &str,
        rest: &[&str],
        body: Upload,
    ) -> Result<Response<Body>, Problem> {
        match (method, rest) {
            ("GET", []) => Ok(json_response(StatusCode::OK, &self.detailed(&self.live(session).await?))),
            ("DELETE", []) => self.kill(session).await,
            ("POST", ["timeout"]) => {
                let timeout = read::<Change>(body).await?.timeout;
                let timeout = timeout.ok_or_else(|| Problem::invalid("timeout is missing"))?;
                self.live(session).await?;
                session.update(UpdateOptions::new().ttl(span(timeout)?)).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            ("POST", ["refreshes"]) => {
                let seconds = read::<Change>(body).await?.duration.unwrap_or(0);
                let info = self.live(session).await?;
                self.prolong(session, &info, span(seconds)?).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            ("POST", ["connect" | "resume"]) => self.connect(session, read(body).await?).await,
            ("POST", ["pause"]) => self.pause(session, read(body).await?).await,
            ("PUT", ["network"]) => {
                let network: Network = read(body).await?;
                let info = self.live(session).await?;
                self.update_network(session, &info, &network).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            ("POST", ["snapshots"]) => snapshots::take(session, read(body).await?).await,
            ("POST", ["fork"]) => snapshots::fork(self, session, read(body).await?).await,
            _ => Err(unserved(method, rest)),
        }
    }

    /// The session that an id names. What is no id of ours is a sandbox that is not there.
    fn session(&self, id: &str) -> Result<Session, Problem> {
        let parsed = id.parse::<SessionId>().ok().filter(|parsed| parsed.to_string() == id);
        parsed.map(|id| self.lease.session(id)).ok_or_else(|| missing(id))
    }

    /// What is known of a session that is not over.
    async fn live(&self, session: &Session) -> Result<SessionInfo, Problem> {
        let info = session.info().await?;
        match sandbox::state(&info) {
            Some(_) => Ok(info),
            None => Err(missing(&info.id.to_string())),
        }
    }

    pub fn handle(&self, info: &SessionInfo) -> Value {
        let (access, traffic) =
            (self.access.grant(info.id, &self.token), self.access.traffic(info.id, &self.token));
        sandbox::handle(info, &access, &traffic)
    }

    fn detailed(&self, info: &SessionInfo) -> Value {
        sandbox::detailed(info, &self.access.grant(info.id, &self.token))
    }

    async fn create(&self, headers: &HeaderMap, body: Upload) -> Result<Response<Body>, Problem> {
        let new: New = read(body).await?;
        refuse_unserved(&new)?;
        let mut options = lasting(new.timeout)?;
        let labels = sandbox::labels(new.metadata.as_ref().unwrap_or(&Metadata::new()))?;
        for (name, value) in &labels {
            options = options.label(name, value);
        }
        for (name, value) in new.env_vars.unwrap_or_default() {
            options = options.env(name, value);
        }
        if let Some(egress) = network::egress(new.allow_internet_access, new.network.as_ref())? {
            options = options.egress(egress);
        }
        if let Some(key) = headers.get("idempotency-key") {
            options = options.request_id(request_id(key.as_bytes()));
        }
        let info = self.made(&new.template_id, options, &labels).await?;
        if new.network.as_ref().and_then(Network::public) == Some(true) {
            let session = self.lease.session(info.id);
            if let Err(problem) = self.public.set(&session, true, self.access, &self.token).await {
                // Nobody would know of it.
                let _ = session.delete().await;
                return Err(problem);
            }
        }
        Ok(json_response(StatusCode::CREATED, &self.handle(&info)))
    }

    async fn made(
        &self,
        template: &str,
        options: CreateOptions,
        labels: &Labels,
    ) -> Result<SessionInfo, Problem> {
        if let Some(checkpoint) = snapshots::checkpoint(template) {
            return snapshots::restore(self, checkpoint, options, labels).await;
        }
        match self.lease.create(options.clone().template(template)).await {
            // An operator may have one of that name, with what it takes. If not, the usual one has Python.
            Err(error) if template == INTERPRETER && error.is(Reason::TemplateNotFound) => {
                Ok(self.lease.create(options).await?)
            }
            made => Ok(made?),
        }
    }

    async fn list(&self, query: &[(String, String)], v2: bool) -> Result<Response<Body>, Problem> {
        let filter = Filter::of(query, v2)?;
        let mut options = ListOptions::new();
        for (name, value) in sandbox::labels(&filter.metadata)? {
            options = options.label(name, value);
        }
        let mut sessions = self.lease.sessions(options).await?;
        sessions.retain(|info| filter.takes(info));
        // Ids begin with the time at which they were made: an order that a page can go on from.
        sessions.sort_by_key(|info| info.id);
        if !filter.ascending {
            sessions.reverse();
        }
        let begin = filter.after.map_or(0, |after| {
            sessions
                .partition_point(|info| if filter.ascending { info.id <= after } else { info.id >= after })
        });
        let page = &sessions[begin..(begin + filter.limit).min(sessions.len())];
        let last = page.last().filter(|_| begin + page.len() < sessions.len());
        let next = last.map(|last| last.id.to_string());
        Ok(paged(page.iter().map(sandbox::listed).collect(), next.as_deref()))
    }

    async fn kill(&self, session: &Session) -> Result<Response<Body>, Problem> {
        self.live(session).await?;
        session.delete().await?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// An update says all that is to hold: what it leaves out is as it was for a new sandbox. Of the ports alone it may
    /// speak too; then what the sandbox reaches stays.
    async fn update_network(
        &self,
        session: &Session,
        info: &SessionInfo,
        network: &Network,
    ) -> Result<(), Problem> {
        let egress = match network::egress(None, Some(network))? {
            Some(egress) => Some(egress),
            None if network.says_nothing_of_egress() && network.public().is_some() => None,
            None => {
                let templates = self.lease.templates().await?;
                let template = templates.into_iter().find(|template| template.name == info.template);
                Some(network::of_template(&template.ok_or_else(|| template_gone(&info.template))?)?)
            }
        };
        if let Some(egress) = egress {
            session.update(UpdateOptions::new().egress(egress)).await?;
        }
        if let Some(public) = network.public() {
            self.public.set(session, public, self.access, &self.token).await?;
        }
        Ok(())
    }

    async fn connect(&self, session: &Session, change: Change) -> Result<Response<Body>, Problem> {
        if change.memory == Some(false) {
            return Err(Problem::unserved("a resume from disk alone is not served: leave `memory` out"));
        }
        refuse_auto_pause(change.auto_pause)?;
        let info = self.live(session).await?;
        if sandbox::state(&info) == Some("paused") {
            session.resume().await?;
            let ttl = change.timeout.map_or(Ok(TIMEOUT), span)?;
            let info = session.update(UpdateOptions::new().ttl(ttl)).await?;
            return Ok(json_response(StatusCode::CREATED, &self.handle(&info)));
        }
        if let Some(timeout) = change.timeout {
            self.prolong(session, &info, span(timeout)?).await?;
        }
        Ok(json_response(StatusCode::OK, &self.handle(&info)))
    }

    /// Who connects may give a sandbox more time, and takes none from others.
    async fn prolong(&self, session: &Session, info: &SessionInfo, ttl: Duration) -> Result<(), Problem> {
        if info.expires_at.is_some_and(|at| at < world::now() + ttl) {
            session.update(UpdateOptions::new().ttl(ttl)).await?;
        }
        Ok(())
    }

    async fn pause(&self, session: &Session, change: Change) -> Result<Response<Body>, Problem> {
        if change.memory == Some(false) {
            return Err(Problem::unserved(
                "a pause that keeps files alone is not served: leave `memory` out",
            ));
        }
        let info = self.live(session).await?;
        if sandbox::state(&info) == Some("paused") {
            return Err(Problem::exists("the sandbox is paused already"));
        }
        // First, or it could end in between.
        session.update(UpdateOptions::new().ttl(PAUSED_FOR)).await?;
        if let Err(error) = session.pause().await {
            let left =
                info.expires_at.map(|at| at.duration_since(world::now()).unwrap_or(Duration::from_millis(1)));
            session.update(UpdateOptions::new().ttl(left.unwrap_or_default())).await?;
            return Err(error.into());
        }
        Ok(empty(StatusCode::NO_CONTENT))
    }
}

/// What a new sandbox lives for. E2B's have no other end.
pub fn lasting(timeout: Option<i64>) -> Result<CreateOptions, Problem> {
    let ttl = timeout.map_or(Ok(TIMEOUT), span)?;
    Ok(CreateOptions::new().ttl(ttl).idle_timeout(Duration::ZERO))
}

/// Seconds from now. None at all is the end at once: zero is no end for Berth.
fn span(seconds: i64) -> Result<Duration, Problem> {
    let seconds = u64::try_from(seconds).map_err(|_| Problem::invalid("timeout: seconds of zero or more"))?;
    let span = Duration::from_secs(seconds).max(Duration::from_millis(1));
    if span > bounds::DURATION_MAX {
        return Err(Problem::invalid("timeout: longer than ten years"));
    }
    Ok(span)
}

fn missing(id: &str) -> Problem {
    Problem::gone(format!("sandbox {:?} is not there: it was killed, or reached its timeout", clipped(id)))
}

fn template_gone(name: &str) -> Problem {
    Problem::invalid(format!(
        "network: the template {name:?} is no more, and with it what it allowed (hint: say what shall be reached)"
    ))
}

fn clipped(id: &str) -> &str {
    &id[..id.floor_char_boundary(64)]
}

fn unserved(method: &str, path: &[&str]) -> Problem {
    Problem::unserved(format!(
        "{method} …/{} is not served: docs/e2b.md lists what is",
        clipped(&path.join("/"))
    ))
}

fn refuse_auto_pause(asked: Option<bool>) -> Result<(), Problem> {
    if asked == Some(true) {
        return Err(Problem::unserved(
            "a sandbox that is paused at its timeout is not served: it ends then (hint: give it a longer timeout, or pause it)",
        ));
    }
    Ok(())
}

fn refuse_unserved(new: &New) -> Result<(), Problem> {
    refuse_auto_pause(new.auto_pause)?;
    let set = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
    let asked = [
        ("mcp", set(&new.mcp)),
        ("iam", set(&new.iam)),
        ("volumeMounts", new.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty())),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((name, _)) => Err(Problem::unserved(format!("{name} is not served: leave it out"))),
        None => Ok(()),
    }
}

/// Its hash: keys may be longer than Berth's.
fn request_id(key: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, key);
    hash.as_ref().iter().fold("e2b-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

pub async fn read<M: DeserializeOwned>(body: Upload) -> Result<M, Problem> {
    let bytes = message(body, REQUEST_MAX).await?;
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| Problem::invalid(format!("no such request: {error}")))
}

/// Which sandboxes to list.
#[derive(Debug)]
struct Filter {
    metadata: Metadata,
    states: Vec<String>,
    template: Option<String>,
    since: Option<SystemTime>,
    ascending: bool,
    limit: usize,
    after: Option<SessionId>,
}

impl Filter {
    fn of(query: &[(String, String)], v2: bool) -> Result<Self, Problem> {
        let value = |name| text::value(query, name).filter(|value| !value.is_empty());
        let wrong = |name: &'static str| move || Problem::invalid(format!("{name}: no such value"));
        let usual: &[&str] = if v2 { &["running", "paused"] } else { &["running"] };
        let mut states: Vec<String> = usual.iter().map(|state| (*state).to_owned()).collect();
        let asked = query.iter().filter(|(name, _)| name == "state").flat_map(|(_, value)| value.split(','));
        let asked: Vec<String> = asked.map(str::to_owned).collect();
        if !asked.is_empty() {
            states = asked;
        }
        if states.iter().any(|state| state != "running" && state != "paused") {
            return Err(Problem::invalid("state: running or paused"));
        }
        // Encoded once as pairs and, within these, once more.
        let pairs = text::query(value("metadata").unwrap_or_default()).into_iter();
        let metadata =
            pairs.map(|(key, value)| (text::percent_decoded(&key), text::percent_decoded(&value))).collect();
        Ok(Self {
            metadata,
            states,
            template: value("template").map(str::to_owned),
            since: value("startedAfter")
                .map(|at| text::parsed_time(at).ok_or_else(wrong("startedAfter")))
                .transpose()?,
            ascending: match value("order") {
                None | Some("desc") => false,
                Some("asc") => true,
                Some(_) => return Err(wrong("order")()),
            },
            limit: page_limit(value("limit"))?,
            after: value("nextToken").map(|id| id.parse().map_err(|_| wrong("nextToken")())).transpose()?,
        })
    }

    fn takes(&self, info: &SessionInfo) -> bool {
        sandbox::state(info).is_some_and(|state| self.states.iter().any(|wanted| wanted == state))
            && self.template.as_ref().is_none_or(|template| *template == info.template)
            && self.since.is_none_or(|since| sandbox::started_at(info) >= since)
    }
}

/// So many of a list.
pub fn page_limit(asked: Option<&str>) -> Result<usize, Problem> {
    let Some(asked) = asked else { return Ok(PAGE_MAX) };
    let limit = asked.parse().ok().filter(|n| (1..=PAGE_MAX).contains(n));
    limit.ok_or_else(|| Problem::invalid(format!("limit: 1 to {PAGE_MAX}")))
}

/// A page of a list, and the id that the next one goes on from, if there is one.
pub fn paged(values: Vec<Value>, next: Option<&str>) -> Response<Body> {
    let mut response = json_response(StatusCode::OK, &Value::Array(values));
    if let Some(token) = next.and_then(|id| id.parse().ok()) {
        response.headers_mut().insert("x-next-token", token);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_of_zero_is_not_for_ever() {
        assert_eq!(span(0).unwrap(), Duration::from_millis(1));
        assert_eq!(span(300).unwrap(), Duration::from_secs(300));
        assert!(span(-1).is_err() && span(i64::MAX).is_err());
    }

    #[test]
    fn a_filter_is_read_as_the_sdks_write_it() {
        let query =
            text::query("metadata=a%2525b%3D1%252F2%26c%3Dd&state=running%2Cpaused&limit=5&order=asc");
        let filter = Filter::of(&query, true).unwrap();
        let wanted = [("a%b", "1/2"), ("c", "d")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(filter.metadata, Metadata::from(wanted));
        assert_eq!((filter.limit, filter.ascending, filter.states.len()), (5, true, 2));
        for bad in ["limit=0", "limit=101", "state=gone", "order=up", "nextToken=x", "startedAfter=now"] {
            assert!(Filter::of(&text::query(bad), true).is_err(), "{bad}");
        }
    }
}
