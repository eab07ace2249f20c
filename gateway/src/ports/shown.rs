//! What a request shows to be let in, and what of it is ours: that never reaches the sandbox.
//!
//! A server in a sandbox may have users and keys of its own, in the same fields. So what decides is the value: a token of
//! Berth, or an API key that stands for one, is ours wherever it stands, and everything else is the server's. Two fields
//! are ours whatever they hold, and are so looked at first: `E2b-Traffic-Access-Token` and `X-Berth-Token`.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    e2b::token_of_key,
    http::{bearer, text},
};

const TRAFFIC: &str = "e2b-traffic-access-token";
const ACCESS: &str = "x-access-token";
const TOKEN: &str = "x-berth-token";
const KEY: &str = "x-api-key";

/// What a request shows.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// A token of Berth.
    Token(String),
    /// What the gateway has sealed: for the ports of a sandbox, or for all of it.
    Sealed(String),
    /// Something in a field that is ours, and no token.
    Wrong,
    Nothing,
}

/// What a request shows.
pub fn shown(headers: &HeaderMap) -> Shown {
    if headers.contains_key(TRAFFIC) {
        return text(headers, TRAFFIC).map_or(Shown::Wrong, |sealed| Shown::Sealed(sealed.to_owned()));
    }
    if headers.contains_key(TOKEN) {
        return text(headers, TOKEN).and_then(ours).map_or(Shown::Wrong, Shown::Token);
    }
    if let Some(sealed) = text(headers, ACCESS).filter(|value| ours(value).is_some()) {
        return Shown::Sealed(sealed.to_owned());
    }
    let token = text(headers, KEY).and_then(ours);
    let token = token.or_else(|| bearer(headers).and_then(|value| ours(&value)));
    token.map_or(Shown::Nothing, Shown::Token)
}

/// Takes away what is ours.
pub fn remove(headers: &mut HeaderMap) {
    let of_ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("e2b-") || name.as_str().starts_with("x-berth-"))
        .cloned()
        .collect();
    for name in of_ours {
        headers.remove(name);
    }
    for name in [HeaderName::from_static(ACCESS), HeaderName::from_static(KEY), header::AUTHORIZATION] {
        if headers.get_all(&name).iter().any(is_ours) {
            headers.remove(name);
        }
    }
}

/// The token of Berth that a value is, or stands for.
fn ours(value: &str) -> Option<String> {
    token_of_key(value).filter(|token| token.starts_with("berth_"))
}

/// `<token>`, `<scheme> <token>`, or the user or the password of `Basic`.
fn is_ours(value: &HeaderValue) -> bool {
    let value = String::from_utf8_lossy(value.as_bytes());
    value.split([' ', '\t', ',']).any(|word| {
        let pair = STANDARD.decode(word).ok().and_then(|pair| String::from_utf8(pair).ok());
        ours(word).is_some() || pair.is_some_and(|pair| pair.split(':').any(|part| ours(part).is_some()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        let field =
            |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in all.iter().map(field) {
            headers.append::<HeaderName>(name, value);
        }
        headers
    }

    /// Red when a key of the server's own is taken for one of Berth's, or the other way round.
    #[test]
    fn what_is_ours_is_known_by_its_value() {
        let key = crate::e2b::key("berth_client_00");
        let token = |text: &str| Shown::Token(text.to_owned());
        for (field, value, expected) in [
            ("Authorization", "Bearer berth_client_00", token("berth_client_00")),
            ("Authorization", "Bearer eyJhbGciOi", Shown::Nothing),
            ("Authorization", "Basic dXNlcjo=", Shown::Nothing),
            ("X-API-KEY", &key, token("berth_client_00")),
            ("X-API-KEY", "berth_client_00", token("berth_client_00")),
            ("X-API-KEY", "sk-123", Shown::Nothing),
            ("X-API-KEY", "e2b_616263", Shown::Nothing),
            ("X-Berth-Token", "berth_client_00", token("berth_client_00")),
            ("X-Berth-Token", "sk-123", Shown::Wrong),
            ("X-Access-Token", "berth_sandbox_x", Shown::Sealed("berth_sandbox_x".to_owned())),
            ("X-Access-Token", "its own", Shown::Nothing),
            ("E2b-Traffic-Access-Token", "anything", Shown::Sealed("anything".to_owned())),
        ] {
            assert_eq!(shown(&headers(&[(field, value)])), expected, "{field}: {value}");
        }
    }

    #[test]
    fn what_is_ours_is_taken_away_and_nothing_else() {
        let key = crate::e2b::key("berth_client_00");
        let pair = STANDARD.encode("user:berth_client_00");
        for (field, value) in [
            ("authorization", "Bearer berth_client_00".to_owned()),
            ("authorization", "token  berth_client_00".to_owned()),
            ("authorization", format!("Basic {pair}")),
            ("x-api-key", key),
            ("x-access-token", "berth_sandbox_x".to_owned()),
            ("x-berth-token", "whatever".to_owned()),
            ("e2b-sandbox-id", "x".to_owned()),
            ("e2b-traffic-access-token", "x".to_owned()),
        ] {
            let mut all = headers(&[(field, &value), (field, "second"), ("cookie", "a=b")]);
            remove(&mut all);
            assert_eq!(all, headers(&[("cookie", "a=b")]), "{field}: {value}");
        }
        let theirs = headers(&[
            ("authorization", "Bearer eyJhbGciOi"),
            ("x-api-key", "sk-123"),
            ("x-access-token", "its own"),
        ]);
        let mut all = theirs.clone();
        remove(&mut all);
        assert_eq!(all, theirs);
    }
}
