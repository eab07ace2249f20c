//! What is seen of a look: lines, which the terminal cuts where they are too long.

use berth_client::{
    SessionState,
    model::{SessionUsage, WorkerInfo, session_state_name},
};

use super::{
    Sort,
    keys::Screen,
    look::{Look, Row},
    size,
};
use crate::{
    output::{self, ago, bytes, clipped, cores, count, left, printable},
    select,
};

/// Rows of workers on a screen: sessions need room too.
const MOST_WORKERS: usize = 8;
/// Of the queue.
const MOST_WAITING: usize = 3;

/// All lines of a screen.
pub fn frame(look: &Result<Look, String>, screen: &mut Screen) -> Vec<String> {
    let colours = output::colors_wanted();
    let (columns, rows) = size();
    let mut lines = match look {
        Ok(look) => fleet(look, colours),
        Err(why) => vec![style(colours, "1;31", &printable(why))],
    };
    if let Ok(look) = look {
        let room = rows.saturating_sub(lines.len() + 3).max(1);
        screen.settle(look.sessions.len(), room);
        lines.extend(sessions(look, screen, colours, columns));
    }
    lines.truncate(rows.saturating_sub(1));
    while lines.len() + 1 < rows {
        lines.push(String::new());
    }
    let help = format!(" q quit   ↑↓ move   s sort: {}   r reverse", sort_name(screen.sort));
    lines.push(style(colours, "7", &padded(&help, columns)));
    lines
}

/// The same for a file or a pipe: all rows, and no escapes.
pub fn plain(look: &Look, screen: &Screen) -> String {
    let mut lines = fleet(look, false);
    let rows = screen.sorted(look);
    lines.push(String::new());
    lines.extend(table(&HEADER, rows.iter().map(|row| session(row)).collect(), "no sessions"));
    lines.join("\n")
}

fn fleet(look: &Look, colours: bool) -> Vec<String> {
    let info = &look.coordinator;
    let mut head = format!(
        "berth {}  up {}  {} ready, {} waiting, {} parked  {} running",
        clipped(&info.version, 20),
        ago(info.started_at),
        count(info.sessions_ready, "session"),
        info.sessions_pending,
        info.sessions_parked,
        count(info.running_tasks, "task"),
    );
    if look.workers.is_none() {
        head.push_str(&format!("  tenant {}", clipped(&info.tenant, 40)));
    }
    let mut lines = vec![style(colours, "1", &head)];
    if let Some(why) = &look.away {
        lines.push(style(colours, "1;31", &format!("not of now: {}", printable(why))));
    }
    if let Some(all) = &look.workers {
        lines.push(String::new());
        let shown = all.iter().take(MOST_WORKERS);
        let mut rows = table(&WORKER_HEADER, shown.map(worker).collect(), "no workers");
        for (line, worker) in rows.iter_mut().skip(1).zip(all) {
            if !worker.is_ready() {
                *line = style(colours, "33", line);
            }
        }
        if let Some(header) = rows.first_mut() {
            *header = style(colours, "4", header);
        }
        lines.extend(rows);
        if all.len() > MOST_WORKERS {
            lines.push(format!("and {} more", all.len() - MOST_WORKERS));
        }
    }
    let waiting = look.queue.iter().take(MOST_WAITING).filter_map(|id| {
        let row = look.sessions.iter().find(|row| row.session.id.to_string() == *id)?;
        Some(format!("waits: {}  {}", named(row), printable(&row.session.message)))
    });
    lines.extend(waiting);
    if look.queue.len() > MOST_WAITING {
        lines.push(format!("and {} more wait", look.queue.len() - MOST_WAITING));
    }
    lines
}

const WORKER_HEADER: [&str; 8] =
    ["WORKER", "STATE", "SESSIONS", "CPU", "MEMORY", "BUSY", "MEM FREE", "DISK FREE"];

fn worker(worker: &WorkerInfo) -> Vec<String> {
    let health = worker.health.as_ref();
    let state = match (worker.liveness.name(), worker.scheduling.name()) {
        ("alive", "active") if worker.is_ready() => "ready".to_owned(),
        ("alive", "active") => {
            format!("not ready: {}", clipped(health.map_or("", |health| health.reason.as_str()), 40))
        }
        ("alive", "draining") => format!("draining, {}", left(worker.drain_deadline)),
        ("alive", scheduling) => scheduling.to_owned(),
        (liveness, _) => liveness.to_owned(),
    };
    let of = |used: String, all: String| format!("{used}/{all}");
    vec![
        clipped(&worker.id, 32),
        state,
        format!(
            "{} {}",
            meter(worker.sessions.into(), worker.capacity.max_sessions.into()),
            of(worker.sessions.to_string(), worker.capacity.max_sessions.to_string())
        ),
        of(cores(worker.reserved.cpu_millis), cores(worker.capacity.cpu_millis)),
        of(bytes(worker.reserved.memory_bytes), bytes(worker.capacity.memory_bytes)),
        health.map(|health| format!("{:.0}%", health.cpu_busy * 100.0)).unwrap_or_default(),
        health.map(|health| bytes(health.memory_available_bytes)).unwrap_or_default(),
        health.map(|health| bytes(health.disk_free_bytes)).unwrap_or_default(),
    ]
}

/// Ten steps.
fn meter(used: u64, of: u64) -> String {
    let full = if of == 0 { 0 } else { (used * 10).div_ceil(of).min(10) as usize };
    format!("[{}{}]", "|".repeat(full), " ".repeat(10 - full))
}

const HEADER: [&str; 11] =
    ["SESSION", "NAME", "TENANT", "STATE", "WORKER", "TASKS", "CPU%", "MEM", "DISK", "AGE", "LEFT"];

fn sessions(look: &Look, screen: &Screen, colours: bool, columns: usize) -> Vec<String> {
    let rows = screen.sorted(look);
    let seen: Vec<_> = rows.iter().skip(screen.first).take(screen.room).collect();
    let cells = seen.iter().map(|row| session(row)).collect();
    let mut lines = table(&HEADER, cells, "no sessions");
    for (index, line) in lines.iter_mut().enumerate() {
        if index == 0 && !seen.is_empty() {
            *line = style(colours, "7", &padded(line, columns));
        } else if !seen.is_empty() && screen.first + index - 1 == screen.marked {
            *line = style(colours, "1;36", line);
        }
    }
    lines.insert(0, String::new());
    lines
}

fn session(row: &Row) -> Vec<String> {
    let session = &row.session;
    let usage = row.usage.as_ref();
    let told = |of: fn(&SessionUsage) -> Option<u64>| usage.and_then(of).map(bytes).unwrap_or_default();
    vec![
        select::short(session.id),
        session.labels.get(select::NAME_LABEL).map(|name| clipped(name, 24)).unwrap_or_default(),
        clipped(&session.tenant, 16),
        session_state_name(session.state).to_owned(),
        session.worker.as_deref().map(|id| clipped(id, 20)).unwrap_or_default(),
        usage.map(|usage| usage.tasks.to_string()).unwrap_or_default(),
        row.cpu.map(|cpu| format!("{:.0}", cpu * 100.0)).unwrap_or_default(),
        told(|usage| usage.memory_bytes),
        told(|usage| usage.disk_bytes),
        ago(session.created_at),
        if session.state == SessionState::Ended { String::new() } else { left(session.expires_at) },
    ]
}

fn named(row: &Row) -> String {
    match row.session.labels.get(select::NAME_LABEL) {
        Some(name) => clipped(name, 24),
        None => select::short(row.session.id),
    }
}

fn sort_name(sort: Sort) -> &'static str {
    match sort {
        Sort::Cpu => "cpu",
        Sort::Memory => "memory",
        Sort::Tasks => "tasks",
        Sort::Age => "age",
        Sort::Name => "name",
    }
}

/// What foreign text is in it was made printable by the table.
fn table(header: &[&str], rows: Vec<Vec<String>>, none: &str) -> Vec<String> {
    if rows.is_empty() {
        return vec![none.to_owned()];
    }
    output::table_text(header, rows).lines().map(str::to_owned).collect()
}

/// To the screen's width. What is longer the terminal cuts.
fn padded(line: &str, columns: usize) -> String {
    format!("{line:columns$}")
}

fn style(colours: bool, how: &str, text: &str) -> String {
    if colours { format!("\x1b[{how}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_is_full_when_all_is_taken() {
        assert_eq!(meter(0, 5), "[          ]");
        assert_eq!(meter(1, 5), "[||        ]");
        assert_eq!(meter(1, 100), "[|         ]");
        assert_eq!(meter(5, 5), "[||||||||||]");
        assert_eq!(meter(9, 0), "[          ]");
    }
}
