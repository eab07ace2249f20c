"""What a test does, as root of the host, to one running sandbox of its own: PID ACTION ARGUMENTS."""
import ctypes, os, socket, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
pid, action, *arguments = sys.argv[1:]


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def enter(namespace):
    check(libc.setns(os.open(f"/proc/{pid}/ns/{namespace}", os.O_RDONLY), 0))


def bind(source, target):
    """Shows a file or directory of the host (open_tree, move_mount: 428 and 429 on every architecture)."""
    tree = check(libc.syscall(428, -100, source.encode(), 1 | os.O_CLOEXEC))
    enter("mnt")
    check(libc.syscall(429, tree, b"", -100, target.encode(), 4))


def uncover(*paths):
    """Takes what was mounted last at each path away."""
    enter("mnt")
    for path in paths:
        check(libc.umount2(path.encode(), 2))


def address(*addresses):
    """Gives the sandbox's loopback more addresses, so that they are no longer unreachable."""
    enter("net")
    for address in addresses:
        subprocess.run(["ip", "address", "add", address, "dev", "lo"], check=True)


def listen(*places):
    """Answers on addresses of the sandbox's own network until it is killed. @name: an abstract Unix socket."""
    enter("net")
    import selectors

    selector = selectors.DefaultSelector()
    for place in places:
        if place.startswith("@"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind("\0" + place[1:])
        else:
            host, port = place.rsplit(":", 1)
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, int(port)))
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
    print("listening", flush=True)
    while True:
        for key, _ in selector.select():
            key.fileobj.accept()[0].sendall(b"hole\n")


def renice(value):
    """Puts every process of the sandbox, parked ones included, before others."""
    mine = os.stat(f"/proc/{pid}/ns/pid").st_ino
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{process}/ns/pid").st_ino == mine:
                os.setpriority(os.PRIO_PROCESS, int(process), int(value))
        except OSError:
            pass


def rename(name):
    """Gives the sandbox another host name."""
    enter("uts")
    socket.sethostname(name)


globals()[action](*arguments)
