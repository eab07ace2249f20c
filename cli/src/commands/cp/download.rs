//! Out of a session. The names, the links and the sizes were chosen by code that nobody
//! vouches for, so: a listed path with `..`, with an absolute part or with a NUL is
//! refused; nothing is written through a link, be it one that was there, one that an earlier
//! copy brought or one of this copy ([`Tree`]); a link is copied as a link; and neither the
//! bits that would run a program as somebody else nor the mode of a directory that was there
//! before come along.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use berth_client::{
    Files, Session,
    model::{FileInfo, FileType},
};
use futures::{StreamExt, TryStreamExt};
use indicatif::ProgressBar;

use super::{Tally, last_name, means_contents, tree::Tree};
use crate::failure::Failure;

/// Files under way at a time.
const AT_ONCE: usize = 8;
/// Levels of directories that are followed.
const DEPTH: u32 = 100;

/// A file to fetch: from where in the session, and to where in the tree.
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
    let info = files.stat_follow(source).await.map_err(|error| Failure::from(error).about(source))?;
    let target = target(source, info.is_dir(), destination)?;
    let mut tally = Tally::default();
    match (info.kind, target) {
        (FileType::File, Target::At(dir, name)) => {
            progress.set_length(info.size);
            let file = File { from: source.to_owned(), to: name, mode: info.mode };
            tally.bytes = fetch(&files, &Tree::open(&dir)?, &file, progress).await?;
            tally.files = 1;
        }
        (FileType::Directory, _) if !recursive => {
            return Err(Failure::usage(format!("{source:?} is a directory")).hint("copy it with -r"));
        }
        (FileType::Directory, target) => {
            let tree = root(target, info.mode, &mut tally)?;
            fetch_tree(&files, source, &tree.tree, &mut tally, progress).await?;
            tree.finish()?;
        }
        _ => {
            return Err(Failure::new(format!("{source:?} is neither a file nor a directory"))
                .hint("devices, pipes and sockets are not copied"));
        }
    }
    Ok(tally)
}

/// Where a copy goes.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// The contents of the source, into this directory.
    Into(PathBuf),
    /// The source itself, under a name in a directory. The directory is the user's word; what
    /// has the name may have come out of a sandbox.
    At(PathBuf, PathBuf),
}

/// Where the source goes: the rules of `cp`.
fn target(source: &str, is_dir: bool, destination: &Path) -> Result<Target, Failure> {
    let shown = destination.display();
    let slash = destination.as_os_str().as_encoded_bytes().ends_with(b"/");
    match fs::metadata(destination) {
        Ok(there) if there.is_dir() => {
            if is_dir && means_contents(source) {
                return Ok(Target::Into(destination.to_owned()));
            }
            let name = last_name(source).ok_or_else(|| {
                Failure::usage(format!("{source:?} has no name of its own")).hint("name the target")
            })?;
            Ok(Target::At(destination.to_owned(), name.into()))
        }
        Ok(_) if is_dir => Err(Failure::new(format!("{shown} is a file: no directory can replace it"))
            .hint("remove it, or name another target")),
        Ok(_) if slash => {
            Err(Failure::new(format!("{shown} is no directory")).hint("leave the slash at its end out"))
        }
        Ok(_) => at(destination),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if slash && !is_dir {
                return Err(Failure::new(format!("there is no directory {shown}"))
                    .hint(format!("make it: mkdir -p {shown}")));
            }
            at(destination)
        }
        Err(error) => Err(Failure::io(shown, error)),
    }
}

/// The last name of a path, in the directory before it.
fn at(path: &Path) -> Result<Target, Failure> {
    let name = path.file_name().ok_or_else(|| {
        Failure::usage(format!("{} has no name of its own", path.display())).hint("name the target")
    })?;
    Ok(Target::At(path.parent().unwrap_or(Path::new("")).to_owned(), name.into()))
}

/// The directory that a tree goes to.
struct Root {
    tree: Tree,
    /// Where it is new: its parent, its name, and the mode that it shall have.
    made: Option<(Tree, PathBuf, u32)>,
}

impl Root {
    /// Last: the mode may shut us out.
    fn finish(self) -> Result<(), Failure> {
        self.made.map_or(Ok(()), |(parent, name, mode)| parent.set_mode(&name, mode))
    }
}

fn root(target: Target, mode: u32, tally: &mut Tally) -> Result<Root, Failure> {
    tally.directories += 1;
    match target {
        Target::Into(dir) => Ok(Root { tree: Tree::open(&dir)?, made: None }),
        Target::At(dir, name) => {
            let parent = Tree::open(&dir)?;
            let made = parent.make_dir(&name)?;
            Ok(Root { tree: parent.below(&name)?, made: made.then_some((parent, name, mode)) })
        }
    }
}

async fn fetch_tree(
    files: &Files,
    source: &str,
    tree: &Tree,
    tally: &mut Tally,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    let entries = files.list_depth(source, DEPTH).await?;
    let (mut modes, mut work, mut links, mut total) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for entry in &entries {
        let Some(to) = safe(entry) else {
            tally.skip(&entry.path, "a name that can't be copied");
            continue;
        };
        match entry.kind {
            FileType::Directory => {
                tally.directories += 1;
                if tree.make_dir(&to)? {
                    modes.push((to, entry.mode));
                }
            }
            FileType::File => {
                total += entry.size;
                work.push(File { from: super::joined(source, &entry.path), to, mode: entry.mode });
            }
            FileType::Symlink => links.push((to, entry.symlink_target.clone().unwrap_or_default())),
            FileType::Other => tally.skip(&entry.path, "neither a file, a directory nor a link"),
        }
    }
    progress.set_length(total);
    let sizes: Vec<u64> = futures::stream::iter(work)
        .map(|file| async move { fetch(files, tree, &file, progress).await })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    tally.files += sizes.len() as u64;
    tally.bytes += sizes.iter().sum::<u64>();
    for (path, link) in links {
        match tree.make_link(&path, &link) {
            Ok(()) => tally.links += 1,
            Err(failure) => tally.skip(tree.shown(&path), failure),
        }
    }
    // The innermost first: an outer one may shut us out.
    modes.iter().rev().try_for_each(|(path, mode)| tree.set_mode(path, *mode))
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

async fn fetch(files: &Files, tree: &Tree, file: &File, progress: &ProgressBar) -> Result<u64, Failure> {
    let new = tree.new_file(&file.to)?;
    let sink = new.writer().map_err(|error| Failure::io(tree.shown(&file.to), error))?;
    let mut sink = progress.wrap_async_write(sink);
    let info =
        files.read_to(&file.from, &mut sink).await.map_err(|error| Failure::from(error).about(&file.from))?;
    drop(sink);
    new.finish(file.mode)?;
    Ok(info.size)
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
    fn targets_follow_the_rules_of_cp() {
        let root = std::env::temp_dir().join(format!("berth-cp-{}", berth_client::TaskId::new()));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let at = |name: &str| Target::At(root.clone(), name.into());
        assert_eq!(target("a/b", false, &root).unwrap(), at("b"));
        assert_eq!(target("a/.", true, &root).unwrap(), Target::Into(root.clone()));
        assert_eq!(target("a", false, &root.join("file")).unwrap(), at("file"));
        assert_eq!(target("a", true, &root.join("new")).unwrap(), at("new"));
        assert_eq!(target("a", true, &root.join("new/")).unwrap(), at("new"));
        assert!(target("a", true, &root.join("new/..")).is_err());
        assert!(target("a", true, &root.join("file")).is_err());
        assert!(target("a", false, &root.join("new/")).is_err());
        fs::remove_dir_all(root).unwrap();
    }
}
