//! What the agent reads back from its own disk, which a crash or a full disk may have damaged; and what its two
//! processes say to each other.

use std::{
    cell::RefCell,
    fs::{self, OpenOptions},
    path::Path,
    sync::Arc,
};

use berth_agent::{
    ledger::{BodyHash, KEYS, Ledger},
    spool::{Budget, Read, Spool},
    wire,
};
use berth_proto::{
    SessionId, TaskId,
    agent_config::AgentConfig,
    domain::TaskSpec,
    transport::{data_head, read_preface},
    v1,
};
use berth_worker::{sandbox::SessionDirs, sessions::record};
use tokio::runtime::{Builder, Runtime};

use crate::{input::Input, scratch::Scratch};

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().build().expect("a runtime can be made"));
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with_borrow(|runtime| runtime.block_on(future))
}

/// Byte `at` of a spool's stream.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 7) as u8
}

fn stream(from: u64, length: usize) -> Vec<u8> {
    (from..).take(length).map(byte).collect()
}

/// A read gives the bytes that were written at its offset, no more than were asked for and none beyond the end; and when
/// the files below it are damaged it gives an error or as many bytes, and never waits for ever.
pub fn spool(bytes: &[u8]) {
    SCRATCH.with(|scratch| spooled(&scratch.empty("spool"), &mut Input::new(bytes)));
}

fn spooled(dir: &Path, input: &mut Input<'_>) {
    let task = dir.join("task");
    let budget = Arc::new(Budget::new(512 << 20));
    let (mut length, mut damaged) = (0u64, false);
    let spool = if input.choice(2) == 0 {
        Spool::new(task.clone(), "stdout", 16 << 10 << input.choice(4), budget)
    } else {
        length = input.long();
        let tail = input.short();
        // What it says of its length is another's word: the tail may be longer.
        let of =
            stream(length.saturating_sub(tail as u64), tail.min(usize::try_from(length).unwrap_or(tail)));
        Spool::restored(task.clone(), "stdout", length, &of, budget)
    };
    for _ in 0..24 {
        if input.is_empty() {
            break;
        }
        match input.choice(8) {
            0..=2 => {
                let more = input.short() % (24 << 10);
                // No stream comes near to where a counter ends.
                if length > u64::MAX / 2 {
                    continue;
                }
                block_on(spool.append(stream(length, more)));
                length += more as u64;
            }
            3 | 4 => {
                let offset = match input.choice(3) {
                    0 => input.long(),
                    1 => spool.bounds().1.saturating_add(input.short() as u64),
                    _ => length.saturating_sub(input.short() as u64),
                };
                read(&spool, offset, input.short(), damaged);
            }
            5 => spool.shrink(input.short() as u64),
            6 if input.choice(4) == 0 => {
                spool.purge();
                assert!(!task.exists() || damaged, "nothing of it is left");
                assert_eq!(spool.bounds(), (length, length));
            }
            _ => damaged |= damage(&task, input),
        }
        let (told, first_kept) = spool.bounds();
        assert_eq!(told, length, "offsets stay true");
        assert!(first_kept <= told);
    }
}

fn read(spool: &Arc<Spool>, offset: u64, max: usize, damaged: bool) {
    let (length, first_kept) = spool.bounds();
    match block_on(spool.read(offset, max)) {
        Ok(Read::Data(data)) => {
            assert!(data.len() <= max, "no more than was asked for");
            assert!(offset >= first_kept && offset + data.len() as u64 <= length, "of what is there");
            assert!(max == 0 || !data.is_empty(), "a reader gets on");
            assert!(damaged || data == stream(offset, data.len()), "what was written there");
        }
        Ok(Read::AtEnd) => assert_eq!(offset, length),
        Ok(Read::Lost(first)) => assert!(offset < first && first == first_kept),
        Ok(Read::Beyond(end)) => assert!(offset > end && end == length),
        Err(error) => assert!(damaged, "{error}"),
    }
}

/// Does something to one of the files. True: there was one.
fn damage(dir: &Path, input: &mut Input<'_>) -> bool {
    let mut files: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    if files.is_empty() {
        return false;
    }
    let file = &files[input.choice(files.len())];
    match input.choice(3) {
        0 => drop(fs::remove_file(file)),
        kind => {
            let Ok(open) = OpenOptions::new().write(true).open(file) else { return false };
            let by = input.short() as u64;
            let length = open.metadata().map_or(0, |meta| meta.len());
            drop(open.set_len(if kind == 1 { length.saturating_sub(by) } else { length + by }));
        }
    }
    true
}

/// Whatever is in the file, the ledger opens with what can be read of it, and what it is told from then on survives.
pub fn ledger(bytes: &[u8]) {
    SCRATCH.with(|scratch| ledger_in(&scratch.empty("ledger"), bytes));
}

fn ledger_in(dir: &Path, bytes: &[u8]) {
    let file = dir.join("ledger");
    fs::write(&file, bytes).expect("it can be written");
    let mut ledger = Ledger::open(dir).expect("a damaged line stops no agent");
    let known = ledger.keys();
    assert!(known.len() <= KEYS && known.len() <= bytes.split(|b| *b == b'\n').count());
    let lookup = |ledger: &Ledger, key: &v1::KeptKey| ledger.get(&key.request_id).expect("it is there").task;
    for key in &known {
        assert_eq!(lookup(&ledger, key).to_string(), key.task_id);
    }
    let (body, task) = (BodyHash::of(&a_spec()), TaskId::from_u128(7));
    ledger.record("fresh \n key", body, task).expect("it can be written");
    drop(ledger);
    let mut ledger = Ledger::open(dir).expect("it opens again");
    let now = ledger.keys();
    let entry = ledger.get("fresh \n key").expect("it survives");
    assert!((entry.body, entry.task, entry.earlier) == (body, task, true));
    for key in known.iter().filter(|key| key.request_id != "fresh \n key") {
        assert!(now.contains(key), "{key:?} survives");
    }
    ledger.release("fresh \n key").expect("it can be written");
    drop(ledger);
    assert!(Ledger::open(dir).expect("it opens again").get("fresh \n key").is_none(), "it is free again");
}

fn a_spec() -> TaskSpec {
    let program = Some(v1::task_spec::Program::Shell("true".to_owned()));
    TaskSpec::try_from(v1::TaskSpec { program, ..Default::default() }).expect("it is one")
}

/// Packets between the agent's processes, its configuration, a session's record on the worker's disk, and the beginning
/// of a data connection: read or refused, and written as they were read.
pub fn packets(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.choice(5);
    let bytes = input.rest();
    match kind {
        0 => {
            let Some((kind, task, body)) = wire::open(bytes) else { return };
            assert_eq!(wire::packet(kind, task, body), bytes);
            let Ok(spawn) = wire::read_spawn(bytes, &mut Vec::new()) else { return };
            let (packet, spilled) = wire::spawn_packet(task, &spawn).expect("it can be written");
            assert!(packet.len() <= wire::PACKET_MAX);
            let again = wire::read_spawn(&packet, &mut spilled.into_iter().collect());
            assert_eq!(again.expect("it was written here"), spawn);
        }
        1 => drop(wire::read_report(bytes)),
        2 => {
            let Ok(config) = serde_json::from_slice::<AgentConfig>(bytes) else { return };
            let text = serde_json::to_string(&config).expect("it can be written");
            assert_eq!(serde_json::from_str::<AgentConfig>(&text).ok(), Some(config));
        }
        3 => {
            let Ok(preface) = block_on(read_preface(&mut &*bytes)) else { return };
            let Ok(head) = data_head(&preface) else { return };
            let magic = head.len() - 2 - prost::Message::encoded_len(&preface);
            assert_eq!(block_on(read_preface(&mut &head[magic..])).ok(), Some(preface));
        }
        _ => SCRATCH.with(|scratch| session_record(scratch, bytes)),
    }
}

fn session_record(scratch: &Scratch, bytes: &[u8]) {
    let dirs = SessionDirs { root: scratch.empty("session") };
    fs::write(dirs.root.join("meta.json"), bytes).expect("it can be written");
    let id = SessionId::from_u128(1);
    let record::Found::Session { placement, backend, paused, .. } = record::read(id, &dirs) else { return };
    assert_eq!(placement.session, id, "it is this session's");
    record::write_meta(&dirs, &record::Meta::new(&placement, backend, paused)).expect("it can be written");
    let record::Found::Session { placement: again, .. } = record::read(id, &dirs) else {
        panic!("what was written is read");
    };
    assert!((again.epoch, &again.limits, &again.env) == (placement.epoch, &placement.limits, &placement.env));
    assert!(again.egress == placement.egress && again.created_at == placement.created_at);
}
