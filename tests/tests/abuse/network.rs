//! The network: that there is none but the sandbox's own loopback.

use std::os::linux::net::SocketAddrExt;

use nix::libc;

use crate::arena::{Arena, Finding, Sandbox, hold, shell};

/// Connects to each address (host, port); a line each: the errno, or that it connected.
async fn connect(sandbox: &Sandbox<'_>, to: &[(String, u16)]) -> String {
    let code = "import socket, errno\n\
        def attempt(host, port):\n    family = socket.AF_INET6 if ':' in host else socket.AF_INET\n    s = socket.socket(family); s.settimeout(3)\n\
        \x20   try: s.connect((host, port)); return 'connected'\n    except socket.timeout: return 'timeout'\n    except OSError as e: return errno.errorcode.get(e.errno, str(e))\n\
        for host, port in PLACES: print(host, port, attempt(host, port), flush=True)";
    let places: Vec<String> = to.iter().map(|(host, port)| format!("('{host}', {port})")).collect();
    let text = sandbox.py(&code.replace("PLACES", &format!("[{}]", places.join(", ")))).await.ok();
    assert_eq!(text.lines().count(), to.len(), "not all was tried: {text}");
    text
}

async fn unreachable(arena: &Arena, hosts: &[&str], port: u16, loosened: &[&str]) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        sandbox.loosen("address", loosened);
    }
    let places: Vec<_> = hosts.iter().map(|host| ((*host).to_owned(), port)).collect();
    let text = connect(&sandbox, &places).await;
    for line in text.lines() {
        hold(line.ends_with("ENETUNREACH") || line.ends_with("EADDRNOTAVAIL"), line)?;
    }
    Ok(text.replace('\n', ", "))
}

/// Loosened: the address is one of the sandbox's own loopback, so it is no longer unreachable.
pub async fn a37_there_is_no_way_out(arena: &Arena) -> Finding {
    unreachable(arena, &["1.1.1.1", "192.0.2.1", "2606:4700:4700::1111"], 53, &["1.1.1.1/32"]).await
}

/// Loosened: the same with the address of clouds' metadata.
pub async fn a38_no_metadata_service(arena: &Arena) -> Finding {
    let hosts = ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"];
    unreachable(arena, &hosts, 80, &["169.254.169.254/32"]).await
}

/// Loosened: something listens in the sandbox's network at the coordinator's address.
pub async fn a39_berth_and_the_engine_are_out_of_reach(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let address = arena.cluster.address.clone();
    let port: u16 = address.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    let _hole = match arena.loosened() {
        true => Some(sandbox.hole(&[&address]).await),
        false => None,
    };
    let hosts =
        std::process::Command::new("hostname").arg("-I").output().map(|out| out.stdout).unwrap_or_default();
    let hosts = String::from_utf8_lossy(&hosts).into_owned();
    let hosts = hosts.split_whitespace().chain(["127.0.0.1", "172.17.0.1", "::1"]);
    let places: Vec<_> =
        hosts.flat_map(|host| [port, 2375, 2376].map(|port| (host.to_owned(), port))).collect();
    let text = connect(&sandbox, &places).await;
    for line in text.lines() {
        hold(!line.ends_with("connected"), line)?;
    }
    let sockets = sandbox.sh("find / -type s 2>/dev/null").await.text();
    hold(sockets.is_empty(), format!("sockets are there: {sockets}"))?;
    Ok(format!("{} places, none answers; no socket in any directory", places.len()))
}

/// Loosened: the sandbox's table of hosts knows a name.
pub async fn a40_no_name_is_resolved(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        let hosts = arena.canary.join("hosts");
        std::fs::write(&hosts, "192.0.2.7 example.com\n").expect("written");
        sandbox.loosen("bind", &[hosts.to_str().expect("UTF-8"), "/etc/hosts"]);
    }
    let code = "import socket\ntry: print('resolved', socket.getaddrinfo('example.com', 80)[0][4])\nexcept socket.gaierror as e: print(e.errno)";
    let text = sandbox.py(code).await.ok();
    hold(text == "-3", text.clone())?;
    Ok("EAI_AGAIN".into())
}

/// By errno (see `kernel`): of a kind or protocol that is none. Loosened: the filter lets every socket through.
pub async fn a41_no_raw_sockets(arena: &Arena) -> Finding {
    crate::kernel::refused(
        arena,
        &[
            ("raw", libc::SYS_socket, "2, 3, 0"),
            ("raw6", libc::SYS_socket, "10, 3, 0"),
            ("icmp", libc::SYS_socket, "2, 3, 1"),
            ("ping", libc::SYS_socket, "2, 2, 1"),
            ("packet", libc::SYS_socket, "17, 15, 0"),
            ("packet raw", libc::SYS_socket, "17, 3, 0"),
        ],
    )
    .await
}

/// Loosened: the name is bound in the sandbox's own network, and landlock, which shuts out abstract names of others,
/// is not there.
pub async fn a42_abstract_sockets_are_the_hosts_own(arena: &Arena) -> Finding {
    let name = format!("berth-canary-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).expect("bound");
    let sandbox = arena.sandbox().await;
    let place = format!("@{name}");
    let _hole = match arena.loosened() {
        true => Some(sandbox.hole(&[&place]).await),
        false => None,
    };
    let code = "import socket, errno\ns = socket.socket(socket.AF_UNIX)\ntry: s.connect('\\0NAME'); print('connected')\nexcept OSError as e: print(errno.errorcode[e.errno])";
    let text = sandbox.py(&code.replace("NAME", &name)).await.ok();
    hold(text == "ECONNREFUSED", text.clone())?;
    let seen = sandbox.sh("cat /proc/net/unix").await.text();
    hold(!seen.contains(&name), "its name is seen")?;
    Ok(text)
}

/// Loosened: the filter lets every socket through.
pub async fn a43_no_vsock(arena: &Arena) -> Finding {
    crate::kernel::refused(
        arena,
        &[("vsock", libc::SYS_socket, "40, 15, 0"), ("vsock", libc::SYS_socket, "40, 1, 0")],
    )
    .await
}

/// By errno. Loosened: the filter lets every socket through.
pub async fn a44_no_kernel_crypto(arena: &Arena) -> Finding {
    crate::kernel::refused(arena, &[("alg", libc::SYS_socket, "38, 15, 0")]).await
}

/// Loosened: something answers in B's network at that port.
pub async fn a45_sessions_do_not_reach_each_other(arena: &Arena) -> Finding {
    let (a, b) = (arena.sandbox().await, arena.sandbox().await);
    let listen = "exec python3 -u -c \"import socket; s = socket.create_server(('0.0.0.0', 9000)); print('listening'); s.accept()\"";
    let task = a.start(shell(listen)).await;
    a.prints(&task.id, "listening").await;
    let _hole = match arena.loosened() {
        true => Some(b.hole(&["127.0.0.1:9000"]).await),
        false => None,
    };
    let name = a.sh("hostname").await.ok();
    let places: Vec<_> = ["127.0.0.1", "0.0.0.0", "::1"].map(|host| (host.to_owned(), 9000)).into();
    let text = connect(&b, &places).await;
    for line in text.lines() {
        hold(!line.ends_with("connected"), line)?;
    }
    let named = b.sh(&format!("getent hosts {name} || echo unknown")).await.text();
    hold(named == "unknown", format!("B knows A's name: {named}"))?;
    hold(a.output(&task.id).await == "listening\n", "A's listener was reached")?;
    Ok(text.replace('\n', ", "))
}
