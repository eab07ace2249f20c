//! `berth artifact`: listing, fetching and removing what sessions left behind.

use std::path::{Path, PathBuf};

use berth_client::{
    Client, SessionId,
    model::{ArtifactInfo, ArtifactList},
};
use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{Global, cp::tree::Tree, removal::remove_each};
use crate::{
    failure::{CommandResult, Failure},
    output::{self, ago, bytes, clipped, left},
    select,
};

const HELP: &str = "\
A file that a task leaves in /workspace/artifacts is kept past its session, for as long as the
coordinator is told to (BERTH_ARTIFACT_KEEP), and so is each later content of it.

An ARTIFACT is a full id, or at least 4 characters of its beginning or end.

Examples:
  berth artifact list web
  berth artifact get 3f2a91c0
  berth artifact get 3f2a91c0 -o - | less
  berth artifact remove $(berth artifact list -q web)";

/// Looks after files that sessions left behind.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct ArtifactArgs {
    #[command(subcommand)]
    pub command: ArtifactCommand,
}

#[derive(Subcommand, Debug)]
pub enum ArtifactCommand {
    /// List them, newest first
    List(ListArgs),
    /// Copy one to a file
    Get(GetArgs),
    /// Remove some
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only of this session, which may have ended: then its whole id
    #[arg(value_name = "SESSION")]
    pub session: Option<String>,

    /// Only ids, one a line
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct GetArgs {
    /// Artifact
    #[arg(value_name = "ARTIFACT")]
    pub artifact: String,

    /// File to write, over what is there; -: standard output [default: its own name, here, if nothing has it]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Artifacts
    #[arg(required = true, value_name = "ARTIFACT")]
    pub artifacts: Vec<String>,
}

pub async fn run(global: &Global, args: ArtifactArgs) -> CommandResult {
    match args.command {
        ArtifactCommand::List(args) => list(global, args).await,
        ArtifactCommand::Get(args) => get(global, args).await,
        ArtifactCommand::Remove(args) => remove(global, args).await,
    }
}

async fn list(global: &Global, args: ListArgs) -> CommandResult {
    let client = global.client().await?;
    let session: Option<SessionId> = match &args.session {
        None => None,
        Some(text) => Some(select::session(&client, text).await?.id()),
    };
    let listed = client.artifacts(session).await?;
    if args.quiet {
        output::ids(listed.artifacts.iter().map(|artifact| &artifact.id))?;
    } else if global.json() {
        output::json(&listed)?;
    } else {
        let header = ["ARTIFACT", "SESSION", "NAME", "SIZE", "TYPE", "SHA-256", "AGE", "LEFT"];
        let tenants: Vec<&str> = listed.artifacts.iter().map(|artifact| artifact.tenant.as_str()).collect();
        output::table_of_tenants(
            &header,
            listed.artifacts.iter().map(row).collect(),
            &tenants,
            "no artifacts",
        )?;
    }
    tell(&listed);
    Ok(0)
}

fn row(artifact: &ArtifactInfo) -> Vec<String> {
    vec![
        select::short(&artifact.id),
        select::short(artifact.session),
        clipped(&artifact.name, 48),
        bytes(artifact.size),
        clipped(&artifact.media_type, 24),
        artifact.sha256.chars().take(12).collect(),
        ago(artifact.created_at),
        left(artifact.expires_at),
    ]
}

/// What is not in the list. A script reads it there.
fn tell(listed: &ArtifactList) {
    if output::is_json() {
        return;
    }
    for left_out in &listed.not_kept {
        let name = clipped(&left_out.name, 80);
        output::warning(format!("not kept: {name} ({}): {}", bytes(left_out.size), left_out.why));
    }
    if listed.more_not_kept > 0 {
        output::warning(format!("not kept: {} more", output::count(listed.more_not_kept, "file")));
    }
    if listed.pending {
        output::warning("what the last tasks left may still come");
        output::hint("list again in a moment");
    }
}

async fn get(global: &Global, args: GetArgs) -> CommandResult {
    let client = global.client().await?;
    let id = select::artifact(&client, &args.artifact).await?;
    if args.output.as_deref() == Some(Path::new("-")) {
        if global.json() {
            return Err(
                Failure::usage("an artifact on standard output is no JSON").hint("name a file: -o FILE")
            );
        }
        copy(&client, &id, &mut tokio::io::stdout()).await?;
        return Ok(0);
    }
    let info = client.artifact(&id).await?;
    let to = match args.output {
        Some(path) => path,
        None => own_name(&info)?,
    };
    let name = to.file_name().ok_or_else(|| {
        Failure::usage(format!("{} has no name of its own", to.display())).hint("name a file: -o FILE")
    })?;
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = Tree::open(dir)?.new_file(Path::new(name))?;
    let failed = |error| Failure::io(to.display(), error);
    copy(&client, &id, &mut file.writer().map_err(failed)?).await?;
    // As most files are made; it is nobody's program until somebody says so.
    file.finish(0o644)?;
    if global.json() {
        output::json(&Fetched { artifact: &info, path: &to })?;
    } else {
        output::data(output::printable(&to.display().to_string()))?;
    }
    Ok(0)
}

#[derive(serde::Serialize)]
struct Fetched<'a> {
    #[serde(flatten)]
    artifact: &'a ArtifactInfo,
    path: &'a Path,
}

/// The last part of its name, in this directory. A task chose it: it goes over nothing that is there.
fn own_name(info: &ArtifactInfo) -> Result<PathBuf, Failure> {
    let name = info.name.rsplit('/').next().unwrap_or_default();
    let strange = name.is_empty() || name == "." || name == ".." || name.chars().any(char::is_control);
    if strange || std::fs::symlink_metadata(name).is_ok() {
        let why = if strange { "is a strange name" } else { "is there already" };
        return Err(Failure::new(format!("{} {why}", clipped(name, 80))).hint("name a file: -o FILE"));
    }
    Ok(PathBuf::from(name))
}

/// Copies its content, which must be what its SHA-256 says.
async fn copy(client: &Client, id: &str, to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Failure> {
    let mut reader = client.read_artifact(id, 0, 0).await?;
    let failed = |error| Failure::io("can't write the artifact", error);
    let (mut sum, mut size) = (Sha256::new(), 0);
    while let Some(data) = reader.next().await? {
        sum.update(&data);
        size += data.len() as u64;
        to.write_all(&data).await.map_err(failed)?;
    }
    to.flush().await.map_err(failed)?;
    let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if size != reader.info().size || sum != reader.info().sha256 {
        return Err(Failure::new("the artifact came damaged").hint("try again"));
    }
    Ok(())
}

async fn remove(global: &Global, args: RemoveArgs) -> CommandResult {
    remove_each(global, &args.artifacts, async |client, text| {
        let id = select::artifact(client, text).await?;
        client.delete_artifact(&id).await?;
        Ok(id)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a name that a task chose leads out of this directory, or over what is there.
    #[test]
    fn an_artifact_goes_by_its_last_name_and_over_nothing() {
        let info = |name: &str| ArtifactInfo {
            id: String::new(),
            session: SessionId::new(),
            task: None,
            name: name.to_owned(),
            size: 0,
            sha256: String::new(),
            media_type: String::new(),
            created_at: None,
            expires_at: None,
            tenant: String::new(),
        };
        assert_eq!(own_name(&info("a/b/no-such.png")).unwrap(), PathBuf::from("no-such.png"));
        for bad in ["", "a/..", "..", "a/", "a\nb", "\u{1b}[2J", "src", "x/Cargo.toml"] {
            assert!(own_name(&info(bad)).is_err(), "{bad:?}");
        }
    }
}
