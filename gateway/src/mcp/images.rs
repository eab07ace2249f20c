//! Images that a run made: what it wrote to `/workspace/artifacts`, as a model sees it.
//!
//! The directory is looked at before a run and after it, and what is new or another by time and size was made meanwhile; so
//! two runs at once both show what either made. An image is one by its name and its content. Their number and their bytes are
//! bounded; what is left out is told, with the resource that it can be read from. A run's answer never fails by them.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use berth_client::{
    Reason, Session,
    model::{FileInfo, FileType},
};
use rmcp::model::{ContentBlock, Resource};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::timeout;

use super::{media, resources::Uri, text};

/// Where programs put what they want to show.
pub const DIRECTORY: &str = "/workspace/artifacts";
const DEPTH: u32 = 4;
/// Entries that are looked at.
const MOST_ENTRIES: usize = 1000;
/// Images of one answer.
const MOST: usize = 8;
/// Bytes of one image, and of all in an answer: what is left of its room is for text.
pub const EACH: u64 = 512 << 10;
const ALL: u64 = EACH;
/// Those that are named though they are left out.
const MOST_NAMED: usize = 50;
/// To look for them and read them may take so long.
const TIME: Duration = Duration::from_secs(30);

/// How the directory was before a run.
#[derive(Default)]
pub struct Before(HashMap<String, (u64, Option<SystemTime>)>);

/// An image that a run made or changed.
#[derive(Clone, Serialize, JsonSchema)]
pub struct Told {
    /// Absolute in the sandbox.
    pub path: String,
    /// To read it with, as a resource.
    pub uri: String,
    /// In bytes.
    pub size: u64,
    /// Set where the image itself is in the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<&'static str>,
    /// Why it is not in the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<&'static str>,
}

/// What a run made, to be shown.
#[derive(Default)]
pub struct Made {
    pub told: Vec<Told>,
    pub blocks: Vec<ContentBlock>,
    /// What else is to be said of them.
    note: Option<String>,
}

impl Made {
    /// A line for each, in the order of the images.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for image in &self.told {
            let path = text::clipped(&image.path, 500).replace('\n', "\\n");
            text.push_str(&match image.left_out {
                None => format!("\n[image: {path}]"),
                Some(why) => format!(
                    "\n[image left out, {why}: {path} has {} bytes, and is the resource {}]",
                    image.size, image.uri
                ),
            });
        }
        text.extend(self.note.iter().map(|note| format!("\n[{note}]")));
        text
    }
}

/// Names and states of the images that are there, and whether there are more entries than are looked at.
async fn images(session: &Session) -> (Vec<FileInfo>, bool) {
    match session.files().list_at_most(DIRECTORY, DEPTH, MOST_ENTRIES).await {
        Ok((files, more)) => {
            let is_image = |file: &FileInfo| {
                file.kind == FileType::File && file.path_bytes.is_none() && media::is_image_name(&file.path)
            };
            (files.into_iter().filter(is_image).collect(), more)
        }
        Err(error) => {
            if !error.is(Reason::FileNotFound) {
                tracing::debug!(session.id = %session.id(), ?error, "no images were looked for");
            }
            (Vec::new(), false)
        }
    }
}

pub async fn before(session: &Session) -> Before {
    let (files, _) = timeout(TIME, images(session)).await.unwrap_or_default();
    Before(files.into_iter().map(|file| (file.path, (file.size, file.modified_at))).collect())
}

/// What was made since.
pub async fn made(session: &Session, before: &Before) -> Made {
    let mut made = Made::default();
    if timeout(TIME, collect(session, before, &mut made)).await.is_err() {
        made.note = Some("there may be more images: it took too long to read them".to_owned());
    }
    made
}

async fn collect(session: &Session, before: &Before, made: &mut Made) {
    let (mut files, more) = images(session).await;
    if more {
        made.note =
            Some(format!("only the first {MOST_ENTRIES} entries of {DIRECTORY} were looked at for images"));
    }
    files.retain(|file| before.0.get(&file.path) != Some(&(file.size, file.modified_at)));
    files.sort_by(|a, b| (a.modified_at, &a.path).cmp(&(b.modified_at, &b.path)));
    if files.len() > MOST_NAMED {
        made.note =
            Some(format!("and {} images more: fs_list {DIRECTORY} names them", files.len() - MOST_NAMED));
        files.truncate(MOST_NAMED);
    }
    let (mut room, mut shown) = (ALL, 0);
    for file in files {
        let path = format!("{DIRECTORY}/{}", file.path);
        let result = match () {
            () if shown == MOST => Err("8 are shown"),
            () if file.size > EACH => Err("it is above 512 KiB"),
            () if file.size > room => Err("there is no room for it"),
            () => read(session, &path, room.min(EACH)).await,
        };
        let uri = Uri::file(session.id(), &path).to_string();
        let (media_type, left_out) = match result {
            Ok((data, media_type)) => {
                room -= data.len() as u64;
                shown += 1;
                made.blocks.push(ContentBlock::image(text::base64(&data), media_type));
                (Some(media_type), None)
            }
            Err(why) => {
                let name = path.rsplit('/').next().unwrap_or_default().replace('\n', "\\n");
                let link = Resource::new(uri.clone(), text::clipped(&name, 300)).with_size(file.size);
                made.blocks.push(ContentBlock::resource_link(link));
                (None, Some(why))
            }
        };
        made.told.push(Told { path, uri, size: file.size, media_type, left_out });
    }
}

async fn read(session: &Session, path: &str, most: u64) -> Result<(Vec<u8>, &'static str), &'static str> {
    // It may have grown since it was listed, or be something else by now.
    let data = session.files().read_range(path, 0, most + 1).await.map_err(|_| "it can't be read")?;
    if data.len() as u64 > most {
        return Err("it is too large");
    }
    let media_type = media::image(path, &data).ok_or("its content is no such image")?;
    Ok((data, media_type))
}
