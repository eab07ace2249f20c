//! The fields of a request and of an answer, on their way from one hop to the next (RFC 9110, 7.6; RFC 9112, 6 and 7).

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, request, response, uri::PathAndQuery,
};

use super::shown;

/// For one hop alone, whether `Connection` names them or not.
const HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Not for one hop alone, whatever `Connection` says.
const KEPT: [&str; 2] = ["host", "content-length"];
const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_HOST: &str = "x-forwarded-host";
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// Makes a client's request ours: the protocol that it asks to change to, if it does.
pub fn to_server(head: &mut request::Parts, peer: IpAddr) -> Result<Option<HeaderValue>, &'static str> {
    if head.method == Method::CONNECT {
        return Err("CONNECT is not for a server in a sandbox (hint: `berth port-forward` connects to it)");
    }
    let headers = &mut head.headers;
    if headers.get_all(header::HOST).iter().count() > 1 {
        return Err("the request has more than one Host");
    }
    let is_chunked =
        chunked(headers).map_err(|()| "the request has a Transfer-Encoding other than chunked")?;
    let asked = asked(&head.method, headers);
    end_hop(headers, is_chunked);
    shown::remove(headers);
    // Who asked to be told is told by us.
    headers.remove(header::EXPECT);
    forwarded(headers, peer);
    if is_chunked {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // A connection carries one request.
    let connection = if asked.is_some() { "upgrade" } else { "close" };
    headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
    if let Some(protocol) = &asked {
        headers.insert(header::UPGRADE, protocol.clone());
    }
    headers.entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
    let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    head.uri = Uri::from(path);
    head.version = Version::HTTP_11;
    Ok(asked)
}

/// Makes a server's answer ours.
pub fn to_client(head: &mut response::Parts) -> Result<(), String> {
    let is_chunked = chunked(&head.headers)
        .map_err(|()| "its answer has a Transfer-Encoding other than chunked".to_owned())?;
    end_hop(&mut head.headers, is_chunked);
    head.version = Version::HTTP_11;
    Ok(())
}

/// Makes a server's answer ours, in which it changes to the protocol that was asked for.
pub fn switched(head: &mut response::Parts, asked: &HeaderValue) -> Result<(), String> {
    let agreed = head.headers.get(header::UPGRADE).map(HeaderValue::as_bytes);
    if !agreed.is_some_and(|agreed| agreed.eq_ignore_ascii_case(asked.as_bytes())) {
        return Err("it changed to another protocol than it was asked to".to_owned());
    }
    end_hop(&mut head.headers, true);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(header::UPGRADE, asked.clone());
    head.version = Version::HTTP_11;
    Ok(())
}

/// Whether a message is in chunks. An error: it is in something else too, which would be lost on the way.
fn chunked(headers: &HeaderMap) -> Result<bool, ()> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(false),
        (Some(one), None) if one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(()),
    }
}

/// The one protocol that a request asks to change to. HTTP itself is none: a client that speaks the next version of it with
/// the server would be read by nobody between them.
fn asked(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let names_it = listed(headers).any(|name| name == header::UPGRADE);
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let (protocol, None) = (protocols.next()?, protocols.next()) else { return None };
    let text = protocol.to_str().ok()?.trim().to_ascii_lowercase();
    let is_http = ["h2", "h3", "http", "tls"].iter().any(|name| text.starts_with(name));
    let good =
        names_it && *method == Method::GET && !is_http && !text.is_empty() && !text.contains([',', ' ']);
    good.then(|| protocol.clone())
}

/// The fields that `Connection` names.
fn listed(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let lines = headers.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse().ok())
}

/// Takes away what is for one hop alone. A length beside chunks is no length (RFC 9112, 6.3).
fn end_hop(headers: &mut HeaderMap, is_chunked: bool) {
    let named: Vec<HeaderName> = listed(headers).filter(|name| !KEPT.contains(&name.as_str())).collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP {
        headers.remove(name);
    }
    if is_chunked {
        headers.remove(header::CONTENT_LENGTH);
    }
}

/// Says for whom the request is. What a proxy before us said is kept: only it knows whether there was TLS.
fn forwarded(headers: &mut HeaderMap, peer: IpAddr) {
    let before = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let hops = before.map(str::to_owned).chain([peer.to_string()]).collect::<Vec<_>>().join(", ");
    if let Ok(hops) = HeaderValue::try_from(hops) {
        headers.insert(FORWARDED_FOR, hops);
    }
    let known = |value: &HeaderValue| matches!(value.as_bytes(), b"http" | b"https");
    if !headers.get(FORWARDED_PROTO).is_some_and(known) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = headers.get(header::HOST).cloned()
        && !headers.contains_key(FORWARDED_HOST)
    {
        headers.insert(FORWARDED_HOST, host);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(method: &str, fields: &[(&str, &str)]) -> request::Parts {
        let uri = "http://example.org/a?b=c";
        let request =
            fields.iter().fold(Request::builder().method(method).uri(uri), |request, (name, value)| {
                request.header(*name, *value)
            });
        request.body(()).unwrap().into_parts().0
    }

    fn sent(fields: &[(&str, &str)]) -> (request::Parts, Option<HeaderValue>) {
        let mut head = head("GET", fields);
        let asked = to_server(&mut head, [192, 0, 2, 7].into()).unwrap();
        (head, asked)
    }

    /// Red when a field that is for us reaches the server, or one that is for the server does not.
    #[test]
    fn what_is_for_one_hop_ends_here() {
        let (head, asked) = sent(&[
            ("Host", "3000-x.localhost:8080"),
            ("Connection", "keep-alive, X-Mine, Host, Content-Length"),
            ("Keep-Alive", "timeout=5"),
            ("X-Mine", "1"),
            ("X-Theirs", "2"),
            ("TE", "trailers"),
            ("Trailer", "X-Sum"),
            ("Proxy-Authorization", "Basic x"),
            ("Expect", "100-continue"),
            ("Content-Length", "0"),
            ("X-Forwarded-For", "198.51.100.1"),
            ("X-Forwarded-Proto", "https"),
        ]);
        assert_eq!(asked, None);
        assert_eq!(head.uri, "/a?b=c");
        let mut fields: Vec<String> =
            head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        fields.sort();
        assert_eq!(
            fields,
            [
                "connection: close",
                "content-length: 0",
                "host: 3000-x.localhost:8080",
                "x-forwarded-for: 198.51.100.1, 192.0.2.7",
                "x-forwarded-host: 3000-x.localhost:8080",
                "x-forwarded-proto: https",
                "x-theirs: 2",
            ]
        );
    }

    /// Red when two readers of one message could differ about its end.
    #[test]
    fn a_message_has_one_length() {
        let (head, _) = sent(&[("Transfer-Encoding", "chunked"), ("Content-Length", "5")]);
        assert_eq!(head.headers.get("transfer-encoding").unwrap(), "chunked");
        assert!(!head.headers.contains_key("content-length"));
        let refused =
            |fields: &[(&str, &str)]| to_server(&mut self::head("POST", fields), [127, 0, 0, 1].into());
        assert!(refused(&[("Transfer-Encoding", "gzip, chunked")]).is_err());
        assert!(refused(&[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")]).is_err());
        assert!(refused(&[("Host", "a"), ("Host", "b")]).is_err());
        assert!(to_server(&mut self::head("CONNECT", &[]), [127, 0, 0, 1].into()).is_err());

        let answer = |fields: &[(&str, &str)]| {
            let response =
                fields.iter().fold(http::Response::builder(), |r, (name, value)| r.header(*name, *value));
            let mut head = response.body(()).unwrap().into_parts().0;
            to_client(&mut head).map(|()| head.headers)
        };
        assert!(answer(&[("Transfer-Encoding", "chunked"), ("Content-Length", "5")]).unwrap().is_empty());
        assert!(answer(&[("Transfer-Encoding", "gzip, chunked")]).is_err());
        let kept = answer(&[("Content-Length", "5"), ("Connection", "X-Mine"), ("X-Mine", "1")]).unwrap();
        assert_eq!(kept.len(), 1, "{kept:?}");
    }

    #[test]
    fn another_protocol_is_asked_for_and_is_not_http() {
        for (connection, upgrade, expected) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, upgrade", "WebSocket", true),
            ("close", "websocket", false),
            ("Upgrade", "h2c", false),
            ("Upgrade", "HTTP/2.0", false),
            ("Upgrade", "TLS/1.0", false),
            ("Upgrade", "websocket, h2c", false),
            ("Upgrade", "", false),
        ] {
            let (head, asked) =
                sent(&[("Connection", connection), ("Upgrade", upgrade), ("HTTP2-Settings", "x")]);
            assert_eq!(asked.is_some(), expected, "{connection} {upgrade}");
            assert_eq!(head.headers.contains_key("upgrade"), expected);
            assert_eq!(head.headers["connection"], if expected { "upgrade" } else { "close" });
        }
    }
}
