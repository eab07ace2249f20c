//! Whatever a task says to the proxy: nothing but a clear request for an allowed host gets anywhere.

use berth_tests::{Cluster, skip};

use super::{create, fleet, origin::Origin};
use crate::util::run;

/// Says its arguments (hex) to the proxy: each but the first after an answer's head. Prints what comes back.
const SAY: &str = r#"
import os, socket, sys
host, port = os.environ['http_proxy'].rsplit('/', 1)[1].split(':')
s = socket.create_connection((host, int(port)), 30)
s.settimeout(30)
out = b''
try:
    for n, part in enumerate(sys.argv[1:]):
        while n and b'\r\n\r\n' not in out:
            more = s.recv(65536)
            if not more: break
            out += more
        s.sendall(bytes.fromhex(part))
    while True:
        more = s.recv(65536)
        if not more: break
        out += more
except OSError as error:
    out += b' ! ' + type(error).__name__.encode()
sys.stdout.buffer.write(out)
"#;

async fn say(cluster: &Cluster, session: &str, parts: &[&[u8]]) -> String {
    let hex = |part: &&[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let parts: Vec<String> = parts.iter().map(hex).collect();
    let line = format!("cat > /tmp/say.py <<'EOF'\n{SAY}\nEOF\npython3 /tmp/say.py {}", parts.join(" "));
    run(cluster, session, &line).await.0
}

async fn nothing_but_a_clear_request_gets_anywhere(sandbox: &str) {
    let origin = Origin::start().await;
    let cluster = fleet(sandbox, &origin).await;
    let port = origin.port;
    let session = create(&cluster, &[&format!("--allow=good.test:{port}")]).await;
    let good = format!("good.test:{port}");
    let get = |url: &str, headers: &str| format!("GET {url} HTTP/1.1\r\n{headers}\r\n");
    let url = format!("http://{good}/");
    let host = format!("Host: {good}\r\n");

    // The way that works, in other clothes: capitals, a dot at the end.
    let answer =
        say(&cluster, &session, &[get(&format!("HTTP://GOOD.Test.:{port}/"), &host).as_bytes()]).await;
    assert!(answer.ends_with("hello"), "{answer}");
    assert!(origin.take()[0].contains(&format!("\r\nHost: {good}\r\n")), "in its one spelling");

    let huge = format!("X: {}\r\n", "y".repeat(20_000));
    let many = "X: y\r\n".repeat(100);
    let refused = [
        ("no Host", get(&url, ""), 400),
        ("two Hosts", get(&url, &format!("{host}Host: evil.test\r\n")), 400),
        ("the same Host twice", get(&url, &format!("{host}{host}")), 400),
        ("another Host", get(&url, "Host: evil.test\r\n"), 400),
        ("another port", get(&url, "Host: good.test\r\n"), 400),
        ("a huge header", get(&url, &format!("{host}{huge}")), 431),
        ("many headers", get(&url, &format!("{host}{many}")), 431),
        ("user name", get(&format!("http://good.test:{port}@evil.test/"), "Host: evil.test\r\n"), 400),
        ("user and password", get(&format!("http://a:b@{good}/"), &host), 400),
        ("origin form", get("/", &host), 400),
        ("another scheme", get(&format!("ftp://{good}/"), &host), 400),
        ("two lengths", get(&url, &format!("{host}Content-Length: 1\r\nContent-Length: 2\r\n")), 400),
        ("chunks", get(&url, &format!("{host}Transfer-Encoding: chunked\r\n")), 411),
        ("both", get(&url, &format!("{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n")), 411),
        ("octal", format!("CONNECT 0177.0.0.1:{port} HTTP/1.1\r\n\r\n"), 400),
        ("hex", format!("CONNECT 0x7f000001:{port} HTTP/1.1\r\n\r\n"), 400),
        ("one number", format!("CONNECT 2130706433:{port} HTTP/1.1\r\n\r\n"), 400),
        ("two numbers", format!("CONNECT 127.1:{port} HTTP/1.1\r\n\r\n"), 400),
        ("IPv4", format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n"), 403),
        ("IPv6", format!("CONNECT [::1]:{port} HTTP/1.1\r\n\r\n"), 403),
        ("mapped", format!("CONNECT [::ffff:7f00:1]:{port} HTTP/1.1\r\n\r\n"), 403),
        ("zone", format!("CONNECT [fe80::1%25lo]:{port} HTTP/1.1\r\n\r\n"), 400),
        ("another", format!("CONNECT evil.test:{port} HTTP/1.1\r\n\r\n"), 403),
        ("below", format!("CONNECT a.good.test:{port} HTTP/1.1\r\n\r\n"), 403),
        ("punycode", format!("CONNECT xn--good-xyz.test:{port} HTTP/1.1\r\n\r\n"), 403),
        ("not ASCII", format!("CONNECT g\u{f6}od.test:{port} HTTP/1.1\r\n\r\n"), 400),
        ("NUL", format!("CONNECT good.test\0.evil:{port} HTTP/1.1\r\n\r\n"), 400),
        ("no port", "CONNECT good.test HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("a Host of its own", format!("CONNECT {good} HTTP/1.1\r\nHost: evil.test\r\n\r\n"), 400),
        ("no HTTP", "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned(), 400),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400),
    ];
    for (what, request, status) in &refused {
        let answer = say(&cluster, &session, &[request.as_bytes()]).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
    }
    assert!(origin.take().is_empty(), "none of these got there");

    // A request behind another's body is none.
    let two = format!(
        "POST {url} HTTP/1.1\r\n{host}Content-Length: 4\r\n\r\nbodyGET /second HTTP/1.1\r\nHost: x\r\n\r\n"
    );
    let answer = say(&cluster, &session, &[two.as_bytes()]).await;
    assert!(answer.ends_with("hello"), "{answer}");
    let heard = origin.take();
    assert!(heard.len() == 1 && heard[0].ends_with("\r\n\r\nbody"), "{heard:?}");

    // A tunnel is for TLS, to the server that it was asked for.
    let connect = format!("CONNECT {good} HTTP/1.1\r\n{host}\r\n");
    let silent: [&[u8]; 3] = [
        b"SSH-2.0-x\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x01\0\0\x01\0",
    ];
    for first in silent {
        let answer = say(&cluster, &session, &[connect.as_bytes(), first]).await;
        assert!(answer.trim_end() == "HTTP/1.1 200 Connection established", "{answer}");
    }
    let tls = |name: &str| {
        format!(
            "python3 - <<'EOF'\nimport os, socket, ssl\nhost, port = os.environ['https_proxy'].rsplit('/', 1)[1].split(':')\n\
             s = socket.create_connection((host, int(port)), 30)\ns.sendall(b'CONNECT {good} HTTP/1.1\\r\\n\\r\\n')\n\
             assert b' 200 ' in s.recv(1000)\nc = ssl.create_default_context()\nc.check_hostname = False\n\
             try:\n  c.wrap_socket(s, server_hostname={name})\nexcept Exception as e:\n  print(type(e).__name__)\nEOF"
        )
    };
    for name in ["'evil.test'", "'a.good.test'", "None"] {
        run(&cluster, &session, &tls(name)).await;
    }
    assert!(origin.take().iter().all(String::is_empty), "not a byte of what was meant for another got there");
    // What is meant for it does. (It never answers, and so the handshake ends with the task.)
    let line = format!("timeout 5 {}", tls("'Good.TEST'"));
    run(&cluster, &session, &line).await;
    let heard = origin.take();
    assert!(
        heard.len() == 1
            && heard[0].starts_with("\u{16}\u{3}\u{1}")
            && heard[0].to_lowercase().contains("good.test")
    );
    // It is as it was for everybody else.
    let answer = say(&cluster, &session, &[get(&url, &host).as_bytes()]).await;
    assert!(answer.ends_with("hello"), "{answer}");
    cluster.stop().await;
}

/// Red when the ClientHello is not looked at (`by_name` false always), when Host is not compared, and when the body is
/// not counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_nothing_but_a_clear_request_gets_anywhere() {
    if !skip::without_root("e2e native_nothing_but_a_clear_request_gets_anywhere") {
        nothing_but_a_clear_request_gets_anywhere("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_nothing_but_a_clear_request_gets_anywhere() {
    if !skip::without_docker("e2e docker_nothing_but_a_clear_request_gets_anywhere") {
        nothing_but_a_clear_request_gets_anywhere("docker").await;
    }
}
