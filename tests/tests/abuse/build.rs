//! That what is loosened for these tests is in no ordinary binary.

use berth_tests::process::binary;

/// Words of the two `weaken` modules.
const WORDS: [&str; 5] =
    ["WEAKEN_FOR_TESTS", "THIS BUILD IS WEAKENED", "killable-agent", "/.berth/weaken", "seccomp=unconfined"];

fn words(name: &str) -> Vec<&'static str> {
    let file = binary(name);
    let has = |word: &str| {
        let grep = std::process::Command::new("grep").args(["-aqF", "-e", word]).arg(&file).status();
        grep.expect("grep is there").success()
    };
    WORDS.into_iter().filter(|word| has(word)).collect()
}

/// Red with the binaries of `make abuse`, as the second half shows where they are built.
#[test]
fn an_ordinary_binary_can_not_be_weakened() {
    for name in ["berth", "coordinator", "worker", "berth-agent"] {
        assert_eq!(words(name), [""; 0], "{name}");
    }
    if berth_tests::skip::without_weakened("abuse an_ordinary_binary_can_not_be_weakened") {
        return;
    }
    let found = [words("weakened/worker"), words("weakened/berth-agent")].concat();
    for word in WORDS {
        assert!(found.contains(&word), "{word} is in neither of the weakened ones");
    }
}
