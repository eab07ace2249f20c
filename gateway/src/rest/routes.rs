//! What there is: one table, by which requests are answered and of which the OpenAPI document is made.

use std::sync::LazyLock;

use http::Method;
use schemars::{Schema, SchemaGenerator};

use super::{artifacts, run, usage, views, workers};
use crate::http::query::percent_decoded;

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    Document,
    Info,
    Run,
    Sessions,
    Session,
    EndSession,
    Tasks,
    Task,
    TaskOutput,
    CancelTask,
    Usage,
    Artifacts,
    Artifact,
    ArtifactContent,
    RemoveArtifact,
    Workers,
    Worker,
    Cordon,
    Uncordon,
    Drain,
    Queue,
    Events,
}

/// What an answer is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Json,
    /// As the one who asks accepts.
    JsonOrEvents,
    Events,
    /// These bytes, and no JSON.
    Bytes,
}

/// A type's schema.
pub type Shape = fn(&mut SchemaGenerator) -> Schema;

/// One call.
pub struct Route {
    pub method: Method,
    /// Parts in braces stand for any one part.
    pub path: &'static str,
    pub handler: Handler,
    /// A word for those who make clients of the document.
    pub name: &'static str,
    pub summary: &'static str,
    pub query: &'static [Parameter],
    pub takes: Option<Shape>,
    pub answers: Shape,
    pub media: Media,
}

/// One behind `?`.
pub struct Parameter {
    pub name: &'static str,
    pub about: &'static str,
}

const LISTED: &[Parameter] = &[
    Parameter {
        name: "label",
        about: "name=value: only sessions with this label; may be given more than once",
    },
    Parameter {
        name: "state",
        about: "only those in this state: pending, placed, ready, paused, parked, ending or ended",
    },
    Parameter { name: "all", about: "true: ended ones too" },
    Parameter { name: "limit", about: "how many at most, newest first: 1 to 1000 (100)" },
];
const ARTIFACTS: &[Parameter] = &[
    Parameter { name: "session", about: "only those of this session: its id, or while it is up its name" },
    Parameter { name: "limit", about: "how many at most, newest first: 1 to 1000 (100)" },
    Parameter { name: "after", about: "`next` of the page before" },
];
const QUEUED: &[Parameter] =
    &[Parameter { name: "limit", about: "how many at most, the next first: 1 to 1000 (100)" }];
const EVENTS: &[Parameter] = &[Parameter {
    name: "after",
    about: "id of the last event seen (Last-Event-ID says the same): the stream goes on from there. Left out: from now on",
}];
const OUTPUT: &[Parameter] = &[
    Parameter { name: "follow", about: "true: until the task ends. Left out: what there is" },
    Parameter { name: "stdout", about: "offset of the first byte of standard output to tell (0)" },
    Parameter { name: "stderr", about: "the same of standard error" },
    Parameter { name: "tail", about: "of each stream at most so many bytes of what there is now" },
    Parameter { name: "encoding", about: "text (what is no UTF-8 is U+FFFD) or base64" },
];
const TASKS: &[Parameter] = &[Parameter { name: "running", about: "true: only those that are not done" }];

fn get(
    path: &'static str,
    handler: Handler,
    name: &'static str,
    summary: &'static str,
    answers: Shape,
) -> Route {
    Route {
        method: Method::GET,
        path,
        handler,
        name,
        summary,
        query: &[],
        takes: None,
        answers,
        media: Media::Json,
    }
}

fn of_worker(path: &'static str, handler: Handler, name: &'static str, summary: &'static str) -> Route {
    let worker: Shape = |g| g.subschema_for::<workers::WorkerView>();
    Route { method: Method::POST, ..get(path, handler, name, summary, worker) }
}

/// All of them.
pub static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    vec![
        get(
            "/v1/openapi.json",
            Handler::Document,
            "openapi",
            "This document. It needs no token.",
            |_| schemars::json_schema!({"type": "object"}),
        ),
        get("/v1/info", Handler::Info, "info", "How the cluster stands.", |g| {
            g.subschema_for::<views::Info>()
        }),
        Route {
            method: Method::POST,
            takes: Some(|g| g.subschema_for::<run::RunRequest>()),
            media: Media::JsonOrEvents,
            ..get(
                "/v1/run",
                Handler::Run,
                "run",
                "Runs a program to its end. The answer is what it wrote and how it ended; with `Accept: text/event-stream`, \
             events as they happen: started, stdout, stderr, lost, and at last end or error. Whoever goes away ends it.",
                |g| g.subschema_for::<run::RunAnswer>(),
            )
        },
        Route {
            query: LISTED,
            ..get(
                "/v1/sessions",
                Handler::Sessions,
                "listSessions",
                "Sessions that the token may see.",
                |g| g.subschema_for::<views::Sessions>(),
            )
        },
        get("/v1/sessions/{session}", Handler::Session, "getSession", "One session.", |g| {
            g.subschema_for::<views::SessionView>()
        }),
        Route {
            method: Method::DELETE,
            ..get(
                "/v1/sessions/{session}",
                Handler::EndSession,
                "endSession",
                "Ends a session and all that runs in it. One that has ended is answered as it is.",
                |g| g.subschema_for::<views::SessionView>(),
            )
        },
        Route {
            query: TASKS,
            ..get(
                "/v1/sessions/{session}/tasks",
                Handler::Tasks,
                "listTasks",
                "Tasks that a session still knows, newest first.",
                |g| g.subschema_for::<views::Tasks>(),
            )
        },
        get("/v1/sessions/{session}/tasks/{task}", Handler::Task, "getTask", "One task.", |g| {
            g.subschema_for::<views::TaskView>()
        }),
        Route {
            query: OUTPUT,
            media: Media::Events,
            ..get(
                "/v1/sessions/{session}/tasks/{task}/output",
                Handler::TaskOutput,
                "followTask",
                "A task's output as events: stdout and stderr (`data`, and of which bytes `from` and `to`), lost, and at last \
                 end, error, or so_far where it was not followed. The id of the last event seen, as Last-Event-ID, goes on \
                 from there.",
                |_| schemars::json_schema!({"type": "string"}),
            )
        },
        Route {
            method: Method::POST,
            ..get(
                "/v1/sessions/{session}/tasks/{task}/cancel",
                Handler::CancelTask,
                "cancelTask",
                "Ends a task: TERM, and after 2 s KILL to all that it started. Answers when it is done.",
                |g| g.subschema_for::<views::TaskView>(),
            )
        },
        get(
            "/v1/sessions/{session}/usage",
            Handler::Usage,
            "getUsage",
            "What a session's tasks take now, and have taken. To ask keeps no session from being idle.",
            |g| g.subschema_for::<usage::UsageView>(),
        ),
        Route {
            query: ARTIFACTS,
            ..get(
                "/v1/artifacts",
                Handler::Artifacts,
                "listArtifacts",
                "Files that tasks left in /workspace/artifacts, kept past their session, newest first.",
                |g| g.subschema_for::<artifacts::Artifacts>(),
            )
        },
        get(
            "/v1/artifacts/{artifact}",
            Handler::Artifact,
            "getArtifact",
            "One artifact, but its content.",
            |g| g.subschema_for::<artifacts::ArtifactView>(),
        ),
        Route {
            method: Method::DELETE,
            ..get(
                "/v1/artifacts/{artifact}",
                Handler::RemoveArtifact,
                "deleteArtifact",
                "Removes an artifact, and answers what it was. The file in the workspace stays.",
                |g| g.subschema_for::<artifacts::ArtifactView>(),
            )
        },
        Route {
            media: Media::Bytes,
            ..get(
                "/v1/artifacts/{artifact}/content",
                Handler::ArtifactContent,
                "getArtifactContent",
                "An artifact's bytes, as an attachment. What a browser would run or render as a page comes as \
                 application/octet-stream.",
                |_| schemars::json_schema!({"type": "string", "format": "binary"}),
            )
        },
        get("/v1/workers", Handler::Workers, "listWorkers", "Workers. It needs an admin's token.", |g| {
            g.subschema_for::<workers::Workers>()
        }),
        get(
            "/v1/workers/{worker}",
            Handler::Worker,
            "getWorker",
            "One worker. It needs an admin's token.",
            |g| g.subschema_for::<workers::WorkerView>(),
        ),
        of_worker(
            "/v1/workers/{worker}/cordon",
            Handler::Cordon,
            "cordonWorker",
            "No new sessions on a worker. It needs an admin's token.",
        ),
        of_worker(
            "/v1/workers/{worker}/uncordon",
            Handler::Uncordon,
            "uncordonWorker",
            "New sessions on a worker again; ends a drain, too. It needs an admin's token.",
        ),
        Route {
            takes: Some(|g| g.subschema_for::<workers::DrainRequest>()),
            ..of_worker(
                "/v1/workers/{worker}/drain",
                Handler::Drain,
                "drainWorker",
                "No new sessions on a worker, and those that are there end, or move, by a deadline. Answers at once: the \
                 worker's `sessions` say how it goes. It needs an admin's token.",
            )
        },
        Route {
            query: QUEUED,
            ..get(
                "/v1/queue",
                Handler::Queue,
                "listQueue",
                "Sessions that wait for a place, the next to be tried first.",
                |g| g.subschema_for::<views::Queue>(),
            )
        },
        Route {
            query: EVENTS,
            media: Media::Events,
            ..get(
                "/v1/events",
                Handler::Events,
                "watchEvents",
                "What happens, as it happens: events session, task and worker, each with `at` and what it is now. Workers for an \
                 admin's token. EVENTS_LOST: list, then watch anew.",
                |_| schemars::json_schema!({"type": "string"}),
            )
        },
    ]
});

/// What a request is for.
pub enum Found {
    Route(Handler, Vec<String>),
    /// There is something, but not by this method.
    Methods(Vec<Method>),
    Nothing,
}

/// Looks a request up.
pub fn find(method: &Method, path: &str) -> Found {
    let mut methods = Vec::new();
    for route in ROUTES.iter() {
        let Some(parts) = parts(route.path, path) else { continue };
        if route.method == *method {
            return Found::Route(route.handler, parts);
        }
        methods.push(route.method.clone());
    }
    if methods.is_empty() { Found::Nothing } else { Found::Methods(methods) }
}

fn parts(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    let mut parts = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(parts),
            (Some(want), Some(part)) if want.starts_with('{') && !part.is_empty() => {
                parts.push(percent_decoded(part))
            }
            (Some(want), Some(part)) if want == part => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_is_found_by_its_own_path() {
        for route in ROUTES.iter() {
            let parts = [("{session}", "s%2F1"), ("{task}", "t"), ("{worker}", "w"), ("{artifact}", "w")];
            let path =
                parts.iter().fold(route.path.to_owned(), |path, (name, part)| path.replace(name, part));
            let Found::Route(handler, parts) = find(&route.method, &path) else { panic!("{path}") };
            assert_eq!(handler, route.handler, "{path}");
            assert_eq!(parts.len(), route.path.matches('{').count());
            assert!(parts.first().is_none_or(|part| part == "s/1" || part == "w"));
        }
        assert!(
            matches!(find(&Method::POST, "/v1/info"), Found::Methods(methods) if methods == [Method::GET])
        );
        for path in
            ["/v1/", "/v1/sessions/", "/v1/sessions/a/b", "/v1/info/", "/v2/info", "/v1/sessions//tasks"]
        {
            assert!(matches!(find(&Method::GET, path), Found::Nothing), "{path}");
        }
    }
}
