//! Reading an archive that nobody vouches for, as its bytes come.

use super::{BLOCK, Entry, Kind};

/// Bytes of a name or a link's target: Linux's PATH_MAX.
const PATH: usize = 4096;
/// Bytes of one extended header. One that holds two paths and some numbers has far less; others are told.
const EXTENDED: u64 = 64 << 10;

/// Why an archive is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    #[error("it is no tar archive, or is damaged")]
    NoTar,
    #[error("it is compressed ({0})")]
    Packed(&'static str),
    #[error("it ends before its end")]
    Cut,
    /// The name as it is in the archive, and what is wrong with it.
    #[error("{0}: {1}")]
    Entry(String, &'static str),
}

/// What comes next in an archive.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    Entry(Entry),
    /// Of the content of the last entry.
    Data(&'a [u8]),
}

/// How far it has come. Holds a header at most, and what goes before one.
#[derive(Default)]
pub struct Reader {
    at: At,
    /// Bytes of a header, or of what extends one, so far.
    held: Vec<u8>,
    next: Extended,
    /// Headers so far: of nothing at all, that it is empty can't be said.
    any: bool,
}

#[derive(Default)]
enum At {
    #[default]
    Header,
    /// In a header that extends the next one, of this kind and length.
    Extension(u8, u64),
    /// In the content of a file, with so many bytes left.
    Content(u64, usize),
    Padding(usize),
    /// Behind the end. Whatever comes is no longer of the archive.
    End,
}

/// What is said of the next entry before its own header.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
}

impl Reader {
    /// Takes what it can from the front of `input`. `None`: it needs more.
    ///
    /// # Errors
    /// Once there was one it is over.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Bad> {
        while !input.is_empty() {
            match self.at {
                At::Header => {
                    if self.hold(input, BLOCK) {
                        let block = std::mem::take(&mut self.held);
                        if let Some(entry) = self.header(&block)? {
                            return Ok(Some(Event::Entry(entry)));
                        }
                    }
                }
                At::Extension(kind, size) => {
                    if self.hold(input, size as usize) {
                        let bytes = std::mem::take(&mut self.held);
                        self.extend(kind, &bytes)?;
                        self.at = skip(super::padding(size));
                    }
                }
                At::Content(left, padding) => {
                    let n = left.min(input.len() as u64);
                    let (data, rest) = input.split_at(n as usize);
                    *input = rest;
                    self.at = if n == left { skip(padding) } else { At::Content(left - n, padding) };
                    return Ok(Some(Event::Data(data)));
                }
                At::Padding(left) => {
                    let n = left.min(input.len());
                    *input = &input[n..];
                    self.at = skip(left - n);
                }
                At::End => *input = &[],
            }
        }
        Ok(None)
    }

    /// There is nothing more.
    ///
    /// # Errors
    /// If there should be.
    pub fn finish(&self) -> Result<(), Bad> {
        let between = matches!(self.at, At::Header) && self.held.is_empty() && self.any;
        if between || matches!(self.at, At::End) {
            return Ok(());
        }
        // What is too short for a header may be what something else begins with.
        let packed = if self.any { None } else { packed(&self.held) };
        Err(packed.unwrap_or(Bad::Cut))
    }

    /// Whether so many are held by now.
    fn hold(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let n = (wanted - self.held.len()).min(input.len());
        self.held.extend_from_slice(&input[..n]);
        *input = &input[n..];
        self.held.len() == wanted
    }

    fn header(&mut self, block: &[u8]) -> Result<Option<Entry>, Bad> {
        if block.iter().all(|byte| *byte == 0) {
            self.at = At::End;
            return Ok(None);
        }
        check_sum(block, !self.any)?;
        self.any = true;
        let name = name(block);
        let bad = |what| Bad::Entry(shown(&name), what);
        let size = number(&block[124..136]).ok_or(bad("a size that is none"))?;
        let kind = match block[156] {
            b'x' | b'g' | b'L' | b'K' => {
                if size > EXTENDED {
                    return Err(bad("has a header that is too long"));
                }
                self.at = if size == 0 { At::Header } else { At::Extension(block[156], size) };
                return Ok(None);
            }
            // Before POSIX, a directory was a file whose name has a slash at its end. (That of a long one is cut here.)
            b'0' | 0 | b'7' if self.next.path.as_ref().unwrap_or(&name).ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            b'3' | b'4' => return Err(bad("is a device")),
            b'6' => return Err(bad("is a pipe")),
            b'S' => return Err(bad("is a sparse file, as GNU tar writes them: leave --sparse out")),
            _ => return Err(bad("is of a kind that is not taken")),
        };
        let next = std::mem::take(&mut self.next);
        let entry = entry(block, kind, name, size, next)?;
        let size = entry.size;
        self.at = if size > 0 { At::Content(size, super::padding(size)) } else { At::Header };
        Ok(Some(entry))
    }

    /// What is said of the next entry.
    fn extend(&mut self, kind: u8, bytes: &[u8]) -> Result<(), Bad> {
        match kind {
            b'L' => self.next.path = Some(until_zero(bytes).to_vec()),
            b'K' => self.next.target = Some(until_zero(bytes).to_vec()),
            b'x' => self.records(bytes)?,
            // Of all entries: comments, mostly.
            _ => {}
        }
        Ok(())
    }

    fn records(&mut self, mut bytes: &[u8]) -> Result<(), Bad> {
        while !bytes.is_empty() {
            let blank = bytes.iter().position(|byte| *byte == b' ').ok_or(Bad::NoTar)?;
            let length: usize = text(&bytes[..blank]).and_then(|text| text.parse().ok()).ok_or(Bad::NoTar)?;
            let record = bytes.get(blank + 1..length).and_then(|record| record.strip_suffix(b"\n"));
            let record = record.ok_or(Bad::NoTar)?;
            bytes = &bytes[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(Bad::NoTar)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let digits = || text(value).ok_or(Bad::NoTar);
            match key {
                b"path" => self.next.path = Some(value.to_vec()),
                b"linkpath" => self.next.target = Some(value.to_vec()),
                b"size" => self.next.size = Some(digits()?.parse().map_err(|_| Bad::NoTar)?),
                b"uid" => self.next.uid = digits()?.parse().ok(),
                b"gid" => self.next.gid = digits()?.parse().ok(),
                b"mtime" => self.next.mtime = time(digits()?),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(Bad::Entry("an entry".into(), "is a sparse file: leave --sparse out"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn skip(left: usize) -> At {
    if left == 0 { At::Header } else { At::Padding(left) }
}

fn entry(block: &[u8], kind: Kind, name: Vec<u8>, size: u64, next: Extended) -> Result<Entry, Bad> {
    let given = next.path.unwrap_or(name);
    let bad = |what| Bad::Entry(shown(&given), what);
    let path = names(&given).map_err(bad)?;
    if path.is_empty() && kind != Kind::Directory {
        return Err(bad("has no name"));
    }
    let target = next.target.unwrap_or_else(|| until_zero(&block[157..257]).to_vec());
    let target = match kind {
        Kind::Symlink if target.is_empty() || target.len() >= PATH || target.contains(&0) => {
            return Err(bad("is a link to nothing"));
        }
        Kind::Symlink => target,
        Kind::HardLink => names(&target)
            .ok()
            .filter(|path| !path.is_empty())
            .ok_or(bad("is a link that leads elsewhere"))?,
        Kind::File | Kind::Directory => Vec::new(),
    };
    let field = |range: std::ops::Range<usize>| number(&block[range]);
    let id = |range| field(range).and_then(|id| u32::try_from(id).ok()).unwrap_or_default();
    let seconds = field(136..148).and_then(|time| i64::try_from(time).ok()).unwrap_or_default();
    Ok(Entry {
        kind,
        // A program that runs as somebody else comes out of no archive.
        mode: field(100..108).ok_or(bad("a mode that is none"))? as u32 & 0o777,
        uid: next.uid.unwrap_or_else(|| id(108..116)),
        gid: next.gid.unwrap_or_else(|| id(116..124)),
        mtime: next.mtime.unwrap_or((seconds, 0)),
        size: if kind == Kind::File { next.size.unwrap_or(size) } else { 0 },
        target,
        path,
    })
}

/// The names of a path, if it leads nowhere else.
fn names(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    if path.starts_with(b"/") {
        return Err("has an absolute name");
    }
    if path.len() >= PATH || path.contains(&0) {
        return Err("has a name that is none");
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    let names: Vec<&[u8]> = names.collect();
    if names.contains(&&b".."[..]) {
        return Err("has `..` in its name");
    }
    Ok(names.join(&b'/'))
}

fn name(block: &[u8]) -> Vec<u8> {
    let (name, prefix) = (until_zero(&block[..100]), until_zero(&block[345..500]));
    // GNU's older headers have other things there.
    if &block[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

fn check_sum(block: &[u8], first: bool) -> Result<(), Bad> {
    let sum = |of: fn(u8) -> i64| -> i64 {
        let blank = |(at, byte): (usize, &u8)| of(if (148..156).contains(&at) { b' ' } else { *byte });
        block.iter().enumerate().map(blank).sum()
    };
    let said = number(&block[148..156]).and_then(|said| i64::try_from(said).ok());
    // Some old programs took bytes for signed.
    if said.is_some_and(|said| said == sum(i64::from) || said == sum(|byte| i64::from(byte as i8))) {
        return Ok(());
    }
    Err(if first { packed(block) } else { None }.unwrap_or(Bad::NoTar))
}

/// What compressed it, by what it begins with.
fn packed(bytes: &[u8]) -> Option<Bad> {
    let magic: [(&[u8], &'static str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ", "xz"),
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "zip"),
    ];
    magic.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, name)| Bad::Packed(name))
}

/// Octal digits, or with the first bit set the number itself.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8.min(field.len() - 1));
        let high = high.iter().enumerate().all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 });
        let fold = low.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        return high.then_some(fold);
    }
    let text = text(until_zero(field))?.trim();
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Seconds since 1970, with a fraction.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars().take(200).collect()
}
