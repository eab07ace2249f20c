//! What makes an entry of an archive safe to unpack. Whoever unpacks checks it again: an archive has been on a disk,
//! in a store, and in a sandbox.

use crate::v1::{self, ArchiveKind, ArchiveRoot};

const PATH_MAX: usize = 4096;
/// Of each output stream of a finished task, this much is kept in an archive.
pub const TAIL_MAX: usize = 64 << 10;

/// Checks one entry by itself: what the agent checks too, before it makes anything.
///
/// # Errors
/// What is wrong with it, to be read behind "the entry".
pub fn check_entry(entry: &v1::ArchiveEntry) -> Result<(), &'static str> {
    if entry.root() == ArchiveRoot::Unspecified {
        return Err("has no root");
    }
    let path = &entry.path;
    if path.len() > PATH_MAX || entry.target.len() > PATH_MAX {
        return Err("has a path that is too long");
    }
    if !path.is_empty() && !names_only(path) {
        return Err("has a path that leads elsewhere");
    }
    if path.is_empty() && entry.kind() != ArchiveKind::Directory {
        return Err("is a root and no directory");
    }
    if entry.mode & !0o7777 != 0 {
        return Err("has a mode that is none");
    }
    match entry.kind() {
        ArchiveKind::Unspecified => Err("is of no kind"),
        ArchiveKind::File if !entry.target.is_empty() => Err("is a file with a target"),
        ArchiveKind::File => Ok(()),
        _ if entry.size != 0 => Err("has content and is no file"),
        ArchiveKind::Directory if !entry.target.is_empty() => Err("is a directory with a target"),
        ArchiveKind::Directory => Ok(()),
        // A link may point anywhere: it is only ever made, and followed by nobody but the session itself.
        ArchiveKind::Symlink if entry.target.is_empty() || entry.target.contains(&0) => {
            Err("is a link to nothing")
        }
        ArchiveKind::Symlink => Ok(()),
        ArchiveKind::HardLink if !names_only(&entry.target) => Err("is a link that leads elsewhere"),
        ArchiveKind::HardLink => Ok(()),
    }
}

fn names_only(path: &[u8]) -> bool {
    let strange = |name: &[u8]| name.is_empty() || name == b"." || name == b".." || name.contains(&0);
    !path.split(|byte| *byte == b'/').any(strange)
}
