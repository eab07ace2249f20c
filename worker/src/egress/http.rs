//! What a client asks the proxy for: `CONNECT host:port`, or a plain request in absolute form (`GET http://host/…`).
//!
//! Read strictly, and what goes on to a server is written anew from what was understood, so that no server reads
//! anything else in it than was read here. A plain request has exactly one host, said twice and both times alike, and
//! a length that is said once: what comes behind it is not passed on, since it would be another request.

use std::collections::HashSet;

use berth_proto::egress::Target;

/// The most that a request's head may have.
pub const HEAD_MAX: usize = 16 << 10;
/// ... and the most headers in it.
pub const HEADERS_MAX: usize = 64;

/// Headers that are between a client and its proxy, and go no further.
const NOT_PASSED_ON: [&str; 9] = [
    "host",
    "connection",
    "proxy-connection",
    "proxy-authorization",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "content-length",
];

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    Connect(Target),
    /// The head as it goes on to the server, and the length of the body behind it.
    Plain {
        target: Target,
        head: Vec<u8>,
        body: u64,
    },
}

impl Request {
    pub fn target(&self) -> &Target {
        match self {
            Self::Connect(target) | Self::Plain { target, .. } => target,
        }
    }
}

/// Why a request is not taken: an HTTP status, and words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bad {
    pub status: u16,
    pub why: &'static str,
}

const fn bad(why: &'static str) -> Bad {
    Bad { status: 400, why }
}

/// Reads a request's head, and how many bytes it took. `None`: more of it has to come.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(&bytes[..bytes.len().min(HEAD_MAX)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return Err(Bad { status: 431, why: "the head is longer than 16 KiB" });
        }
        Err(httparse::Error::TooManyHeaders) => return Err(Bad { status: 431, why: "more than 64 headers" }),
        Err(_) => return Err(bad("this is no HTTP request")),
    };
    let (Some(method), Some(path)) = (request.method, request.path) else {
        return Err(bad("this is no HTTP request"));
    };
    let headers = Headers(request.headers);
    if headers.has("transfer-encoding") {
        // To pass it on its end would have to be known, and servers differ in how they read it.
        return Err(Bad { status: 411, why: "a body needs a Content-Length here" });
    }
    let body = headers.length()?;
    let request =
        if method == "CONNECT" { connect(path, &headers, body) } else { plain(method, path, &headers, body) };
    Ok(Some((request?, length)))
}

fn connect(path: &str, headers: &Headers<'_>, body: u64) -> Result<Request, Bad> {
    let target: Target = path.parse().map_err(|_| bad("CONNECT needs host:port"))?;
    if body > 0 {
        return Err(bad("CONNECT has no body"));
    }
    // HTTP/1.0 clients send none.
    match headers.host()? {
        Some(host) if Target::parse_or(host, target.port) != Ok(target.clone()) => {
            Err(bad("Host names another host than CONNECT"))
        }
        _ => Ok(Request::Connect(target)),
    }
}

fn plain(method: &str, path: &str, headers: &Headers<'_>, body: u64) -> Result<Request, Bad> {
    let scheme = path.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let Some(rest) = scheme.and_then(|_| path.get(7..)) else {
        return Err(bad("this is a proxy: ask for http://host/… or CONNECT host:port"));
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(bad("the URL has a user name in it: send credentials as a header"));
    }
    if path.contains('#') {
        return Err(bad("the URL has a fragment in it"));
    }
    let target = Target::parse_or(authority, 80).map_err(|_| bad("the URL names no host"))?;
    let host = headers.host()?.ok_or(bad("there is no Host"))?;
    if Target::parse_or(host, 80) != Ok(target.clone()) {
        return Err(bad("Host names another host than the URL"));
    }
    let head = head(method, path, &target, headers, body);
    Ok(Request::Plain { target, head, body })
}

/// The head as the server gets it.
fn head(method: &str, path: &str, target: &Target, headers: &Headers<'_>, body: u64) -> Vec<u8> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let host = if target.port == 80 { target.host.to_string() } else { target.to_string() };
    let mut head =
        format!("{method} {slash}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n").into_bytes();
    // An empty body is told where there usually is one.
    if body > 0 || headers.has("content-length") {
        head.extend_from_slice(format!("Content-Length: {body}\r\n").as_bytes());
    }
    let named = headers.named_in_connection();
    for header in headers.0.iter() {
        let name = header.name.to_ascii_lowercase();
        if !NOT_PASSED_ON.contains(&name.as_str()) && !named.contains(&name) {
            head.extend_from_slice(header.name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(header.value);
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

struct Headers<'a>(&'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    fn has(&self, name: &'static str) -> bool {
        self.all(name).next().is_some()
    }

    fn host(&self) -> Result<Option<&'a str>, Bad> {
        let mut hosts = self.all("host");
        let Some(host) = hosts.next() else { return Ok(None) };
        if hosts.next().is_some() {
            return Err(bad("there is more than one Host"));
        }
        std::str::from_utf8(host).map(Some).map_err(|_| bad("Host is no host name"))
    }

    fn length(&self) -> Result<u64, Bad> {
        let mut lengths = self.all("content-length");
        let Some(length) = lengths.next() else { return Ok(0) };
        if lengths.next().is_some() {
            return Err(bad("there is more than one Content-Length"));
        }
        let text = std::str::from_utf8(length).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        text.and_then(|text| text.parse().ok()).ok_or(bad("Content-Length is no number"))
    }

    /// Headers that the client declares to be for the proxy alone.
    fn named_in_connection(&self) -> HashSet<String> {
        let lists = self.all("connection").chain(self.all("proxy-connection"));
        let names = lists.flat_map(|list| list.split(|b| *b == b','));
        names.map(|name| String::from_utf8_lossy(name).trim().to_ascii_lowercase()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Result<Option<(Request, usize)>, Bad> {
        parse(text.as_bytes())
    }

    fn why(text: &str) -> &'static str {
        of(text).expect_err(text).why
    }

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn a_tunnel_is_to_one_host() {
        let connect = |text: &str| of(text).map(|read| read.expect("it is whole").0);
        let expected = Ok(Request::Connect(target("a.example:443")));
        assert_eq!(connect("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"), expected);
        assert_eq!(connect("CONNECT A.Example.:443 HTTP/1.0\r\n\r\n"), expected);
        assert_eq!(connect("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n"), expected);
        assert_eq!(
            connect("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n\r\n"),
            Ok(Request::Connect(target("[2001:db8::1]:443")))
        );
        for line in [
            "a.example",
            "a.example:0",
            "a.example:99999",
            "a.example:443/",
            "http://a.example:443",
            "user@a.example:443",
            "2130706433:443",
            "0x7f.1:443",
            "0177.0.0.1:443",
            "[::1%25lo]:443",
            "::1:443",
            ":443",
            "a.example:",
        ] {
            assert!(of(&format!("CONNECT {line} HTTP/1.1\r\n\r\n")).is_err(), "{line}");
        }
        assert!(why("CONNECT a.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n").contains("another"));
        assert!(why("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:80\r\n\r\n").contains("another"));
        assert!(
            why("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n")
                .contains("one Host")
        );
        assert!(why("CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\n").contains("body"));
    }

    #[test]
    fn a_plain_request_is_written_anew() {
        let text = "POST HTTP://A.example/p?q=1 HTTP/1.0\r\nhOST: a.example:80\r\nContent-Length: 3\r\n\
            Proxy-Authorization: Basic eA==\r\nConnection: x-secret, close\r\nX-Secret: 1\r\nAccept: */*\r\n\r\nabcGET";
        let (request, length) = of(text).unwrap().unwrap();
        let Request::Plain { target: to, head, body } = request else { panic!("{request:?}") };
        assert_eq!((to, body, &text[length..]), (target("a.example:80"), 3, "abcGET"));
        assert_eq!(
            String::from_utf8(head).unwrap(),
            "POST /p?q=1 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: 3\r\nAccept: */*\r\n\r\n"
        );
        let (request, _) =
            of("GET http://a.example:8080?x HTTP/1.1\r\nHost: a.example:8080\r\n\r\n").unwrap().unwrap();
        let Request::Plain { head, .. } = request else { panic!("{request:?}") };
        assert!(head.starts_with(b"GET /?x HTTP/1.1\r\nHost: a.example:8080\r\n"));
    }

    /// Red for each check that is taken out.
    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let get = |line: &str, headers: &str| why(&format!("GET {line} HTTP/1.1\r\n{headers}\r\n"));
        let url = "http://a.example/";
        assert!(get(url, "").contains("no Host"));
        assert!(get(url, "Host: b.example\r\n").contains("another"));
        assert!(get(url, "Host: a.example:81\r\n").contains("another"));
        assert!(get(url, "Host: a.example\r\nHost: b.example\r\n").contains("one Host"));
        assert!(get(url, "Host: a.example, b.example\r\n").contains("another"));
        assert!(get(url, "Host: a.example\r\nTransfer-Encoding: chunked\r\n").contains("Content-Length"));
        assert!(
            get(url, "Host: a.example\r\nContent-Length: 1\r\nContent-Length: 1\r\n")
                .contains("more than one")
        );
        for length in ["+1", "-1", "0x1", "1, 1", "", "1 1", "99999999999999999999"] {
            assert!(
                get(url, &format!("Host: a.example\r\nContent-Length: {length}\r\n")).contains("no number"),
                "{length}"
            );
        }
        assert!(get("http://user:x@a.example/", "Host: a.example\r\n").contains("user name"));
        assert!(get("http://a.example@b.example/", "Host: b.example\r\n").contains("user name"));
        assert!(get("http://a.example/#x", "Host: a.example\r\n").contains("fragment"));
        assert!(get("http://a.example#@b.example/", "Host: a.example\r\n").contains("fragment"));
        assert!(get("http://a.example\\@b.example/", "Host: a.example\r\n").contains("user name"));
        for line in [
            "/",
            "*",
            "https://a.example/",
            "ftp://a.example/",
            "a.example",
            "//a.example/",
            "http:/a.example/",
        ] {
            assert!(get(line, "Host: a.example\r\n").contains("proxy"), "{line}");
        }
        assert!(get("http:///x", "Host: a.example\r\n").contains("no host"));
        assert!(get("http://0x7f.1/", "Host: 0x7f.1\r\n").contains("no host"));
        for broken in [
            "GET http://a.example/ HTTP/1.1\r\nHost : a\r\n\r\n",
            "\x16\x03\x01\x02\x00",
            "GET / HTTP/9\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\nA\0: b\r\n\r\n",
        ] {
            assert!(why(broken).contains("no HTTP"), "{broken:?}");
        }
    }

    #[test]
    fn a_head_has_bounds() {
        let long = format!("GET http://a.example/{} HTTP/1.1\r\n", "x".repeat(HEAD_MAX));
        assert_eq!(of(&long).unwrap_err().status, 431);
        let many = format!("GET http://a.example/ HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert_eq!(of(&many).unwrap_err().status, 431);
        assert_eq!(of("GET http://a.exa"), Ok(None));
        assert_eq!(of(""), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        /// What goes on to a server is one request, to the host that was decided on, however the client wrote it.
        #[test]
        fn what_goes_on_is_read_as_it_was_meant(
            path in "[!-~]{0,30}",
            headers in proptest::collection::vec(("[A-Za-z-]{1,16}", "[ -~\t]{0,30}"), 0..6),
        ) {
            let mut text = format!("GET http://a.example/{path} HTTP/1.1\r\nHost: a.example\r\n");
            headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
            text.push_str("\r\n");
            let Ok(Some((Request::Plain { target, head, .. }, _))) = parse(text.as_bytes()) else { return Ok(()) };
            prop_assert_eq!(target.to_string(), "a.example:80");
            let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX + 4];
            let mut again = httparse::Request::new(&mut room);
            let read = again.parse(&head);
            prop_assert_eq!(read, Ok(httparse::Status::Complete(head.len())));
            let headers = Headers(again.headers);
            prop_assert_eq!(headers.host(), Ok(Some("a.example")));
            prop_assert!(!headers.has("transfer-encoding"));
        }
    }
}
