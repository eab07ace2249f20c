//! What sessions left behind: told, handed out, and removed.
//!
//! A task chose an artifact's name and wrote its content, so nothing of it may run where it is shown. It is handed out to be
//! saved: under a media type that no browser renders as a page or runs, which is not guessed at, and as an attachment.

use std::fmt::Write;

use berth_client::{
    ArtifactReader,
    model::{ArtifactInfo, NotKept, json::time_text},
};
use berth_proto::{media, spawn::spawn};
use futures::{SinkExt, channel::mpsc};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Call, json,
    problem::Problem,
    query,
    views::{limit, named},
};
use crate::http::{Body, query::value};

/// Pieces on their way to a client.
const WAITING: usize = 2;
/// Media types that are told as they are: none of them can hold what a browser runs.
const PLAIN: [&str; 13] = [
    "text/plain",
    "text/markdown",
    "text/csv",
    "text/x-python",
    "text/x-shellscript",
    "application/json",
    "application/yaml",
    "application/zip",
    "application/gzip",
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
];

/// A file that a task left in /workspace/artifacts, kept past its session.
#[derive(Serialize, JsonSchema)]
pub struct ArtifactView {
    id: String,
    session: String,
    /// At whose end it was found. Not set: at its session's.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// Its path below /workspace/artifacts. A task chose it: any characters but NUL.
    name: String,
    /// In bytes.
    size: u64,
    /// Of the whole content, in hex.
    sha256: String,
    /// As far as its name tells.
    media_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    /// When it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    tenant: String,
}

impl From<ArtifactInfo> for ArtifactView {
    fn from(info: ArtifactInfo) -> Self {
        Self {
            id: info.id,
            session: info.session.to_string(),
            task: info.task,
            name: info.name,
            size: info.size,
            sha256: info.sha256,
            media_type: info.media_type,
            created_at: info.created_at.map(time_text),
            expires_at: info.expires_at.map(time_text),
            tenant: info.tenant,
        }
    }
}

/// A file that did not become an artifact.
#[derive(Serialize, JsonSchema)]
struct NotKeptView {
    name: String,
    /// In bytes.
    size: u64,
    /// For people.
    why: String,
}

impl From<NotKept> for NotKeptView {
    fn from(left_out: NotKept) -> Self {
        Self { name: left_out.name, size: left_out.size, why: left_out.why }
    }
}

#[derive(Serialize, JsonSchema)]
pub struct Artifacts {
    /// Newest first.
    artifacts: Vec<ArtifactView>,
    /// Where the next page begins: `after`. Not set: these are all.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Of the session that was asked for: what was there and was not kept, at most 100 of them.
    not_kept: Vec<NotKeptView>,
    /// So many more there were.
    more_not_kept: u64,
    /// What the session's last tasks left may still come.
    pending: bool,
}

pub async fn artifacts(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &["session", "limit", "after"])?;
    let client = &call.caller.client;
    let limit = limit(call)?;
    let session = match value(&call.query, "session") {
        None => None,
        // One that has ended has its id alone.
        Some(session) => Some(named(client, session).await?),
    };
    let after = value(&call.query, "after").unwrap_or_default().to_owned();
    let (list, next) = client.artifacts_page(session, limit as u32, after).await?;
    if let Some(session) = session
        && list.artifacts.is_empty()
    {
        // Nothing of a session that is not there, or not the token's to see, is told as that.
        client.session(session).info().await?;
    }
    let answer = Artifacts {
        artifacts: list.artifacts.into_iter().map(ArtifactView::from).collect(),
        next: (!next.is_empty()).then_some(next),
        not_kept: list.not_kept.into_iter().map(NotKeptView::from).collect(),
        more_not_kept: list.more_not_kept,
        pending: list.pending,
    };
    Ok(json(StatusCode::OK, answer))
}

pub async fn artifact(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    Ok(json(StatusCode::OK, ArtifactView::from(call.caller.client.artifact(&call.parts[0]).await?)))
}

/// One that is gone already is not found.
pub async fn remove(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    let client = &call.caller.client;
    let info = client.artifact(&call.parts[0]).await?;
    client.delete_artifact(&info.id).await?;
    Ok(json(StatusCode::OK, ArtifactView::from(info)))
}

pub async fn content(call: Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    let reader = call.caller.client.read_artifact(&call.parts[0], 0, 0).await?;
    let info = reader.info().clone();
    let mut response = Response::new(body(reader));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(info.size));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    for (name, value) in [
        (header::CONTENT_TYPE, shown_as(&info.media_type)),
        (header::CONTENT_DISPOSITION, attachment(&info.name)),
    ] {
        let value = HeaderValue::try_from(value).map_err(|_| Problem::invalid("its name can't be told"))?;
        headers.insert(name, value);
    }
    Ok(call.caller.answered(response))
}

/// Its bytes, as they come. What breaks off cuts the connection.
fn body(mut reader: ArtifactReader) -> Body {
    let (mut sender, receiver) = mpsc::channel(WAITING);
    spawn("http artifact", async move {
        let mut left = reader.info().size;
        loop {
            let next = match reader.next().await {
                Ok(Some(piece)) => {
                    left = left.saturating_sub(piece.len() as u64);
                    Ok(Frame::data(piece))
                }
                Ok(None) if left == 0 => return,
                Ok(None) => Err("the artifact broke off".into()),
                Err(error) => Err(Box::<dyn std::error::Error + Send + Sync>::from(error)),
            };
            let broken = next.is_err();
            if sender.send(next).await.is_err() || broken {
                return;
            }
        }
    });
    StreamBody::new(receiver).boxed_unsync()
}

/// The media type under which content is handed out. Text is said to be UTF-8, so that nobody guesses at it.
fn shown_as(media_type: &str) -> String {
    match PLAIN.into_iter().find(|plain| *plain == media_type) {
        Some(text) if text.starts_with("text/") => format!("{text}; charset=utf-8"),
        Some(plain) => plain.to_owned(),
        None => media::UNKNOWN.to_owned(),
    }
}

/// To be saved, under the last part of its name, in which nothing has a meaning of its own (RFC 8187).
fn attachment(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or_default();
    let mut text = "attachment; filename*=UTF-8''".to_owned();
    for byte in file.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a kind of content that a browser runs is handed out as that.
    #[test]
    fn nothing_is_handed_out_that_a_browser_runs() {
        for end in ["html", "htm", "svg", "xml", "js", "mjs", "css", "pdf", "xhtml", "no-such"] {
            assert_eq!(shown_as(media::of_name(&format!("a.{end}"))), media::UNKNOWN, "{end}");
        }
        for odd in
            ["", "TEXT/HTML", "text/html; charset=x", "text/plain\r\nX: y", "multipart/x-mixed-replace"]
        {
            assert_eq!(shown_as(odd), media::UNKNOWN, "{odd:?}");
        }
        for plain in PLAIN {
            let shown = shown_as(plain);
            assert!(shown.starts_with(plain), "{plain}");
            assert_eq!(shown.contains("; charset=utf-8"), plain.starts_with("text/"), "{plain}");
        }
    }

    #[test]
    fn a_name_says_nothing_in_a_header() {
        assert_eq!(attachment("a/b c.txt"), "attachment; filename*=UTF-8''b%20c.txt");
        assert_eq!(attachment("ä\"\r\nX: y"), "attachment; filename*=UTF-8''%C3%A4%22%0D%0AX%3A%20y");
        assert_eq!(attachment("../;\\..%2f"), "attachment; filename*=UTF-8''%3B%5C..%252f");
    }
}
