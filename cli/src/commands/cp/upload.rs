//! Into a session. Files go several at a time; each replaces what was there in one step.
//!
//! The file service has no call for symbolic links or for the mode of a directory that is
//! there: those few are made by a task in the session, `ln -s` and `chmod`. Such a task is
//! nobody's: it carries [`HELPER`] as its `$0`, by which the listings tell it from the user's.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use berth_client::{
    Command, Reason, Session, WriteOptions,
    model::{FileInfo, TaskProgram},
};
use futures::{StreamExt, TryStreamExt};
use indicatif::ProgressBar;

use super::{Tally, joined, last_name, means_contents};
use crate::failure::Failure;

/// `$0` of the tasks that are made here.
pub const HELPER: &str = "berth-cp";
/// Files under way at a time.
const AT_ONCE: usize = 8;
/// Arguments of one `chmod`.
const MODES_AT_ONCE: usize = 200;

struct File {
    from: PathBuf,
    to: String,
    mode: u32,
    size: u64,
}

#[derive(Default)]
struct Work {
    /// Each before what is in it.
    directories: Vec<(String, u32)>,
    files: Vec<File>,
    /// Path and target.
    links: Vec<(String, String)>,
}

pub async fn copy(
    session: &Session,
    source: &Path,
    destination: &str,
    recursive: bool,
    progress: &ProgressBar,
) -> Result<Tally, Failure> {
    let shown = source.display().to_string();
    let text = source.to_str().ok_or_else(|| {
        Failure::usage(format!("{shown}: the path is not UTF-8"))
            .hint("rename it, or copy it under another name")
    })?;
    // A link that is named is followed; links inside of a tree stay links.
    let meta = fs::metadata(source).map_err(|error| Failure::io(&shown, error))?;
    let there = look(session, destination).await?;
    let target = target(text, meta.is_dir(), destination, there.as_ref())?;
    let mut work = Work::default();
    let mut tally = Tally::default();
    if meta.is_dir() {
        if !recursive {
            return Err(Failure::usage(format!("{shown} is a directory")).hint("copy it with -r"));
        }
        walk(source, &target, &mut work, &mut tally)?;
    } else if meta.is_file() {
        work.files.push(file(source, &target, &meta));
    } else {
        return Err(Failure::new(format!("{shown} is neither a file nor a directory"))
            .hint("devices, pipes and sockets are not copied"));
    }
    progress.set_length(work.files.iter().map(|file| file.size).sum());
    send(session, work, &mut tally, progress).await?;
    Ok(tally)
}

fn file(from: &Path, to: &str, meta: &fs::Metadata) -> File {
    File {
        from: from.to_owned(),
        to: to.to_owned(),
        mode: meta.permissions().mode() & 0o777,
        size: meta.size(),
    }
}

async fn look(session: &Session, path: &str) -> Result<Option<FileInfo>, Failure> {
    match session.files().stat_follow(path).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.is(Reason::FileNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where the source goes: the rules of `cp`.
fn target(
    source: &str,
    is_dir: bool,
    destination: &str,
    there: Option<&FileInfo>,
) -> Result<String, Failure> {
    match there {
        Some(info) if info.is_dir() => {
            if is_dir && means_contents(source) {
                return Ok(destination.to_owned());
            }
            let name = last_name(source).ok_or_else(|| {
                Failure::usage(format!("{source:?} has no name of its own")).hint("name the target")
            })?;
            Ok(joined(destination, name))
        }
        Some(_) if is_dir => Err(Failure::new(format!(
            "{destination:?} in the session is a file: no directory can replace it"
        ))
        .hint("remove it, or name another target")),
        Some(_) if destination.ends_with('/') => {
            Err(Failure::new(format!("{destination:?} in the session is no directory"))
                .hint("leave the slash at its end out"))
        }
        None if destination.ends_with('/') && !is_dir => {
            Err(Failure::new(format!("there is no directory {destination:?} in the session"))
                .hint("make it with `berth run --session … -- mkdir`"))
        }
        _ => Ok(destination.to_owned()),
    }
}

fn walk(from: &Path, to: &str, work: &mut Work, tally: &mut Tally) -> Result<(), Failure> {
    let mut stack = vec![(from.to_owned(), to.to_owned())];
    while let Some((dir, to)) = stack.pop() {
        let meta = fs::metadata(&dir).map_err(|error| Failure::io(dir.display(), error))?;
        work.directories.push((to.clone(), meta.permissions().mode() & 0o777));
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) => {
                tally.skip(dir.display(), error);
                continue;
            }
        };
        for entry in entries {
            let entry = entry.map_err(|error| Failure::io(dir.display(), error))?;
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                tally.skip(path.display(), "the name is not UTF-8");
                continue;
            };
            let to = joined(&to, &name);
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(error) => {
                    tally.skip(path.display(), error);
                    continue;
                }
            };
            if meta.is_dir() {
                stack.push((path, to));
            } else if meta.is_file() {
                work.files.push(file(&path, &to, &meta));
            } else if meta.is_symlink() {
                match fs::read_link(&path).map(|target| target.to_str().map(str::to_owned)) {
                    Ok(Some(target)) => work.links.push((to, target)),
                    Ok(None) => tally.skip(path.display(), "the link's target is not UTF-8"),
                    Err(error) => tally.skip(path.display(), error),
                }
            } else {
                tally.skip(path.display(), "neither a file, a directory nor a link");
            }
        }
    }
    Ok(())
}

async fn send(
    session: &Session,
    work: Work,
    tally: &mut Tally,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    let files = session.files();
    let mut modes = Vec::new();
    for (path, mode) in &work.directories {
        // Its owner must be able to fill it; the mode that it shall have comes last.
        let fillable = mode | 0o700;
        match files.mkdir_with(path, false, Some(fillable)).await {
            Ok(_) if fillable != *mode => modes.push((path.clone(), *mode)),
            Ok(_) => {}
            // Merged into what is there, whose mode stays.
            Err(error)
                if error.is(Reason::FileExists) && look(session, path).await?.is_some_and(|f| f.is_dir()) => {
            }
            Err(error) => return Err(Failure::from(error).about(path)),
        }
        tally.directories += 1;
    }
    let sizes: Vec<u64> = futures::stream::iter(work.files)
        .map(|file| async { send_file(session, file, progress).await })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    tally.files += sizes.len() as u64;
    tally.bytes += sizes.iter().sum::<u64>();
    for (path, target) in &work.links {
        match link(session, path, target).await {
            Ok(()) => tally.links += 1,
            Err(failure) => tally.skip(path, failure),
        }
    }
    set_modes(session, &modes).await
}

async fn send_file(session: &Session, file: File, progress: &ProgressBar) -> Result<u64, Failure> {
    let source =
        tokio::fs::File::open(&file.from).await.map_err(|error| Failure::io(file.from.display(), error))?;
    let options = WriteOptions::new().mode(file.mode);
    let info = session
        .files()
        .write_from(&file.to, progress.wrap_async_read(source), options)
        .await
        .map_err(|error| Failure::from(error).context(file.from.display()))?;
    Ok(info.size)
}

/// Makes a symbolic link, over another one but over nothing else.
async fn link(session: &Session, path: &str, target: &str) -> Result<(), Failure> {
    const SCRIPT: &str = r#"[ -L "$2" ] || ! [ -e "$2" ] || { echo "something else is there" >&2; exit 1; }
exec ln -sfn -- "$1" "$2""#;
    run(session, helper(SCRIPT).args([target, &dashed(path)])).await
}

async fn set_modes(session: &Session, modes: &[(String, u32)]) -> Result<(), Failure> {
    // The innermost first: an outer one may shut us out.
    let mut modes: Vec<_> = modes.iter().collect();
    modes.reverse();
    for chunk in modes.chunks(MODES_AT_ONCE) {
        let args = chunk.iter().flat_map(|(path, mode)| [format!("{mode:o}"), dashed(path)]);
        let script = r#"while [ $# -gt 0 ]; do chmod "$1" "$2" || exit; shift 2; done"#;
        run(session, helper(script).args(args)).await?;
    }
    Ok(())
}

fn helper(script: &str) -> Command {
    Command::argv(["/bin/sh", "-c", script, HELPER])
}

/// Whether a program is one that a copy started.
pub fn is_helper(program: &TaskProgram) -> bool {
    matches!(&program.argv[..], [shell, dash, _, name, ..] if shell == "/bin/sh" && dash == "-c" && name == HELPER)
}

/// A path that no program takes for an option.
fn dashed(path: &str) -> String {
    if path.starts_with('-') { format!("./{path}") } else { path.to_owned() }
}

async fn run(session: &Session, command: Command) -> Result<(), Failure> {
    let output = session.run(command).await?;
    if output.success() {
        return Ok(());
    }
    Err(Failure::new(crate::output::clipped(output.stderr_text().trim(), 200))
        .hint("look at what is at that path in the session: `berth run --session … -- ls -l`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_client::model::FileType;

    fn info(kind: FileType) -> FileInfo {
        FileInfo {
            path: "x".into(),
            kind,
            size: 0,
            mode: 0o755,
            uid: 0,
            gid: 0,
            modified_at: None,
            symlink_target: None,
            path_bytes: None,
        }
    }

    #[test]
    fn targets_follow_the_rules_of_cp() {
        let (dir, plain) = (info(FileType::Directory), info(FileType::File));
        assert_eq!(target("a/b", false, "d", Some(&dir)).unwrap(), "d/b");
        assert_eq!(target("a/b", true, ".", Some(&dir)).unwrap(), "b");
        assert_eq!(target("a/b/.", true, ".", Some(&dir)).unwrap(), ".");
        assert_eq!(target("b", false, "c", None).unwrap(), "c");
        assert_eq!(target("b", false, "c", Some(&plain)).unwrap(), "c");
        assert_eq!(target("b", true, "new", None).unwrap(), "new");
        assert!(target("b", true, "c", Some(&plain)).is_err(), "a directory never replaces a file");
        assert!(target("b", false, "c/", None).is_err());
        assert!(target("b", false, "c/", Some(&plain)).is_err());
        assert!(target("/", true, "d", Some(&dir)).is_err(), "/ has no name");
    }

    #[test]
    fn a_tree_is_walked_with_directories_first() {
        let root = std::env::temp_dir().join(format!("berth-cp-{}", berth_client::TaskId::new()));
        fs::create_dir_all(root.join("sub/inner")).unwrap();
        fs::write(root.join("sub/inner/f"), "12345").unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("link")).unwrap();
        let (mut work, mut tally) = (Work::default(), Tally::default());
        walk(&root, "t", &mut work, &mut tally).unwrap();
        let directories: Vec<&str> = work.directories.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(directories, ["t", "t/sub", "t/sub/inner"]);
        assert_eq!(work.links, [("t/link".to_owned(), "nowhere".to_owned())]);
        assert_eq!((work.files[0].to.as_str(), work.files[0].size), ("t/sub/inner/f", 5));
        assert!(tally.skipped.is_empty());
        fs::remove_dir_all(root).unwrap();
    }
}
