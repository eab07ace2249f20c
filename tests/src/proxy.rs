//! A TCP proxy that can be told to misbehave: what stands between a worker and its coordinator in tests of partitions.

use std::net::SocketAddr;

use berth_proto::spawn::spawn;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// A way through the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the one that connects.
    Up,
    /// To it.
    Down,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Weather {
    /// Nothing passes, and nobody is told.
    held_up: bool,
    held_down: bool,
    /// Connections of an earlier age are cut.
    age: u64,
}

impl Weather {
    fn held(&self, way: Way) -> bool {
        match way {
            Way::Up => self.held_up,
            Way::Down => self.held_down,
        }
    }
}

/// One proxy. It ends with the process.
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
}

impl Proxy {
    /// Listens on a free port of loopback, for `upstream`.
    pub async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let weather = watch::channel(Weather { held_up: false, held_down: false, age: 0 }).0;
        spawn("proxy", accept(listener, upstream.to_owned(), weather.subscribe()));
        Self { address, weather }
    }

    /// `host:port` to connect to instead.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on nothing passes, or all does. What was sent meanwhile arrives late, in order.
    pub fn hold(&self, held: bool) {
        self.weather.send_modify(|weather| (weather.held_up, weather.held_down) = (held, held));
    }

    /// The same in one direction only. (A connection can still be made: its first bytes are what is held.)
    pub fn hold_one_way(&self, way: Way, held: bool) {
        self.weather.send_modify(|weather| match way {
            Way::Up => weather.held_up = held,
            Way::Down => weather.held_down = held,
        });
    }

    /// Cuts every connection there is, in the middle of whatever it carries.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.age += 1);
    }
}

async fn accept(listener: TcpListener, upstream: String, weather: watch::Receiver<Weather>) {
    while let Ok((client, _)) = listener.accept().await {
        let (upstream, weather) = (upstream.clone(), weather.clone());
        spawn("proxied", async move {
            // Nobody there: the client sees its connection end, as it would without us.
            let Ok(server) = TcpStream::connect(&upstream).await else { return };
            let _ = client.set_nodelay(true).and(server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                // First: what was held back does not come through if it is let go of just after.
                biased;
                () = cut(weather.clone()) => {}
                () = pump(from_client, to_server, Way::Up, weather.clone()) => {}
                () = pump(from_server, to_client, Way::Down, weather) => {}
            }
        });
    }
}

async fn cut(mut weather: watch::Receiver<Weather>) {
    let age = weather.borrow().age;
    let _ = weather.wait_for(|now| now.age != age).await;
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        if weather.wait_for(|now| !now.held(way)).await.is_err() || to.write_all(&buffer[..n]).await.is_err()
        {
            return;
        }
    }
}
