//! Landlock and the size of files: what holds a task, and a client's uploads, behind modes and mounts. That it holds
//! where these are taken away is shown by the abuse suite (a73).

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use berth_proto::{Reason, v1::outcome::Kind};
use tonic::Code;

use crate::{files::write, rig::*};

/// Whether this kernel's landlock is told, and so to be tested.
async fn landlock(rig: &mut Rig, name: &str) -> bool {
    let request =
        berth_proto::v1::ConfigureRequest { session_id: rig.session.clone(), epoch: 1, ..Default::default() };
    let told = rig.agent.configure(request).await.unwrap().into_inner().protections;
    let has = told.iter().any(|p| p == "landlock");
    let kernels = berth_agent::sys::landlock_version();
    assert_eq!(has, kernels >= 2, "version {kernels}: {told:?}");
    if !has {
        skip(name, "the kernel has no landlock");
    }
    has
}

/// Red without the rules, for tasks and for file threads: the directory's own mode lets everybody in.
#[tokio::test]
async fn a_mode_alone_opens_no_place_to_write() {
    let name = "a_mode_alone_opens_no_place_to_write";
    let Some(mut rig) = Rig::with(name, Options { writable: Vec::new(), ..Default::default() }).await else {
        return;
    };
    let open = rig.dir.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(open.join("there"), "x").unwrap();
    fs::set_permissions(open.join("there"), fs::Permissions::from_mode(0o666)).unwrap();
    if !landlock(&mut rig, name).await {
        return;
    }
    let line = format!(
        "cat {0}/there; for how in 'echo y > {0}/new' 'echo y > {0}/there' 'mkdir {0}/d' 'rm {0}/there' \
         'mv {0}/there .' 'ln -s a {0}/l' 'echo y > /dev/shm/berth-x'; do (eval \"$how\") 2>/dev/null && echo \"done: $how\"; done; echo end",
        open.display()
    );
    let ran = rig.run(sh(&line)).await;
    assert_eq!(ran.out(), "xend\n", "{}", ran.err());
    assert_eq!(fs::read_to_string(open.join("there")).unwrap(), "x");
    let path = open.join("upload");
    refused(write(&rig, path.to_str().unwrap(), b"x").await, Code::PermissionDenied, Reason::FileDenied);
    // Its own files are where they were.
    let ran = rig.run(sh("mkdir -p a b && echo x > a/f && mv a/f b/g && ln b/g a/h && cat a/h")).await;
    assert_eq!(ran.out(), "x\n", "{}", ran.err());
    write(&rig, "up", b"x").await.unwrap();
}

/// Red when each task has a domain of its own.
#[tokio::test]
async fn tasks_of_a_session_reach_each_other() {
    let Some(rig) = Rig::start("tasks_of_a_session_reach_each_other").await else { return };
    let serve = "import socket\ns = socket.socket(socket.AF_UNIX); s.bind('\\0berth-'+__import__('sys').argv[1]); s.listen()\n\
                 open('up', 'w').write('up\\n')\nwhile True: s.accept()[0].sendall(b'served')";
    let id = rig.session.clone();
    let task = rig.begin(argv(&["python3", "-c", serve, &id])).await;
    rig.file("up").await;
    let pid = task.pid.to_string();
    let look = "import os, socket, sys\npid, id = sys.argv[1:]\ns = socket.socket(socket.AF_UNIX); s.connect('\\0berth-' + id)\n\
                print(s.recv(9).decode(), b'HOME=' in open(f'/proc/{pid}/environ', 'rb').read(), 'socket:' in os.readlink(f'/proc/{pid}/fd/3'))\n\
                os.kill(int(pid), 9)";
    let ran = rig.run(argv(&["python3", "-c", look, &pid, &id])).await;
    assert_eq!(ran.out(), "served True True\n", "{}", ran.err());
    assert_eq!(outcome(&rig.wait(&task).await), Kind::Signaled(9));
}

/// What programs do on terminals and to their own entries in /proc. Red when a rule for a device lacks its commands, or
/// one for /proc its writing.
#[tokio::test]
async fn terminals_and_ones_own_proc_work_as_ever() {
    let Some(rig) = Rig::start("terminals_and_ones_own_proc_work_as_ever").await else { return };
    let code = "import os, pty, termios, fcntl, struct\n\
        fd = os.open('/dev/tty', os.O_RDWR); fcntl.ioctl(fd, termios.TIOCGWINSZ, b'\\0' * 8); print('tty')\n\
        a, b = pty.openpty(); fcntl.ioctl(b, termios.TIOCSWINSZ, struct.pack('4H', 5, 6, 0, 0)); print(os.get_terminal_size(b).lines)\n\
        fd = os.open(os.ttyname(b), os.O_RDWR); termios.tcgetattr(fd); print('named')\n\
        open('/proc/self/comm', 'w').write('mine'); print(open('/proc/self/comm').read().strip())\n\
        open('/proc/self/oom_score_adj', 'w').write('900'); print(open('/proc/self/oom_score_adj').read().strip())\n\
        open('/dev/null', 'w').write('x'); print(os.isatty(os.open('/dev/null', os.O_RDONLY)))\n\
        d = os.open('.', os.O_TMPFILE | os.O_RDWR); os.write(d, b'x'); os.link(f'/proc/self/fd/{d}', 'linked', src_dir_fd=d, follow_symlinks=True); print(os.path.exists('linked'))";
    let spec = berth_proto::v1::TaskSpec { pty: true, ..argv(&["python3", "-c", code]) };
    let ran = rig.run(spec).await;
    assert_eq!(ran.out().replace('\r', ""), "tty\n5\nnamed\nmine\n900\nFalse\nTrue\n", "{}", ran.err());
}

/// Red without RLIMIT_FSIZE, without the count of an upload, or when the signal is left to kill.
#[tokio::test]
async fn no_file_says_that_it_is_larger_than_may_be() {
    let most = 1 << 20;
    let options = Options { file_bytes: Some(most), ..Default::default() };
    let Some(rig) = Rig::with("no_file_says_that_it_is_larger_than_may_be", options).await else { return };
    let ran = rig.run(sh("truncate -s 1M f && truncate -s 1048577 f")).await;
    assert_eq!(ran.outcome(), Kind::Exited(1));
    assert!(ran.err().contains("File too large"), "{}", ran.err());
    let ran = rig.run(sh("head -c 2000000 /dev/zero > g; stat -c %s f g; ulimit -f unlimited")).await;
    assert_eq!(ran.out(), "1048576\n1048576\n");
    assert!(ran.err().contains("File too large"), "{}", ran.err());
    assert_ne!(ran.outcome(), Kind::Exited(0), "nobody raises it");
    // Output is no file of a task's.
    assert_eq!(rig.run(sh("head -c 2000000 /dev/zero")).await.stdout.len(), 2_000_000);
    let large = vec![1; most as usize + 1];
    write(&rig, "fits", &large[1..]).await.unwrap();
    refused(write(&rig, "large", &large).await, Code::ResourceExhausted, Reason::DiskFull);
    let left = rig.run(sh("ls -A")).await.out();
    assert!(!left.contains("large") && !left.contains(".berth"), "{left}");
    assert!(Path::new(&rig.workspace("fits")).exists());
}
