//! An archive instead of a directory: `SESSION:DIR -` writes a tar to stdout, `- SESSION:DIR` reads one from stdin, as
//! `docker cp` does. The agent packs and unpacks, so that a tree of thousands of files is one stream.
//!
//! What comes out is of a sandbox: unpack it as the archive of a stranger (`tar` refuses `..` and absolute names by
//! itself).

use std::io::IsTerminal;

use berth_client::{PackOptions, Session, model::Archived};
use indicatif::ProgressBar;

use super::{Tally, last_name, means_contents};
use crate::failure::Failure;

/// Writes what is at a path to stdout.
pub async fn out(session: &Session, source: &str, progress: &ProgressBar) -> Result<Tally, Failure> {
    if std::io::stdout().is_terminal() {
        return Err(Failure::usage("an archive is not for a terminal")
            .hint("send it on: berth cp SESSION:DIR - | tar -x, or > file.tar"));
    }
    let options = match last_name(source).filter(|_| !means_contents(source)) {
        Some(name) => PackOptions::new().prefix(name),
        None => PackOptions::new(),
    };
    let mut sink = progress.wrap_async_write(tokio::io::stdout());
    let done = session.files().pack_to(source, options, &mut sink).await;
    let done = done.map_err(|error| Failure::from(error).about(source))?;
    let mut tally = tally(&done);
    for path in &done.skipped_paths {
        tally.skip(path, "a pipe, a socket or a device, not to be read, or shorter than it was");
    }
    let more = done.skipped.saturating_sub(done.skipped_paths.len() as u64);
    if more > 0 {
        tally.skip(format!("{more} more"), "as these");
    }
    Ok(tally)
}

/// Unpacks what comes from stdin.
pub async fn into(session: &Session, destination: &str, progress: &ProgressBar) -> Result<Tally, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::usage("no archive comes from a terminal")
            .hint("send one: tar -c DIR | berth cp - SESSION:DIR"));
    }
    let source = progress.wrap_async_read(tokio::io::stdin());
    let done = session.files().unpack_from(destination, source, false).await;
    Ok(tally(&done.map_err(|error| Failure::from(error).about(destination))?))
}

fn tally(done: &Archived) -> Tally {
    let Archived { files, directories, links, bytes, .. } = *done;
    Tally { files, directories, links, bytes, skipped: Vec::new() }
}
