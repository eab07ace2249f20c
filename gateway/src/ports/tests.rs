//! Against servers that do what they like, over a pipe. The clock is the tests' own.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use http_body_util::{Empty, Full, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::http::Door;

fn here() -> Connection {
    let place = Door::new(None).place([127, 0, 0, 1].into()).expect("it is new");
    Connection { peer: [127, 0, 0, 1].into(), place: Arc::new(place), stop: CancellationToken::new() }
}

fn get() -> Request<Empty<Bytes>> {
    Request::builder().uri("/").body(Empty::new()).expect("a request")
}

/// Reads the head of a request.
async fn heard(server: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(server.read_u8().await.expect("a request"));
    }
    String::from_utf8(head).expect("text")
}

/// What becomes of a request to a server that says this, and then closes or keeps the connection.
async fn told(said: impl Into<Vec<u8>>, closes: bool) -> Result<Response<Body>, Failure> {
    let (client, mut server) = duplex(1 << 10);
    let said = said.into();
    spawn("server", async move {
        heard(&mut server).await;
        let _ = server.write_all(&said).await;
        if !closes {
            std::future::pending::<()>().await;
        }
    });
    forward(client, get(), &here(), ()).await
}

async fn whole(answer: Response<Body>) -> Result<Bytes, Box<dyn StdError + Send + Sync>> {
    answer.into_body().collect().await.map(|body| body.to_bytes())
}

#[tokio::test(start_paused = true)]
async fn an_answer_comes_as_it_was_said() {
    let answer = told("HTTP/1.1 201 Made\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nhi", false).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["x-a"]), (201, &HeaderValue::from_static("1")));
    assert_eq!(answer.headers()["content-length"], "2");
    assert_eq!(whole(answer).await.unwrap(), "hi");
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let answer = told(chunks, false).await.unwrap();
    assert!(answer.headers().is_empty(), "{:?}", answer.headers());
    assert_eq!(whole(answer).await.unwrap(), "hi");
    assert_eq!(
        whole(told("HTTP/1.0 200 OK\r\n\r\nto the end", true).await.unwrap()).await.unwrap(),
        "to the end"
    );
}

/// Red when a part is taken for the whole.
#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_no_answer() {
    for said in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
    ] {
        whole(told(said, true).await.unwrap()).await.expect_err(said);
    }
}

/// Red when hostile code in a sandbox can make the gateway hold, or believe, what it likes.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_none_is_refused() {
    let long = format!("HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\n", "a".repeat(HEAD));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-A: 1\r\n".repeat(FIELDS + 1));
    let endless = format!("HTTP/1.1 200 OK\r\nX-A: {}", "a".repeat(10 << 20));
    for said in [
        "",
        "HTTP/1.1 200",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A : 1\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        &long,
        &many,
        &endless,
    ] {
        let shown = &said[..said.len().min(60)];
        match told(said, true).await {
            Err(Failure::Answer(_)) => {}
            other => panic!("{shown:?}: {other:?}"),
        }
    }
    let edge = format!("HTTP/1.1 204 No\r\n{}\r\n", "X-A: 1\r\n".repeat(FIELDS));
    assert!(told(edge, false).await.is_ok());
}

/// Red when silence has no end, or an upload that takes long counts as silence.
#[tokio::test(start_paused = true)]
async fn silence_is_bounded_and_slowness_is_not() {
    assert!(matches!(told("", false).await, Err(Failure::Silent)));
    assert!(matches!(told("HTTP/1.1 100 Go on\r\n\r\n", false).await, Err(Failure::Silent)));
    let half = told("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", false).await.unwrap();
    whole(half).await.expect_err("the rest never comes");

    let (client, mut server) = duplex(1 << 10);
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    spawn("server", async move {
        heard(&mut server).await;
        let mut bytes = [0; 100];
        while counted.load(Ordering::Relaxed) < 5000 {
            counted.fetch_add(server.read(&mut bytes).await.expect("it goes on"), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("it is heard");
        std::future::pending::<()>().await;
    });
    let request = Request::builder()
        .method("PUT")
        .uri("/")
        .header("content-length", "5000")
        .body(Full::new(Bytes::from(vec![0; 5000])))
        .expect("a request");
    let pieces = request.map(|body| {
        let bytes = futures::executor::block_on(body.collect()).expect("whole").to_bytes();
        let pieces: Vec<_> =
            bytes.chunks(100).map(Bytes::copy_from_slice).map(http_body::Frame::data).collect();
        StreamBody::new(futures::stream::iter(pieces.into_iter().map(Ok::<_, io::Error>)))
    });
    assert_eq!(forward(client, pieces, &here(), ()).await.unwrap().status(), 200);
    assert_eq!(read.load(Ordering::Relaxed), 5000);
}

/// Red when what a client has left goes on to hold what it took.
#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_wants_ends_its_connection() {
    let (client, mut server) = duplex(1 << 10);
    let held = Arc::new(());
    let count = Arc::downgrade(&held);
    let server = spawn("server", async move {
        heard(&mut server).await;
        server
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .expect("it is heard");
        while server.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut answer = forward(client, get(), &here(), held).await.unwrap();
    assert!(answer.body_mut().frame().await.is_some());
    assert_eq!(count.strong_count(), 1);
    drop(answer);
    assert_eq!(count.strong_count(), 0);
    server.await.expect("it sees the end");
}

/// Red when bytes are lost between two protocols, or a side that is gone keeps the other.
#[tokio::test(start_paused = true)]
async fn bytes_are_carried_until_both_sides_have_ended() {
    let (mut client, near) = duplex(1 << 10);
    let (far, mut server) = duplex(1 << 10);
    let said = async {
        client.write_all(b"there").await.unwrap();
        let mut five = [0; 5];
        server.read_exact(&mut five).await.unwrap();
        server.write_all(&five).await.unwrap();
        client.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"there");
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut five).await.unwrap(), 0);
        server.write_all(b"after").await.unwrap();
        drop(server);
        client.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"after");
    };
    let (relayed, ()) = tokio::join!(relay::relay::<_, _, io::Error>(near, far), said);
    assert!(relayed.is_ok(), "{relayed:?}");

    let (client, near) = duplex(1 << 10);
    let (far, _server) = duplex(1 << 10);
    drop(client);
    assert!(relay::relay::<_, _, io::Error>(near, far).await.is_err(), "the other side says nothing");
}
