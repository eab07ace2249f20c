//! The names of resources: `berth://<session>/<path>` is a file, `berth://<session>/tasks/<task>/stdout` what a task wrote.
//! Either may end with `?offset=N`, to be read from there.
//!
//! A session is its id or its name. A path is as tools take it: relative to `/workspace`, or absolute, and then its first
//! slash is written `%2F`, since clients tidy up empty parts of a URI. The few files of a workspace that have the name of a
//! task's output are told by their absolute path.

use std::fmt;

use berth_client::{SessionId, Std, TaskId};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::mcp::{problem::Problem, text};

const SCHEME: &str = "berth://";
/// What stands for itself in a part of a URI.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &PART.remove(b'/');
/// Bytes of a URI: a path of 4 KiB with each byte escaped, and some.
const LONGEST: usize = 16 << 10;

/// What a resource is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    File(String),
    Output(TaskId, Std),
}

/// The name of a resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uri {
    pub session: String,
    pub what: What,
    /// First byte to read.
    pub offset: Option<u64>,
}

impl Uri {
    pub fn file(session: SessionId, path: &str) -> Self {
        let inside = path.strip_prefix("/workspace/").unwrap_or(path);
        let path = match output(inside) {
            Some(_) => format!("/workspace/{inside}"),
            None => inside.to_owned(),
        };
        Self { session: session.to_string(), what: What::File(path), offset: None }
    }

    pub fn output(session: SessionId, task: TaskId, stream: Std) -> Self {
        Self { session: session.to_string(), what: What::Output(task, stream), offset: None }
    }

    /// The same from that byte on.
    #[must_use]
    pub fn at(&self, offset: u64) -> Self {
        Self { offset: Some(offset), ..self.clone() }
    }

    pub fn parse(uri: &str) -> Result<Self, Problem> {
        Self::try_parse(uri).ok_or_else(|| {
            Problem::new(
                format!("{:?} is no name of a resource here", text::clipped(uri, 300)),
                "give berth://<session>/<path>, or berth://<session>/tasks/<task_id>/stdout or …/stderr, each with \
                 ?offset=N at its end if wanted",
            )
        })
    }

    fn try_parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix(SCHEME).filter(|_| uri.len() <= LONGEST)?;
        let (rest, offset) = match rest.split_once('?') {
            None => (rest, None),
            Some((rest, query)) => {
                let digits = query.strip_prefix("offset=")?;
                let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                (rest, Some(digits.parse().ok().filter(|_| plain)?))
            }
        };
        let (session, path) = rest.split_once('/').unwrap_or((rest, ""));
        let session = decoded(session).filter(|session| !session.is_empty())?;
        let what = match output(path) {
            Some((task, stream)) => What::Output(task, stream),
            None => What::File(decoded(path)?),
        };
        Some(Self { session, what, offset })
    }
}

fn decoded(part: &str) -> Option<String> {
    let text = percent_decode_str(part).decode_utf8().ok()?;
    (!text.contains('\0')).then(|| text.into_owned())
}

/// The task and stream that a path means, if it means one.
fn output(path: &str) -> Option<(TaskId, Std)> {
    let (task, stream) = path.strip_prefix("tasks/")?.split_once('/')?;
    let stream = match stream {
        "stdout" => Std::Out,
        "stderr" => Std::Err,
        _ => return None,
    };
    Some((task.parse().ok()?, stream))
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", utf8_percent_encode(&self.session, PART))?;
        match &self.what {
            What::Output(task, stream) => write!(f, "tasks/{task}/{}", stream.name())?,
            What::File(path) => match path.strip_prefix('/') {
                Some(rest) => write!(f, "%2F{}", utf8_percent_encode(rest, PATH))?,
                None => write!(f, "{}", utf8_percent_encode(path, PATH))?,
            },
        }
        match self.offset {
            Some(offset) => write!(f, "?offset={offset}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "01900000000070008000000000000001";

    /// Red when a name with a character of URIs in it comes back as another file's.
    #[test]
    fn what_is_told_is_what_is_read() {
        let session: SessionId = "01900000000070008000000000000000".parse().unwrap();
        let output = format!("tasks/{TASK}/stdout");
        for path in ["a.txt", "src/a b.py", "100%?#&.txt", "ä€/\n", "/etc/passwd", "a/../b", "%2F", &output]
        {
            let uri = Uri::file(session, path).to_string();
            assert!(uri.bytes().all(|b| b.is_ascii_graphic()), "{uri}");
            let absolute = format!("/workspace/{path}");
            match Uri::parse(&uri).unwrap().what {
                What::File(told) => {
                    assert!(told == path || told == absolute, "{uri} is {told:?}, not {path:?}")
                }
                other => panic!("{uri} is {other:?}"),
            }
        }
        assert_eq!(Uri::file(session, "/workspace/a").to_string(), Uri::file(session, "a").to_string());
        let uri = Uri::output(session, TASK.parse().unwrap(), Std::Err).at(7);
        assert_eq!(uri.to_string(), format!("berth://{session}/tasks/{TASK}/stderr?offset=7"));
        assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri);
        assert_eq!(Uri::parse("berth://my%20box/a").unwrap().session, "my box");
        assert_eq!(Uri::parse("berth://box").unwrap().what, What::File(String::new()));
        assert_eq!(Uri::parse("berth://box//tmp/a").unwrap().what, What::File("/tmp/a".into()));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("berth://box/{}", "x".repeat(20_000));
        for bad in [
            "",
            "file:///etc/passwd",
            "berth:/box/a",
            "berth://",
            "berth:///a",
            "berth://box/a?offset=",
            "berth://box/a?offset=-1",
            "berth://box/a?offset=+1",
            "berth://box/a?length=1",
            "berth://box/%00",
            "berth://box/%ff",
            "berth://%ff/a",
            &long,
        ] {
            assert!(Uri::parse(bad).is_err(), "{bad}");
        }
    }
}
