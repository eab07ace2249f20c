//! The egress proxy's parsers: what stands behind each of them is whether code in a sandbox reaches a host that no rule
//! names.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::from_utf8,
};

use berth_proto::egress::{Host, Hosts, Rule, Target};
use berth_worker::egress::{address, http, sni};
use rustls::server::Acceptor;

/// A host, a target and a rule have one spelling, and none that a resolver would take for an address.
pub fn egress_rules(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    if let Ok(host) = text.parse::<Host>() {
        assert_eq!(host.to_string().parse(), Ok(host.clone()), "a host has one spelling");
        if let Host::Name(name) = &host {
            assert!(!is_numeric(name), "{name:?} is an address to a resolver");
            assert!(!name.ends_with('.') && !name.bytes().any(|b| b.is_ascii_uppercase()), "{name:?}");
            assert!(
                name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len())),
                "{name:?}"
            );
        }
        if let Host::Address(address) = &host {
            assert_eq!(*address, address.to_canonical(), "an IPv4 address hides in {address}");
        }
        // Whoever writes a host down as a rule means that host and no other.
        let rule: Rule = host.to_string().parse().expect("a host is a rule");
        assert!(rule.covers(&host, 443) && !rule.covers(&host, 22));
    }
    if let Ok(target) = text.parse::<Target>() {
        assert_eq!(target.to_string().parse(), Ok(target.clone()), "a target has one spelling");
        assert_eq!(Target::parse_or(text, 80), Ok(target.clone()), "the port that is named counts");
        assert!(target.port > 0);
    }
    if let Ok(rule) = text.parse::<Rule>() {
        assert_eq!(rule.to_string().parse(), Ok(rule.clone()), "a rule has one spelling");
        covers_what_it_says(&rule);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        assert_eq!(address::denied(ip), address::denied(ip.to_canonical()), "{ip} is judged by its spelling");
    }
    denies(bytes);
}

/// A rule is for what it names, and not for what only looks like it.
fn covers_what_it_says(rule: &Rule) {
    let port = rule.port.unwrap_or(443);
    let name = |name: String| Host::Name(name);
    match &rule.hosts {
        Hosts::Name(own) => {
            assert!(rule.covers(&name(own.clone()), port));
            assert!(
                !rule.covers(&name(format!("x{own}")), port) && !rule.covers(&name(format!("x.{own}")), port)
            );
        }
        Hosts::Below(domain) => {
            assert!(rule.covers(&name(format!("x.{domain}")), port));
            assert!(!rule.covers(&name(domain.clone()), port), "a domain is not below itself");
            assert!(!rule.covers(&name(format!("x{domain}")), port), "the dot counts");
        }
        Hosts::Range(first, bits) => {
            assert!(rule.covers(&Host::Address(*first), port), "the first address is in its range");
            if *bits > 0 {
                let outside = match first {
                    IpAddr::V4(v4) => IpAddr::from(Ipv4Addr::from(u32::from(*v4) ^ 1 << 31 >> (bits - 1))),
                    IpAddr::V6(v6) => IpAddr::from(Ipv6Addr::from(u128::from(*v6) ^ 1 << 127 >> (bits - 1))),
                };
                assert!(!rule.covers(&Host::Address(outside), port), "{outside} is not in {rule}");
            }
        }
    }
    let other = if rule.port.is_some() { port ^ 1 } else { 22 };
    if let Hosts::Name(own) = &rule.hosts {
        assert!(!rule.covers(&name(own.clone()), other), "a rule is for its port");
    }
}

/// The first 4 or 16 bytes as an address: what the standard library knows not to be public is denied.
fn denies(bytes: &[u8]) {
    if let Some(Ok(four)) = bytes.get(..4).map(<[u8; 4]>::try_from) {
        let v4 = Ipv4Addr::from(four);
        let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast();
        if special || v4.is_broadcast() || v4.is_unspecified() || v4.is_documentation() {
            assert!(address::denied(v4.into()).is_some(), "{v4}");
        }
        assert_eq!(address::denied(v4.into()), address::denied(v4.to_ipv6_mapped().into()), "{v4}");
    }
    if let Some(Ok(sixteen)) = bytes.get(..16).map(<[u8; 16]>::try_from) {
        let v6 = Ipv6Addr::from(sixteen);
        let special = v6.is_loopback() || v6.is_multicast() || v6.is_unspecified();
        if special || v6.is_unique_local() || v6.is_unicast_link_local() {
            assert!(address::denied(v6.into()).is_some(), "{v6}");
        }
    }
}

/// Whether the C library's `inet_aton` takes a name for an address: one to four numbers, each decimal, octal or
/// hexadecimal, the last of which fills what is left.
fn is_numeric(name: &str) -> bool {
    let number = |text: &str| {
        if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            return if hex.is_empty() { Some(0) } else { u64::from_str_radix(hex, 16).ok() };
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let radix = if text.len() > 1 && text.starts_with('0') { 8 } else { 10 };
        u64::from_str_radix(text, radix).ok()
    };
    let parts: Vec<_> = name.split('.').collect();
    parts.len() <= 4 && parts.iter().all(|part| number(part).is_some())
}

/// A request is read alike however it arrives, and what goes on to the server is one request to the host that was
/// decided on: read again, it is itself.
pub fn proxy_request(bytes: &[u8]) {
    let Ok(Some((request, length))) = http::parse(bytes) else { return };
    assert!(length <= bytes.len() && length <= http::HEAD_MAX);
    assert_eq!(http::parse(&bytes[..length]), Ok(Some((request.clone(), length))), "what follows is not its");
    assert_eq!(http::parse(&bytes[..length - 1]), Ok(None), "a head without its last byte is not whole");
    let http::Request::Plain { target, head, body } = &request else { return };
    let mut room = [httparse::EMPTY_HEADER; 80];
    let mut again = httparse::Request::new(&mut room);
    assert_eq!(
        again.parse(head),
        Ok(httparse::Status::Complete(head.len())),
        "one head, and nothing behind it"
    );
    let all = |name: &str| {
        let named = again.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.to_vec()).collect::<Vec<_>>()
    };
    let hosts = all("host");
    assert_eq!(hosts.len(), 1, "one host");
    let host = from_utf8(&hosts[0]).expect("a host is text");
    assert_eq!(Target::parse_or(host, 80).as_ref(), Ok(target), "the host that was decided on");
    assert!(all("transfer-encoding").is_empty() && all("proxy-authorization").is_empty());
    assert_eq!(all("connection"), [b"close".to_vec()], "one request a connection");
    match &all("content-length")[..] {
        [] => assert_eq!(*body, 0),
        [length] => {
            assert_eq!(length, body.to_string().as_bytes(), "the server reads as much as is passed on")
        }
        more => panic!("{} lengths", more.len()),
    }
    let (method, path) = (again.method.expect("it has one"), again.path.expect("it has one"));
    assert!(path.starts_with('/'), "{path:?}");
    let line = format!("{method} {path} ");
    let mut absolute = format!("{method} http://{target}{path} ").into_bytes();
    absolute.extend_from_slice(&head[line.len()..]);
    // The absolute form is longer and has a header more, and `Connection: close` names a header called that.
    let too_much = absolute.len() > http::HEAD_MAX || again.headers.len() > http::HEADERS_MAX;
    if !too_much && all("close").is_empty() {
        let read = http::parse(&absolute).expect("what was written is read").expect("it is whole");
        assert_eq!(read, (request.clone(), absolute.len()), "what was written is read as it was meant");
    }
}

/// A name that is read is the one that a TLS server reads (rustls), and nothing is taken for a hello without a name of
/// which a server reads one.
pub fn client_hello(bytes: &[u8]) {
    let ours = sni::server_name(bytes);
    for cut in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        if let Ok(Some(early)) = sni::server_name(&bytes[..cut]) {
            assert_eq!(ours, Ok(Some(early)), "more bytes change nothing");
        }
    }
    let Some(theirs) = read_by_rustls(bytes) else { return };
    match ours {
        // Stricter than a server is right.
        Err(_) => {}
        Ok(None) => panic!("rustls has read a whole hello"),
        Ok(Some(None)) => assert_eq!(theirs, None, "there is a name in it"),
        Ok(Some(Some(host))) => match theirs {
            Some(name) => assert_eq!(name.parse(), Ok(host), "the same name"),
            // An address is no name to rustls: it leaves it out.
            None => assert!(matches!(host, Host::Address(_)), "{host} is no name to rustls"),
        },
    }
}

/// The server name of a hello that rustls takes; `Some(None)`: it has none.
fn read_by_rustls(mut bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).ok()? == 0 {
            return None;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                return Some(accepted.client_hello().server_name().map(str::to_owned));
            }
            Err(_) => return None,
        }
    }
    None
}
