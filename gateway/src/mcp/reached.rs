//! By what name a client reached the gateway: what a URL that it is given must begin with.

use berth_client::SessionId;
use http::{HeaderMap, header};

use crate::http::text;

/// The gateway, as seen from a client over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    scheme: &'static str,
    /// With the port, if it is said.
    host: String,
}

impl Reached {
    /// By what a request says. Its `Host` is one that was allowed.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let host = text(headers, header::HOST.as_str())?.to_ascii_lowercase();
        // Whether there was TLS only a proxy before us knows.
        let scheme = match text(headers, "x-forwarded-proto") {
            Some("https") => "https",
            _ => "http",
        };
        Some(Self { scheme, host })
    }

    pub fn base(&self) -> String {
        format!("{}://{}/", self.scheme, self.host)
    }

    /// Of a port of a session: a host name of its own. `None`: there are no names below an address.
    pub fn url(&self, session: SessionId, port: u16) -> Option<String> {
        let (name, number) = match self.host.rsplit_once(':') {
            Some((name, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(number)),
            _ => (self.host.as_str(), None),
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let name = match bare.parse::<std::net::IpAddr>() {
            Ok(address) if address.is_loopback() => "localhost",
            Ok(_) => return None,
            Err(_) => name,
        };
        let number = number.map(|number| format!(":{number}")).unwrap_or_default();
        Some(format!("{}://{port}-{session}.{name}{number}/", self.scheme))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_begins_with_the_name_that_the_client_used() {
        let id = SessionId::new();
        let url = |fields: &[(&'static str, &'static str)]| {
            let field = |(name, value): &(&'static str, &'static str)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
            };
            Reached::of(&fields.iter().map(field).collect()).and_then(|reached| reached.url(id, 3000))
        };
        for (host, expected) in [
            ("127.0.0.1:8080", Some(format!("http://3000-{id}.localhost:8080/"))),
            ("[::1]:8080", Some(format!("http://3000-{id}.localhost:8080/"))),
            ("localhost", Some(format!("http://3000-{id}.localhost/"))),
            ("Berth.example.org", Some(format!("http://3000-{id}.berth.example.org/"))),
            ("192.0.2.1:80", None),
        ] {
            assert_eq!(url(&[("host", host)]), expected, "{host}");
        }
        let behind = [("host", "berth.example.org"), ("x-forwarded-proto", "https")];
        assert_eq!(url(&behind), Some(format!("https://3000-{id}.berth.example.org/")));
        assert_eq!(url(&[]), None);
    }
}
