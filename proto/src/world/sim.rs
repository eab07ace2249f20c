//! The world as the simulation gives it: turmoil's network, one seeded generator for all hosts (they share a thread),
//! a wall clock that follows simulated time, and blocking work done on the spot.

use std::{
    cell::RefCell,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, Error, server::Connected};
use tower::service_fn;
use uuid::Uuid;

/// When every simulation begins, in seconds since 1970: any moment does.
const BEGIN: Duration = Duration::from_secs(1_800_000_000);

thread_local! {
    /// State of the generator (splitmix64: small, and good enough to draw a simulation's chances from).
    static STATE: RefCell<u64> = const { RefCell::new(0) };
    static BORN: RefCell<u64> = const { RefCell::new(0) };
}

/// Begins the stream of chances anew.
pub fn seed(seed: u64) {
    STATE.with_borrow_mut(|state| *state = seed);
    BORN.with_borrow_mut(|born| *born = 0);
}

fn draw() -> u64 {
    STATE.with_borrow_mut(|state| {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// See the real world's.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&draw().to_le_bytes()[..chunk.len()]);
    }
    bytes
}

/// See the real world's. Zero outside of a simulation.
pub fn boot_now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// See the real world's.
pub fn now() -> SystemTime {
    UNIX_EPOCH + BEGIN + boot_now()
}

pub(crate) fn uuid_v7() -> Uuid {
    let millis = (BEGIN + boot_now()).as_millis() as u64;
    // Those of one millisecond come in the order in which they were drawn, as they do in the real world.
    let count = BORN.with_borrow_mut(|born| {
        *born += 1;
        *born
    });
    let mut random = random_bytes::<10>();
    random[..4].copy_from_slice(&(count as u32).to_be_bytes());
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

/// See the real world's.
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    endpoint.connect_with_connector(service_fn(dial)).await
}

/// See the real world's.
pub fn connect_lazy(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(service_fn(dial))
}

async fn dial(uri: http::Uri) -> io::Result<TokioIo<TcpStream>> {
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    TcpStream::connect(authority.as_str()).await.map(TokioIo::new)
}

/// On the spot: a thread would come back when it likes.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    Ok(work())
}

/// Nothing else goes on until it is done: how long a thread takes must not be seen.
pub async fn on_thread<F: Future>(work: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut work = pin!(work);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(output) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

/// turmoil's, with the methods that we use of tokio's.
pub struct TcpListener(turmoil::net::TcpListener);

impl TcpListener {
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        turmoil::net::TcpListener::bind(address).await.map(Self)
    }

    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await.map(|(stream, peer)| (TcpStream(stream), peer))
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// turmoil's, as tonic wants it.
pub struct TcpStream(turmoil::net::TcpStream);

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TcpStream")
    }
}

impl TcpStream {
    /// `address`: `host:port`.
    pub async fn connect(address: &str) -> io::Result<Self> {
        let (host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not host:port"))?;
        turmoil::net::TcpStream::connect((host, port)).await.map(Self)
    }

    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.0.set_nodelay(on)
    }

    pub async fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.peek(into).await
    }
}

impl Connected for TcpStream {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
