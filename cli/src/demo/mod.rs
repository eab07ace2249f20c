//! `berth demo`: a fleet at work, for a newcomer's eyes: a real coordinator and two real
//! workers on loopback, sessions on both, programs in sandboxes; then everything is
//! stopped, and nothing may be left.
//!
//! Each step is one line, and each is an assertion: the exit status is 0 only if all of it
//! was seen to happen. What a step sees decides, never how long it took: that output
//! streams is shown by a program that will not go on until its last line has arrived here.
//!
//! | module | what |
//! |---|---|
//! | [`fleet`] | the processes, their state directory and their logs |
//! | [`steps`] | what is shown |
//! | [`leftovers`] | what must be gone afterwards |

mod fleet;
mod leftovers;
mod steps;

use std::{fmt::Display, time::Duration};

use berth_proto::domain::{Backend, BackendChoice};
use clap::Args;

use self::{fleet::Fleet, leftovers::Traces};
use crate::{
    failure::{CommandResult, Failure, code},
    output::{self, say},
    signals::Interrupts,
};

/// All of it takes seconds; this is for a machine that stands still.
const DEADLINE: Duration = Duration::from_secs(300);
/// Stopping has its own deadlines inside.
const STOP_DEADLINE: Duration = Duration::from_secs(120);

const HELP: &str = "\
Uses free ports on loopback and a throw-away state directory: a Berth that runs here already is
not touched. Exit code 0 only if all was seen to happen and nothing was left behind.

Examples:
  berth demo
  berth demo --sandbox docker";

/// Shows a fleet at work.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct DemoArgs {
    /// Sandbox backend: auto, native or docker
    #[arg(long, env = "BERTH_SANDBOX", default_value = "auto", value_parser = sandbox, value_name = "BACKEND")]
    pub sandbox: BackendChoice,

    /// The berth-agent executable [default: beside this one]
    #[arg(long, env = "BERTH_AGENT", value_name = "FILE")]
    pub agent: Option<std::path::PathBuf>,

    /// Image of docker sandboxes
    #[arg(long, env = "BERTH_SANDBOX_IMAGE", value_name = "IMAGE")]
    pub sandbox_image: Option<String>,
}

fn sandbox(text: &str) -> Result<BackendChoice, String> {
    match text.parse() {
        Ok(BackendChoice::Only(Backend::Fake)) => Err("fake sandboxes run no real programs".to_owned()),
        Ok(choice) if !text.is_empty() => Ok(choice),
        _ => Err("it is none of auto, native, docker".to_owned()),
    }
}

/// Says what happens, and counts what did not.
#[derive(Default)]
pub struct Report {
    seen: usize,
    failed: usize,
}

impl Report {
    /// A step that went as it should.
    pub fn ok(&mut self, what: impl Display) -> Result<(), Failure> {
        self.seen += 1;
        Self::step(true, what)
    }

    /// A step that did not. The demo goes on where it can.
    pub fn failed(&mut self, what: impl Display) -> Result<(), Failure> {
        self.failed += 1;
        Self::step(false, what)
    }

    fn step(ok: bool, what: impl Display) -> Result<(), Failure> {
        if output::is_json() {
            return output::json_line(&serde_json::json!({ "ok": ok, "step": what.to_string() }));
        }
        output::data(format!("{} {what}", if ok { '✓' } else { '✗' }))
    }

    /// One or the other.
    pub fn check(&mut self, held: bool, what: impl Display) -> Result<(), Failure> {
        if held { self.ok(what) } else { self.failed(what) }
    }

    /// A step that broke off is one that failed.
    fn taken(&mut self, step: &str, taken: Result<(), Failure>) -> Result<(), Failure> {
        match taken {
            Err(failure) if failure.code != code::NO_READER => self.failed(format_args!("{step}: {failure}")),
            other => other,
        }
    }

    /// The last word, and the exit code.
    fn sum(&self) -> CommandResult {
        let steps = self.seen + self.failed;
        if output::is_json() {
            output::json_line(&serde_json::json!({ "steps": steps, "failed": self.failed }))?;
        } else if self.failed == 0 {
            output::data(format!("\nAll {steps} steps were seen to happen."))?;
        } else {
            output::data(format!("\n{} of {steps} steps failed.", self.failed))?;
        }
        Ok(if self.failed == 0 { 0 } else { code::FAILED })
    }

    /// Something to see below a step.
    pub fn show(&self, what: impl Display) -> Result<(), Failure> {
        if output::is_json() {
            return output::json_line(&serde_json::json!({ "shown": what.to_string() }));
        }
        output::data(format!("    {what}"))
    }
}

pub async fn run(args: DemoArgs) -> CommandResult {
    let mut interrupts = Interrupts::new()?;
    let mut report = Report::default();
    let mut fleet = Fleet::new(&args)?;
    let mut traces = Traces::default();
    let shown = tokio::select! {
        shown = tokio::time::timeout(DEADLINE, show(&mut fleet, &mut report, &mut traces)) => match shown {
            Ok(shown) => shown,
            Err(_) => Err(Failure::new(format!("it took longer than {} s", DEADLINE.as_secs()))
                .hint("is this machine busy? `berth doctor` looks at what it has")),
        },
        signal = interrupts.recv() => Err(Failure::interrupted().context(signal)),
    };
    let failed = report.failed > 0 || shown.is_err();
    match &shown {
        Ok(()) => {}
        Err(failure) if failure.code == code::CANCELLED => {
            say(format!("{failure}: cleaning up; once more leaves at once"))
        }
        Err(failure) => {
            report.failed(failure)?;
            for hint in &failure.hints {
                report.show(format_args!("hint: {hint}"))?;
            }
        }
    }
    if failed && shown.as_ref().err().is_none_or(|failure| failure.code != code::CANCELLED) {
        fleet.show_logs();
    }
    tokio::select! {
        cleaned = tokio::time::timeout(STOP_DEADLINE, clean_up(fleet, &mut report, traces)) => match cleaned {
            Ok(cleaned) => cleaned?,
            Err(_) => report.failed("stopping took too long: something may be left")?,
        },
        _ = interrupts.recv() => {
            output::warning("left at once: something may be left behind");
            return Ok(code::CANCELLED);
        }
    }
    if let Err(failure) = &shown
        && failure.code == code::CANCELLED
    {
        return Ok(code::CANCELLED);
    }
    report.sum()
}

async fn show(fleet: &mut Fleet, report: &mut Report, traces: &mut Traces) -> Result<(), Failure> {
    let client = fleet.start(report).await?;
    let sessions = steps::sessions(&client, report).await?;
    traces.note(fleet);
    // A step that can't be taken is one that failed; the next ones can still be.
    let step = steps::python(&sessions[0], report).await;
    report.taken("python", step)?;
    let step = steps::files(&sessions[0], report).await;
    report.taken("files", step)?;
    let step = steps::pipeline(&sessions[1], report).await;
    report.taken("shell", step)?;
    let step = steps::timeout(&sessions[2], report).await;
    report.taken("timeout", step)?;
    let step = steps::memory(&sessions[1], report).await;
    report.taken("memory", step)?;
    let step = steps::isolation(&sessions, report).await;
    report.taken("isolation", step)?;
    traces.note(fleet);
    let step = steps::health(&client, report).await;
    report.taken("fleet", step)?;
    steps::delete(&sessions, report).await
}

async fn clean_up(mut fleet: Fleet, report: &mut Report, mut traces: Traces) -> Result<(), Failure> {
    traces.note(&fleet);
    fleet.stop(report).await?;
    traces.check(&fleet, report).await?;
    let dir = fleet.dir().to_owned();
    match fleet.remove() {
        Ok(()) if !dir.exists() => report.ok(format_args!("files: {} is gone", dir.display())),
        Ok(()) => report.failed(format_args!("files: {} is still there", dir.display())),
        Err(error) => report.failed(format_args!("files: {}: {error}", dir.display())),
    }
}
