//! `berth backup`: the coordinator's databases, copied while it runs, and put back.
//!
//! They are written into a directory of another name, checked, brought to the disk, and only then called what was asked
//! for: a directory of that name is a whole backup, of one moment.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use berth_client::{Backup, BackupPart};
use clap::{Args, Subcommand};
use serde::Serialize;
use sha2::{Digest, Sha256};

pub mod restore;

use super::Global;
use crate::{
    failure::{CommandResult, Failure},
    output::{self, bytes},
};

const HELP: &str = "\
A backup is a directory with coordinator.db (sessions, workers, finished tasks) and
checkpoints.db (the catalog of checkpoints), both as of one moment, and audit.db (what
`berth audit` shows). It is for its owner alone: the env of live sessions is in it. Not in it, to be copied beside it: credentials/, without
which workers must be given the new join token, and blobs/, the files of the checkpoints,
unless they are in S3 (BERTH_BLOBS).

Examples:
  berth backup --to /backup/monday
  berth stop; berth backup restore --from /backup/monday; berth up -d";

/// Copies the coordinator's databases while it runs.
#[derive(Args, Debug)]
#[command(after_help = HELP, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct BackupArgs {
    #[command(subcommand)]
    pub command: Option<BackupCommand>,

    /// Directory to make; it must not exist, or be empty
    #[arg(long, required = true, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub enum BackupCommand {
    /// Put a backup back, where the coordinator's store is damaged or gone
    Restore(restore::RestoreArgs),
}

#[derive(Serialize)]
struct Row {
    file: PathBuf,
    bytes: u64,
    sha256: String,
}

pub async fn run(global: &Global, args: BackupArgs) -> CommandResult {
    match (args.command, args.to) {
        (Some(BackupCommand::Restore(args)), _) => restore::run(global, args).await,
        (None, Some(to)) => take(global, &to).await,
        (None, None) => Err(Failure::usage("where to?").hint("berth backup --to DIR")),
    }
}

async fn take(global: &Global, to: &Path) -> CommandResult {
    let can_t = |error: io::Error| Failure::io(format_args!("can't write {}", to.display()), error);
    let taken = || {
        Failure::usage(format!("{} is there already, and not empty", to.display()))
            .hint("give each backup a directory of its own")
    };
    match fs::read_dir(to).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return Err(taken()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(can_t(error)),
        _ => {}
    }
    let client = global.client().await?;
    let mut name = to.components().as_path().as_os_str().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    let part = PathBuf::from(name);
    DirBuilder::new().mode(0o700).create(&part).map_err(can_t)?;
    let written = async {
        let mut backup = client.backup().await?;
        let rows = receive(&mut backup, &part, to).await?;
        sync(&part).and_then(|()| fs::rename(&part, to)).map_err(can_t)?;
        sync(to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
            .map_err(can_t)?;
        Ok::<_, Failure>(rows)
    };
    let rows = match written.await {
        Ok(rows) => rows,
        Err(failure) => {
            let _ = fs::remove_dir_all(&part);
            return Err(failure);
        }
    };
    if global.json() {
        output::json(&rows)?;
        return Ok(0);
    }
    let cells =
        rows.iter().map(|row| vec![row.file.display().to_string(), bytes(row.bytes), row.sha256.clone()]);
    output::table(&["FILE", "SIZE", "SHA-256"], cells.collect(), "")?;
    Ok(0)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file that comes in.
struct Incoming {
    name: String,
    size: u64,
    got: u64,
    sum: Sha256,
    file: File,
}

async fn receive(backup: &mut Backup, part: &Path, to: &Path) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let mut now: Option<Incoming> = None;
    let broken = || Failure::new("the backup broke off").hint("try again");
    while let Some(next) = backup.next().await? {
        now = match (next, now) {
            (BackupPart::File { name, size }, None) => Some(Incoming::create(part, name, size)?),
            (BackupPart::Data(data), Some(mut file)) => {
                file.file.write_all(&data).map_err(|error| Failure::io("can't write the backup", error))?;
                file.sum.update(&data);
                file.got += data.len() as u64;
                Some(file)
            }
            (BackupPart::End { sha256 }, Some(file)) => {
                rows.push(file.end(&sha256, to)?);
                None
            }
            _ => return Err(broken()),
        };
    }
    if now.is_some() || rows.is_empty() { Err(broken()) } else { Ok(rows) }
}

impl Incoming {
    fn create(part: &Path, name: String, size: u64) -> Result<Self, Failure> {
        // It comes from another machine, and must stay where it belongs.
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain || name.starts_with('.') || name.is_empty() {
            return Err(Failure::new(format!("the coordinator named a file {name:?}"))
                .hint("is this the address of a Berth coordinator, and of this version?"));
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part.join(&name));
        let file = file.map_err(|error| Failure::io(format_args!("can't write {name}"), error))?;
        Ok(Self { name, size, got: 0, sum: Sha256::new(), file })
    }

    /// Checks it, and brings it to the disk.
    fn end(self, sha256: &[u8], to: &Path) -> Result<Row, Failure> {
        let sum = self.sum.finalize();
        if self.got != self.size || sum[..] != *sha256 {
            return Err(Failure::new(format!("{} came damaged", self.name)).hint("try again"));
        }
        self.file
            .sync_all()
            .map_err(|error| Failure::io(format_args!("can't write {}", self.name), error))?;
        let sha256 = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Row { file: to.join(&self.name), bytes: self.got, sha256 })
    }
}
