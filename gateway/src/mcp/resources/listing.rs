//! Which resources there are: the files of the client's own sessions, a page at a time.
//!
//! A page costs a bounded number of calls, whatever a program has made in its workspace; a cursor is the session and the
//! place in it where the next page begins. Sessions that the client has not made are not listed, though it may name them.
//! Outputs of tasks are not listed: they are told where they are cut.

use std::sync::Arc;

use berth_client::{
    SessionId,
    model::{FileInfo, FileType, json::time_text},
};
use rmcp::model::{Annotations, JsonObject, ListResourcesResult, MetaObject, Resource, ResourceTemplate};

use super::uri::Uri;
use crate::mcp::{media, problem::Problem, room, sessions::Sessions, text};

/// Entries of one call, files or not.
pub const PAGE: u32 = 500;
/// Levels below /workspace.
pub const DEPTH: u32 = 64;
/// Calls for one page: where there are only directories, a page may have few files, or none.
const CALLS: usize = 8;
/// What says why a session is not in a list.
const LEFT_OUT: &str = "berth/left_out";

/// Only what URIs can name: a name that is no UTF-8 is not listed.
pub fn is_listed(file: &FileInfo) -> bool {
    file.kind == FileType::File && file.path_bytes.is_none()
}

/// The page at `cursor`, or the first: a smaller one where names are so long that there is no room for it.
pub async fn list(sessions: &Arc<Sessions>, cursor: Option<&str>) -> Result<ListResourcesResult, Problem> {
    for entries in [PAGE, PAGE / 10] {
        let listed = page(sessions, cursor, entries).await?;
        if room::size(&listed) <= room::MOST {
            return Ok(listed);
        }
    }
    page(sessions, cursor, 1).await
}

async fn page(
    sessions: &Arc<Sessions>,
    cursor: Option<&str>,
    entries: u32,
) -> Result<ListResourcesResult, Problem> {
    let mine = sessions.mine().await?;
    let (mut at, mut token) = match cursor {
        None => (0, String::new()),
        Some(cursor) => place(&mine, cursor)?,
    };
    let mut resources = Vec::new();
    let mut left_out = JsonObject::new();
    let mut calls = 0;
    while let Some(&id) = mine.get(at) {
        if calls == CALLS || resources.len() >= entries as usize {
            let mut result = result(resources, left_out);
            result.next_cursor = Some(format!("{id}.{token}"));
            return Ok(result);
        }
        calls += 1;
        let session = sessions.find(Some(&id.to_string()), None).await?;
        match session.files().list_page(".", DEPTH, entries, token).await {
            Ok((files, next)) => {
                resources.extend(files.iter().filter(|file| is_listed(file)).map(|file| resource(id, file)));
                token = next;
            }
            Err(error) if cursor.is_some() && error.code() == berth_client::Code::InvalidArgument => {
                return Err(bad_cursor());
            }
            // One that is paused, or gone, hides no other.
            Err(error) => {
                left_out.insert(id.to_string(), text::clipped(error.message(), 500).into());
                token = String::new();
            }
        }
        if token.is_empty() {
            at += 1;
        }
    }
    Ok(result(resources, left_out))
}

fn result(resources: Vec<Resource>, left_out: JsonObject) -> ListResourcesResult {
    let mut result = ListResourcesResult::with_all_items(resources);
    if !left_out.is_empty() {
        result.meta = Some(MetaObject(JsonObject::from_iter([(LEFT_OUT.to_owned(), left_out.into())])));
    }
    result
}

fn bad_cursor() -> Problem {
    Problem::new("`cursor` is none that was given here", "list again from the beginning, without one")
}

/// The session's place in `mine`, and the token of its page.
fn place(mine: &[SessionId], cursor: &str) -> Result<(usize, String), Problem> {
    let (id, token) = cursor.split_once('.').ok_or_else(bad_cursor)?;
    let id: SessionId = id.parse().map_err(|_| bad_cursor())?;
    // Only among the client's own: a cursor is no way to another's.
    let at = mine.iter().position(|mine| *mine == id).ok_or_else(bad_cursor)?;
    Ok((at, token.to_owned()))
}

fn resource(session: SessionId, file: &FileInfo) -> Resource {
    let mut resource = Resource::new(
        Uri::file(session, &file.path).to_string(),
        text::clipped(&file.path, 1000).replace('\n', "\\n"),
    )
    .with_mime_type(media::of_name(&file.path))
    .with_size(file.size);
    if let Some(modified) = file.modified_at {
        let mut annotations = Annotations::default();
        annotations.last_modified = Some(time_text(modified));
        resource = resource.with_annotations(annotations);
    }
    resource
}

/// How to name what is not listed.
pub fn templates() -> Vec<ResourceTemplate> {
    vec![
        ResourceTemplate::new("berth://{session}/{+path}", "file").with_title("A file of a session").with_description(
            "A file by its path: relative to /workspace, or absolute with its first slash written %2F. A directory is a \
             list of what is in it. Of files above 700 KiB a part is read from ?offset=N at the end.",
        ),
        ResourceTemplate::new("berth://{session}/tasks/{task}/{stream}{?offset}", "output")
            .with_title("What a task wrote")
            .with_description(
                "The output of a task by its task_id: stream is stdout or stderr. At most 256 KiB at a time, from the offset; \
                 the answer's _meta says under berth/next how to read on.",
            ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a cursor opens a session that is not the client's.
    #[test]
    fn a_cursor_leads_only_into_ones_own_sessions() {
        let mine: SessionId = "01900000000070008000000000000000".parse().unwrap();
        let other = "01900000000070008000000000000001";
        assert_eq!(place(&[mine], &format!("{mine}.61")).unwrap(), (0, "61".to_owned()));
        for bad in [format!("{other}.61"), "x".to_owned(), String::new(), ".61".to_owned(), mine.to_string()]
        {
            assert!(place(&[mine], &bad).is_err(), "{bad:?}");
        }
    }
}
