//! What a tool is: a name, a description, schemas made from the very types that are parsed and answered with, hints to
//! the client, and a function. Rejected: the SDK's macros, which make the schemas alike but decide by the return type what
//! is a tool's error, and what a protocol's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_client::{Session, SessionId, TaskHandle};
use futures::future::BoxFuture;
use rmcp::{
    RoleServer,
    model::{CallToolResult, ContentBlock, JsonObject, Tool, ToolAnnotations},
    service::RequestContext,
};
use schemars::{JsonSchema, generate::Contract};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    problem::Problem,
    progress::{EVERY, Progress},
    sessions::Sessions,
    venv::Venv,
};

/// What a tool may do, as clients ask before they let a model call it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Changes nothing.
    Reads,
    /// Makes something that was not there.
    Adds,
    /// May change or remove what is there. To do it twice is to do it once.
    Overwrites,
    /// May change or remove what is there, and does so each time.
    Destroys,
    /// Runs a program: it may do anything that its session may.
    Runs,
}

impl Effect {
    fn annotations(self, title: &str) -> ToolAnnotations {
        ToolAnnotations::with_title(title)
            .read_only(self == Self::Reads)
            .destructive(matches!(self, Self::Overwrites | Self::Destroys | Self::Runs))
            .idempotent(matches!(self, Self::Reads | Self::Overwrites))
            // What a session may reach beyond itself is its egress policy's.
            .open_world(self == Self::Runs)
    }
}

/// What comes of a call beside its answer's data and text.
#[derive(Clone, Default)]
pub struct Beside(Arc<StdMutex<Kept>>);

#[derive(Default)]
pub struct Kept {
    /// Content after the text: images, links.
    blocks: Vec<ContentBlock>,
    /// The session that it worked in.
    pub session: Option<SessionId>,
    /// A task that it started and did not wait for.
    pub task: Option<TaskHandle>,
}

impl Beside {
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call of a tool.
pub struct Call {
    pub sessions: Arc<Sessions>,
    pub context: RequestContext<RoleServer>,
    began: Instant,
    progress: Mutex<Progress>,
    beside: Beside,
}

impl Call {
    pub fn new(sessions: Arc<Sessions>, context: RequestContext<RoleServer>, beside: Beside) -> Self {
        let progress = Progress::new(context.peer.clone(), context.meta.get_progress_token());
        Self { sessions, context, began: Instant::now(), progress: Mutex::new(progress), beside }
    }

    /// Puts more content behind the answer's text.
    pub fn attach(&self, blocks: impl IntoIterator<Item = ContentBlock>) {
        self.beside.kept().blocks.extend(blocks);
    }

    /// A task goes on that this call does not wait for.
    pub fn started(&self, task: &TaskHandle) {
        self.beside.kept().task = Some(task.clone());
    }

    /// The session that the argument names, else the client's own.
    pub async fn session(&self, named: Option<&str>) -> Result<Session, Problem> {
        let client = self.context.client_info().map(|client| format!("{} {}", client.name, client.version));
        let session = self.sessions.find(named, client.as_deref()).await?;
        self.beside.kept().session = Some(session.id());
        Ok(session)
    }

    /// The session's Python environment, which is made if there is none.
    pub async fn venv(&self, session: &Session) -> Result<Venv, Problem> {
        self.wait("the session's Python environment is made", self.sessions.venvs.of(session)).await
    }

    /// Set when the client no longer wants the answer, or is gone.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.context.ct
    }

    /// Says how it comes along, if the client wants to know.
    pub async fn tell(&self, message: String) {
        let mut progress = self.progress.lock().await;
        progress.tell(self.elapsed().as_secs_f64(), message).await;
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits for `work`, says every second that it goes on, and drops it when the client no longer wants it.
    pub async fn wait<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval_at(self.began + EVERY, EVERY);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = self.cancelled().cancelled() => return Err(Problem::cancelled()),
                _ = tick.tick() => self.tell(what.to_owned()).await,
            }
        }
    }
}

/// What a tool answers: for programs, and the same to read.
pub struct Answer<R> {
    pub data: R,
    pub text: String,
}

type Run = Box<dyn Fn(Call, JsonObject) -> BoxFuture<'static, Result<CallToolResult, Problem>> + Send + Sync>;

/// A tool and what it does.
pub struct Entry {
    pub tool: Tool,
    run: Run,
}

impl Entry {
    /// `A`: its arguments; unknown ones should be refused, so that a mistake is told. `R`: its structured answer.
    pub fn new<A, R, F, Fut>(
        name: &'static str,
        title: &str,
        effect: Effect,
        about: &'static str,
        run: F,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
        F: Fn(Call, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Answer<R>, Problem>> + Send + 'static,
    {
        let tool = Tool::new(name, about, schema::<A>(Contract::Deserialize))
            .with_title(title)
            .with_raw_output_schema(schema::<R>(Contract::Serialize))
            .with_annotations(effect.annotations(title));
        let run = Arc::new(run);
        Self {
            tool,
            run: Box::new(move |call, arguments| {
                let run = Arc::clone(&run);
                Box::pin(async move {
                    let arguments = parse(name, arguments)?;
                    let beside = call.beside.clone();
                    let answer = run(call, arguments).await?;
                    let blocks = std::mem::take(&mut beside.kept().blocks);
                    result(answer, blocks)
                })
            }),
        }
    }

    /// As its hints say.
    pub fn only_reads(&self) -> bool {
        self.tool.annotations.as_ref().is_some_and(|hints| hints.read_only_hint == Some(true))
    }

    pub fn call(
        &self,
        call: Call,
        arguments: JsonObject,
    ) -> BoxFuture<'static, Result<CallToolResult, Problem>> {
        (self.run)(call, arguments)
    }
}

fn parse<A: DeserializeOwned>(tool: &str, arguments: JsonObject) -> Result<A, Problem> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| {
        Problem::new(
            format!("the arguments are no good: {error}"),
            format!("correct them: the input schema of {tool} says what it takes"),
        )
    })
}

fn result<R: Serialize>(answer: Answer<R>, more: Vec<ContentBlock>) -> Result<CallToolResult, Problem> {
    let data = serde_json::to_value(answer.data).map_err(|error| {
        Problem::new(format!("the answer can't be told: {error}"), "this is a defect of Berth: report it")
    })?;
    let mut result = CallToolResult::success(vec![ContentBlock::text(answer.text)]);
    result.content.extend(more);
    result.structured_content = Some(data);
    Ok(result)
}

/// The schema of a type, as all clients understand it: what may be left out is just not required (some model APIs refuse
/// a `type` that is a list), and the formats of Rust's numbers, which nobody else knows, are bounds. `contract`: whether it
/// is read or written, since what may be left out differs.
fn schema<T: JsonSchema>(contract: Contract) -> Arc<JsonObject> {
    let generator = schemars::generate::SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
            settings.contract = contract;
        })
        .into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    match schema {
        Value::Object(mut schema) => {
            schema.remove("title");
            schema.entry("properties").or_insert_with(|| Value::Object(JsonObject::new()));
            Arc::new(schema)
        }
        _ => unreachable!("a struct's schema is an object"),
    }
}

fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [one] = &types[..] {
                    let one = one.clone();
                    object.insert("type".to_owned(), one);
                }
            }
            if let Some(Value::Array(values)) = object.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            if let Some(Value::Array(any)) = object.get_mut("anyOf") {
                any.retain(|schema| schema["type"] != "null");
                if let [one] = &any[..] {
                    let one = one.as_object().cloned().unwrap_or_default();
                    object.remove("anyOf");
                    for (name, value) in one {
                        object.entry(name).or_insert(value);
                    }
                }
            }
            if object.get("default") == Some(&Value::Null) {
                object.remove("default");
            }
            if object
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|f| f.starts_with("uint") || f.starts_with("int"))
            {
                object.remove("format");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(values) => values.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// All tools by name.
pub struct Table(BTreeMap<String, Entry>);

impl Table {
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        Self(entries.into_iter().map(|entry| (entry.tool.name.to_string(), entry)).collect())
    }

    /// A name may be written with dots, `fs.read`, as some clients and most people do. They are listed with underscores,
    /// since some model APIs refuse dots.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.0.get(name).or_else(|| self.0.get(name.replace('.', "_").as_str()))
    }

    pub fn tools(&self) -> Vec<Tool> {
        self.0.values().map(|entry| entry.tool.clone()).collect()
    }
}
