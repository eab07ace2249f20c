//! Tar archives, as bytes that come and go in pieces of any size.
//!
//! - [`write`]: POSIX (pax), which every tar reads.
//! - [`read`]: that, and what GNU tar writes. It is not trusted: every name is checked, and what it holds of an archive is
//!   bounded, whatever that says.
//!
//! By hand and not by a library: those there are read from a file and write to a directory, by paths, which is what must
//! not happen here, and would have to be told not to.

mod read;
mod write;

pub use read::{Bad, Event, Reader};
pub use write::{END, header, padding};

/// What everything in an archive is a multiple of.
const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// Another name of an entry before.
    HardLink,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Names with a slash between them; never `.` or `..`, never absolute. Empty: the directory that all is in.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, without those that would run a program as somebody else.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Since 1970, and nanoseconds of it.
    pub mtime: (i64, u32),
    /// Of its content, which comes next. Zero of all but files.
    pub size: u64,
    /// Of a symbolic link, whatever it says; of a hard one a path as above.
    pub target: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8], kind: Kind) -> Entry {
        let target = if matches!(kind, Kind::Symlink | Kind::HardLink) { b"t".to_vec() } else { Vec::new() };
        let path = path.to_vec();
        Entry { path, kind, mode: 0o644, uid: 1000, gid: 1000, mtime: (1_700_000_000, 0), size: 0, target }
    }

    /// All that an archive says, given to the reader in pieces of this many bytes.
    fn read(archive: &[u8], piece: usize) -> Result<Vec<(Entry, Vec<u8>)>, Bad> {
        let (mut reader, mut all) = (Reader::default(), Vec::<(Entry, Vec<u8>)>::new());
        for mut piece in archive.chunks(piece) {
            while let Some(event) = reader.next(&mut piece)? {
                match event {
                    Event::Entry(entry) => all.push((entry, Vec::new())),
                    Event::Data(data) => all.last_mut().expect("an entry").1.extend_from_slice(data),
                }
            }
        }
        reader.finish().map(|()| all)
    }

    fn written(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (entry, content) in entries {
            archive.extend(header(entry));
            archive.extend_from_slice(content);
            archive.resize(archive.len() + padding(content.len() as u64), 0);
        }
        archive.extend_from_slice(&END);
        archive
    }

    #[test]
    fn what_is_written_is_read() {
        let content: Vec<u8> = (0..1500u32).map(|at| at as u8).collect();
        let file = Entry { size: 1500, mode: 0o755, ..entry(b"d/file", Kind::File) };
        let long = [&b"d/"[..], &b"x".repeat(300), b"/\xff\xe4"].concat();
        let all = vec![
            (entry(b"", Kind::Directory), Vec::new()),
            (entry(b"d", Kind::Directory), Vec::new()),
            (file, content),
            (Entry { mtime: (-5, 7), ..entry(&long, Kind::File) }, Vec::new()),
            (Entry { target: b"../../y\xe4".to_vec(), ..entry(b"d/link", Kind::Symlink) }, Vec::new()),
            (Entry { target: long.clone(), ..entry(b"d/again", Kind::HardLink) }, Vec::new()),
            (entry(&[&[b'p'; 99][..], b"/cut"].concat(), Kind::File), Vec::new()),
            (Entry { uid: u32::MAX, ..entry(b"d/whose", Kind::File) }, Vec::new()),
        ];
        let archive = written(&all);
        assert_eq!(archive.len() % BLOCK, 0);
        for piece in [1, 7, 511, 512, 513, archive.len()] {
            assert_eq!(read(&archive, piece).expect("it is read"), all, "pieces of {piece}");
        }
        let large = Entry { size: 1 << 40, ..entry(b"large", Kind::File) };
        let mut head: &[u8] = &header(&large);
        let mut reader = Reader::default();
        assert_eq!(reader.next(&mut head), Ok(Some(Event::Entry(large))));
    }

    /// Red for each of the checks that is taken out.
    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for path in ["/etc/passwd", "..", "a/../../b", "../a", "a/.."] {
            let archive = written(&[(entry(path.as_bytes(), Kind::File), Vec::new())]);
            assert!(matches!(read(&archive, 512), Err(Bad::Entry(..))), "{path}");
            let link = Entry { target: path.as_bytes().to_vec(), ..entry(b"l", Kind::HardLink) };
            assert!(matches!(read(&written(&[(link, Vec::new())]), 512), Err(Bad::Entry(..))), "to {path}");
        }
        // As other programs write them.
        for (path, is) in [("./a//b/", "a/b"), ("./", ""), (".", ""), ("a/./b", "a/b")] {
            let archive = written(&[(entry(path.as_bytes(), Kind::Directory), Vec::new())]);
            assert_eq!(read(&archive, 512).expect("it is read")[0].0.path, is.as_bytes(), "{path}");
        }
        let none = written(&[(entry(b".", Kind::File), Vec::new())]);
        assert!(read(&none, 512).is_err(), "a file has a name");
    }

    #[test]
    fn what_is_no_archive_is_told_apart() {
        assert_eq!(read(b"", 1), Err(Bad::Cut));
        assert_eq!(read(&[0; 1024], 100), Ok(Vec::new()), "an empty one is one");
        assert!(matches!(
            read(&[b"\x1f\x8b"[..].to_vec(), vec![7; 600]].concat(), 100),
            Err(Bad::Packed("gzip"))
        ));
        assert_eq!(read(b"\x1f\x8b\x08", 2), Err(Bad::Packed("gzip")));
        assert_eq!(read(&[7; 600], 100), Err(Bad::NoTar));
        let archive = written(&[(Entry { size: 600, ..entry(b"a", Kind::File) }, vec![1; 600])]);
        for cut in [1, 511, 700, 1500] {
            assert_eq!(read(&archive[..cut], 512), Err(Bad::Cut), "cut at {cut}");
        }
        // Without its end it is whole all the same: some programs leave that out.
        assert_eq!(read(&archive[..1536], 512).expect("it is read").len(), 1);
        let mut flipped = archive.clone();
        flipped[3] ^= 1;
        assert_eq!(read(&flipped, 512), Err(Bad::NoTar));
    }

    #[test]
    fn kinds_that_are_not_taken_are_refused() {
        for kind in *b"346SMDVZ" {
            let mut archive = written(&[(entry(b"a", Kind::File), Vec::new())]);
            archive[156] = kind;
            write::seal(&mut archive[..BLOCK]);
            assert!(matches!(read(&archive, 512), Err(Bad::Entry(..))), "{}", kind as char);
        }
    }

    #[test]
    fn gnus_long_names_are_read_and_are_bounded() {
        let long = |kind: u8, name: &[u8], says: u64| {
            let mut head = header(&Entry { size: says, ..entry(b"LongLink", Kind::File) });
            head[156] = kind;
            write::seal(&mut head[..BLOCK]);
            head.extend_from_slice(name);
            head.resize(head.len() + padding(name.len() as u64), 0);
            head
        };
        let name = [&b"n".repeat(200)[..], b"\0"].concat();
        let link = written(&[(entry(b"short", Kind::Symlink), Vec::new())]);
        let archive = [long(b'L', &name, 201), long(b'K', b"there\0", 6), link].concat();
        let (read_back, _) = &read(&archive, 100).expect("it is read")[0];
        assert_eq!((&read_back.path[..], &read_back.target[..]), (&name[..200], &b"there"[..]));
        assert!(matches!(read(&long(b'L', &name, 1 << 30), 512), Err(Bad::Entry(..))));
    }
}
