//! Whether this kernel has landlock, the agent's second lock around tasks (`agent/src/landlock.rs`), and which version of
//! it. Told, never required: without it the first locks hold alone. What one sandbox got is told by its agent, in the
//! worker's log.

use super::{Preflight, native::sys};

/// The first version that the agent uses: before it nothing can be moved to another directory.
const LEAST: i32 = 2;

/// Adds what is so here.
pub fn describe(report: &mut Preflight) {
    say(sys::landlock_version(), report);
}

fn say(version: i32, report: &mut Preflight) {
    if version >= LEAST {
        report.facts.push(format!("landlock {version}"));
    } else {
        report.weaker.push(
            "no landlock (Linux 5.19 or later, with `landlock` in its list of security modules): modes, owners and \
             mounts alone keep tasks where they are"
                .into(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a kernel without it is passed over in silence.
    #[test]
    fn its_version_is_told_and_so_is_its_absence() {
        for (version, fact) in [(7, "landlock 7"), (2, "landlock 2"), (12, "landlock 12")] {
            let mut report = Preflight::default();
            say(version, &mut report);
            assert_eq!((&report.facts[..], report.weaker.len()), (&[fact.to_owned()][..], 0));
        }
        for version in [1, 0, -1] {
            let mut report = Preflight::default();
            say(version, &mut report);
            assert!(report.facts.is_empty() && report.weaker[0].starts_with("no landlock"), "{version}");
            assert!(report.ready(), "{version}: it is no problem");
        }
    }
}
