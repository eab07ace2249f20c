//! The profile that a container of ours gets from the engine: the list that the agent's own filter is made of
//! ([`berth_proto::system_calls`]), so that the agent itself, too, has no more of the kernel than it needs.
//!
//! Why not the engine's own: it differs by the engine's version, lets through what nobody here needs, and has no clone3, without
//! which each task is moved into its cgroup, which takes 12 ms, and not born there.

use berth_proto::system_calls::{ALLOWED, ALLOWED_HERE, Comparison, Condition, OF_INIT, conditional};
use serde_json::{Value, json};

/// As Docker reads it: see "Seccomp security profiles for Docker" and runtime-spec's `linux.seccomp`. What is not listed gets
/// EPERM, and runc answers ENOSYS for calls that are newer than any that is listed.
pub fn profile() -> String {
    let names: Vec<_> =
        ALLOWED.iter().chain(ALLOWED_HERE).chain([&OF_INIT]).map(|call| call.name()).collect();
    let mut calls = vec![allow(&names, &[])];
    for conditional in conditional() {
        let name = [conditional.call.name()];
        // runc makes alternatives of two conditions on one argument. The agent's filter holds those.
        let sayable = conditional.alternatives.iter().all(|conditions| one_each(conditions));
        if sayable {
            calls.extend(conditional.alternatives.iter().map(|conditions| allow(&name, conditions)));
        } else {
            calls.push(allow(&name, &[]));
        }
    }
    let only = |architecture: &str| json!({ "architecture": architecture, "subArchitectures": [] });
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [only("SCMP_ARCH_X86_64"), only("SCMP_ARCH_AARCH64")],
        "syscalls": calls,
    })
    .to_string()
}

fn one_each(conditions: &[Condition]) -> bool {
    conditions
        .iter()
        .enumerate()
        .all(|(i, (argument, _))| conditions[..i].iter().all(|(other, _)| other != argument))
}

fn allow(names: &[&str], conditions: &[Condition]) -> Value {
    let conditions: Vec<_> = conditions.iter().map(condition).collect();
    json!({ "names": names, "action": "SCMP_ACT_ALLOW", "args": conditions })
}

/// libseccomp compares all 64 bits, of which the kernel looks at half.
fn condition((argument, comparison): &Condition) -> Value {
    let (op, value, value_two) = match *comparison {
        Comparison::Is(value) => ("SCMP_CMP_MASKED_EQ", u32::MAX, value),
        Comparison::IsNot(value) => ("SCMP_CMP_NE", value, 0),
        Comparison::Masked { mask, value } => ("SCMP_CMP_MASKED_EQ", mask, value),
    };
    json!({ "index": argument, "value": value, "valueTwo": value_two, "op": op })
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
