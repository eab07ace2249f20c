//! The worker's part of what the abuse suite loosens (see the agent's module of the same name): it hands the name on
//! to the agent, and loosens what is its own. Behind the feature `weakened`, which is never on by default; nothing
//! of it is in an ordinary binary.

/// Whether this protection is loosened.
#[cfg(feature = "weakened")]
macro_rules! weakened {
    ($name:literal) => {
        $crate::weaken::is($name)
    };
}

/// The variable that names one. Without Berth's prefix: it is no setting of Berth's.
#[cfg(feature = "weakened")]
const VARIABLE: &str = "WEAKEN_FOR_TESTS";

#[cfg(feature = "weakened")]
fn asked() -> String {
    std::env::var(VARIABLE).unwrap_or_default()
}

#[cfg(feature = "weakened")]
pub fn is(name: &str) -> bool {
    asked() == name
}

/// A container's option where the agent lets system calls through: the engine's filter must stand aside then.
#[cfg(feature = "weakened")]
pub fn seccomp_option() -> Option<String> {
    let calls = asked().starts_with("calls=") || weakened!("i386");
    calls.then(|| "seccomp=unconfined".to_owned())
}
#[cfg(not(feature = "weakened"))]
pub fn seccomp_option() -> Option<String> {
    None
}

/// Bytes of a core dump and of locked memory that a sandbox may have: a little more where that is asked for.
#[cfg(feature = "weakened")]
pub fn limits(core: u64, locked: u64) -> (u64, u64) {
    if weakened!("loose-limits") { (1 << 20, 8 << 20) } else { (core, locked) }
}
#[cfg(not(feature = "weakened"))]
pub fn limits(core: u64, locked: u64) -> (u64, u64) {
    (core, locked)
}

/// What the launcher, which has no environment, must be told.
#[cfg(feature = "weakened")]
pub fn for_the_launcher() -> Option<(&'static str, String)> {
    Some((VARIABLE, asked()))
}
#[cfg(not(feature = "weakened"))]
pub fn for_the_launcher() -> Option<(&'static str, String)> {
    None
}

/// Leaves the name where the agent of the same build looks for it.
#[cfg(feature = "weakened")]
pub fn tell_agent(berth: &std::path::Path) -> std::io::Result<()> {
    std::fs::write(berth.join("weaken"), asked())
}
#[cfg(not(feature = "weakened"))]
pub fn tell_agent(_: &std::path::Path) -> std::io::Result<()> {
    Ok(())
}
