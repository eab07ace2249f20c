//! What makes a sandbox one. (The whole list is the abuse suite, of a later issue.)

use berth_proto::v1::outcome::Kind;

use crate::hop::{Hop, argv, shell};

pub async fn a_task_has_no_privileges(hop: &Hop) {
    let status = hop.run(argv(&["cat", "/proc/self/status"])).await;
    let value = |name: &str| {
        let line =
            status.text().lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&value(set), 16).unwrap(), 0, "{set} is not empty");
    }
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_eq!(value("Seccomp:"), "2");
    assert_ne!(value("Uid:"), "0");
    for forbidden in [
        "unshare -Ur true",
        "mount -t tmpfs none /tmp",
        "touch /usr/x",
        "touch /etc/x",
        "touch /x",
        "mknod n b 254 0",
        "date -s 2000-01-01",
        "kill -9 1",
    ] {
        let ran = hop.run(shell(forbidden)).await;
        assert!(!matches!(ran.outcome(), Kind::Exited(0)), "{forbidden:?} went through");
    }
    let sockets = "import socket\n\
        for family, kind in [(40, 1), (38, 5), (17, 3), (2, 3)]:\n\
        \x20   try: socket.socket(family, kind); print('open', family)\n\
        \x20   except OSError: print('shut', family)";
    let ran = hop.run(argv(&["python3", "-c", sockets])).await;
    assert_eq!(ran.ok(), "shut 40\nshut 38\nshut 17\nshut 2");
    assert_eq!(hop.run(argv(&["echo", "alive"])).await.ok(), "alive");
}

pub async fn a_task_sees_only_its_own(hop: &Hop) {
    let ran = hop.run(argv(&["env"])).await;
    let mut names: Vec<&str> = ran.ok().lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]);
    let ran = hop
        .run(shell("ls /proc | grep -c '^[0-9]'; cat /proc/1/environ 2>&1 | wc -c; ls -A /.berth 2>&1"))
        .await;
    let lines: Vec<&str> = ran.text().lines().collect();
    assert!(lines[0].parse::<u32>().unwrap() < 12, "processes of others: {}", lines[0]);
    assert!(ran.text().contains("denied"), "{}", ran.text());
    // No way out: only a loopback of its own.
    let connect = "import socket\n\
        try: socket.create_connection(('192.0.2.1', 80), 2); print('connected')\n\
        except OSError as e: print(e.errno)";
    assert_eq!(hop.run(argv(&["python3", "-c", connect])).await.ok(), "101", "ENETUNREACH");
    let ran =
        hop.run(shell("ls /sys/class/net 2>/dev/null; cat /proc/net/dev | tail -n +3 | cut -d: -f1")).await;
    assert!(ran.text().split_whitespace().all(|name| name == "lo"), "{}", ran.text());
    // A process limit that holds: of 200 sleepers some can't be made.
    let fork = "import subprocess\ncount = 0\n\
        try:\n\x20   for i in range(200): subprocess.Popen(['sleep', '100']); count += 1\n\
        except OSError as e: print(e.errno)\n\
        print(count < 64)";
    assert_eq!(hop.run(argv(&["python3", "-c", fork])).await.ok(), "11\nTrue", "EAGAIN");
    assert_eq!(hop.run(argv(&["echo", "alive"])).await.ok(), "alive");
}
