//! An S3 server that can be taken away: `s3s` over a directory, on a port of loopback.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use berth_proto::spawn::spawn;
use berth_tests::{READY, until};
use hyper::{Method, Request, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use s3s::{
    auth::SimpleAuth,
    config::{S3Config, StaticConfigProvider},
    service::{S3Service, S3ServiceBuilder},
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const BUCKET: &str = "kept";
const PREFIX: &str = "some/where";
const KEY: &str = "AKTEST";
const SECRET: &str = "not-a-secret";

/// The server, with a bucket that may be anybody's who has the key.
pub struct S3 {
    root: TempDir,
    address: SocketAddr,
    service: S3Service,
    /// Goes down by itself when so many more objects have come.
    puts: Arc<AtomicUsize>,
    /// Cancelled: it is down.
    up: CancellationToken,
}

impl S3 {
    /// One that is down. It has a port.
    pub async fn new() -> Self {
        let root = tempfile::Builder::new().prefix("berth-s3").tempdir().expect("a temporary directory");
        std::fs::create_dir(root.path().join(BUCKET)).expect("the bucket");
        let files = s3s_fs::FileSystem::new(root.path()).expect("a server over a directory");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        // Its clock is no matter here: a test moves the coordinator's.
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = 86_400;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        let taken = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let up = CancellationToken::new();
        up.cancel();
        Self {
            root,
            address: taken.local_addr().expect("an address"),
            service: builder.build(),
            puts: Arc::new(AtomicUsize::new(usize::MAX)),
            up,
        }
    }

    pub async fn start() -> Self {
        let mut s3 = Self::new().await;
        s3.go_up().await;
        s3
    }

    pub async fn go_up(&mut self) {
        let listener = until(READY, "its port", async || TcpListener::bind(self.address).await.ok()).await;
        self.puts.store(usize::MAX, Ordering::Relaxed);
        self.up = CancellationToken::new();
        let (up, service, puts) = (self.up.clone(), self.service.clone(), self.puts.clone());
        spawn("s3", async move {
            while let Some(Ok((stream, _))) = up.run_until_cancelled(listener.accept()).await {
                spawn("s3 connection", serve(stream, up.clone(), service.clone(), puts.clone()));
            }
        });
    }

    /// Nothing listens, and every connection is cut.
    pub fn go_down(&self) {
        self.up.cancel();
    }

    pub fn go_down_after(&self, puts: usize) {
        self.puts.store(puts, Ordering::Relaxed);
    }

    pub fn is_down(&self) -> bool {
        self.up.is_cancelled()
    }

    /// What a coordinator needs to be told.
    pub fn env(&self) -> Vec<(String, String)> {
        let all = [
            ("BERTH_BLOBS", format!("s3://{BUCKET}/{PREFIX}")),
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "eu-nowhere-1".into()),
            ("AWS_ACCESS_KEY_ID", KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
        ];
        all.map(|(name, value)| (name.to_owned(), value)).into()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(PREFIX).join(name)
    }

    /// Files of the pieces in the bucket.
    pub fn pieces(&self) -> Vec<PathBuf> {
        files(&self.at("pieces"))
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.flat_map(|e| if e.path().is_dir() { files(&e.path()) } else { vec![e.path()] }).collect()
}

async fn serve(stream: TcpStream, up: CancellationToken, service: S3Service, puts: Arc<AtomicUsize>) {
    let down = up.clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        let (service, puts, up) = (service.clone(), puts.clone(), up.clone());
        async move {
            if request.method() == Method::PUT {
                let left = |left: usize| Some(if left == usize::MAX { left } else { left.saturating_sub(1) });
                if puts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) == Ok(0) {
                    up.cancel();
                    std::future::pending::<()>().await;
                }
            }
            let answer = hyper::service::Service::call(&service, request).await;
            Ok::<_, Infallible>(answer.expect("the server answers"))
        }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
    let _ = down.run_until_cancelled(connection).await;
}
