//! The world as it is.

use std::{
    future::Future,
    io,
    time::{Duration, SystemTime},
};

pub use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint, Error};
use uuid::Uuid;

/// Time of day. It may jump: deadlines don't belong on it.
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Time since boot, suspend included: what a worker and its agents have in common.
pub fn boot_now() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(Duration::ZERO, Duration::from)
}

/// From the operating system's generator.
///
/// # Panics
/// If it has none: nothing could be kept secret then.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// Unique, and later than those before.
pub(crate) fn uuid_v7() -> Uuid {
    Uuid::now_v7()
}

/// Dials, or says why it can't.
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    endpoint.connect().await
}

/// Dials when it is first used.
pub fn connect_lazy(endpoint: &Endpoint) -> Channel {
    endpoint.connect_lazy()
}

/// Does on a thread of its own what would hold up others.
///
/// # Errors
/// It panicked, or the process ends.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Waits for what another thread does: here, as for anything else.
pub async fn on_thread<F: Future>(work: F) -> F::Output {
    work.await
}
