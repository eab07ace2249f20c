//! The one port with TLS: who may speak for which worker, on the control stream and on a data connection.

mod common;

use berth_coordinator::{Config, Coordinator};
use berth_net::{
    Dialer, Files, Trust,
    issue::{Authority, Validity},
};
use berth_proto::{
    Code, Reason, WorkerId,
    v1::{
        self, admin_service_client::AdminServiceClient, blob_service_client::BlobServiceClient,
        coordinator_message::Message, worker_message, worker_service_client::WorkerServiceClient,
    },
};
use common::{Host, SOON, Script, failed, hello, until};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

struct Secure {
    host: Host,
    files: Files,
}

impl Secure {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let files = Files::new(state.path().join("tls"));
        let authority = Authority::make(&files).unwrap();
        let lasting = Validity::lasting(std::time::Duration::from_secs(3600));
        authority.coordinator(&[], lasting).unwrap();
        for worker in ["a", "b"] {
            authority.worker(&worker.parse().unwrap(), &[], lasting).unwrap();
        }
        let config = Config { tls: Some(files.dir().to_owned()), ..common::config(state.path()) };
        let running = Coordinator::start(config).await.expect("starts");
        Self { host: Host { running, state }, files }
    }

    fn client(&self) -> Trust {
        Trust::client(self.files.ca().certificate)
    }

    fn worker(&self, id: &str) -> Trust {
        Trust::worker(&self.files.worker_dir(&id.parse::<WorkerId>().unwrap()))
    }

    /// A control stream on this connection that speaks for `name`.
    async fn attach(&self, channel: Channel, name: &str) -> Result<Link, Status> {
        let mut client = WorkerServiceClient::with_interceptor(channel, self.host.join());
        let (say, said) = mpsc::channel(64);
        let hello = worker_message::Message::Hello(hello(name, &Script::default()));
        say.send(v1::WorkerMessage { message: Some(hello) }).await.unwrap();
        let mut incoming = client.attach(ReceiverStream::new(said)).await?.into_inner();
        let first = tokio::time::timeout(SOON, incoming.message()).await.expect("in time")?;
        match first.and_then(|first| first.message) {
            Some(Message::Welcome(welcome)) => Ok(Link { welcome, _say: say, _incoming: incoming }),
            other => panic!("not a welcome: {other:?}"),
        }
    }

    async fn data_connections(&self, worker: &str) -> u32 {
        let channel = self.host.secure(self.client()).await;
        let mut admin = AdminServiceClient::with_interceptor(channel, self.host.admin());
        let request = v1::GetWorkerRequest { worker_id: worker.into() };
        admin.get_worker(request).await.expect("the worker is known").into_inner().data_connections
    }
}

#[derive(Debug)]
struct Link {
    welcome: v1::Welcome,
    _say: mpsc::Sender<v1::WorkerMessage>,
    _incoming: tonic::Streaming<v1::CoordinatorMessage>,
}

/// Red without `speaks_for` in `attach`.
#[tokio::test]
async fn the_control_stream_is_for_the_worker_of_the_certificate() {
    let secure = Secure::start().await;
    let as_a = secure.host.secure(secure.worker("a")).await;
    secure.attach(as_a.clone(), "a").await.expect("its own");
    let refused = secure.attach(as_a, "b").await;
    let status = failed(refused, Code::PermissionDenied, Reason::WorkerCertificate);
    assert!(status.message().contains("worker a") && status.message().contains("worker b"), "{status:?}");
    // With a join token and no certificate.
    let none = secure.host.secure(secure.client()).await;
    failed(secure.attach(none, "a").await, Code::PermissionDenied, Reason::WorkerCertificate);
}

/// The pieces of checkpoints are for workers. Red without `is_worker` in `blob.rs`.
#[tokio::test]
async fn pieces_are_for_those_with_a_certificate() {
    let secure = Secure::start().await;
    let ask = async |trust| {
        let channel = secure.host.secure(trust).await;
        let mut blobs = BlobServiceClient::with_interceptor(channel, secure.host.join());
        blobs.find_missing(v1::FindMissingRequest::default()).await
    };
    ask(secure.worker("a")).await.expect("a worker may ask");
    failed(ask(secure.client()).await, Code::PermissionDenied, Reason::WorkerCertificate);
}

/// b has the whole preface of a, secret included, and not its certificate. Red without `speaks_for` in `listener.rs`.
#[tokio::test]
async fn a_data_connection_is_for_the_worker_of_the_certificate() {
    let secure = Secure::start().await;
    let as_a = secure.host.secure(secure.worker("a")).await;
    let link = secure.attach(as_a, "a").await.expect("attaches");
    let preface = v1::DataPreface {
        worker_id: "a".into(),
        incarnation: link.welcome.incarnation,
        data_token: link.welcome.data_token.clone(),
    };
    let address = secure.host.running.addr().to_string();
    let dial = async |trust| Dialer::new(&address, Some(trust)).unwrap().data(&preface).await.expect("dials");
    for wrong in [secure.worker("b"), secure.client()] {
        let mut refused = dial(wrong).await;
        let mut byte = [0];
        let ended = tokio::time::timeout(SOON, refused.read(&mut byte)).await.expect("it is closed");
        assert!(!matches!(ended, Ok(n) if n > 0), "the coordinator began to speak on it");
    }
    assert_eq!(secure.data_connections("a").await, 0);
    let mut good = dial(secure.worker("a")).await;
    let mut preface = [0; 24];
    tokio::time::timeout(SOON, good.read_exact(&mut preface)).await.expect("in time").expect("it is taken");
    assert_eq!(&preface[..3], b"PRI", "the coordinator is the client on it");
    until(|| async { (secure.data_connections("a").await == 1).then_some(()) }).await;
}

/// With TLS no flag is needed to be reached; with a certificate that can't be used nothing starts.
#[tokio::test]
async fn with_certificates_it_may_listen_to_all_and_with_bad_ones_it_does_not_start() {
    let state = tempfile::tempdir().unwrap();
    let files = Files::new(state.path().join("tls"));
    let config = Config {
        listen: ([0, 0, 0, 0], 0).into(),
        tls: Some(files.dir().to_owned()),
        ..common::config(state.path())
    };
    let missing = Coordinator::start(config.clone()).await.err().expect("there are none");
    assert!(missing.problems[0].hint.contains("berth tls init"), "{missing:?}");
    let authority = Authority::make(&files).unwrap();
    authority.coordinator(&[], Validity::lasting(std::time::Duration::from_secs(3600))).unwrap();
    Coordinator::start(config.clone()).await.expect("it may").shutdown().await;
    let key = files.coordinator().key;
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let open = Coordinator::start(config).await.err().expect("others may read the key");
    assert!(open.problems[0].what.contains("private key"), "{open:?}");
}
