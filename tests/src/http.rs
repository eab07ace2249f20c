//! HTTP by hand, for the gateway: what counts is what is on the wire.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Cluster, READY, until};

/// One answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Reply {
    /// The last message of an event stream, or the one of a JSON body.
    pub fn message(&self) -> Value {
        self.messages().pop().unwrap_or_else(|| panic!("no JSON: {self:?}"))
    }

    /// All of an event stream, or the one of a JSON body.
    pub fn messages(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
        let data: Vec<_> = data.filter(|data| data.starts_with('{')).collect();
        let data = if data.is_empty() { vec![self.body.trim()] } else { data };
        let parse =
            |text: &str| serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        data.into_iter().map(parse).collect()
    }
}

/// Where a cluster's gateway listens: its coordinator's log says so, at each start.
pub async fn gateway(cluster: &Cluster) -> String {
    until(READY, "the gateway", async || {
        let log = cluster.coordinator.log();
        let (_, rest) = log.rsplit_once("MCP is served on http")?.1.split_once("://")?;
        rest.split_once("/mcp").map(|(address, _)| address.to_owned())
    })
    .await
}

/// A client with the headers that all its requests have. Each request is a connection.
#[derive(Clone)]
pub struct Http {
    pub address: String,
    pub headers: Vec<(String, String)>,
    /// Of the last request of JSON-RPC.
    pub next_id: u64,
}

impl Http {
    pub fn new(address: &str, token: &str) -> Self {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = vec![
            header("Host", address),
            header("Authorization", &format!("Bearer {token}")),
            header("Accept", "application/json, text/event-stream"),
            header("Content-Type", "application/json"),
        ];
        Self { address: address.to_owned(), headers, next_id: 0 }
    }

    /// In place of a header of that name; an empty value takes it away.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(header, _)| !header.eq_ignore_ascii_case(name));
        if !value.is_empty() {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Sends a request, and leaves its answer to be read.
    pub async fn begin_send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).await.expect("it listens");
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.expect("it reads");
        stream
    }

    pub async fn send(&self, method: &str, path: &str, body: &str) -> Reply {
        let mut stream = self.begin_send(method, path, body).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut bytes));
        read.await.expect("an answer in time").expect("an answer");
        reply(&bytes)
    }
}

/// An answer as it came over the wire.
pub fn reply(bytes: &[u8]) -> Reply {
    let at = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a head");
    let (head, mut body) = (std::str::from_utf8(&bytes[..at]).expect("text"), &bytes[at + 4..]);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status").parse().unwrap();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut whole = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|encoding| encoding == "chunked") {
        while let Some(end) = body.windows(2).position(|end| end == b"\r\n") {
            let size = std::str::from_utf8(&body[..end]).expect("text");
            let size = usize::from_str_radix(size, 16).expect("a size");
            whole.extend_from_slice(&body[end + 2..end + 2 + size]);
            if size == 0 {
                break;
            }
            body = &body[end + 4 + size..];
        }
    } else {
        whole = body.to_vec();
    }
    Reply { status, headers, body: String::from_utf8(whole).expect("text") }
}
