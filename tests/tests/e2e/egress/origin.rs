//! What sessions want to reach: a server on the test's own loopback, which only an operator's exemption makes
//! reachable. It keeps all that it was ever told.

use std::sync::{Arc, Mutex};

use berth_proto::spawn::spawn;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What `/keyed` wants to see.
pub const KEY: &str = "the-good-key";

/// One connection.
#[derive(Clone, Default, Debug)]
pub struct Heard {
    pub bytes: Vec<u8>,
    pub over: bool,
}

#[derive(Clone)]
pub struct Origin {
    pub port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Origin {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let origin = Self { port, heard: Arc::default() };
        let server = origin.clone();
        spawn("origin", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut heard = server.heard.lock().expect("no panic");
                    heard.push(Heard::default());
                    heard.len() - 1
                };
                let server = server.clone();
                spawn("origin connection", async move {
                    server.serve(stream, number).await;
                    server.heard.lock().expect("no panic")[number].over = true;
                });
            }
        });
        origin
    }

    /// Answers one request. One for `/stream` never ends; one for `/keyed` is for who shows [`KEY`].
    async fn serve(&self, mut stream: TcpStream, number: usize) {
        let mut buffer = [0; 4096];
        let mut answered = false;
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            let bytes = {
                let mut heard = self.heard.lock().expect("no panic");
                heard[number].bytes.extend_from_slice(&buffer[..n]);
                heard[number].bytes.clone()
            };
            if answered || !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
                continue;
            }
            answered = true;
            let endless = bytes.starts_with(b"GET /stream");
            let text = String::from_utf8_lossy(&bytes);
            let shown = text.lines().any(|line| line == format!("Authorization: Bearer {KEY}"));
            let answer: &[u8] = if endless {
                b"HTTP/1.1 200 OK\r\n\r\nfirst\n"
            } else if text.starts_with("GET /keyed") && !shown {
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            } else {
                b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
            };
            if stream.write_all(answer).await.is_err() || !endless && stream.shutdown().await.is_err() {
                return;
            }
        }
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no panic").clone()
    }

    /// All that it was told, in the order of its connections, and forgets it.
    pub fn take(&self) -> Vec<String> {
        let heard = std::mem::take(&mut *self.heard.lock().expect("no panic"));
        heard.iter().map(|one| String::from_utf8_lossy(&one.bytes).into_owned()).collect()
    }
}
