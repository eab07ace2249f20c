//! Which mounts there are below a session's directory, and taking them away. The kernel's own table is asked each
//! time: no record of ours could be lost, or be wrong after a crash.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

/// Mount points on `dir` and below it, the last one made first: in that order they can be taken away.
pub fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = parse(&table).filter(|point| point.starts_with(dir)).collect();
    found.reverse();
    Ok(found)
}

fn parse(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4).map(plain))
}

/// Spaces and the like are written as three octal digits.
fn plain(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = match (first, after.get(..3)) {
            (b'\\', Some(digits)) => {
                std::str::from_utf8(digits).ok().and_then(|text| u8::from_str_radix(text, 8).ok())
            }
            _ => None,
        };
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

/// Takes away all mounts on `dir` and below it. One that is still in use from outside its
/// session (somebody's shell stands in it) goes from the tree at once, and for good when its last user goes.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    for point in below(dir)? {
        match umount2(&point, MntFlags::UMOUNT_NOFOLLOW) {
            // Not there any more.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(Errno::EBUSY) => {
                tracing::warn!(path = %point.display(), "still in use: it is detached, and ends with its last user");
                umount2(&point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?;
            }
            Err(error) => {
                return Err(io::Error::new(
                    io::Error::from(error).kind(),
                    format!("{} can't be unmounted: {error}", point.display()),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_understood() {
        let table = b"36 35 98:0 / /a\\040b rw,noatime shared:1 master:2 - ext4 /dev/loop7 rw\n\
                      40 36 0:9 / /a\\040b/c\\134d rw - tmpfs none rw\nnonsense\n";
        let found: Vec<PathBuf> = parse(table).collect();
        assert_eq!(found, [PathBuf::from("/a b"), PathBuf::from("/a b/c\\d")]);
    }

    #[test]
    fn nothing_is_mounted_below_a_new_directory() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(below(temp.path()).unwrap(), Vec::<PathBuf>::new());
        assert!(below(Path::new("/")).unwrap().iter().any(|point| point == Path::new("/proc")));
    }
}
