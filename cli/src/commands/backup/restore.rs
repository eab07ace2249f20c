//! `berth backup restore`: a backup in the place of a store that is damaged or gone. Without a coordinator: what there is
//! to do is `berth_coordinator::restore`'s.

use std::path::{Path, PathBuf};

use berth_client::local;
use berth_coordinator::restore::{Restored, restore};
use clap::Args;
use serde::Serialize;

use super::super::Global;
use crate::{
    failure::{CommandResult, Failure},
    output::{self, count, say},
};

const HELP: &str = "\
For a coordinator that does not run: it is refused while one holds the state directory. The
backup is looked at as a start would before anything is changed. What is there is kept, in a
directory damaged-TIME in the state directory; remove that when all is well. credentials/ and
blobs/ stay as they are, and so does the audit record (audit.db): what was done since the backup
was done. Where there is none, or a newer version's, the backup's takes its place.

The coordinator then knows what the backup knows:
  - Sessions that run as they did then go on: their workers bring them.
  - Sessions made since, or placed elsewhere since, are not known: their workers end them.
  - Sessions that ended since are there again. Those with --on-worker-loss restore go on from their
    checkpoint, the others end as WORKER_LOST.
  - Checkpoints taken since are forgotten, and their files are removed.

Examples:
  berth backup restore --from /backup/monday
  berth backup restore --from /backup/monday --state-dir /var/lib/berth
  coordinator restore --from /backup/monday     # the same, where there is no `berth`";

/// Puts a backup back, where the coordinator's store is damaged or gone.
#[derive(Args, Debug, Clone)]
#[command(after_help = HELP)]
pub struct RestoreArgs {
    /// Directory that `berth backup` made
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Told {
    files: Vec<PathBuf>,
    /// Where what was there is kept. `null`: nothing was there.
    aside: Option<PathBuf>,
    /// In the backup: sessions that had not ended, those that had, and checkpoints.
    sessions_live: usize,
    sessions_ended: usize,
    checkpoints: u64,
}

pub async fn run(global: &Global, args: RestoreArgs) -> CommandResult {
    let state_dir = match &global.state_dir {
        Some(dir) => dir.clone(),
        None => local::default_state_dir()?,
    };
    put_back(&args.from, &state_dir).await?;
    output::hint("start the coordinator again: `berth up`, or `coordinator`");
    Ok(0)
}

/// The same for `coordinator restore`, which is there where `berth` is not: in the coordinator's image.
pub async fn put_back(from: &Path, state_dir: &Path) -> CommandResult {
    let restored = restore(from, state_dir).await;
    let restored = restored.map_err(|problem| Failure::new(problem.what).hint(problem.hint))?;
    let Restored { aside, files, audit, live, ended, checkpoints } = restored;
    if output::is_json() {
        output::json(&Told { files, aside, sessions_live: live, sessions_ended: ended, checkpoints })?;
        return Ok(0);
    }
    for file in &files {
        output::data(file.display())?;
    }
    say(format!(
        "with {} that had not ended, {} that had, and {}",
        count(live as u64, "session"),
        count(ended as u64, "session"),
        count(checkpoints, "checkpoint")
    ));
    if let Some(aside) = aside {
        say(format!("what was there is in {}", aside.display()));
    }
    if audit {
        say("the audit record is the backup's, too: there was none, or a newer version's");
    }
    say("sessions made, placed elsewhere or ended since the backup: see `berth backup restore --help`");
    Ok(0)
}
