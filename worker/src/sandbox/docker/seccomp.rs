//! The profile that a container of ours gets from the engine: the list that the agent's own filter is made of
//! ([`berth_proto::system_calls`]), and clone3, without which each task is moved into its cgroup, which takes 12 ms, and not born there.
//!
//! Why not the engine's own: it differs by the engine's version, lets through what nobody here needs, and refuses clone3.

use berth_proto::system_calls::{ALLOWED, ALLOWED_HERE, Comparison, Condition, OF_INIT, conditional};
use serde_json::{Value, json};

/// As Docker reads it: see "Seccomp security profiles for Docker" and runtime-spec's `linux.seccomp`. What is not listed gets
/// EPERM, and runc answers ENOSYS for calls that are newer than any that is listed. Other tables of calls (i386, x32) kill.
pub fn profile() -> String {
    let names: Vec<_> =
        ALLOWED.iter().chain(ALLOWED_HERE).chain([&OF_INIT]).map(|call| call.name()).collect();
    let mut calls = vec![allow(&names, Vec::new())];
    for conditional in conditional() {
        let alternatives: Option<Vec<_>> =
            conditional.alternatives.iter().map(|conditions| said(conditions)).collect();
        let alternatives = alternatives.unwrap_or_else(|| vec![Vec::new()]);
        calls
            .extend(alternatives.into_iter().map(|conditions| allow(&[conditional.call.name()], conditions)));
    }
    let only = |architecture: &str| json!({ "architecture": architecture, "subArchitectures": [] });
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [only("SCMP_ARCH_X86_64"), only("SCMP_ARCH_AARCH64")],
        "syscalls": calls,
    })
    .to_string()
}

fn allow(names: &[&str], conditions: Vec<Value>) -> Value {
    json!({ "names": names, "action": "SCMP_ACT_ALLOW", "args": conditions })
}

/// `None`: this can't be said here, and is left to the agent's filter. libseccomp compares all 64 bits of an argument, of which the
/// kernel looks at half, so only an equality can be said, with a mask; and runc makes alternatives of two conditions on one argument.
fn said(conditions: &[Condition]) -> Option<Vec<Value>> {
    let each = conditions.iter().enumerate().map(|(i, (argument, comparison))| {
        let (mask, value) = match *comparison {
            Comparison::Is(value) => (u32::MAX, value),
            Comparison::Masked { mask, value } => (mask, value),
            Comparison::IsNot(_) => return None,
        };
        let first = conditions[..i].iter().all(|(other, _)| other != argument);
        first.then(
            || json!({ "index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" }),
        )
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_says_what_the_list_says() {
        let profile: Value = serde_json::from_str(&profile()).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let calls = profile["syscalls"].as_array().unwrap();
        assert!(calls.iter().all(|rule| rule["action"] == "SCMP_ACT_ALLOW"));
        let of = |name: &str| -> Vec<Value> {
            let named = |rule: &&Value| rule["names"].as_array().unwrap().contains(&name.into());
            calls.iter().filter(named).map(|rule| rule["args"].clone()).collect()
        };
        for free in ["read", "clone3", "landlock_create_ruleset", "ioctl"] {
            assert_eq!(of(free), [json!([])], "{free}");
        }
        for refused in ["ptrace", "mount", "io_uring_setup", "bpf", "keyctl", "unshare", "setns"] {
            assert!(of(refused).is_empty(), "{refused}");
        }
        assert_eq!(
            of("clone"),
            [json!([{ "index": 0, "value": 0x7e02_0000_u32, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }])]
        );
        let unix = json!([
            { "index": 0, "value": u32::MAX, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ" },
            { "index": 1, "value": 0xf, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ" },
        ]);
        assert!(of("socket").contains(&unix) && of("socket").len() == 12, "{:?}", of("socket"));
    }
}
