//! `berth top`: the fleet on one screen, again and again: workers, sessions with what they take, and who waits.
//!
//! What is told is collected in [`look`], what is drawn is a function of it ([`draw`]), and the keys change what is drawn
//! ([`keys`]). Of sessions only those on the screen are asked for their usage: to ask keeps none from being idle, but each is a
//! call to its worker.

mod draw;
mod keys;
mod look;

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use berth_client::Client;
use clap::{Args, ValueEnum};
use tokio::{io::AsyncReadExt, time::MissedTickBehavior};

use self::{
    draw::frame,
    keys::{Key, Screen},
    look::{Look, Rates},
};
use super::Global;
use crate::{
    failure::{CommandResult, Failure, code},
    output,
    signals::{Interrupts, resized},
    terminal::{self, RawMode},
    value,
};

const HELP: &str = "\
Keys: q quits; the arrows, PgUp, PgDn, Home and End go through the sessions; s sorts by the next
column, r turns the order round. Where stdout is no terminal it prints one snapshot.

A client's token shows its tenant's sessions, and no workers.

Examples:
  berth top
  berth top --sort memory --interval 5s
  berth top --once --format json | jq '.sessions[] | {id, cpu: .usage.cpu_seconds}'";

/// Shows workers and sessions with their load, again and again.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct TopArgs {
    /// Print one snapshot
    #[arg(long)]
    pub once: bool,

    /// Time between two looks
    #[arg(long, value_parser = value::some_duration, default_value = "2s", value_name = "TIME")]
    pub interval: Duration,

    /// What sessions are sorted by
    #[arg(long, value_enum, default_value_t, value_name = "COLUMN")]
    pub sort: Sort,
}

/// By what sessions are sorted, the largest or newest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Sort {
    // No doc comments: see `output::Format`.
    #[default]
    Cpu,
    Memory,
    Tasks,
    Age,
    Name,
}

/// A snapshot shows as many as this, and a screen as fit.
const MOST_ASKED: usize = 100;
/// What is typed at once, at most.
const TYPED: usize = 64;
/// Two looks are at least so far apart.
const SHORTEST: Duration = Duration::from_millis(250);

pub async fn run(global: &Global, args: TopArgs) -> CommandResult {
    let client = global.client().await?;
    if args.once || global.json() || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return snapshot(global, &client, args.sort).await;
    }
    let mut interrupts = Interrupts::new()?;
    let mut resized = resized()?;
    let mut shown = Shown::enter()?;
    let mut screen = Screen::new(args.sort);
    let (mut rates, mut last) = (Rates::default(), None::<Result<Look, String>>);
    let mut ticks = tokio::time::interval(args.interval.max(SHORTEST));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut stdin, mut typed) = (tokio::io::stdin(), [0; TYPED]);
    // The first look says whom to ask, and of the second and third a rate is made: nobody waits long for these.
    let mut soon = 2;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if soon > 0 {
                    soon -= 1;
                    ticks.reset_after(SHORTEST);
                }
                let asked = screen.visible(last.as_ref().and_then(|look| look.as_ref().ok()));
                let look = tokio::select! {
                    look = Look::take(&client, &mut rates, &asked) => look,
                    _ = interrupts.recv() => return Ok(code::CANCELLED),
                };
                last = Some(match (look, last) {
                    (Ok(look), _) => Ok(look),
                    // What was known stays, and what is wrong stands above it.
                    (Err(error), Some(Ok(before))) => Ok(before.away(error.to_string())),
                    (Err(error), _) => Err(error.to_string()),
                });
            }
            read = stdin.read(&mut typed) => {
                let count = read.map_err(|error| Failure::io("can't read the keyboard", error))?;
                let keys = Key::of(&typed[..count]);
                if count == 0 || keys.contains(&Key::Quit) {
                    return Ok(0);
                }
                keys.into_iter().for_each(|key| screen.press(key));
            }
            _ = resized.recv() => {}
            _ = interrupts.recv() => return Ok(code::CANCELLED),
        }
        if let Some(last) = &last {
            shown.draw(&frame(last, &mut screen))?;
        }
    }
}

/// What a moment is: two readings, of which a rate is made.
async fn snapshot(global: &Global, client: &Client, sort: Sort) -> CommandResult {
    let mut rates = Rates::default();
    let first = Look::take(client, &mut rates, &[]).await?;
    let asked: Vec<_> = first.sessions.iter().take(MOST_ASKED).map(|row| row.session.id).collect();
    let _ = Look::take(client, &mut rates, &asked).await?;
    tokio::time::sleep(SHORTEST).await;
    let look = Look::take(client, &mut rates, &asked).await?;
    if global.json() {
        output::json(&look)?;
    } else {
        output::data(draw::plain(&look, &Screen::new(sort)))?;
    }
    Ok(0)
}

/// The terminal's other screen, raw and without a cursor, for as long as this lives.
struct Shown {
    _raw: RawMode,
}

impl Shown {
    fn enter() -> Result<Self, Failure> {
        let raw = RawMode::enter().map_err(|error| Failure::io("can't take the terminal", error))?;
        // Lines that are too long are cut by the terminal itself.
        let mut shown = Self { _raw: raw };
        shown.write("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
        Ok(shown)
    }

    fn draw(&mut self, lines: &[String]) -> Result<(), Failure> {
        let body = lines.join("\x1b[K\r\n");
        self.write(&format!("\x1b[?2026h\x1b[H{body}\x1b[K\x1b[J\x1b[?2026l"))
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(output::stdout_failure)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.write("\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l");
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    let size = terminal::size(io::stdout()).map_or((80, 24), |size| (size.cols, size.rows));
    (usize::from(size.0), usize::from(size.1))
}
