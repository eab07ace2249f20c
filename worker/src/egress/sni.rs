//! Which server name a TLS client names: the SNI of its ClientHello, read from the first bytes of a tunnel. What is
//! allowed for its name has to be meant for that name.
//!
//! Bounded and strict: what is not a whole, well-formed ClientHello is refused, and so is one that says a thing twice,
//! which two readers could read in two ways. What it can't see: a name inside an encrypted ClientHello, and a Host
//! inside the tunnel. What is behind an allowed server is that server's to say.

use berth_proto::egress::Host;

/// The most that a ClientHello may have, with its records' heads. Browsers' have 2 KiB.
pub const HELLO_MAX: usize = 16 << 10;

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// RFC 8446, 5.1.
const RECORD_MAX: usize = 1 << 14;

/// What the bytes so far say. `None`: more have to come; `Some(None)`: a hello without a name.
pub fn server_name(bytes: &[u8]) -> Result<Option<Option<Host>>, &'static str> {
    let Some(hello) = handshake(bytes)? else {
        return if bytes.len() < HELLO_MAX { Ok(None) } else { Err("its ClientHello is longer than 16 KiB") };
    };
    read_hello(&hello).map(Some)
}

/// The body of the first handshake message, put together from its records.
fn handshake(bytes: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    const NO_TLS: &str = "it does not begin with a TLS ClientHello";
    let mut rest = bytes;
    let mut message = Vec::new();
    loop {
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(NO_TLS);
        }
        if message.len() >= 4 {
            let length =
                usize::from(message[1]) << 16 | usize::from(message[2]) << 8 | usize::from(message[3]);
            if length > HELLO_MAX {
                return Err("its ClientHello is longer than 16 KiB");
            }
            if message.len() >= 4 + length {
                // What is behind it in its record would be another message before the server has answered.
                let whole = message.len() == 4 + length;
                return if whole { Ok(Some(message.split_off(4))) } else { Err(NO_TLS) };
            }
        }
        if rest.first().is_some_and(|kind| *kind != RECORD_HANDSHAKE)
            || rest.get(1).is_some_and(|major| *major != 3)
        {
            return Err(NO_TLS);
        }
        let Some((head, body)) = rest.split_at_checked(5) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > RECORD_MAX {
            return Err(NO_TLS);
        }
        let Some((body, behind)) = body.split_at_checked(length) else { return Ok(None) };
        message.extend_from_slice(body);
        rest = behind;
    }
}

fn read_hello(hello: &[u8]) -> Result<Option<Host>, &'static str> {
    const BROKEN: &str = "its ClientHello is malformed";
    let mut rest = Bytes(hello);
    // Version and random, session id, cipher suites, compression methods.
    rest.take(2 + 32).ok_or(BROKEN)?;
    rest.vector(1).ok_or(BROKEN)?;
    rest.vector(2).ok_or(BROKEN)?;
    rest.vector(1).ok_or(BROKEN)?;
    if rest.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Bytes(rest.vector(2).ok_or(BROKEN)?);
    if !rest.0.is_empty() {
        return Err(BROKEN);
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2).ok_or(BROKEN)?;
        let body = extensions.vector(2).ok_or(BROKEN)?;
        if kind == usize::from(SERVER_NAME) && name.replace(read_name(body).ok_or(BROKEN)?).is_some() {
            return Err("its ClientHello names a server twice");
        }
    }
    name.map(|name| {
        let text = std::str::from_utf8(name).ok();
        text.and_then(|text| text.parse().ok()).ok_or("its ClientHello names no host")
    })
    .transpose()
}

/// The one host name of a server name extension.
fn read_name(body: &[u8]) -> Option<&[u8]> {
    let mut body = Bytes(body);
    let mut list = Bytes(body.vector(2)?);
    let kind = list.number(1)?;
    let name = list.vector(2)?;
    (kind == usize::from(HOST_NAME) && list.0.is_empty() && body.0.is_empty()).then_some(name)
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of so many bytes.
    fn number(&mut self, width: usize) -> Option<usize> {
        Some(self.take(width)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    /// What has its length, of so many bytes, before it.
    fn vector(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.number(width)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector(width: usize, body: &[u8]) -> Vec<u8> {
        let mut out = body.len().to_be_bytes()[size_of::<usize>() - width..].to_vec();
        out.extend_from_slice(body);
        out
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), vector(2, body)].concat()
    }

    fn named(name: &str) -> Vec<u8> {
        extension(SERVER_NAME, &vector(2, &[vec![HOST_NAME], vector(2, name.as_bytes())].concat()))
    }

    /// A handshake message with these extensions.
    fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(vector(1, &[9; 32]));
        body.extend(vector(2, &[0x13, 0x01]));
        body.extend(vector(1, &[0]));
        body.extend(vector(2, &extensions.concat()));
        [vec![CLIENT_HELLO], vector(3, &body)].concat()
    }

    /// In records of at most so many bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [vec![RECORD_HANDSHAKE, 3, 1], vector(2, part)].concat();
        message.chunks(size).flat_map(record).collect()
    }

    fn name(host: &str) -> Result<Option<Option<Host>>, &'static str> {
        Ok(Some(Some(host.parse().unwrap())))
    }

    #[test]
    fn the_name_is_read_however_it_is_cut() {
        let message = hello(&[extension(43, &[2, 3, 4]), named("A.example"), extension(16, b"\0\x03\x02h2")]);
        for size in [1, 2, 5, 17, 16_384] {
            let bytes = records(&message, size);
            assert_eq!(server_name(&bytes), name("a.example"), "{size}");
            assert_eq!(
                server_name(&[&bytes[..], b"more"].concat()),
                name("a.example"),
                "what follows is not its"
            );
            for cut in 0..bytes.len() {
                assert_eq!(server_name(&bytes[..cut]), Ok(None), "{size} {cut}");
            }
        }
        assert_eq!(server_name(&records(&hello(&[]), 100)), Ok(Some(None)));
    }

    /// Red for each check that is taken out.
    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let of = |extensions: &[Vec<u8>]| server_name(&records(&hello(extensions), 500));
        assert!(of(&[named("a.example"), named("b.example")]).is_err());
        let two =
            [vec![HOST_NAME], vector(2, b"a.example"), vec![HOST_NAME], vector(2, b"b.example")].concat();
        assert!(of(&[extension(SERVER_NAME, &vector(2, &two))]).is_err());
        let longer = [vector(2, &[vec![HOST_NAME], vector(2, b"a.example")].concat()), vec![0]].concat();
        assert!(of(&[extension(SERVER_NAME, &longer)]).is_err());
        assert!(
            of(&[extension(SERVER_NAME, &vector(2, &[vec![1], vector(2, b"a.example")].concat()))]).is_err()
        );
        for odd in ["", "a b", "a.example\0.evil", "127.1", "*.example"] {
            assert!(of(&[named(odd)]).is_err(), "{odd:?}");
        }
        let mut more = hello(&[named("a.example")]);
        more.extend(hello(&[named("b.example")]));
        assert!(server_name(&records(&more, 5000)).is_err(), "two messages in one record");
    }

    #[test]
    fn what_is_no_hello_is_refused_at_once() {
        let odd: [&[u8]; 6] = [
            b"GET / HTTP/1.1",
            b"SSH-2.0",
            &[22, 2, 0, 0, 1],
            &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0x40, 1],
            &[22, 3, 1, 0, 1, 2],
        ];
        for bytes in odd {
            assert!(server_name(bytes).is_err(), "{bytes:?}");
        }
        let long = [vec![CLIENT_HELLO, 0, 0x40, 1], vec![0; 64]].concat();
        assert!(server_name(&records(&long, 500)).is_err(), "it says that it is longer than it may be");
        let trickle = records(&[vec![CLIENT_HELLO, 0, 0x40, 0], vec![0; HELLO_MAX]].concat(), 1);
        assert!(server_name(&trickle[..HELLO_MAX]).is_err(), "records of a byte each");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..200, byte: u8) {
            let _ = server_name(&bytes);
            let mut changed = records(&hello(&[named("a.example")]), 64);
            let at = at % changed.len();
            changed[at] = byte;
            let _ = server_name(&changed);
        }
    }
}
