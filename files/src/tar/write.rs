//! Headers, as POSIX.1-2001 says. What does not fit into the old one (a long name, one that is not ASCII, nanoseconds) is
//! said in an extended one before it.

use super::{BLOCK, Entry, Kind};

/// What an archive ends with.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// What a field of the old header holds.
const NAME: usize = 100;
const SIZE_MAX: u64 = 0o77_777_777_777;
const ID_MAX: u32 = 0o7_777_777;

/// Zeros behind so much content.
pub fn padding(size: u64) -> usize {
    (size.wrapping_neg() % BLOCK as u64) as usize
}

/// The header of an entry. Its content comes next, and after that [`padding`].
pub fn header(entry: &Entry) -> Vec<u8> {
    let mut path = entry.path.clone();
    if path.is_empty() {
        // The directory that all is in.
        path.push(b'.');
    }
    if entry.kind == Kind::Directory && !path.ends_with(b"/") {
        path.push(b'/');
    }
    let extended = extended(entry, &path);
    let mut out = Vec::with_capacity(BLOCK);
    if !extended.is_empty() {
        let (mode, size) = (0o644, extended.len() as u64);
        let name = Entry { path: Vec::new(), mode, size, target: Vec::new(), mtime: (0, 0), ..*entry };
        out.extend(block(&name, b"PaxHeader", b'x'));
        out.extend_from_slice(&extended);
        out.resize(out.len() + padding(size), 0);
    }
    let kind = match entry.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Directory => b'5',
    };
    out.extend(block(entry, &path, kind));
    out
}

fn block(entry: &Entry, path: &[u8], kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &path[..path.len().min(NAME)]);
    put(100, &octal(entry.mode.into(), 7));
    put(108, &octal(entry.uid.min(ID_MAX).into(), 7));
    put(116, &octal(entry.gid.min(ID_MAX).into(), 7));
    put(124, &octal(entry.size.min(SIZE_MAX), 11));
    put(136, &octal(entry.mtime.0.clamp(0, SIZE_MAX as i64) as u64, 11));
    put(156, &[kind]);
    put(157, &entry.target[..entry.target.len().min(NAME)]);
    put(257, b"ustar\x0000");
    put(329, &octal(0, 7));
    put(337, &octal(0, 7));
    seal(&mut block);
    block
}

/// Puts the checksum in.
pub(super) fn seal(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..154].copy_from_slice(&octal(sum, 6));
    block[154] = 0;
}

fn octal(value: u64, digits: usize) -> Vec<u8> {
    format!("{value:0digits$o}").into_bytes()
}

/// The records of what the old header does not hold.
fn extended(entry: &Entry, path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let fits = |text: &[u8]| text.len() <= NAME && text.is_ascii();
    if !fits(path) {
        record(&mut out, "path", path);
    }
    if !fits(&entry.target) {
        record(&mut out, "linkpath", &entry.target);
    }
    if entry.size > SIZE_MAX {
        record(&mut out, "size", entry.size.to_string().as_bytes());
    }
    for (name, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > ID_MAX {
            record(&mut out, name, id.to_string().as_bytes());
        }
    }
    let (seconds, nanos) = entry.mtime;
    if nanos != 0 || !(0..=SIZE_MAX as i64).contains(&seconds) {
        // A fraction counts away from zero, and nanoseconds always forward.
        let text = match (seconds < 0, nanos) {
            (true, 1..) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
            _ => format!("{seconds}.{nanos:09}"),
        };
        record(&mut out, "mtime", text.as_bytes());
    }
    out
}

/// `LENGTH key=value\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}
