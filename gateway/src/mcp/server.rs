//! The server that `rmcp` drives: what we are, what we have, and each call.

use std::sync::{Arc, LazyLock};

use berth_proto::{
    spawn::spawn,
    trace::{self, Hop, Role, TraceContext},
};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, Implementation, InitializeRequestParams,
        InitializeResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
        PaginatedRequestParams, ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse,
        ServerCapabilities, ServerConfig, SubscribeRequestParams, SubscriptionFilter, Tool,
        UnsubscribeRequestParams,
    },
    service::{RequestContext, SubscriptionContext},
};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use super::{
    conversations::Link,
    problem::Problem,
    resources::{self, Changes},
    room,
    sessions::Sessions,
    text,
    tool::{Beside, Call, Entry, Table},
    tools,
};

/// Calls that one client may have under way.
const CALLS: usize = 64;

const INSTRUCTIONS: &str = "\
Berth gives you a computer of your own: a Linux sandbox with a file system that stays while you work, no root, and no \
network unless it was allowed. Run programs with run_shell and run_python; start servers and long jobs with \
run_background, and look after them with the task_* tools. Files are in /workspace, where programs start; fs_* tools \
read and change them, and they are resources, too: berth://<session>/<path>. An image that a program writes to \
/workspace/artifacts is shown with its answer. All tools work in one session, which is made on first use. To work in \
several, or in one with a name to come back to, make it with session_create and give its id or name as `session`.";

static TABLE: LazyLock<Table> = LazyLock::new(tools::table);

/// What one client talks to.
#[derive(Clone)]
pub struct Server {
    sessions: Arc<Sessions>,
    calls: Arc<Semaphore>,
    changes: Arc<Changes>,
    _end: Option<Arc<EndWithServer>>,
}

/// Ends a client's sessions once nobody serves it any more.
struct EndWithServer {
    sessions: Arc<Sessions>,
    /// From the beginning: who waits for the ends waits for those that have not been noticed yet, too.
    ending: Option<TaskTrackerToken>,
    /// When it is cancelled nobody serves the client for a while: it goes on after that, unless it was told to end.
    pause: Option<CancellationToken>,
}

impl Drop for EndWithServer {
    fn drop(&mut self) {
        if self.pause.as_ref().is_some_and(CancellationToken::is_cancelled) && self.sessions.go_on() {
            return;
        }
        let (sessions, token) = (Arc::clone(&self.sessions), self.ending.take());
        spawn("mcp client's end", async move {
            sessions.end().await;
            drop(token);
        });
    }
}

impl Server {
    pub fn new(sessions: Arc<Sessions>) -> Self {
        let changes = Changes::new(Arc::clone(&sessions));
        Self { sessions, calls: Arc::new(Semaphore::new(CALLS)), changes, _end: None }
    }

    /// Its client's sessions end with it, unless `pause` is cancelled then; `ending` counts those that are about to.
    #[must_use]
    pub fn ended_with(mut self, ending: &TaskTracker, pause: Option<CancellationToken>) -> Self {
        let (sessions, ending) = (Arc::clone(&self.sessions), Some(ending.token()));
        self._end = Some(Arc::new(EndWithServer { sessions, ending, pause }));
        self
    }

    /// A place among the calls that its client may have under way.
    fn begin(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.changes.asked();
        self.calls.try_acquire().map_err(|_| {
            Problem::new(
                format!("{CALLS} calls of this client are under way"),
                "wait until one ends; long jobs are for run_background",
            )
        })
    }

    /// Answers what is no tool: what goes wrong is an error of the protocol, and what its client gives up is left.
    async fn answer<T: Serialize>(
        &self,
        context: &RequestContext<RoleServer>,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, ErrorData> {
        let answered = async {
            let _permit = self.begin()?;
            tokio::select! {
                done = work => done,
                () = context.ct.cancelled() => Err(Problem::cancelled()),
            }
        };
        let bounded = |done: T| match room::size(&done) {
            ..=room::MOST => Ok(done),
            bytes => Err(room::too_large(bytes)),
        };
        match answered.await.and_then(bounded) {
            Ok(done) => Ok(done),
            Err(problem) => Err(self.sessions.failed(problem).await.into_error()),
        }
    }
}

impl Server {
    async fn called(
        &self,
        entry: &Entry,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> CallToolResult {
        let (beside, began) = (Beside::default(), Instant::now());
        let call = Call::new(Arc::clone(&self.sessions), context, beside.clone());
        let result = entry.call(call, request.arguments.unwrap_or_default()).await;
        let (session, task) = {
            let mut kept = beside.kept();
            (kept.session, kept.task.take())
        };
        if let Some(session) = session {
            trace::note("berth.session.id", session);
        }
        if let Some(task) = task {
            self.changes.started(task, began);
        }
        // Also where it failed: half of a write is a change.
        if !entry.only_reads() {
            self.changes.touched(session, began);
        }
        match result {
            Ok(result) => room::bound(result),
            Err(problem) => {
                tracing::debug!(tool = %entry.tool.name, %problem, "a tool failed");
                self.sessions.failed(problem).await.into_result()
            }
        }
    }
}

/// A call of a tool as a hop of the trace that its client names in `_meta` (SEP-414), else of the HTTP request's.
fn hop(tool: &str, context: &RequestContext<RoleServer>) -> Hop {
    let parse = |text: &str| text.parse::<TraceContext>().ok();
    let over_http = || {
        let head = context.extensions.get::<http::request::Parts>()?;
        parse(head.headers.get(trace::HEADER)?.to_str().ok()?)
    };
    let sent = context.meta.get_traceparent().and_then(parse).or_else(over_http);
    let hop = Hop::sent(Role::Entry, sent, &format!("tools/call {tool}"));
    hop.note("mcp.method.name", "tools/call");
    hop.note("gen_ai.tool.name", tool);
    hop
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let implementation = Implementation::new("berth", berth_proto::VERSION).with_title("Berth");
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_resources_list_changed();
        ServerConfig::new(capabilities.build())
            .with_server_info(implementation)
            .with_instructions(INSTRUCTIONS)
    }

    /// A client begins, or one that began before goes on: then this is what it said at that time.
    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let link = context
            .extensions
            .get::<http::request::Parts>()
            .and_then(|parts| parts.extensions.get::<Arc<Link>>());
        if let Some(link) = link {
            self.sessions.belong_to(Arc::clone(link)).await;
            if let Some(conversation) = link.conversation() {
                conversation.woke();
            }
        }
        context.peer.set_peer_info(request.clone());
        self.negotiate_initialize(&request)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(TABLE.tools()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        TABLE.find(name).map(|entry| entry.tool.clone())
    }

    /// Only a tool that is not there is an error of the protocol. All else is an answer, which a model reads.
    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(entry) = TABLE.find(&request.name) else {
            let name = text::clipped(&request.name, 100);
            return Err(ErrorData::invalid_params(
                format!("there is no tool {name:?}: tools/list names those there are"),
                None,
            ));
        };
        let _permit = match self.begin() {
            Ok(permit) => permit,
            Err(problem) => return Ok(problem.into_result().into()),
        };
        let mut hop = hop(&entry.tool.name, &context);
        let answer = hop.scope(self.called(entry, request, context)).await;
        if answer.is_error == Some(true) {
            hop.fail("the tool failed");
        }
        Ok(answer.into())
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let cursor = request.and_then(|request| request.cursor);
        let listing = async {
            let listed = resources::list(&self.sessions, cursor.as_deref()).await?;
            // Later ones ask for it, by `subscriptions/listen`.
            if context.protocol_version().is_some_and(|version| version < ProtocolVersion::V_2026_07_28) {
                self.changes.listed(&context.peer).await;
            }
            Ok(listed)
        };
        self.answer(&context, listing).await
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(resources::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        self.answer(&context, resources::read(&self.sessions, &request.uri))
            .await
            .map(ReadResourceResponse::from)
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.answer(&context, self.changes.subscribe(&request.uri, &context.peer)).await
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.changes.unsubscribe(&request.uri);
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        self.changes.heard();
        let mut accepted = requested.clone();
        if let Some(uris) = &mut accepted.resource_subscriptions {
            uris.truncate(resources::MOST_SUBSCRIBED);
        }
        Some(accepted)
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.changes.asked();
        match self.changes.listen(&context).await {
            Ok(()) => Ok(()),
            Err(problem) => Err(self.sessions.failed(problem).await.into_error()),
        }
    }
}
