//! What the demo shows, one function a step. A step that sees something else than it should
//! says what it saw and lets the demo go on; a call that fails ends it.

use std::{collections::BTreeSet, time::Duration};

use berth_client::{
    Client, Command, CreateOptions, Outcome, Output, Reason, Session, TaskEvent, model::SessionInfo,
};
use tokio::time::Instant;

use super::Report;
use crate::{
    commands::{
        admin::{HEADER, row},
        stream::outcome_text,
    },
    failure::Failure,
    output::{self, bytes, printable, span},
    select,
};

/// Of each session.
const MEMORY: u64 = 192 << 20;

/// A session of the demo.
pub struct Place {
    session: Session,
    info: SessionInfo,
}

/// Three sessions, placed over both workers.
pub async fn sessions(client: &Client, report: &mut Report) -> Result<Vec<Place>, Failure> {
    let mut places = Vec::new();
    for name in ["amber", "birch", "cedar"] {
        let began = Instant::now();
        let options = CreateOptions::new()
            .label(select::NAME_LABEL, name)
            .cpu_millis(500)
            .memory_bytes(MEMORY)
            .disk_bytes(128 << 20)
            .pids(64)
            .ttl(Duration::from_secs(900));
        let info = client.create(options).await?;
        let worker = info.worker.clone().unwrap_or_default();
        report.ok(format_args!(
            "session {name}: ready on {worker} in {}, a {} sandbox",
            span(began.elapsed()),
            info.backend
        ))?;
        places.push(Place { session: client.session(info.id), info });
    }
    let workers: BTreeSet<&str> = places.iter().filter_map(|place| place.info.worker.as_deref()).collect();
    report.check(
        workers.len() == 2,
        format_args!(
            "placement: three sessions over {}",
            workers.into_iter().collect::<Vec<_>>().join(" and ")
        ),
    )?;
    Ok(places)
}

/// Goes on only when its last line was answered: so each line has arrived here before the next was written.
const PYTHON: &str = r#"
import json, sys
squares = []
for n in range(1, 6):
    squares.append(n * n)
    print(f"line {n}: {n} squared is {n * n}", flush=True)
    sys.stdin.readline()
with open("result.json", "w") as f:
    json.dump({"squares": squares, "sum": sum(squares)}, f)
with open("result.json") as f:
    print("read back:", json.load(f)["sum"], flush=True)
"#;
const LINES: usize = 5;

/// Python computes, streams line by line, writes a file and reads it.
pub async fn python(place: &Place, report: &mut Report) -> Result<(), Failure> {
    let command = Command::argv(["python3", "-c", PYTHON]).stdin(true).timeout(Duration::from_secs(60));
    let began = Instant::now();
    let mut stream = place.session.stream(command).await?;
    let task = stream.handle().clone();
    let (mut text, mut lines, mut errors) = (String::new(), 0, String::new());
    let end = loop {
        match stream.next().await? {
            Some(TaskEvent::Stdout(data)) => {
                text.push_str(&String::from_utf8_lossy(&data));
                while let Some(line) = text.lines().nth(lines).filter(|_| text.matches('\n').count() > lines)
                {
                    report.show(format_args!(
                        "+{:>4} ms  {}",
                        began.elapsed().as_millis(),
                        printable(line)
                    ))?;
                    lines += 1;
                    if lines <= LINES {
                        task.write_stdin(b"on\n").await?;
                    }
                }
            }
            Some(TaskEvent::Stderr(data)) => errors.push_str(&String::from_utf8_lossy(&data)),
            Some(TaskEvent::Ended(info)) => break info.end,
            Some(TaskEvent::Lost { .. }) => {}
            None => break None,
        }
    };
    let outcome = end.map(|end| end.outcome);
    let told = outcome.map_or_else(|| "no end".to_owned(), outcome_text);
    report.check(
        outcome == Some(Outcome::Exited(0)) && lines == LINES + 1 && text.ends_with("read back: 55\n"),
        format_args!(
            "python: each of {LINES} lines arrived before the next was written ({told}){}",
            blame(&errors)
        ),
    )
}

/// What Python wrote, read from outside; and the other way round.
pub async fn files(place: &Place, report: &mut Report) -> Result<(), Failure> {
    let file = place.session.files().read_text("result.json").await?;
    let sum = serde_json::from_str::<serde_json::Value>(&file).ok().and_then(|value| value["sum"].as_u64());
    report.check(
        sum == Some(55),
        format_args!("files: result.json, read from outside, holds {}", printable(&file)),
    )
}

fn blame(errors: &str) -> String {
    match errors.trim().lines().last() {
        Some(line) => format!(": {}", output::clipped(line, 120)),
        None => String::new(),
    }
}

/// A shell pipeline.
pub async fn pipeline(place: &Place, report: &mut Report) -> Result<(), Failure> {
    let line =
        r"printf '%s\n' pear fig apple fig plum fig | sort | uniq -c | sort -rn | head -n 1 | tr -s ' '";
    let output = place.session.run(Command::shell(line).timeout(Duration::from_secs(30))).await?;
    let seen = output.stdout_text();
    report.check(
        output.success() && seen.trim() == "3 fig",
        format_args!(
            "shell: sort | uniq -c | sort -rn | head says {:?}{}",
            seen.trim(),
            blame(&output.stderr_text())
        ),
    )
}

/// Counts processes whose command line holds a mark. The brackets keep the counter from
/// counting itself.
async fn count(session: &Session, mark: &str) -> Result<Option<u32>, Failure> {
    let (first, rest) = mark.split_at(1);
    let line =
        format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c '^[{first}]{rest}$'; true");
    let output = session.run(Command::shell(line).timeout(Duration::from_secs(30))).await?;
    Ok(output.stdout_text().trim().parse().ok())
}

/// A task that is killed by its timeout, with all that it started.
pub async fn timeout(place: &Place, report: &mut Report) -> Result<(), Failure> {
    let limit = Duration::from_secs(1);
    let command = Command::shell("setsid sleep 86411 & sleep 86411").timeout(limit);
    let output = place.session.run(command).await?;
    let left = count(&place.session, "86411").await?;
    report.check(
        output.outcome == Outcome::TimedOut && left == Some(0),
        format_args!(
            "timeout: a task of two sleeps with {} to live {} after {}, and {} of its processes are left",
            span(limit),
            outcome_text(output.outcome),
            span(output.duration),
            left.map_or_else(|| "an unknown number".to_owned(), |n| n.to_string())
        ),
    )
}

/// A task that exceeds its memory, in a session that lives on.
pub async fn memory(place: &Place, report: &mut Report) -> Result<(), Failure> {
    let program = "x = []\nwhile True:\n    x.append(b'x' * (8 << 20))";
    let output =
        place.session.run(Command::argv(["python3", "-c", program]).timeout(Duration::from_secs(60))).await?;
    let Output { outcome, usage, .. } = &output;
    report.check(
        *outcome == Outcome::OutOfMemory,
        format_args!(
            "memory: a greedy task in a session of {}: {} at {} ({} killed by the kernel)",
            bytes(MEMORY),
            outcome_text(*outcome),
            bytes(usage.peak_memory_bytes),
            usage.oom_kills
        ),
    )?;
    let output = place.session.run(Command::shell("echo alive").timeout(Duration::from_secs(30))).await?;
    report.check(
        output.success() && output.stdout_text() == "alive\n",
        "memory: the session lives on, and runs the next task",
    )
}

const SECRET: &str = "a-file-of-another-session";

/// One session can't see another's files or processes: least of all on the same worker.
pub async fn isolation(places: &[Place], report: &mut Report) -> Result<(), Failure> {
    let same = |a: &Place, b: &Place| a.info.worker == b.info.worker;
    let pair =
        places.iter().enumerate().find_map(|(i, a)| Some((a, places[i + 1..].iter().find(|b| same(a, b))?)));
    let (owner, other) = pair.unwrap_or((&places[0], &places[1]));
    let worker = owner.info.worker.as_deref().unwrap_or_default();
    let name = |place: &Place| place.info.labels.get(select::NAME_LABEL).cloned().unwrap_or_default();
    let (owner_name, other_name) = (name(owner), name(other));

    owner.session.files().write(SECRET, "for my eyes only").await?;
    let sleeper = owner.session.start(Command::argv(["sleep", "86422"]).detached(true)).await?;

    let find = format!("cat {SECRET} 2>/dev/null; find / -name {SECRET} 2>/dev/null; true");
    let own = owner.session.run(Command::shell(&find).timeout(Duration::from_secs(60))).await?;
    let foreign = other.session.run(Command::shell(&find).timeout(Duration::from_secs(60))).await?;
    let by_call = other.session.files().stat(SECRET).await;
    let unseen = by_call.as_ref().is_err_and(|error| error.is(Reason::FileNotFound));
    let mut text = format!("isolation: on {worker}, {owner_name} sees its file");
    match foreign.stdout_text().trim() {
        "" => text.push_str(&format!("; {other_name} finds nothing of it")),
        found => text.push_str(&format!("; {other_name} finds {:?}", output::clipped(found, 80))),
    }
    let seen = own.stdout_text();
    report.check(
        seen.contains("for my eyes only")
            && seen.contains(&format!("/{SECRET}"))
            && foreign.stdout.is_empty()
            && unseen,
        text,
    )?;

    let (mine, theirs) = (count(&owner.session, "86422").await?, count(&other.session, "86422").await?);
    report.check(
        mine == Some(1) && theirs == Some(0),
        format_args!(
            "isolation: {owner_name} sees {} such process, {other_name} sees {}",
            shown(mine),
            shown(theirs)
        ),
    )?;
    sleeper.cancel().await?;
    Ok(())
}

fn shown(count: Option<u32>) -> String {
    count.map_or_else(|| "?".to_owned(), |n| n.to_string())
}

/// The fleet's health as a table.
pub async fn health(client: &Client, report: &mut Report) -> Result<(), Failure> {
    let workers = client.workers().await?;
    let ready = workers.iter().filter(|worker| worker.is_ready()).count();
    report.check(
        ready == 2 && workers.len() == 2,
        format_args!("fleet: {ready} of {} workers are ready", workers.len()),
    )?;
    for line in output::table_text(&HEADER, workers.iter().map(row).collect()).lines() {
        report.show(line)?;
    }
    Ok(())
}

/// Ends the sessions.
pub async fn delete(places: &[Place], report: &mut Report) -> Result<(), Failure> {
    for place in places {
        place.session.delete().await?;
    }
    report.ok(format_args!("sessions: all {} are ended", places.len()))
}
