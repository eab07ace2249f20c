//! `multipart/form-data`, piece by piece: what is in a part goes on as it comes, and no more of a request is held than a
//! piece of its body and the heads of one part.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, header};
use memchr::memmem;

use super::{
    body::{Upload, broken},
    problem::Problem,
};

/// Bytes of the heads of one part: names of files are in them.
const HEADS_MAX: usize = 16 << 10;
/// As RFC 2046 has it.
const BOUNDARY_MAX: usize = 70;

/// The boundary of a request that has parts. `None`: it has none.
pub fn boundary(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let (kind, parameters) = kind.split_once(';').unwrap_or((kind, ""));
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return Ok(None);
    }
    let boundary = parameter(parameters, "boundary").filter(|b| !b.is_empty() && b.len() <= BOUNDARY_MAX);
    let wrong = || Problem::invalid("the multipart request does not say its boundary");
    boundary.map(Some).ok_or_else(wrong)
}

/// A part of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// Of the field.
    pub name: String,
    pub file: Option<String>,
}

/// See the module.
pub struct Multipart {
    body: Upload,
    buffer: BytesMut,
    /// What stands between two parts: a line's end, two hyphens, the boundary.
    delimiter: Vec<u8>,
    /// The buffer begins behind the delimiter that ended a part.
    at_delimiter: bool,
    over: bool,
}

impl Multipart {
    pub fn new(body: Upload, boundary: &str) -> Self {
        // The first delimiter has no line before it.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        Self { body, buffer, delimiter, at_delimiter: false, over: false }
    }

    /// The next part; what was left of the one before is passed over.
    pub async fn part(&mut self) -> Result<Option<Part>, Problem> {
        while self.chunk().await?.is_some() {}
        if self.over {
            return Ok(None);
        }
        self.at_delimiter = false;
        self.filled(2).await?;
        match &self.buffer[..2] {
            b"--" => {
                self.over = true;
                return Ok(None);
            }
            b"\r\n" => {}
            _ => return Err(Problem::invalid("no line's end is behind a boundary of the multipart request")),
        }
        let end = loop {
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            if self.buffer.len() > HEADS_MAX {
                return Err(Problem::too_large(format!(
                    "the heads of a part have at most {HEADS_MAX} bytes"
                )));
            }
            self.more().await?;
        };
        let heads = self.buffer.split_to(end + 4);
        part(&heads[2..])
            .map(Some)
            .ok_or_else(|| Problem::invalid("a part of the multipart request does not say what it is"))
    }

    /// What comes next of the part. `None`: that was all.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        if self.over || self.at_delimiter {
            return Ok(None);
        }
        loop {
            if let Some(at) = memmem::find(&self.buffer, &self.delimiter) {
                let rest = self.buffer.split_to(at).freeze();
                self.buffer.advance(self.delimiter.len());
                self.at_delimiter = true;
                return Ok((!rest.is_empty()).then_some(rest));
            }
            // All but what may be the beginning of a delimiter.
            let sure = (self.buffer.len() + 1).saturating_sub(self.delimiter.len());
            if sure > 0 {
                return Ok(Some(self.buffer.split_to(sure).freeze()));
            }
            self.more().await?;
        }
    }

    async fn filled(&mut self, wanted: usize) -> Result<(), Problem> {
        while self.buffer.len() < wanted {
            self.more().await?;
        }
        Ok(())
    }

    async fn more(&mut self) -> Result<(), Problem> {
        let piece = self.body.next().await.transpose().map_err(broken)?;
        let piece =
            piece.ok_or_else(|| Problem::invalid("the multipart request ends before its last boundary"))?;
        self.buffer.extend_from_slice(&piece);
        Ok(())
    }
}

fn part(heads: &[u8]) -> Option<Part> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let httparse::Status::Complete((_, headers)) = httparse::parse_headers(heads, &mut headers).ok()? else {
        return None;
    };
    let said = headers.iter().find(|head| head.name.eq_ignore_ascii_case("content-disposition"))?;
    let (kind, parameters) = std::str::from_utf8(said.value).ok()?.split_once(';')?;
    let name = parameter(parameters, "name")?;
    kind.trim()
        .eq_ignore_ascii_case("form-data")
        .then(|| Part { name, file: parameter(parameters, "filename") })
}

/// A parameter of a header's value, without its quotes.
fn parameter(mut text: &str, wanted: &str) -> Option<String> {
    loop {
        let (name, rest) = text.split_once('=')?;
        let name = name.trim_start_matches([';', ' ', '\t']).trim_end();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let (value, rest) = rest.split_once(';').unwrap_or((rest, ""));
                (value.trim().to_owned(), rest)
            }
        };
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        text = rest;
    }
}

/// A quoted text up to its end, and what is behind it. Browsers and the SDKs write three characters of a file's name as
/// browsers must: `%22`, `%0D` and `%0A`.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => {
                let value = value.replace("%22", "\"").replace("%0D", "\r").replace("%0A", "\n");
                return Some((value, &text[at + 1..]));
            }
            (_, '\\') => value.push(characters.next()?.1),
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    fn multipart(bytes: &[u8], size: usize) -> Multipart {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Multipart::new(Upload::of(futures::stream::iter(pieces)), "XX")
    }

    async fn all(mut multipart: Multipart) -> Result<Vec<(Part, Vec<u8>)>, Problem> {
        let mut parts = Vec::new();
        while let Some(part) = multipart.part().await? {
            let mut content = Vec::new();
            while let Some(chunk) = multipart.chunk().await? {
                content.extend_from_slice(&chunk);
            }
            parts.push((part, content));
        }
        Ok(parts)
    }

    const HEAD: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"a \\\"b\\\\%22\"\r\nX: y";

    /// Red when a boundary that is cut between two pieces is taken for content, or the other way round.
    #[tokio::test]
    async fn parts_are_found_however_they_are_cut() {
        let content = b"\r\n--X\r\n--\r\n-\r\r\n--X";
        let mut bytes = format!("preamble\r\n--XX\r\n{HEAD}\r\n\r\n").into_bytes();
        bytes.extend_from_slice(content);
        bytes.extend_from_slice(
            b"\r\n--XX\r\nContent-disposition: form-data; name=b\r\n\r\n\r\n--XX--\r\nepilogue",
        );
        let first = Part { name: "file".to_owned(), file: Some("a \"b\\\"".to_owned()) };
        let second = Part { name: "b".to_owned(), file: None };
        for size in 1..bytes.len() {
            let parts = all(multipart(&bytes, size)).await.unwrap();
            let [(one, data), (two, nothing)] = &parts[..] else { panic!("{size}: {parts:?}") };
            assert_eq!((one, &data[..]), (&first, &content[..]), "{size}");
            assert_eq!((two, nothing.len()), (&second, 0), "{size}");
        }
    }

    #[tokio::test]
    async fn what_is_cut_off_or_no_multipart_is_refused() {
        let whole = format!("--XX\r\n{HEAD}\r\n\r\ndata\r\n--XX--");
        assert!(all(multipart(whole.as_bytes(), 7)).await.is_ok());
        for end in 0..whole.len() {
            assert!(all(multipart(&whole.as_bytes()[..end], 5)).await.is_err(), "{end}");
        }
        for bad in ["--XXdata", "--XX\r\nno heads\r\n\r\n--XX--", "--XX\r\nA: b\r\n\r\n--XX--"] {
            assert!(all(multipart(bad.as_bytes(), 100)).await.is_err(), "{bad}");
        }
    }

    /// Red when heads are held without a bound.
    #[tokio::test]
    async fn endless_heads_are_refused() {
        let begin = futures::stream::iter([Ok(Bytes::from_static(b"--XX\r\n"))]);
        let endless = futures::stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 1000])));
        let mut multipart = Multipart::new(Upload::of(begin.chain(endless)), "XX");
        assert!(multipart.part().await.unwrap_err().is("resource_exhausted"));
    }

    #[test]
    fn a_boundary_is_in_the_content_type() {
        let of = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            boundary(&headers)
        };
        assert_eq!(of("multipart/form-data; boundary=abc").unwrap().as_deref(), Some("abc"));
        assert_eq!(of("Multipart/Form-Data; charset=x; boundary=\"a b\"").unwrap().as_deref(), Some("a b"));
        assert_eq!(of("application/octet-stream").unwrap(), None);
        assert!(of("multipart/form-data").is_err());
        assert!(of(&format!("multipart/form-data; boundary={}", "x".repeat(71))).is_err());
    }
}
