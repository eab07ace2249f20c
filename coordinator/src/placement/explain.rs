//! What was missing, in words: for the person whose session waits.

use std::collections::BTreeMap;

use berth_proto::domain::Capacity;

use super::{Candidate, Need, Standing, free, selected, share};

/// More workers than this are counted by reason and not listed one by one.
const LISTED: usize = 6;
const NO_FULL_EGRESS: &str = "full egress is not enabled there (BERTH_EGRESS_FULL)";

/// Why a worker can't serve the session, whatever becomes free there.
fn problem<'a>(need: &Need<'_>, candidate: &Candidate<'a>) -> Option<&'a str> {
    let template = candidate.problems.get(need.template).map(String::as_str);
    let full = (need.full_egress && !candidate.full_egress).then_some(NO_FULL_EGRESS);
    template.or(full)
}

/// If every live worker with the right labels has said that it can't serve the template, or
/// not this egress, says so with each one's reason: waiting alone won't mend it.
pub fn unservable(need: &Need<'_>, candidates: &[Candidate<'_>]) -> Option<String> {
    let live: Vec<_> = candidates
        .iter()
        .filter(|c| c.standing != Standing::Unreachable && selected(need.selector, c.labels))
        .collect();
    let reasons: Vec<_> = live.iter().filter_map(|c| Some((c.id, problem(need, c)?))).take(LISTED).collect();
    let all = live.iter().all(|c| problem(need, c).is_some());
    if live.is_empty() || !all {
        return None;
    }
    let each: Vec<_> = reasons.iter().map(|(id, reason)| format!("{id}: {reason}")).collect();
    let rest = match live.len() - each.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let with = if need.full_egress { " with full egress" } else { "" };
    Some(format!("no worker can serve template {:?}{with}: {}{rest}", need.template, each.join("; ")))
}

/// Why no worker takes the session now: one short sentence.
pub fn explain(need: &Need<'_>, candidates: &[Candidate<'_>]) -> String {
    if let Some(why) = unservable(need, candidates) {
        return why;
    }
    if candidates.is_empty() {
        return "no worker is attached".to_owned();
    }
    let workers = match candidates.len() {
        1 => "1 worker".to_owned(),
        n => format!("{n} workers"),
    };
    if candidates.len() <= LISTED {
        let each: Vec<_> =
            candidates.iter().map(|c| format!("{} {}", c.id, obstacle(need, c).in_full)).collect();
        return format!("{workers}: {}", each.join(", "));
    }
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for candidate in candidates {
        *counts.entry(obstacle(need, candidate).kind).or_default() += 1;
    }
    let each: Vec<_> = counts.into_iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    format!("{workers}: {}", each.join(", "))
}

/// If the limits are above what any of these workers could ever give, says so with the
/// figures. `None` also when there is nothing to compare with: then the session waits.
pub fn too_high(need: &Need<'_>, candidates: &[Candidate<'_>]) -> Option<String> {
    let matching: Vec<_> = candidates.iter().filter(|c| selected(need.selector, c.labels)).collect();
    let whole = share(&need.limits);
    if matching.is_empty() || matching.iter().any(|c| super::fits(&c.capacity, &whole)) {
        return None;
    }
    type Dimension = (&'static str, fn(&Capacity) -> u64, fn(u64) -> String);
    let dimensions: [Dimension; 3] = [
        ("cpu", |c| c.cpu_millis.into(), cores),
        ("memory", |c| c.memory_bytes, bytes),
        ("disk", |c| c.disk_bytes, bytes),
    ];
    for (name, of, shown) in dimensions {
        let largest = matching.iter().max_by_key(|c| of(&c.capacity))?;
        if of(&whole) > of(&largest.capacity) {
            return Some(format!(
                "{name}: {} asked for, but the largest worker, {}, has {}",
                shown(of(&whole)),
                largest.id,
                shown(of(&largest.capacity)),
            ));
        }
    }
    let largest = matching.iter().max_by_key(|c| (c.capacity.memory_bytes, c.capacity.cpu_millis))?;
    Some(format!(
        "no single worker has {}, {} of memory, {} of disk and a place; the largest, {}, has {}, {}, {} and {} places",
        cores(whole.cpu_millis.into()),
        bytes(whole.memory_bytes),
        bytes(whole.disk_bytes),
        largest.id,
        cores(largest.capacity.cpu_millis.into()),
        bytes(largest.capacity.memory_bytes),
        bytes(largest.capacity.disk_bytes),
        largest.capacity.max_sessions,
    ))
}

/// What keeps one worker from taking the session.
struct Obstacle {
    /// For a count: "3 can't be reached".
    kind: &'static str,
    /// Behind the worker's name.
    in_full: String,
}

fn obstacle(need: &Need<'_>, candidate: &Candidate<'_>) -> Obstacle {
    let say = |kind: &'static str, in_full: String| Obstacle { kind, in_full };
    match candidate.standing {
        Standing::Unreachable => return say("can't be reached", "can't be reached".into()),
        Standing::Cordoned => return say("cordoned", "is cordoned".into()),
        Standing::Draining => return say("draining", "is draining".into()),
        Standing::NotReady("") => return say("not ready", "is not ready".into()),
        Standing::NotReady(reason) => return say("not ready", format!("is not ready ({reason})")),
        Standing::Refused => return say("refused it", "refused it a moment ago".into()),
        Standing::Open => {}
    }
    for (name, value) in need.selector {
        if candidate.labels.get(name) != Some(value) {
            return say("without the labels", format!("has no label {name}={value}"));
        }
    }
    if let Some(reason) = candidate.problems.get(need.template) {
        let words = format!("can't serve the template {:?} ({reason})", need.template);
        return say("can't serve the template", words);
    }
    if need.full_egress && !candidate.full_egress {
        return say("without full egress", "does not give full egress (BERTH_EGRESS_FULL)".into());
    }
    if !candidate.templates.contains(need.template) {
        let words = format!("has not said yet whether it can serve the template {:?}", need.template);
        return say("silent on the template", words);
    }
    shortage(need, candidate).unwrap_or_else(|| say("free by now", "has room by now".into()))
}

fn shortage(need: &Need<'_>, candidate: &Candidate<'_>) -> Option<Obstacle> {
    let (total, reserved) = (&candidate.capacity, &candidate.reserved);
    let left = free(total, reserved);
    let short = |what: &str, left: String, total: String, need: String| {
        Some(Obstacle {
            kind: match what {
                "cpu" => "short of cpu",
                "memory" => "short of memory",
                _ => "short of disk",
            },
            in_full: format!("has {left} of {what} free ({total} in all), {need} needed"),
        })
    };
    if left.max_sessions == 0 {
        return Some(Obstacle {
            kind: "full",
            in_full: format!(
                "has no free place ({} of {} sessions)",
                reserved.max_sessions, total.max_sessions
            ),
        });
    }
    if left.cpu_millis < need.limits.cpu_millis {
        return short(
            "cpu",
            cores(left.cpu_millis.into()),
            cores(total.cpu_millis.into()),
            cores(need.limits.cpu_millis.into()),
        );
    }
    if left.memory_bytes < need.limits.memory_bytes {
        return short(
            "memory",
            bytes(left.memory_bytes),
            bytes(total.memory_bytes),
            bytes(need.limits.memory_bytes),
        );
    }
    if left.disk_bytes < need.limits.disk_bytes {
        return short("disk", bytes(left.disk_bytes), bytes(total.disk_bytes), bytes(need.limits.disk_bytes));
    }
    None
}

fn cores(millis: u64) -> String {
    let text = format!("{:.3}", millis as f64 / 1000.0);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "1" { "1 core".to_owned() } else { format!("{text} cores") }
}

fn bytes(value: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if value >= unit {
            let text = format!("{:.1}", value as f64 / unit as f64);
            return format!("{} {name}", text.trim_end_matches(".0"));
        }
    }
    format!("{value} B")
}
