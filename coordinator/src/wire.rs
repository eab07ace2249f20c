//! The coordinator's own values on the wire. `berth_proto::convert` does this for the words
//! that all crates share; these are ours alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use berth_proto::{
    Error, Incarnation, WorkerId,
    convert::{self, bounds, duration_out, time_out},
    domain::SessionState,
    secret::NAME_MAX,
    v1,
};
use prost::Message;

use crate::{
    driver::{Load, WelcomeTerms},
    fleet::{
        Command, Ending, Heartbeat, Hello, LinkId, Liveness, Report, Running, Scheduling, Session,
        TaskReport, Worker,
    },
};

/// A reported task is cut down to this: a command line may be a megabyte, and thousands of
/// tasks are kept.
const TASK_MAX: usize = 8 << 10;
/// Secrets that a shortened one still names.
const SECRETS_SHOWN: usize = 20;
/// What is kept of a very long command line, or of a worker's message.
const TEXT_MAX: usize = 2 << 10;
/// Records in one answer, in bytes: well below the message limit.
const PAGE_BYTES: usize = 3 << 20;
/// Incarnations from the wire; ours never get near it. Also what SQLite can hold.
const INCARNATION_MAX: u64 = 1 << 53;
/// Running sessions, templates, backends that a worker may name.
const NAMED_MAX: usize = 10_000;

// ---- out --------------------------------------------------------------------

/// A session as clients see it.
pub fn session(session: &Session) -> v1::Session {
    let waits = Some(session.waits).filter(|_| session.state == SessionState::Pending);
    v1::Session {
        id: session.id.to_string(),
        state: v1::SessionState::from(session.state).into(),
        end_reason: session.end.map_or(v1::EndReason::Unspecified, Into::into).into(),
        message: session.message.clone(),
        template: session.spec.template.name.clone(),
        worker_id: session.worker.as_ref().map(ToString::to_string).unwrap_or_default(),
        epoch: session.epoch.0,
        backend: session.backend.clone(),
        limits: Some(session.spec.limits.into()),
        labels: session.labels.clone().into_iter().collect(),
        priority: session.spec.priority,
        created_at: Some(time_out(session.created_at)),
        ready_at: session.ready_at.map(time_out),
        ended_at: session.ended_at.map(time_out),
        expires_at: session.expires_at.map(time_out),
        idle_timeout: session.idle_timeout.map(duration_out),
        worker_selector: session.spec.selector.clone().into_iter().collect(),
        task_defaults: Some(session.spec.task_defaults.into()),
        on_worker_loss: v1::OnWorkerLoss::from(session.spec.on_worker_loss).into(),
        checkpoints: Some(session.spec.checkpoints.into()),
        checkpoint_id: session.checkpoint.as_ref().map(|k| k.from.checkpoint.clone()).unwrap_or_default(),
        checkpointed_at: session.checkpoint.as_ref().map(|kept| time_out(kept.at)),
        recovered_from: session
            .recovered
            .as_ref()
            .map(|r| r.kept.from.checkpoint.clone())
            .unwrap_or_default(),
        recovered_to: session.recovered.as_ref().map(|recovery| time_out(recovery.kept.at)),
        parked_at: session.parked_at.map(time_out),
        tenant: session.spec.tenant.to_string(),
        waits_since: waits.map(|waits| time_out(waits.since)),
        waits_until: waits.map(|waits| time_out(waits.until)),
        // Of all that wait, and so not of one alone: see `rpc::session`.
        queue_position: 0,
        egress: Some(session.spec.egress.clone().into()),
    }
}

/// A worker as operators see it.
pub fn worker(worker: &Worker, load: &Load, data_connections: usize) -> v1::Worker {
    let (scheduling, drain_deadline) = match worker.in_force() {
        Scheduling::Active => (v1::Scheduling::Active, None),
        Scheduling::Cordoned => (v1::Scheduling::Cordoned, None),
        Scheduling::Draining { until } => (v1::Scheduling::Draining, Some(time_out(until))),
    };
    let liveness = match worker.liveness {
        Liveness::Alive => v1::Liveness::Alive,
        Liveness::Suspect => v1::Liveness::Suspect,
        Liveness::Dead => v1::Liveness::Dead,
    };
    v1::Worker {
        id: worker.id.to_string(),
        liveness: liveness.into(),
        scheduling: scheduling.into(),
        incarnation: worker.incarnation.0,
        version: worker.version.clone(),
        labels: worker.labels.clone().into_iter().collect(),
        capacity: Some(worker.capacity.into()),
        reserved: Some(load.reserved.into()),
        sessions: load.sessions,
        backends: worker.backends.clone(),
        templates: worker.templates.iter().cloned().collect(),
        health: Some(worker.health.clone()),
        attached_at: worker.attached_at.map(time_out),
        last_heartbeat_at: worker.heartbeat_at.map(time_out),
        drain_deadline,
        data_connections: data_connections as u32,
        template_problems: worker.template_problems.iter().map(problem).collect(),
    }
}

fn problem((name, reason): (&String, &String)) -> v1::TemplateProblem {
    v1::TemplateProblem { name: name.clone(), reason: reason.clone() }
}

fn ending(ending: &Ending) -> v1::EndSession {
    v1::EndSession {
        session_id: ending.session.to_string(),
        epoch: ending.epoch.0,
        reason: v1::EndReason::from(ending.reason).into(),
    }
}

/// A command to a worker.
pub fn command(
    command: &Command,
    terms: &WelcomeTerms,
    secrets: impl FnOnce() -> (String, String),
) -> v1::coordinator_message::Message {
    use v1::coordinator_message::Message;
    match command {
        Command::Welcome { incarnation, end } => {
            let (data_token, credential) = secrets();
            Message::Welcome(v1::Welcome {
                incarnation: incarnation.0,
                lease: Some(duration_out(terms.lease)),
                heartbeat_interval: Some(duration_out(terms.heartbeat)),
                data_token,
                data_connections: terms.data_connections,
                end: end.iter().map(ending).collect(),
                templates: terms.templates.clone(),
                credential,
            })
        }
        Command::LeaseRenewed { sequence } => {
            Message::Lease(v1::LeaseRenewed { sequence: *sequence, lease: Some(duration_out(terms.lease)) })
        }
        Command::Place(placement) => Message::Place((**placement).clone().into()),
        Command::End(end) => Message::End(ending(end)),
        Command::Pause { session, epoch, paused } => Message::Pause(v1::PauseCommand {
            session_id: session.to_string(),
            epoch: epoch.0,
            paused: *paused,
        }),
        Command::Update { session, epoch, expires_at, expires_in, idle_timeout, egress } => {
            Message::Update(v1::UpdateCommand {
                session_id: session.to_string(),
                epoch: epoch.0,
                expires_at: expires_at.map(time_out),
                expires_in: expires_in.map(duration_out),
                idle_timeout: idle_timeout.map(duration_out),
                egress: Some(egress.clone().into()),
            })
        }
        Command::SetBackend(backend) => {
            Message::SetBackend(v1::SetBackendCommand { backend: backend.to_string() })
        }
        Command::Cordoned(cordoned) => Message::Cordoned(v1::Cordoned { cordoned: *cordoned }),
    }
}

/// Cuts a page of at most `size` records so that it fits into one message; at least one
/// stays. True: there is more behind it.
pub fn cut_page<T: Message>(records: &mut Vec<T>, size: usize) -> bool {
    let mut bytes = 0;
    let fits = |record: &&T| {
        bytes += record.encoded_len();
        bytes <= PAGE_BYTES
    };
    let count = records.iter().take(size).take_while(fits).count().max(records.len().min(1));
    let more = count < records.len();
    records.truncate(count);
    more
}

// ---- in ---------------------------------------------------------------------

/// At most [`TEXT_MAX`] bytes of a text, cut between characters.
fn short(text: String) -> String {
    if text.len() <= TEXT_MAX {
        return text;
    }
    let end = (0..=TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// A task as it is kept and shown: without its env, its command line shortened if it is
/// very long.
pub fn short_task(mut task: v1::Task) -> v1::Task {
    task.spec = task.spec.map(convert::shown_spec);
    if task.encoded_len() <= TASK_MAX {
        return task;
    }
    if let Some(spec) = task.spec.as_mut() {
        spec.cwd = short(std::mem::take(&mut spec.cwd));
        match &mut spec.program {
            Some(v1::task_spec::Program::Shell(line)) => *line = short(std::mem::take(line)),
            Some(v1::task_spec::Program::Argv(argv)) => {
                let program = argv.args.first().cloned().unwrap_or_default();
                argv.args = vec![short(program), "…".to_owned()];
            }
            None => {}
        }
        // Which ones, as far as there is room: where each went is the least of it.
        spec.secrets.truncate(SECRETS_SHOWN);
        for secret in &mut spec.secrets {
            secret.env.clear();
            if secret.name.len() > NAME_MAX {
                secret.name.clear();
            }
        }
    }
    if let Some(end) = task.end.as_mut() {
        end.message = short(std::mem::take(&mut end.message));
    }
    task
}

fn at_most<T>(field: &str, list: Vec<T>) -> Result<Vec<T>, Error> {
    if list.len() > NAMED_MAX {
        return Err(Error::invalid(field, format!("{} entries are more than {NAMED_MAX}", list.len()))
            .hint("no worker needs so many: look at what it was started with"));
    }
    Ok(list)
}

fn templates(names: Vec<String>) -> Result<BTreeSet<String>, Error> {
    Ok(at_most("templates", names)?.into_iter().collect())
}

fn backends(backends: Vec<v1::BackendStatus>) -> Result<Vec<v1::BackendStatus>, Error> {
    let cut =
        |b: v1::BackendStatus| v1::BackendStatus { name: short(b.name), message: short(b.message), ..b };
    Ok(at_most("backends", backends)?.into_iter().map(cut).collect())
}

fn health(health: Option<v1::WorkerHealth>) -> v1::WorkerHealth {
    let mut health = health.unwrap_or_default();
    health.reason = short(health.reason);
    if let Some(canary) = &mut health.canary {
        canary.message = short(std::mem::take(&mut canary.message));
    }
    health
}

/// By template; the last word on one stands.
fn template_problems(problems: Vec<v1::TemplateProblem>) -> Result<BTreeMap<String, String>, Error> {
    let problems = at_most("template_problems", problems)?;
    Ok(problems.into_iter().map(|p| (p.name, short(p.reason))).collect())
}

/// A worker's hello.
pub fn hello(wire: v1::Hello, link: LinkId) -> Result<Hello, Error> {
    if wire.incarnation > INCARNATION_MAX {
        return Err(Error::invalid("incarnation", "is out of range")
            .hint("0, or what the last Welcome gave to this process"));
    }
    if wire.process_id.is_empty() || wire.process_id.len() > bounds::LABEL {
        return Err(Error::invalid("process_id", format!("must be 1 to {} bytes", bounds::LABEL))
            .hint("any text drawn at random when the process starts"));
    }
    if wire.instance.is_empty() || wire.instance.len() > bounds::LABEL {
        return Err(Error::invalid("instance", format!("must be 1 to {} bytes", bounds::LABEL))
            .hint("any text drawn at random once, and kept where the worker keeps its sessions"));
    }
    let capacity = convert::required("capacity", wire.capacity)?;
    let running = at_most("running", wire.running)?.into_iter().map(running).collect::<Result<_, _>>()?;
    Ok(Hello {
        worker: wire.worker_id.parse()?,
        link,
        process: wire.process_id,
        instance: wire.instance,
        incarnation: Incarnation(wire.incarnation),
        version: short(wire.version),
        capacity: capacity.into(),
        labels: convert::labels("labels", wire.labels)?,
        running,
        backends: backends(wire.backends)?,
        templates: templates(wire.templates)?,
        template_problems: template_problems(wire.template_problems)?,
        health: health(wire.health),
        stopping_within: wire
            .stopping_within
            .map(|within| convert::duration("stopping_within", within))
            .transpose()?,
        full_egress: wire.full_egress,
    })
}

fn running(wire: v1::RunningSession) -> Result<Running, Error> {
    Ok(Running {
        session: wire.session_id.parse()?,
        epoch: epoch(wire.epoch)?,
        state: convert::session_state("running.state", wire.state)?,
        backend: wire.backend,
    })
}

fn epoch(value: u64) -> Result<berth_proto::Epoch, Error> {
    if value > INCARNATION_MAX {
        Err(Error::invalid("epoch", "is out of range").hint("the epoch of the placement, as it came"))
    } else {
        Ok(berth_proto::Epoch(value))
    }
}

/// A worker's heartbeat.
pub fn heartbeat(worker: &WorkerId, link: LinkId, wire: v1::Heartbeat) -> Result<Heartbeat, Error> {
    Ok(Heartbeat {
        worker: worker.clone(),
        link,
        sequence: wire.sequence,
        health: health(wire.health),
        backends: backends(wire.backends)?,
        templates: templates(wire.templates)?,
        template_problems: template_problems(wire.template_problems)?,
    })
}

/// A worker's word on a session.
pub fn report(worker: &WorkerId, link: LinkId, wire: v1::SessionReport) -> Result<Report, Error> {
    Ok(Report {
        worker: worker.clone(),
        link,
        session: wire.session_id.parse()?,
        epoch: epoch(wire.epoch)?,
        state: if wire.refused {
            berth_proto::domain::SessionState::Ended
        } else {
            convert::session_state("state", wire.state)?
        },
        reason: convert::end_reason(wire.end_reason),
        message: short(wire.message),
        backend: short(wire.backend),
        refused: wire.refused,
    })
}

/// A worker's word on a task.
pub fn task_report(worker: &WorkerId, link: LinkId, wire: v1::TaskReport) -> Result<TaskReport, Error> {
    let task = convert::required("task", wire.task)?;
    Ok(TaskReport {
        worker: worker.clone(),
        link,
        session: task.session_id.parse()?,
        epoch: epoch(wire.epoch)?,
        task: task.id.parse()?,
        done: task.state == i32::from(v1::TaskState::Done),
        summary: Arc::new(short_task(task)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_line_is_stored_short_and_without_its_env() {
        let task = v1::Task {
            spec: Some(v1::TaskSpec {
                program: Some(v1::task_spec::Program::Shell("ä".repeat(100_000))),
                env: [("SECRET".to_owned(), "x".to_owned())].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let stored = short_task(task.clone());
        assert!(stored.encoded_len() < TASK_MAX);
        assert!(stored.spec.as_ref().unwrap().env.is_empty());
        // Red when what a task asks for beside its command line is kept whole: a worker may say anything.
        let secret = |bytes: usize| v1::SecretUse { name: "n".repeat(bytes), env: "e".repeat(bytes) };
        for secrets in [vec![secret(64); 32], vec![secret(0); 100_000], vec![secret(1 << 20); 3]] {
            let spec = v1::TaskSpec { secrets, cwd: "d".repeat(1 << 20), ..task.spec.clone().unwrap() };
            let end = v1::TaskEnd { message: "m".repeat(1 << 20), ..Default::default() };
            let stored = short_task(v1::Task { spec: Some(spec), end: Some(end), ..task.clone() });
            assert!(stored.encoded_len() < TASK_MAX, "{}", stored.encoded_len());
        }
    }

    #[test]
    fn a_page_fits_into_a_message() {
        let page = |count: usize, bytes: usize| -> Vec<v1::Task> {
            vec![v1::Task { id: "x".repeat(bytes), ..Default::default() }; count]
        };
        let mut small = page(3, 10);
        assert!(!cut_page(&mut small, 3));
        assert!(cut_page(&mut small, 2));
        assert_eq!(small.len(), 2);
        let mut big = page(100, 100 << 10);
        assert!(cut_page(&mut big, 100));
        assert!((10..40).contains(&big.len()));
        let mut huge = page(2, 5 << 20);
        assert!(cut_page(&mut huge, 2));
        assert_eq!(huge.len(), 1);
        assert!(!cut_page(&mut page(0, 0), 5));
    }

    #[test]
    fn a_hello_needs_a_process_an_instance_and_a_capacity() {
        let good = v1::Hello {
            worker_id: "w".into(),
            process_id: "p".into(),
            instance: "i".into(),
            capacity: Some(v1::Capacity::default()),
            ..Default::default()
        };
        assert!(hello(good.clone(), LinkId(1)).is_ok());
        assert!(hello(v1::Hello { process_id: String::new(), ..good.clone() }, LinkId(1)).is_err());
        assert!(hello(v1::Hello { instance: String::new(), ..good.clone() }, LinkId(1)).is_err());
        assert!(hello(v1::Hello { capacity: None, ..good.clone() }, LinkId(1)).is_err());
        assert!(hello(v1::Hello { incarnation: u64::MAX, ..good }, LinkId(1)).is_err());
    }

    /// Red when one of them is taken as it comes: a list of workers with it would be larger than a message may be.
    #[test]
    fn what_a_worker_says_of_itself_is_kept_short() {
        let long = "ä".repeat(1 << 20);
        let canary = Some(v1::Canary { message: long.clone(), ..Default::default() });
        let wire = v1::Hello {
            worker_id: "w".into(),
            process_id: "p".into(),
            instance: "i".into(),
            version: long.clone(),
            capacity: Some(v1::Capacity::default()),
            backends: vec![v1::BackendStatus {
                name: long.clone(),
                message: long.clone(),
                ..Default::default()
            }],
            health: Some(v1::WorkerHealth { reason: long, canary, ..Default::default() }),
            ..Default::default()
        };
        let hello = hello(wire, LinkId(1)).unwrap();
        let canary = hello.health.canary.unwrap().message;
        for text in [hello.version, hello.health.reason, canary, hello.backends[0].message.clone()] {
            assert!((TEXT_MAX - 1..TEXT_MAX + 4).contains(&text.len()), "{}", text.len());
        }
        assert!(hello.backends[0].name.len() < TEXT_MAX + 4);
    }
}
