//! Protections that can be loosened, one at a time, so that the abuse suite can show each of its tests to fail
//! (`make abuse`). All of it is behind the feature `weakened`, which is never on by default: of an ordinary agent
//! [`weakened!`] is the word `false`, and no name of a loosening and no way to ask for one is in its binary (the
//! suite looks). Each loosening gives away one bounded thing, never a whole layer.

/// Whether this protection is loosened. A macro, so that an ordinary binary does not even have the name.
#[cfg(not(feature = "weakened"))]
macro_rules! weakened {
    ($name:literal) => {
        false
    };
}
#[cfg(feature = "weakened")]
macro_rules! weakened {
    ($name:literal) => {
        $crate::weaken::is($name)
    };
}

/// Where the worker of the same build leaves the name.
#[cfg(feature = "weakened")]
const FILE: &str = "/.berth/weaken";
#[cfg(feature = "weakened")]
static ASKED: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Reads what is asked for. First thing in `main`.
#[cfg(feature = "weakened")]
pub fn load() {
    let asked = std::fs::read_to_string(FILE).unwrap_or_default();
    tracing::error!(asked, "THIS BUILD IS WEAKENED: it is for tests of the abuse suite and holds nobody");
    let _ = ASKED.set(asked);
}

#[cfg(feature = "weakened")]
fn asked() -> &'static str {
    ASKED.get().map_or("", String::as_str)
}

#[cfg(feature = "weakened")]
pub fn is(name: &str) -> bool {
    asked() == name
}

/// System calls that the filter lets through: `calls=272,165`.
#[cfg(feature = "weakened")]
pub fn calls() -> impl Iterator<Item = libc::c_long> {
    asked().strip_prefix("calls=").unwrap_or_default().split(',').filter_map(|number| number.parse().ok())
}
#[cfg(not(feature = "weakened"))]
pub fn calls() -> impl Iterator<Item = libc::c_long> {
    std::iter::empty()
}

/// Keeps bytes in memory, a hundred mebibytes of them at most.
#[cfg(feature = "weakened")]
pub fn hoard(bytes: &[u8]) {
    static HOARD: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
    let mut hoard = HOARD.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if hoard.len() < 100 << 20 {
        hoard.extend_from_slice(bytes);
    }
}
