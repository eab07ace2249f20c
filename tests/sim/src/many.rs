//! Many seeds, and what came of them in all.

use std::{
    collections::BTreeMap,
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use berth_sim::run;

/// What the process of one seed prints, before its figures.
const LINE: &str = "sim:";

pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let numbers = |words: &[&str]| words.iter().map(|word| word.parse().ok()).collect::<Option<Vec<u64>>>();
    match words.as_slice() {
        ["seed", rest @ ..] if let Some([seed]) = numbers(rest).as_deref() => one(*seed, true),
        ["quiet", rest @ ..] if let Some([seed]) = numbers(rest).as_deref() => one(*seed, false),
        ["seeds", rest @ ..] if let Some([first, count, replays]) = numbers(rest).as_deref() => {
            many(*first, *count, *replays)
        }
        _ => {
            eprintln!("usage: sim seed N | sim seeds FIRST COUNT REPLAYS");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64, verbose: bool) -> ExitCode {
    let report = run(seed, verbose);
    if verbose || !report.violations.is_empty() {
        for violation in &report.violations {
            println!("seed {seed}: {violation}");
        }
        println!("seed {seed}: {} faults in {:?} of simulated time", report.faults, report.took);
    }
    let mut counts = report.counts.clone();
    counts.insert("faults", report.faults as u64);
    counts.insert("events", report.events);
    counts.insert("seconds", report.took.as_secs());
    let counts: Vec<String> =
        counts.iter().map(|(what, count)| format!("{}={count}", what.replace(' ', "-"))).collect();
    println!("{LINE} {} {:016x} {}", report.violations.len(), report.hash, counts.join(" "));
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What one process said.
struct Said {
    ok: bool,
    hash: String,
    counts: BTreeMap<String, u64>,
    text: String,
}

fn ask(seed: u64) -> Said {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program)
        .args(["quiet", &seed.to_string()])
        .stdin(Stdio::null())
        .output()
        .expect("this program can be started");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.strip_prefix(LINE)).unwrap_or_default().to_owned();
    let mut words = line.split_whitespace().skip(1);
    let hash = words.next().unwrap_or_default().to_owned();
    let counts = words.filter_map(|word| {
        let (what, count) = word.split_once('=')?;
        Some((what.to_owned(), count.parse().ok()?))
    });
    Said { ok: output.status.success() && !hash.is_empty(), hash, counts: counts.collect(), text }
}

#[derive(Default)]
struct Totals {
    counts: BTreeMap<String, u64>,
    failed: Vec<u64>,
    different: Vec<u64>,
}

fn many(first: u64, count: u64, replays: u64) -> ExitCode {
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let totals = Mutex::new(Totals::default());
    let at_once = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + count {
                        return;
                    }
                    let said = ask(seed);
                    let again = (seed < first + replays).then(|| ask(seed).hash);
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    for (what, count) in said.counts {
                        *totals.counts.entry(what).or_default() += count;
                    }
                    if !said.ok {
                        println!("{}", said.text);
                        totals.failed.push(seed);
                    }
                    if again.is_some_and(|again| again != said.hash) {
                        println!("seed {seed}: a second run was another");
                        totals.different.push(seed);
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{count} seeds from {first} on, {replays} of them twice, in {:?}", begun.elapsed());
    for (what, count) in &totals.counts {
        println!("  {count:>9} {}", what.replace('-', " "));
    }
    println!("  {:>9} seeds failed {:?}", totals.failed.len(), totals.failed);
    println!(
        "  {:>9} seeds gave another trace the second time {:?}",
        totals.different.len(),
        totals.different
    );
    if totals.failed.is_empty() && totals.different.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("see one with its trace: make sim SEED=n");
    ExitCode::FAILURE
}
