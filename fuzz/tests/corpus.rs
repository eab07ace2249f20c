//! Feeds the targets without a fuzzer: the seeds, and everything in `fuzz/corpus`, as it is, cut short and with single
//! bytes changed. Red when a parser breaks a promise on any of it, and when a target, a message or a directory is missing.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use berth_fuzz::{MESSAGES, TARGETS, messages_of_the_contract, run, seeds};

/// Inputs that are made of each one, at most. What writes files is slower.
const CHANGED: usize = 48;
const CHANGED_ON_DISK: usize = 6;
const ON_DISK: [&str; 3] = ["archive_import", "spool", "ledger"];

fn fuzz() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn listing(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The corpus of a target, by file name, and its seeds.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = fuzz().join("corpus").join(target);
    let kept = listing(&dir).into_iter().map(|name| {
        let bytes = fs::read(dir.join(&name)).unwrap();
        (format!("fuzz/corpus/{target}/{name}"), bytes)
    });
    let seeds = seeds::all().into_iter().enumerate().filter(|(_, seed)| seed.target == target);
    kept.chain(seeds.map(|(number, seed)| (format!("seed {number}"), seed.bytes))).collect()
}

/// The input, pieces of it, and it with a byte changed here and there. Evenly over its length; nothing is random.
fn around(bytes: &[u8], most: usize) -> Vec<Vec<u8>> {
    let mut all = vec![bytes.to_vec()];
    let step = (2 * bytes.len()).div_ceil(most).max(1);
    for at in (0..bytes.len()).step_by(step) {
        all.push(bytes[..at].to_vec());
        let mut changed = bytes.to_vec();
        changed[at] ^= [1, 0x80, 0xff, 0x20][at / step % 4];
        all.push(changed);
    }
    all
}

fn feed(target: &str) {
    let most = if ON_DISK.contains(&target) { CHANGED_ON_DISK } else { CHANGED };
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "there is nothing to feed {target}");
    for (name, bytes) in inputs {
        for input in around(&bytes, most) {
            let fed = catch_unwind(AssertUnwindSafe(|| run(target, &input)));
            assert!(
                fed.is_ok(),
                "target {target} broke a promise (above) on {name}, or near it: {input:02x?}"
            );
        }
    }
}

macro_rules! fed {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            feed(stringify!($target));
        })*

        /// Red when a target has no test, no executable or no corpus, or one of those has no target.
        #[test]
        fn each_target_has_its_test_its_executable_and_its_corpus() {
            let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
            let fed: BTreeSet<String> = [$(stringify!($target).to_owned()),*].into();
            assert_eq!(fed, targets);
            assert_eq!(listing(&fuzz().join("corpus")), targets);
            let executables = listing(&fuzz().join("targets/fuzz_targets"));
            assert_eq!(executables, targets.iter().map(|name| format!("{name}.rs")).collect());
            let manifest = fs::read_to_string(fuzz().join("targets/Cargo.toml")).unwrap();
            for name in &targets {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is in no [[bin]]");
            }
        }
    };
}

fed! {
    requests validation status egress_rules proxy_request client_hello manifest archive_import spool ledger packets names
    worker_words terminal frames tarball search
}

/// Red when a message was added to the contract and not to the list, or one of the list is gone.
#[test]
fn every_message_of_the_contract_is_read() {
    let ours: BTreeSet<&str> = MESSAGES.iter().copied().collect();
    let contract = messages_of_the_contract();
    assert_eq!(ours, contract.iter().map(String::as_str).collect());
    assert!(MESSAGES.len() <= 256, "an input's first byte says which");
}
