//! The code interpreter, "port 49999" of a sandbox: contexts, and code that runs in them.
//!
//! - [`run`]: code, and what comes of it as it comes.
//! - [`shown`]: results in all their forms.
//!
//! Code that names no context runs in its sandbox's default one. Berth knows that by a request id, of which there is one
//! context only: so nothing is kept here, two that use it first make one, and another gateway finds the same.
//!
//! The SDK shows a sandbox's access token where it runs code. Where it is about contexts alone it shows the other one that a
//! create answers with, for traffic to ports; so that one opens these calls, and runs nothing.

mod run;
mod shown;

use berth_client::{Context, ContextId, ContextOptions, Error, Reason, Session, model::ContextInfo};
use http::{HeaderMap, Response, StatusCode, request::Parts};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    body::{Body, Upload, empty, json_response},
    connect, paths,
    pool::Lease,
    problem::Problem,
};

/// Where the SDKs find it.
pub const PORT: &str = "49999";
const EXECUTE: &str = "/execute";
/// What the default context is asked for by.
const DEFAULT: &str = "e2b-default-python";

/// Whether a call takes no less than the sandbox's own access token.
pub fn runs_code(path: &str) -> bool {
    path == EXECUTE
}

/// One call.
pub async fn call(
    head: &Parts,
    lease: Lease,
    session: Session,
    body: Upload,
) -> Result<Response<Body>, Problem> {
    let path = head.uri.path();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (head.method.as_str(), &parts[..]) {
        ("POST", _) if path == EXECUTE => run::execute(lease, session, &head.headers, body).await,
        ("GET", ["contexts"]) => list(&session).await,
        ("POST", ["contexts"]) => create(&session, &head.headers, body).await,
        ("DELETE", ["contexts", id]) => remove(&session, id).await,
        ("POST", ["contexts", id, "restart"]) => {
            named(&session, id)?.restart().await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (_, ["execute" | "contexts", ..]) => Ok(Problem::wrong_method("GET, POST, DELETE")),
        _ => Err(Problem::not_found("the code interpreter has no such call: docs/e2b.md lists what it has")),
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct New {
    cwd: Option<String>,
    language: Option<String>,
}

async fn create(session: &Session, headers: &HeaderMap, body: Upload) -> Result<Response<Body>, Problem> {
    let New { cwd, language } = connect::unary(headers, body).await?;
    only_python(language.as_deref())?;
    let cwd = paths::absolute(&cwd.unwrap_or_default())?;
    let context = session.interpreter().create(ContextOptions::new().cwd(&cwd)).await?;
    let made = json!({"id": context.id().to_string(), "language": "python", "cwd": cwd});
    Ok(json_response(StatusCode::OK, &made))
}

async fn list(session: &Session) -> Result<Response<Body>, Problem> {
    let contexts = session.interpreter().list().await?;
    Ok(json_response(StatusCode::OK, &Value::Array(contexts.iter().map(listed).collect())))
}

/// Others than E2B's SDKs may have made it, relative to the workspace.
fn listed(context: &ContextInfo) -> Value {
    let cwd = match context.cwd.as_str() {
        "" => "/workspace".to_owned(),
        cwd if cwd.starts_with('/') => cwd.to_owned(),
        cwd => format!("/workspace/{cwd}"),
    };
    json!({"id": context.id.to_string(), "language": context.language, "cwd": cwd})
}

async fn remove(session: &Session, id: &str) -> Result<Response<Body>, Problem> {
    let context = named(session, id)?;
    // Berth says nothing of one that is gone already; the SDK wants to know.
    if !session.interpreter().list().await?.iter().any(|listed| listed.id == context.id()) {
        return Err(missing(id));
    }
    context.delete().await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// The context that an id names. What is no id of ours is a context that is not there.
fn named(session: &Session, id: &str) -> Result<Context, Problem> {
    let parsed = id.parse::<ContextId>().map_err(|_| missing(id))?;
    Ok(session.interpreter().context(parsed))
}

fn missing(id: &str) -> Problem {
    let clipped = &id[..id.floor_char_boundary(64)];
    Problem::not_found(format!("context {clipped:?} is not there: it ends with its sandbox, or was removed"))
}

/// The context of code that names none, and a word on what became of the one before, if that died. It is made anew then:
/// the SDK's users are not told its id, by which they could restart it.
async fn default_context(session: &Session) -> Result<(Context, Option<String>), Error> {
    let interpreter = session.interpreter();
    let options = || ContextOptions::new().cwd(paths::HOME).request_id(DEFAULT);
    let error = match interpreter.create(options()).await {
        Err(error) if error.is(Reason::ContextDead) => error,
        made => return Ok((made?, None)),
    };
    let Some(dead) = error.detail("context_id").and_then(|id| id.parse().ok()) else { return Err(error) };
    // By its id, so that of two who do this the second deletes nothing.
    interpreter.context(dead).delete().await?;
    let word = format!("{}: a new one was made, and what it had defined is gone\n", error.message());
    Ok((interpreter.create(options()).await?, Some(word)))
}

fn only_python(language: Option<&str>) -> Result<(), Problem> {
    let language = language.unwrap_or_default().trim();
    if language.is_empty() || language.eq_ignore_ascii_case("python") {
        return Ok(());
    }
    let clipped = &language[..language.floor_char_boundary(32)];
    Err(Problem::unserved(format!(
        "language {clipped:?} is not served: contexts speak Python (hint: write a file and run that with `commands.run`, \
         where the template has what runs it)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_apart() {
        for python in [None, Some(""), Some("python"), Some(" Python ")] {
            assert!(only_python(python).is_ok(), "{python:?}");
        }
        let long = "ä".repeat(1000);
        for other in ["javascript", "js", "r", "python2", &long] {
            let problem = only_python(Some(other)).unwrap_err();
            assert!(problem.is("unimplemented") && problem.to_string().len() < 300, "{problem}");
        }
    }
}
