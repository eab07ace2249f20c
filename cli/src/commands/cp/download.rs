//! Out of a session. The names, the links and the sizes were chosen by code that nobody
//! vouches for, so: a listed path with `..`, with an absolute part or with a NUL is
//! refused; no link that was there or that came along is ever written through (new files
//! are made beside their place and renamed into it, links come last); and the bits that
//! would run a program as somebody else never come along.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use berth_client::{
    Files, Session,
    model::{FileInfo, FileType},
};
use futures::{StreamExt, TryStreamExt};
use indicatif::ProgressBar;

use super::{Tally, last_name, means_contents};
use crate::{failure::Failure, output::printable};

/// Files under way at a time.
const AT_ONCE: usize = 8;
/// Levels of directories that are followed.
const DEPTH: u32 = 100;

struct File {
    from: String,
    to: PathBuf,
    mode: u32,
}

pub async fn copy(
    session: &Session,
    source: &str,
    destination: &Path,
    recursive: bool,
    progress: &ProgressBar,
) -> Result<Tally, Failure> {
    let files = session.files();
    let info = files
        .stat_follow(source)
        .await
        .map_err(|error| Failure::from(error).context(format_args!("{source:?}")))?;
    let target = target(source, info.is_dir(), destination)?;
    let mut tally = Tally::default();
    match info.kind {
        FileType::File => {
            progress.set_length(info.size);
            let file = File { from: source.to_owned(), to: target, mode: info.mode };
            tally.bytes = fetch(&files, &file, progress).await?;
            tally.files = 1;
        }
        FileType::Directory if !recursive => {
            return Err(Failure::usage(format!("{source:?} is a directory")).hint("copy it with -r"));
        }
        FileType::Directory => fetch_tree(&files, source, info.mode, &target, &mut tally, progress).await?,
        FileType::Symlink | FileType::Other => {
            return Err(Failure::new(format!("{source:?} is neither a file nor a directory")));
        }
    }
    Ok(tally)
}

/// Where the source goes: the rules of `cp`.
fn target(source: &str, is_dir: bool, destination: &Path) -> Result<PathBuf, Failure> {
    let shown = destination.display();
    let slash = destination.as_os_str().as_encoded_bytes().ends_with(b"/");
    match fs::metadata(destination) {
        Ok(there) if there.is_dir() => {
            if is_dir && means_contents(source) {
                return Ok(destination.to_owned());
            }
            let name = last_name(source).ok_or_else(|| {
                Failure::usage(format!("{source:?} has no name of its own")).hint("name the target")
            })?;
            Ok(destination.join(name))
        }
        Ok(_) if is_dir => Err(Failure::new(format!("{shown} is a file: no directory can replace it"))),
        Ok(_) if slash => Err(Failure::new(format!("{shown} is no directory"))),
        Ok(_) => Ok(destination.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if slash && !is_dir {
                return Err(Failure::new(format!("there is no directory {shown}")));
            }
            Ok(destination.to_owned())
        }
        Err(error) => Err(Failure::io(shown, error)),
    }
}

async fn fetch_tree(
    files: &Files,
    source: &str,
    mode: u32,
    target: &Path,
    tally: &mut Tally,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    let entries = files.list_depth(source, DEPTH).await?;
    // A link that the user names is followed; one inside of the tree never is.
    if !fs::metadata(target).is_ok_and(|there| there.is_dir()) {
        make_dir(target)?;
    }
    tally.directories += 1;
    let mut modes = vec![(target.to_owned(), mode)];
    let (mut work, mut links, mut total) = (Vec::new(), Vec::new(), 0);
    for entry in &entries {
        let Some(relative) = safe(entry) else {
            tally.skip(format_args!("{:?}", printable(&entry.path)), "a name that can't be copied");
            continue;
        };
        let to = target.join(&relative);
        match entry.kind {
            FileType::Directory => {
                make_dir(&to)?;
                tally.directories += 1;
                modes.push((to, entry.mode));
            }
            FileType::File => {
                total += entry.size;
                work.push(File { from: super::joined(source, &entry.path), to, mode: entry.mode });
            }
            FileType::Symlink => links.push((to, entry.symlink_target.clone().unwrap_or_default())),
            FileType::Other => tally.skip(printable(&entry.path), "neither a file, a directory nor a link"),
        }
    }
    progress.set_length(total);
    let sizes: Vec<u64> = futures::stream::iter(work)
        .map(|file| async move { fetch(files, &file, progress).await })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    tally.files += sizes.len() as u64;
    tally.bytes += sizes.iter().sum::<u64>();
    // Last: nothing is written after a link is there, so nothing goes through one.
    for (path, link) in links {
        match make_link(&path, &link) {
            Ok(()) => tally.links += 1,
            Err(error) => tally.skip(path.display(), error),
        }
    }
    for (path, mode) in modes.into_iter().rev() {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o777))
            .map_err(|error| Failure::io(path.display(), error))?;
    }
    Ok(())
}

/// The path of an entry, if it stays below the directory that was listed.
fn safe(entry: &FileInfo) -> Option<PathBuf> {
    if entry.path_bytes.is_some() || entry.path.contains('\0') {
        return None;
    }
    let path = PathBuf::from(&entry.path);
    let below = path.components().all(|part| matches!(part, Component::Normal(_)));
    (below && path.components().next().is_some()).then_some(path)
}

/// A real directory, made or there. A link to one is none: it may lead anywhere.
fn make_dir(path: &Path) -> Result<(), Failure> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(path) {
            Ok(there) if there.is_dir() => Ok(()),
            _ => Err(Failure::new(format!("{} is there and is no directory", path.display()))),
        },
        Err(error) => Err(Failure::io(path.display(), error)),
    }
}

/// Makes a link, over another one but over nothing else.
fn make_link(path: &Path, target: &str) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink()) {
        fs::remove_file(path)?;
    }
    std::os::unix::fs::symlink(target, path)
}

async fn fetch(files: &Files, file: &File, progress: &ProgressBar) -> Result<u64, Failure> {
    if fs::symlink_metadata(&file.to).is_ok_and(|there| there.is_dir()) {
        return Err(Failure::new(format!("{} is a directory: no file can replace it", file.to.display())));
    }
    let failed = |error: io::Error| Failure::io(file.to.display(), error);
    let parent = match file.to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = Temporary(parent.join(format!(".berth-{}", berth_client::TaskId::new())));
    let sink = tokio::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary.0)
        .await
        .map_err(failed)?;
    let mut sink = progress.wrap_async_write(sink);
    let info = files
        .read_to(&file.from, &mut sink)
        .await
        .map_err(|error| Failure::from(error).context(format_args!("{:?}", printable(&file.from))))?;
    drop(sink);
    fs::set_permissions(&temporary.0, fs::Permissions::from_mode(file.mode & 0o777)).map_err(failed)?;
    fs::rename(&temporary.0, &file.to).map_err(failed)?;
    Ok(info.size)
}

/// A file that goes away if it is not renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> FileInfo {
        FileInfo {
            path: path.into(),
            kind: FileType::File,
            size: 0,
            mode: 0o4755,
            uid: 0,
            gid: 0,
            modified_at: None,
            symlink_target: None,
            path_bytes: None,
        }
    }

    #[test]
    fn a_listing_cannot_lead_out_of_the_target() {
        assert_eq!(safe(&entry("a/b")), Some(PathBuf::from("a/b")));
        for path in ["../a", "a/../../b", "/etc/passwd", "", "a\0b", ".."] {
            assert_eq!(safe(&entry(path)), None, "{path:?}");
        }
        assert_eq!(safe(&FileInfo { path_bytes: Some(vec![0xff]), ..entry("\u{fffd}") }), None);
    }

    #[test]
    fn no_link_is_taken_for_a_directory() {
        let root = std::env::temp_dir().join(format!("berth-cp-{}", berth_client::TaskId::new()));
        fs::create_dir_all(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        assert!(make_dir(&root.join("real")).is_ok());
        assert!(make_dir(&root.join("link")).is_err());
        make_link(&root.join("link"), "elsewhere").unwrap();
        assert_eq!(fs::read_link(root.join("link")).unwrap(), PathBuf::from("elsewhere"));
        assert!(make_link(&root.join("real"), "x").is_err());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn targets_follow_the_rules_of_cp() {
        let root = std::env::temp_dir().join(format!("berth-cp-{}", berth_client::TaskId::new()));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("file"), "").unwrap();
        assert_eq!(target("a/b", false, &root).unwrap(), root.join("b"));
        assert_eq!(target("a/.", true, &root).unwrap(), root);
        assert_eq!(target("a", false, &root.join("file")).unwrap(), root.join("file"));
        assert_eq!(target("a", true, &root.join("new")).unwrap(), root.join("new"));
        assert!(target("a", true, &root.join("file")).is_err());
        assert!(target("a", false, &root.join("new/")).is_err());
        fs::remove_dir_all(root).unwrap();
    }
}
