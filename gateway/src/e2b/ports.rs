//! A sandbox's ports, by host name or by the headers that say the same. Who may is decided here; how it is done is
//! [`crate::ports`]. The whole of it, for E2B's clients and for others: docs/http.md.

use berth_client::{Reason, SessionId};
use http::{Request, Response, StatusCode, request::Parts};
use serde_json::json;

use super::{
    E2b, Target,
    access::Access,
    body::{Body, json_response},
    clipped,
    problem::Problem,
    seal::Grant,
};
use crate::{
    http::{Connection, Received, callers::Callers},
    ports::{self, Failure, SILENCE, Shown, shown},
};

/// To be told to who shows nothing. It does not say whether there is such a sandbox.
const CLOSED: &str = "the sandbox's ports are not open to everybody, or there is no such sandbox (hint: send its \
    traffic access token as E2b-Traffic-Access-Token, or a token of Berth as X-Berth-Token; or make it with \
    network={\"allow_public_traffic\": True})";

impl E2b {
    /// Answers a request for a server in a sandbox.
    pub(super) async fn port(
        &self,
        callers: &Callers,
        head: Parts,
        target: Target,
        body: Received,
    ) -> Response<Body> {
        let sandbox = target.sandbox.unwrap_or_default();
        let Some(port) = target.port.parse().ok().filter(|port| *port != 0) else {
            let text = format!("{:?} is no port: 1 to 65535", clipped(&target.port));
            return Problem::invalid(text).rest();
        };
        match self.carried(callers, head, &sandbox, port, body).await {
            Ok(answer) => answer,
            Err(Told::Gone) => Problem::bad_gateway(&sandbox[..sandbox.floor_char_boundary(64)]),
            Err(Told::Server(status, message)) => {
                let text =
                    json!({"sandboxId": sandbox, "message": message, "port": port, "code": status.as_u16()});
                json_response(status, &text)
            }
            Err(Told::Problem(problem)) => problem.rest(),
        }
    }

    async fn carried(
        &self,
        callers: &Callers,
        head: Parts,
        sandbox: &str,
        port: u16,
        body: Received,
    ) -> Result<Response<Body>, Told> {
        let session = sandbox.parse::<SessionId>().ok().filter(|id| id.to_string() == sandbox);
        let session = session.ok_or(Told::Gone)?;
        let grant = match granted(shown(&head.headers), &self.access, session)? {
            Some(grant) => grant,
            None => self
                .public
                .grant(&self.pool, &self.access, session)
                .await?
                .ok_or_else(|| Problem::unauthenticated(CLOSED))?,
        };
        let caller = callers.enter_port(grant.token.clone()).await.map_err(Problem::from)?;
        let lease = self.pool.client(&grant.token).await?;
        let stream = lease.session(session).connect_port(port).await?;
        let here = head.extensions.get::<Connection>().cloned();
        let here = here.ok_or_else(|| Problem::unserved("a port needs a connection of its own"))?;
        let held = (caller.into_place(), lease);
        Ok(ports::forward(stream, Request::from_parts(head, body), &here, held).await?)
    }
}

/// What is shown, as a right to this sandbox. `None`: nothing is.
fn granted(shown: Shown, access: &Access, session: SessionId) -> Result<Option<Grant>, Problem> {
    match shown {
        Shown::Nothing => Ok(None),
        Shown::Token(token) => Ok(Some(Grant { session, token })),
        Shown::Wrong => Err(Problem::unauthenticated("X-Berth-Token is no token of Berth")),
        Shown::Sealed(sealed) => {
            let grant = access.open(&sealed).or_else(|| access.traffic_grant(&sealed));
            grant.filter(|grant| grant.session == session).map(Some).ok_or_else(|| {
                Problem::unauthenticated("the token is not one of this sandbox (hint: connect to it again)")
            })
        }
    }
}

/// Why there is no answer, as it is told.
enum Told {
    /// The sandbox is.
    Gone,
    /// Something is wrong with the server in it.
    Server(StatusCode, String),
    Problem(Problem),
}

impl From<Problem> for Told {
    fn from(problem: Problem) -> Self {
        match problem.is_gone() {
            true => Self::Gone,
            false => Self::Problem(problem),
        }
    }
}

impl From<berth_client::Error> for Told {
    fn from(error: berth_client::Error) -> Self {
        match error.reason() {
            // E2B's words, where there are some.
            Some(Reason::PortClosed) if !error.is_temporary() => Self::Server(
                StatusCode::BAD_GATEWAY,
                "The sandbox is running but port is not open".to_owned(),
            ),
            Some(Reason::PortClosed) => Self::Server(StatusCode::BAD_GATEWAY, error.message().to_owned()),
            _ => Problem::from(error).into(),
        }
    }
}

impl From<Failure> for Told {
    fn from(failure: Failure) -> Self {
        let server = |status, text| Self::Server(status, text);
        match failure {
            Failure::Request(why) => Self::Problem(Problem::invalid(why)),
            Failure::Cut => {
                Self::Problem(Problem::slow("the request's body broke off, or did not come in time"))
            }
            Failure::Broken(error) => error.into(),
            Failure::Answer(why) => {
                server(StatusCode::BAD_GATEWAY, format!("The server on the port did not answer: {why}"))
            }
            Failure::Silent => {
                let minutes = SILENCE.as_secs() / 60;
                let text = format!("The server on the port did not answer within {minutes} minutes");
                server(StatusCode::GATEWAY_TIMEOUT, text)
            }
        }
    }
}
