//! Tests that this machine can't run say so by name and reason; `make test` prints them.

use std::io::Write;

/// Whether the docker backend can be tested here; a skip is noted for `test`.
pub fn without_docker(test: &str) -> bool {
    let usable = std::env::var_os("BERTH_TEST_DOCKER").is_some_and(|value| value == "1");
    if !usable {
        note(test, "docker backend: no usable engine with the sandbox image (BERTH_TEST_DOCKER is not 1)");
    }
    !usable
}

/// Whether the engine lacks an image that `make` makes. Asked only where the docker backend can be tested.
pub fn without_image(image: &str, make: &str, test: &str) -> bool {
    let inspect = ["image", "inspect", "--format", "{{.Id}}", image];
    let there =
        std::process::Command::new("docker").args(inspect).output().is_ok_and(|told| told.status.success());
    if !there {
        note(test, &format!("docker backend: no image {image}: {make}"));
    }
    !there
}

/// Whether native sandboxes can be tested here; a skip is noted for `test`.
pub fn without_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        note(test, "native backend, and mounts: needs root");
    }
    !root
}

/// Whether there is no kernel for a virtual machine, or nothing that emulates one. `target` is where `make setup` puts it.
pub fn without_vm(target: &std::path::Path, test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| {
        let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        dirs.into_iter().any(|dir| dir.join(program).is_file())
    };
    let there = target.join("tools/vm/vmlinuz").is_file()
        && ["qemu-system-x86_64", "cpio", "busybox", "mkfs.ext4"].into_iter().all(has);
    if !there {
        note(
            test,
            "a virtual machine: no emulator and kernel (scripts/setup.sh vm, as root on Debian, x86_64)",
        );
    }
    !there
}

/// Whether the binaries of which a protection can be loosened are not built.
pub fn without_weakened(test: &str) -> bool {
    let dir = std::env::var_os("BERTH_BIN_DIR").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin"),
        std::path::PathBuf::from,
    );
    let built = dir.join("weakened/worker").is_file() && dir.join("weakened/berth-agent").is_file();
    if !built {
        note(test, "no binaries to loosen a protection of: `make abuse` builds them");
    }
    !built
}

/// Whether the backend can't be tested here.
pub fn without(backend: &str, test: &str) -> bool {
    match backend {
        "docker" => without_docker(test),
        "native" => without_root(test),
        _ => false,
    }
}

/// Says that a test is skipped, and why.
pub fn note(test: &str, reason: &str) {
    eprintln!("skipped {test}: {reason}");
    if let Some(path) = std::env::var_os("BERTH_SKIP_LOG")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = writeln!(file, "{test}: {reason}");
    }
}
