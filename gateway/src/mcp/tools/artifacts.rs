//! artifact_list and artifact_get. Artifacts outlive their session, so one that has ended is named by its id; and what the
//! client's token may see of others the coordinator decides.

use berth_client::{
    Reason, SessionId,
    model::{ArtifactInfo, ArtifactList, json::time_text},
};
use rmcp::model::ContentBlock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SessionArgument;
use crate::mcp::{
    arguments::{self, Encoding},
    images, media,
    part::Part,
    problem::Problem,
    room, text,
    tool::{Answer, Call, Effect, Entry},
};

/// Artifacts of one answer, where nothing else is asked for, and at most.
const USUAL: u32 = 50;
const MOST: u32 = 500;
/// Bytes of one in an answer, as of a file (fs_read).
const USUAL_READ: u64 = 256 << 10;
const MOST_READ: u64 = 1 << 20;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListArgs {
    /// Session, by id or name; one that has ended, by its id. Left out: your own.
    session: SessionArgument,
    /// How many to tell, the newest first. Left out: 50; at most 500.
    limit: Option<u32>,
    /// Where the answer before ended: its `next`. Left out: from the newest on.
    after: Option<String>,
}

/// An artifact.
#[derive(Serialize, JsonSchema)]
struct Told {
    /// For artifact_get.
    artifact_id: String,
    /// Its path below /workspace/artifacts.
    name: String,
    /// In bytes.
    size: u64,
    /// Of its whole content, in hex.
    sha256: String,
    /// As far as its name tells.
    media_type: String,
    session: String,
    /// The task at whose end it was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<String>,
    /// In RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    /// When it is removed, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

/// A file in /workspace/artifacts that is no artifact.
#[derive(Serialize, JsonSchema)]
struct NotKept {
    name: String,
    size: u64,
    why: String,
}

#[derive(Serialize, JsonSchema)]
struct Listed {
    session: String,
    artifacts: Vec<Told>,
    /// What was there and was not kept, at most 100 of them.
    not_kept: Vec<NotKept>,
    /// So many more were not kept.
    more_not_kept: u64,
    /// What the last programs left may still come: list again.
    pending: bool,
    /// There are more: give this as `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetArgs {
    /// Session that it must be of, by id or name. Left out: any; its id says which.
    session: SessionArgument,
    /// Id of the artifact, as artifact_list tells it.
    artifact_id: String,
    /// First byte to read. Left out: 0.
    #[serde(default)]
    offset: u64,
    /// Bytes to read. Left out: 262144; at most 1048576, as far as one answer has room. (An image that is asked for without it comes whole, as an image.)
    length: Option<u64>,
    /// base64: always as base64. Left out: as text, and as base64 only where it is no text.
    #[serde(default)]
    encoding: Encoding,
}

#[derive(Serialize, JsonSchema)]
struct Content {
    #[serde(flatten)]
    artifact: Told,
    offset: u64,
    /// Bytes that were read.
    length: u64,
    /// text, base64 where it is no text, or image: then it is content of its own in this answer.
    encoding: &'static str,
    contents: String,
    /// Offset to read on from; not set at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<u64>,
}

pub fn tools() -> Vec<Entry> {
    vec![
        Entry::new(
            "artifact_list",
            "List artifacts",
            Effect::Reads,
            "Lists the artifacts of a session, the newest first. What a program leaves in /workspace/artifacts (make the \
             directory first) becomes an artifact when it ends: a copy with an id that stays as it is and outlives the \
             session, until its time is over. Each new content of a file is another artifact. Says too what was not kept, \
             and why.",
            list,
        ),
        Entry::new(
            "artifact_get",
            "Read an artifact",
            Effect::Reads,
            "Reads an artifact, or a part of it, also after its session has ended. An image (PNG, JPEG, SVG up to 512 KiB) comes \
             as an image. Text comes as it is, and what is neither as base64, which `encoding` in the answer says. Of a long \
             one read the next part from next_offset.",
            get,
        ),
    ]
}

async fn list(call: Call, args: ListArgs) -> Result<Answer<Listed>, Problem> {
    let limit = match args.limit.unwrap_or(USUAL) {
        limit if (1..=MOST).contains(&limit) => limit,
        limit => return Err(Problem::new(format!("limit is {limit}"), format!("give 1 to {MOST}"))),
    };
    let session: SessionId = call.session(args.session.as_deref()).await?.id();
    let berth = call.sessions.berth().await?;
    let (mut limit, after) = (limit, args.after.unwrap_or_default());
    loop {
        let listing = async { Ok(berth.artifacts_page(Some(session), limit, after.clone()).await?) };
        let (page, next) = call.wait("what the last programs left is kept", listing).await?;
        let answer = listed(session, page, next);
        if limit == 1 || room::has(&answer, 0) {
            return Ok(answer);
        }
        limit /= 2;
    }
}

fn listed(session: SessionId, page: ArtifactList, next: String) -> Answer<Listed> {
    let mut text = String::new();
    for artifact in &page.artifacts {
        text.push_str(&format!("{}\n", line(artifact)));
    }
    if page.artifacts.is_empty() {
        text.push_str("no artifacts\n");
    }
    for left_out in &page.not_kept {
        text.push_str(&format!("[not kept: {}: {}]\n", name(&left_out.name), left_out.why));
    }
    if page.more_not_kept > 0 {
        text.push_str(&format!("[not kept: {} more]\n", page.more_not_kept));
    }
    if page.pending {
        text.push_str("[what the last programs left may still come: list again]\n");
    }
    if !next.is_empty() {
        text.push_str(&format!("[there are more: after {next:?}]\n"));
    }
    let not_kept = |left_out: berth_client::model::NotKept| NotKept {
        name: left_out.name,
        size: left_out.size,
        why: left_out.why,
    };
    let data = Listed {
        session: session.to_string(),
        artifacts: page.artifacts.into_iter().map(told).collect(),
        not_kept: page.not_kept.into_iter().map(not_kept).collect(),
        more_not_kept: page.more_not_kept,
        pending: page.pending,
        next: Some(next).filter(|next| !next.is_empty()),
    };
    Answer { data, text: text.trim_end().to_owned() }
}

async fn get(call: Call, args: GetArgs) -> Result<Answer<Content>, Problem> {
    let length = arguments::bytes("length", args.length, USUAL_READ, MOST_READ)? as u64;
    if args.artifact_id.parse::<SessionId>().is_err() {
        let shown = text::clipped(&args.artifact_id, 100);
        return Err(Problem::new(
            format!("artifact_id is {shown:?}, and no id of an artifact"),
            "give one that artifact_list tells: 32 hex digits",
        ));
    }
    let of = match &args.session {
        Some(named) => Some(call.session(Some(named)).await?.id()),
        None => None,
    };
    let berth = call.sessions.berth().await?;
    let reading = async {
        let info = berth.artifact(&args.artifact_id).await?;
        if of.is_some_and(|of| of != info.session) {
            return Err(Problem::new(
                format!("artifact {} is of session {}", info.id, info.session),
                "leave `session` out: the artifact's id says which one it is",
            ));
        }
        let plain = args.offset == 0 && args.length.is_none() && args.encoding == Encoding::Text;
        let as_image = plain && info.size <= images::EACH && media::is_image_name(&info.name);
        let wanted = if as_image { info.size.max(1) } else { length };
        let mut data = Vec::new();
        let mut reader = berth.read_artifact(&info.id, args.offset, wanted).await?;
        while let Some(piece) = reader.next().await? {
            data.extend_from_slice(&piece);
        }
        Ok((info, data, as_image))
    };
    let read = call.wait("the artifact is read", reading).await;
    let (info, mut data, as_image) = read.map_err(|problem| match problem.is(Reason::OffsetBeyondEnd) {
        true => problem.with_hint("give an offset below its size, which artifact_list tells"),
        false => problem,
    })?;
    let image = if as_image { media::image(&info.name, &data) } else { None };
    if let Some(kind) = image {
        call.attach([ContentBlock::image(text::base64(&data), kind)]);
        let text = line(&info);
        let length = data.len() as u64;
        let (encoding, contents) = ("image", String::new());
        let data = Content { artifact: told(info), offset: 0, length, encoding, contents, next_offset: None };
        return Ok(Answer { data, text });
    }
    // Asked for as an image, and none by its content.
    data.truncate(usize::try_from(length).unwrap_or(usize::MAX));
    Ok(room::fitting(data.len(), 0, |limit| {
        let part = Part::of(data[..limit].to_vec(), args.offset, info.size, args.encoding);
        let data = Content {
            artifact: told(info.clone()),
            offset: args.offset,
            length: part.length,
            encoding: part.encoding,
            contents: part.contents,
            next_offset: part.next_offset,
        };
        Answer { data, text: part.text }
    }))
}

/// A task chose it: on one line, and not too long.
fn name(name: &str) -> String {
    text::clipped(name, 500).replace('\n', "\\n").replace('\r', "\\r")
}

fn line(artifact: &ArtifactInfo) -> String {
    format!("{}  {}  {} bytes  {}", artifact.id, name(&artifact.name), artifact.size, artifact.media_type)
}

fn told(info: ArtifactInfo) -> Told {
    Told {
        artifact_id: info.id,
        name: info.name,
        size: info.size,
        sha256: info.sha256,
        media_type: info.media_type,
        session: info.session.to_string(),
        task_id: info.task,
        created_at: info.created_at.map(time_text),
        expires_at: info.expires_at.map(time_text),
    }
}
