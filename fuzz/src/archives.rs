//! Checkpoints and archives: what a store, a disk or another worker gives for a session's files.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use berth_agent::files::{Gone, import::import};
use berth_checkpoint::{
    Digest, PIECE_MAX, check_manifest, open, pack_manifest, seal, unpack_manifest, unpack_root,
};
use berth_files::{
    search::{Next, Search, Text},
    tar::{self, Bad, Entry, Event, Kind, Reader},
};
use berth_proto::{
    Code,
    archive::check_entry,
    v1::{self, ArchiveKind, ArchiveRoot, archive_part::Part},
};
use prost::Message;

use crate::{input::Input, scratch::Scratch};

/// Of one file.
const LARGEST: u64 = 64 << 20;

/// Names that an archive's paths are put together from: those that lead elsewhere among them.
const NAMES: [&[u8]; 12] =
    [b"a", b"b", b"c", b"..", b".", b"", b"d\0", b"outside", b"secret", b"\xff", b"...", b"a b"];

/// A piece is what its name says and no larger than any; a manifest that is taken is one that can be restored without
/// surprise, and comes back as it was.
pub fn manifest(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.choice(4) {
        0 => piece(input.rest()),
        1 => {
            let root = input.rest();
            let Ok(listed) = unpack_root(root) else { return };
            assert!(listed.len() <= root.len());
        }
        2 => {
            let Ok(manifest) = unpack_manifest(input.rest()) else { return };
            no_surprise(&manifest);
            comes_back(&manifest);
        }
        _ => {
            let manifest = grown(&mut input);
            if check_manifest(&manifest).is_ok() {
                no_surprise(&manifest);
                comes_back(&manifest);
            }
        }
    }
}

fn piece(bytes: &[u8]) {
    // (No bytes at all are the empty piece, and its own name.)
    if !bytes.is_empty() && open(Digest::of(bytes), bytes).is_ok() {
        panic!("{} bytes are what they say uncompressed", bytes.len());
    }
    // Whatever these bytes are uncompressed, they are that piece and no other.
    let sealed = seal(bytes).expect("it can be compressed");
    assert_eq!(open(Digest::of(bytes), &sealed).expect("it is that piece"), bytes);
    if let Some((_, rest)) = sealed.split_last() {
        assert!(open(Digest::of(bytes), rest).is_err(), "it is not whole");
    }
}

fn no_surprise(manifest: &v1::Manifest) {
    let mut directories = std::collections::BTreeSet::new();
    for entry in &manifest.entries {
        check_entry(entry).expect("each entry is checked");
        let path = &entry.path[..];
        assert!(!path.starts_with(b"/") && !path.contains(&0));
        assert!(!path.split(|b| *b == b'/').any(|name| name == b".." || name == b"."), "{path:?}");
        if let Some(end) = path.iter().rposition(|b| *b == b'/') {
            assert!(
                directories.contains(&(entry.root, path[..end].to_vec())),
                "its directory came before it"
            );
        }
        if entry.kind() == ArchiveKind::Directory {
            directories.insert((entry.root, path.to_vec()));
        }
    }
    let files: u64 = manifest.entries.iter().map(|entry| entry.size).sum();
    let content: u64 = manifest.content.iter().map(|piece| u64::from(piece.size)).sum();
    assert_eq!(files, content);
}

fn comes_back(manifest: &v1::Manifest) {
    let packed = pack_manifest(manifest).expect("it can be packed");
    let (root, rest) = packed.pieces.split_last().expect("there is a root");
    assert_eq!(root.digest, packed.root);
    assert!(packed.pieces.iter().all(|piece| piece.data.len() <= PIECE_MAX));
    let listed = unpack_root(&root.data).expect("it was packed here");
    assert_eq!(listed.len(), rest.len());
    let bytes: Vec<u8> = rest.iter().flat_map(|piece| piece.data.iter().copied()).collect();
    assert_eq!(unpack_manifest(&bytes).as_ref().ok(), Some(manifest));
}

/// A manifest out of choices, so that more than the encoding is tried.
fn grown(input: &mut Input<'_>) -> v1::Manifest {
    let mut entries = Vec::new();
    while !input.is_empty() && entries.len() < 64 {
        entries.push(entry(input));
    }
    let size: u64 = entries.iter().map(|entry| entry.size).sum();
    let piece = v1::Piece { digest: Digest::of(b"x").to_wire(), size: size as u32 };
    v1::Manifest { version: 1, entries, content: vec![piece], ..Default::default() }
}

fn path(input: &mut Input<'_>) -> Vec<u8> {
    let names: Vec<&[u8]> = (0..input.choice(4)).map(|_| NAMES[input.choice(NAMES.len())]).collect();
    names.join(&b'/')
}

fn entry(input: &mut Input<'_>) -> v1::ArchiveEntry {
    let kind = ArchiveKind::try_from(input.choice(5) as i32).unwrap_or_default();
    let root = ArchiveRoot::try_from(1 + input.choice(2) as i32).unwrap_or_default();
    let linked = matches!(kind, ArchiveKind::Symlink | ArchiveKind::HardLink);
    let (path, target) = (path(input), if linked { path(input) } else { Vec::new() });
    v1::ArchiveEntry {
        root: root.into(),
        path: path.into(),
        kind: kind.into(),
        mode: [0o644, 0o755, 0o000, 0o4777, 0o10_000][input.choice(5)],
        mtime_ns: [0, -1, 1 << 60, i64::MIN][input.choice(4)],
        size: if kind == ArchiveKind::File { input.choice(4) as u64 * 100 } else { 0 },
        target: target.into(),
    }
}

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

/// Nothing is made outside of the roots or changed there, no more bytes are written than came, and what the check of a
/// manifest takes is not called damaged here.
pub fn archive_import(bytes: &[u8]) {
    let parts = parts(&mut Input::new(bytes));
    SCRATCH.with(|scratch| imported(scratch, parts));
}

fn imported(scratch: &Scratch, parts: Vec<Part>) {
    let base = scratch.empty("base");
    let at = |name: &str| base.join(name);
    for dir in ["workspace", "home", "outside"] {
        fs::create_dir(at(dir)).expect("it can be made");
    }
    fs::write(at("outside/secret"), "secret").expect("it can be written");
    // What a session's own code may have left: ways out.
    std::os::unix::fs::symlink("../outside", at("home/outside")).expect("it can be made");
    let before = (tree(&at("outside")), fs::read(at("outside/secret")).ok());
    let roots = [(ArchiveRoot::Workspace, at("workspace")), (ArchiveRoot::Home, at("home"))];
    let restorable = restorable(&parts);
    let came: u64 =
        parts.iter().map(|part| if let Part::Data(data) = part { data.len() as u64 } else { 0 }).sum();
    let mut left = parts.into_iter();
    let result = import(&roots, LARGEST, || left.next(), &Gone::default());
    assert_eq!(
        (tree(&at("outside")), fs::read(at("outside/secret")).ok()),
        before,
        "something outside was changed"
    );
    let names: Vec<_> =
        fs::read_dir(&base).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names.len(), 3, "something was made outside: {names:?}");
    let on_disk: BTreeMap<u64, u64> = roots
        .iter()
        .flat_map(|(_, root)| tree(root).into_values())
        .filter(|found| found.is_file)
        .map(|found| (found.inode, found.size))
        .collect();
    assert!(on_disk.values().sum::<u64>() <= came, "more bytes than came");
    match result {
        Ok(made) => assert!(made.bytes <= came),
        Err(error) => {
            let damaged = error.code() == Code::DataLoss;
            assert!(!(restorable && damaged), "a manifest of this would be taken: {error:?}");
        }
    }
}

/// Whether a manifest of these parts would be taken, and its content is all there.
fn restorable(parts: &[Part]) -> bool {
    let (mut entries, mut at, mut ended) = (Vec::new(), 0u64, false);
    let mut total = 0u64;
    for part in parts {
        match part {
            _ if ended => return false,
            Part::Entry(entry) => {
                // Whole before the next begins.
                if at != total {
                    return false;
                }
                total = total.saturating_add(entry.size);
                entries.push(entry.clone());
            }
            Part::Data(data) => {
                at += data.len() as u64;
                if at > total || entries.last().is_none_or(|last| last.kind() != ArchiveKind::File) {
                    return false;
                }
            }
            Part::End(_) => ended = true,
            Part::Task(_) | Part::Key(_) => return false,
        }
    }
    let Ok(size) = u32::try_from(total) else { return false };
    let content = vec![v1::Piece { digest: Digest::of(b"x").to_wire(), size }];
    let manifest = v1::Manifest { version: 1, entries, content, ..Default::default() };
    ended && at == total && check_manifest(&manifest).is_ok()
}

/// The first byte says whether the rest is messages as they come over a stream, or choices.
fn parts(input: &mut Input<'_>) -> Vec<Part> {
    let mut parts = Vec::new();
    if input.byte() == 0 {
        let mut wire = input.rest();
        while let Ok(message) = v1::ArchivePart::decode_length_delimited(&mut wire) {
            // A message that has nothing in it is one byte long.
            if parts.len() >= 256 || wire.is_empty() {
                parts.extend(message.part);
                break;
            }
            parts.extend(message.part);
        }
        return parts;
    }
    while !input.is_empty() && parts.len() < 64 {
        match input.choice(8) {
            0..=4 => {
                let entry = entry(input);
                let size = entry.size as usize;
                let file = entry.kind() == ArchiveKind::File;
                parts.push(Part::Entry(entry));
                // Mostly as much as it says, so that what follows is reached.
                if file && size > 0 {
                    parts.push(Part::Data(vec![input.byte(); size].into()));
                }
            }
            5 => parts.push(Part::Data(vec![input.byte(); input.choice(200)].into())),
            6 => parts.push(Part::Key(v1::KeptKey::default())),
            _ => parts.push(Part::End(v1::ArchiveEnd::default())),
        }
    }
    if !matches!(parts.last(), Some(Part::End(_))) {
        parts.push(Part::End(v1::ArchiveEnd::default()));
    }
    parts
}

#[derive(PartialEq, Debug)]
struct Stat {
    inode: u64,
    size: u64,
    is_file: bool,
    mode: u32,
    modified: (i64, i64),
    links: u64,
}

/// All that is below a directory, itself included. Links are not followed, and what can't be entered is left out.
fn tree(root: &Path) -> BTreeMap<PathBuf, Stat> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let mut look = || -> io::Result<Stat> {
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
            Ok(Stat {
                inode: meta.ino(),
                size: meta.len(),
                is_file: meta.is_file(),
                mode: meta.mode(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                links: meta.nlink(),
            })
        };
        if let Ok(stat) = look() {
            found.insert(path.clone(), stat);
        }
    }
    found
}

/// A tar archive says the same however its bytes come, names nothing that leads elsewhere, and what was read of it is read
/// again when it is written.
pub fn tarball(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (piece, mend) = (1 + input.short() % 1500, input.byte() % 2 == 1);
    let mut archive = input.rest().to_vec();
    if mend {
        // A fuzzer finds no checksum: else hardly anything of it gets behind the first header.
        for block in archive.chunks_exact_mut(512) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let whole = listed(&archive, archive.len().max(1));
    assert_eq!(listed(&archive, piece), whole, "in pieces of {piece}");
    for (entry, content) in whole.0 {
        let strange = |name: &[u8]| name.is_empty() || name == b"." || name == b".." || name.contains(&0);
        let path = &entry.path;
        assert!(path.is_empty() || !path.split(|byte| *byte == b'/').any(strange), "{entry:?}");
        assert!(!path.is_empty() || entry.kind == Kind::Directory, "{entry:?}");
        assert!(path.len() < 4096 && entry.target.len() < 4096 && entry.mode <= 0o777, "{entry:?}");
        assert!(entry.kind != Kind::HardLink || !entry.target.split(|byte| *byte == b'/').any(strange));
        assert!(content <= entry.size && (entry.kind == Kind::File || entry.size == 0), "{entry:?}");
        let again = listed(&tar::header(&entry), 512);
        assert_eq!(again.0, [(entry, 0)]);
    }
}

/// Its entries, each with the bytes that came of its content, and how it ended.
fn listed(archive: &[u8], piece: usize) -> (Vec<(Entry, u64)>, Result<(), Bad>) {
    let (mut reader, mut all) = (Reader::default(), Vec::<(Entry, u64)>::new());
    for mut piece in archive.chunks(piece) {
        loop {
            match reader.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(Event::Entry(entry))) => all.push((entry, 0)),
                Ok(Some(Event::Data(data))) => {
                    all.last_mut().expect("content is of an entry").1 += data.len() as u64
                }
                Err(bad) => return (all, Err(bad)),
            }
        }
    }
    let end = reader.finish();
    (all, end)
}

/// A search that is taken finds lines that are there, in their order, and no more than were asked for.
pub fn search(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let most = 1 + input.choice(20) as u32;
    let (context, literal) = (input.choice(22) as u32, input.byte() % 2 == 1);
    let length = input.choice(64);
    let pattern = String::from_utf8_lossy(input.take(length)).into_owned();
    let length = input.choice(64);
    let glob = String::from_utf8_lossy(input.take(length)).into_owned();
    let wire = v1::SearchRequest {
        pattern: pattern.clone(),
        literal,
        globs: vec![glob.clone()],
        exclude: vec![glob],
        context,
        max_matches: most,
        ..Default::default()
    };
    let Ok(search) = Search::new(&wire) else { return };
    let text = input.rest();
    assert!(!search.wants(text), "what is left out is not wanted");
    let Some(mut scan) = Text::new(text.to_vec()) else { return };
    let (mut left, mut last, mut found) = (u64::from(most), 0, 0);
    let lines = text.split(|byte| *byte == b'\n').count() as u64;
    while let Next::Hit(hit) = scan.next(&search, &mut left, || false) {
        assert!(hit.line > last && hit.line <= lines, "{hit:?}");
        assert!(hit.before.len() as u32 <= context && hit.after.len() as u32 <= context, "{hit:?}");
        assert!(hit.text.len() <= 512, "{hit:?}");
        assert!(
            !literal || !pattern.is_ascii() || hit.text.len() > 500 || hit.text.contains(&pattern),
            "{hit:?}"
        );
        (last, found) = (hit.line, found + 1);
    }
    assert_eq!(found, u64::from(most) - left);
}
