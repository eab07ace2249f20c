//! `/files`: what is in files, in and out, as it comes. An upload takes its file's place in one step when all of it is
//! there; one that breaks off changes nothing.

use std::io;

use berth_client::{Code, Error, Files, Session, WriteOptions};
use bytes::Bytes;
use futures::{FutureExt, SinkExt, channel::mpsc, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use super::{
    body::{Body, Pieces, Upload, json_response},
    multipart::{self, Multipart, Part},
    paths,
    pool::Lease,
    problem::Problem,
};

/// Files of one request.
const FILES: usize = 10_000;

/// The content of a file.
pub async fn read(lease: Lease, session: &Session, path: &str) -> Result<Response<Body>, Problem> {
    if path.is_empty() {
        return Err(Problem::invalid("the URL does not name a `path`"));
    }
    let mut reader = session.files().reader(&paths::absolute(path)?).await?;
    let size = reader.info().size;
    let (mut sender, receiver) = mpsc::channel(2);
    berth_proto::spawn::spawn("e2b download", async move {
        let _lease = lease;
        let mut left = if size == 0 { u64::MAX } else { size };
        loop {
            let next = match reader.next().await {
                // One that grows comes out as long as was said; one that shrinks is cut off, which the client sees.
                Ok(Some(mut piece)) => {
                    piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    left -= piece.len() as u64;
                    Ok(Frame::data(piece))
                }
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            let broken = next.is_err();
            if sender.send(next).await.is_err() || broken || left == 0 {
                return;
            }
        }
    });
    let mut response = Response::new(StreamBody::new(receiver).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    // What the kernel makes up as it is read says that it has none.
    if size > 0 {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    }
    Ok(response)
}

/// Writes the file or files of a request. `path`: as the URL names it.
pub async fn write(
    session: &Session,
    headers: &HeaderMap,
    path: Option<&str>,
    body: Upload,
) -> Result<Response<Body>, Problem> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Problem::unsupported_media("compressed uploads are not served (hint: leave `gzip` out)"));
    }
    let files = session.files();
    let written = match multipart::boundary(headers)? {
        Some(boundary) => parts(&files, path, Multipart::new(body, &boundary)).await?,
        None => {
            let path = path.filter(|path| !path.is_empty());
            let path = path.ok_or_else(|| Problem::invalid("the URL does not name a `path`"))?;
            vec![one(&files, path, body.into_pieces()).await?]
        }
    };
    Ok(json_response(StatusCode::OK, &Value::Array(written)))
}

async fn parts(files: &Files, path: Option<&str>, mut request: Multipart) -> Result<Vec<Value>, Problem> {
    let mut written = Vec::new();
    while let Some(Part { name, file }) = request.part().await? {
        if name != "file" {
            continue;
        }
        if written.len() >= FILES || (path.is_some() && !written.is_empty()) {
            return Err(Problem::invalid("there are more files than the request may have: one for a `path`"));
        }
        let target = path.map(str::to_owned).or(file).filter(|path| !path.is_empty());
        let target = target.ok_or_else(|| Problem::invalid("a file of the request has no name"))?;
        // The parts come out of one body, one after the other, and each write wants a source of its own.
        let (mut sender, receiver) = mpsc::channel::<io::Result<Bytes>>(2);
        let feed = async {
            loop {
                match request.chunk().await {
                    Ok(Some(chunk)) => {
                        if sender.send(Ok(chunk)).await.is_err() {
                            // The write has failed, and says why.
                            return Ok(());
                        }
                    }
                    Ok(None) => {
                        sender.close_channel();
                        return Ok(());
                    }
                    Err(problem) => {
                        let _ = sender.send(Err(io::Error::other("the request broke off"))).await;
                        return Err(problem);
                    }
                }
            }
        };
        let (fed, result) = tokio::join!(feed, one(files, &target, Pieces::of(receiver)));
        fed?;
        written.push(result?);
    }
    if written.is_empty() {
        return Err(Problem::invalid("the request has no file: send one as the field `file`"));
    }
    Ok(written)
}

/// Writes one file, and says which.
fn one(files: &Files, path: &str, source: Pieces) -> BoxFuture<'static, Result<Value, Problem>> {
    let (files, path) = (files.clone(), paths::absolute(path));
    let source: Box<dyn AsyncRead + Send + Unpin> = Box::new(StreamReader::new(source));
    async move {
        let path = path?;
        files.write_from(&path, source, WriteOptions::new().make_parents()).await.map_err(failed)?;
        Ok(json!({"path": path, "name": paths::split(&path).1, "type": "file"}))
    }
    .boxed()
}

fn failed(error: Error) -> Problem {
    // Of our own side: the request broke off, or stood still.
    if error.reason().is_none() && error.code() == Code::Unknown {
        return Problem::slow(error.message());
    }
    error.into()
}
