//! Manifests: packed into pieces, and read back by somebody who trusts neither the pieces nor who packed them.

use std::collections::BTreeSet;

use berth_proto::{
    archive::check_entry,
    v1::{self, ArchiveKind},
};
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

use crate::{Cut, Cutter, Digest, PIECE_MAX};

/// The only version there is.
const VERSION: u32 = 1;
/// Entries of one checkpoint: some 100 bytes each, held in memory while it is taken or restored.
const ENTRIES_MAX: usize = 2_000_000;
/// Of one serialised manifest.
const MANIFEST_MAX: u64 = 512 << 20;
/// Finished tasks, and request ids, of one checkpoint. A session keeps 1,000 of the one and 10,000 of the other.
const KEPT_MAX: usize = 10_000;
/// Twice what a session sends of its tasks.
const TASKS_BYTES_MAX: usize = 32 << 20;

/// What can be wrong with a piece or a manifest.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    #[error("a digest has 32 bytes")]
    Digest,
    #[error("piece {0} is not what its name says")]
    Piece(Digest),
    #[error("the manifest can't be read: {0}")]
    Encoding(#[from] prost::DecodeError),
    #[error("the manifest has version {0}, and this Berth knows 1")]
    Version(u32),
    #[error("the manifest is larger than {MANIFEST_MAX} bytes, {ENTRIES_MAX} entries or {KEPT_MAX} tasks")]
    TooLarge,
    #[error("entry {index} of the manifest {what}")]
    Entry { index: usize, what: &'static str },
    #[error("the manifest's files have {files} bytes and its content {content}")]
    Content { files: u64, content: u64 },
}

/// A manifest as pieces.
pub struct ManifestParts {
    /// What the checkpoint is remembered by; itself the last of `pieces`.
    pub root: Digest,
    pub pieces: Vec<Cut>,
}

/// Cuts a manifest into pieces.
pub fn pack_manifest(manifest: &v1::Manifest) -> std::io::Result<ManifestParts> {
    let bytes = manifest.encode_to_vec();
    let mut pieces = Cutter::new(&*bytes).collect::<Result<Vec<_>, _>>()?;
    let root = v1::ManifestRoot { manifest: pieces.iter().map(piece).collect() }.encode_to_vec();
    if root.len() > PIECE_MAX {
        return Err(std::io::Error::other("the manifest is too large"));
    }
    let digest = Digest::of(&root);
    pieces.push(Cut { digest, offset: 0, data: root });
    Ok(ManifestParts { root: digest, pieces })
}

fn piece(cut: &Cut) -> v1::Piece {
    v1::Piece { digest: cut.digest.to_wire(), size: cut.data.len() as u32 }
}

/// Puts a piece of a serialised manifest behind those that came before it. What a root says of sizes is only a word.
///
/// # Errors
/// [`Bad::TooLarge`], and nothing is added.
pub fn add_piece(bytes: &mut Vec<u8>, piece: &[u8]) -> Result<(), Bad> {
    if (bytes.len() + piece.len()) as u64 > MANIFEST_MAX {
        return Err(Bad::TooLarge);
    }
    bytes.extend_from_slice(piece);
    Ok(())
}

/// The pieces of the manifest that a root lists.
pub fn unpack_root(root: &[u8]) -> Result<Vec<Digest>, Bad> {
    let root = v1::ManifestRoot::decode(root)?;
    let size: u64 = root.manifest.iter().map(|piece| u64::from(piece.size)).sum();
    if size > MANIFEST_MAX {
        return Err(Bad::TooLarge);
    }
    root.manifest.iter().map(|piece| Digest::from_wire(&piece.digest)).collect()
}

/// The manifest that these bytes are, checked.
pub fn unpack_manifest(bytes: &[u8]) -> Result<v1::Manifest, Bad> {
    check_counts(bytes)?;
    let manifest = v1::Manifest::decode(bytes)?;
    check_manifest(&manifest)?;
    Ok(manifest)
}

/// Counts what a manifest lists before any of it is made: an entry with nothing in it takes two bytes here and a hundred
/// in memory, so that a small and well-packed one could fill the memory of whoever reads it.
fn check_counts(mut bytes: &[u8]) -> Result<(), Bad> {
    let (mut entries, mut pieces, mut tasks, mut tasks_bytes, mut keys) =
        (0usize, 0usize, 0usize, 0usize, 0usize);
    let mut listed = 0usize;
    while let Some((tag, content)) = field(&mut bytes)? {
        match tag {
            2 => entries += 1,
            3 => pieces += 1,
            5 => {
                (tasks, tasks_bytes) = (tasks + 1, tasks_bytes + content.len());
                listed += fields(content, &TO_SPEC)?;
            }
            6 => keys += 1,
            _ => {}
        }
    }
    let fits = entries <= ENTRIES_MAX && pieces <= ENTRIES_MAX && tasks.max(keys) <= KEPT_MAX;
    let small = tasks_bytes <= TASKS_BYTES_MAX && listed <= ENTRIES_MAX;
    if fits && small { Ok(()) } else { Err(Bad::TooLarge) }
}

/// From a kept task to what lists things: its task, that one's spec, and in it the command line.
const TO_SPEC: [u32; 3] = [1, 4, 1];

/// All fields of a message, and of those below it that `way` leads to.
fn fields(mut bytes: &[u8], way: &[u32]) -> Result<usize, prost::DecodeError> {
    let mut count = 0;
    while let Some((tag, content)) = field(&mut bytes)? {
        count += 1;
        if let [next, rest @ ..] = way
            && tag == *next
        {
            count += fields(content, rest)?;
        }
    }
    Ok(count)
}

/// Takes one field off the front: its tag, and its content where that has a length.
fn field<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u32, &'a [u8])>, prost::DecodeError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (tag, wire) = decode_key(bytes)?;
    let mut content = *bytes;
    skip_field(wire, tag, bytes, DecodeContext::default())?;
    content = &content[..content.len() - bytes.len()];
    if wire == WireType::LengthDelimited {
        decode_varint(&mut content)?;
    }
    Ok(Some((tag, content)))
}

/// Checks that a manifest can be restored without surprise: each path stays below its root and comes after its
/// parent, nothing comes twice, and the content is as long as the files say.
pub fn check_manifest(manifest: &v1::Manifest) -> Result<(), Bad> {
    if manifest.version != VERSION {
        return Err(Bad::Version(manifest.version));
    }
    if manifest.entries.len() > ENTRIES_MAX {
        return Err(Bad::TooLarge);
    }
    let mut seen = Seen::default();
    let mut files = 0u64;
    for (index, entry) in manifest.entries.iter().enumerate() {
        seen.add(entry).map_err(|what| Bad::Entry { index, what })?;
        files = files.saturating_add(entry.size);
    }
    let mut content = 0u64;
    for piece in &manifest.content {
        Digest::from_wire(&piece.digest)?;
        content += u64::from(piece.size);
    }
    if files == content { Ok(()) } else { Err(Bad::Content { files, content }) }
}

/// What came before an entry.
#[derive(Default)]
struct Seen {
    directories: BTreeSet<(i32, Vec<u8>)>,
    files: BTreeSet<(i32, Vec<u8>)>,
    links: BTreeSet<(i32, Vec<u8>)>,
}

impl Seen {
    fn add(&mut self, entry: &v1::ArchiveEntry) -> Result<(), &'static str> {
        check_entry(entry)?;
        let key = (entry.root, entry.path.to_vec());
        if self.directories.contains(&key) || self.files.contains(&key) || self.links.contains(&key) {
            return Err("comes twice");
        }
        if !entry.path.is_empty() {
            let end = entry.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            if !self.directories.contains(&(entry.root, entry.path[..end].to_vec())) {
                return Err("comes before its directory");
            }
        }
        match entry.kind() {
            ArchiveKind::Directory => self.directories.insert(key),
            ArchiveKind::File => self.files.insert(key),
            ArchiveKind::HardLink if !self.files.contains(&(entry.root, entry.target.to_vec())) => {
                return Err("is a link to a file that does not come before it");
            }
            _ => self.links.insert(key),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::ArchiveRoot;

    use super::*;

    fn entry(kind: ArchiveKind, path: &str) -> v1::ArchiveEntry {
        v1::ArchiveEntry {
            root: ArchiveRoot::Workspace.into(),
            path: path.as_bytes().to_vec().into(),
            kind: kind.into(),
            mode: 0o644,
            ..Default::default()
        }
    }

    fn link(kind: ArchiveKind, path: &str, target: &str) -> v1::ArchiveEntry {
        v1::ArchiveEntry { target: target.as_bytes().to_vec().into(), ..entry(kind, path) }
    }

    fn of(entries: Vec<v1::ArchiveEntry>) -> v1::Manifest {
        let size: u64 = entries.iter().map(|e| e.size).sum();
        let content = if size == 0 {
            Vec::new()
        } else {
            vec![v1::Piece { digest: Digest::of(b"x").to_wire(), size: size as u32 }]
        };
        v1::Manifest { version: 1, entries, content, ..Default::default() }
    }

    fn root() -> v1::ArchiveEntry {
        entry(ArchiveKind::Directory, "")
    }

    #[test]
    fn a_manifest_comes_back_as_it_was() {
        let mut entries = vec![root(), entry(ArchiveKind::Directory, "d")];
        for n in 0..20_000 {
            entries.push(v1::ArchiveEntry { size: 3, ..entry(ArchiveKind::File, &format!("d/{n}")) });
        }
        entries.push(link(ArchiveKind::Symlink, "d/l", "/etc/passwd"));
        entries.push(link(ArchiveKind::HardLink, "h", "d/7"));
        let manifest = of(entries);
        let packed = pack_manifest(&manifest).unwrap();
        let (root, rest) = packed.pieces.split_last().unwrap();
        assert_eq!(root.digest, packed.root);
        let listed = unpack_root(&root.data).unwrap();
        assert_eq!(listed, rest.iter().map(|p| p.digest).collect::<Vec<_>>());
        let bytes: Vec<u8> = rest.iter().flat_map(|p| p.data.iter().copied()).collect();
        assert_eq!(unpack_manifest(&bytes).unwrap(), manifest);
        assert!(unpack_manifest(&bytes[1..]).is_err());
    }

    #[test]
    fn what_would_surprise_a_restore_is_refused() {
        let bad = |entries: Vec<v1::ArchiveEntry>, what: &str| {
            let error = check_manifest(&of(entries)).expect_err(what).to_string();
            assert!(error.contains(what), "{error} should say: {what}");
        };
        for path in ["/etc/x", "..", "a/../../x", "a//b", "./a", "a\0b"] {
            bad(vec![root(), entry(ArchiveKind::File, path)], "leads elsewhere");
        }
        bad(vec![root(), entry(ArchiveKind::File, "d/x")], "before its directory");
        // The way out of an archive: a link, and then something below it.
        bad(
            vec![root(), link(ArchiveKind::Symlink, "d", "/etc"), entry(ArchiveKind::File, "d/x")],
            "before its directory",
        );
        bad(vec![root(), entry(ArchiveKind::File, "x"), entry(ArchiveKind::Directory, "x")], "comes twice");
        bad(vec![root(), link(ArchiveKind::HardLink, "h", "../x")], "leads elsewhere");
        bad(vec![root(), link(ArchiveKind::HardLink, "h", "x")], "does not come before");
        bad(
            vec![
                root(),
                link(ArchiveKind::Symlink, "l", "/etc/shadow"),
                link(ArchiveKind::HardLink, "h", "l"),
            ],
            "does not come before",
        );
        bad(vec![entry(ArchiveKind::File, "")], "is a root");
        bad(vec![root(), v1::ArchiveEntry { mode: 0o100_644, ..entry(ArchiveKind::File, "x") }], "mode");
        bad(vec![root(), v1::ArchiveEntry { size: 5, ..entry(ArchiveKind::Directory, "d") }], "content");
        bad(vec![v1::ArchiveEntry { root: 0, ..root() }], "no root");
        let mut short = of(vec![root(), v1::ArchiveEntry { size: 5, ..entry(ArchiveKind::File, "x") }]);
        short.content.clear();
        assert!(matches!(check_manifest(&short), Err(Bad::Content { files: 5, content: 0 })));
        let newer = v1::Manifest { version: 2, ..of(vec![root()]) };
        assert!(matches!(check_manifest(&newer), Err(Bad::Version(2))));
    }

    /// Red when they are counted only once they have been made. (4 MiB here; 512 of them, as a manifest may have, would
    /// become 24 GiB.)
    #[test]
    fn a_small_manifest_does_not_become_a_large_one_in_memory() {
        for field in [2, 3, 5, 6] {
            let many = [(field << 3) | 2, 0].repeat(ENTRIES_MAX + 1);
            assert!(matches!(unpack_manifest(&many), Err(Bad::TooLarge)), "field {field}");
        }
        let task = v1::KeptTask { stdout_tail: vec![0; 33 << 20].into(), ..Default::default() };
        let manifest = v1::Manifest { tasks: vec![task], ..of(vec![root()]) };
        assert!(matches!(unpack_manifest(&manifest.encode_to_vec()), Err(Bad::TooLarge)));
        // And what a task lists, too: arguments of its command line, and secrets.
        let message = |field: u8, content: &[u8]| {
            let mut bytes = vec![(field << 3) | 2];
            prost::encoding::encode_varint(content.len() as u64, &mut bytes);
            [&bytes, content].concat()
        };
        let nothing = |field: u8| [(field << 3) | 2, 0].repeat(ENTRIES_MAX + 1);
        for spec in [message(1, &nothing(1)), nothing(13)] {
            let manifest = message(5, &message(1, &message(4, &spec)));
            assert!(matches!(unpack_manifest(&manifest), Err(Bad::TooLarge)));
        }
        assert!(matches!(unpack_manifest(&[0x12, 0x05, 0]), Err(Bad::Encoding(_))), "cut off");
    }

    /// Red when only what the root says is added up.
    #[test]
    fn pieces_are_not_put_together_beyond_what_a_manifest_may_have() {
        let mut bytes = vec![0; MANIFEST_MAX as usize - 3];
        assert!(add_piece(&mut bytes, b"abcd").is_err());
        assert!(add_piece(&mut bytes, b"abc").is_ok() && add_piece(&mut bytes, b"a").is_err());
        assert_eq!(bytes.len() as u64, MANIFEST_MAX);
    }

    proptest::proptest! {
        /// Whatever comes, the answer is an error and not a panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = unpack_manifest(&bytes);
            let _ = unpack_root(&bytes);
            let _ = crate::open(Digest::of(&bytes), &bytes);
        }
    }
}
