"""A coding agent's command line in a sandbox: on a terminal, with its key as a secret, and nothing to reach but its own API.

    pip install ./client/python
    berth secret set agent-key < key.txt
    python examples/coding_agent.py --project ./src --secret agent-key --allow api.example.com -- agent --some-option

The agent edits a copy of the project. It reads its key in /run/secrets, where it can't change it; a program that wants it in a
variable gets it there (`--secret-env AGENT_API_KEY=agent-key`). It reaches the hosts that are named, and nothing else: what
it is talked into by a file it reads has nowhere to send the project to, and the key is good for that host only. What it
changed is copied back when it ends (`--no-copy` leaves it at that, `--keep` keeps the session, to look at what it did).
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import sys
import termios
import threading
import tty
from typing import Dict, Iterator, List, Tuple

import berth

#: Files of a project beyond this are left out, and named.
LARGEST = 16 << 20
#: Levels of directories that are looked at.
DEEPEST = 16
#: Not an agent's to read, nor to write.
LEFT_OUT = {".git", "node_modules", "target", "__pycache__", ".venv"}
END_OF_INPUT = b"\x04"


def parse() -> Tuple[argparse.Namespace, List[str]]:
    parser = argparse.ArgumentParser(description="runs a coding agent's command line in a sandbox")
    parser.add_argument("--project", type=pathlib.Path, help="a directory that it works on, in /workspace/project")
    parser.add_argument("--secret", action="append", default=[], help="a secret, as the file /run/secrets/NAME")
    parser.add_argument("--secret-env", metavar="VARIABLE=NAME", help="a secret in a variable, instead")
    parser.add_argument("--allow", action="append", default=[], help="a host that it may reach, or host:port")
    parser.add_argument("--template", default="", help="whose image has the agent (default: the usual one)")
    parser.add_argument("--ttl", type=int, default=4 * 3600, help="seconds after which all of it ends (default: 4 hours)")
    parser.add_argument("--no-copy", action="store_true", help="leave the project here as it is")
    parser.add_argument("--keep", action="store_true", help="keep the session")
    parser.add_argument("command", nargs="+", help="the agent and its arguments, after --")
    given = parser.parse_args()
    if given.secret and given.secret_env:
        parser.error("either --secret or --secret-env")
    return given, given.command


def size() -> berth.PtySize:
    cols, rows = shutil.get_terminal_size()
    return berth.PtySize(cols=cols, rows=rows)


@contextlib.contextmanager
def raw_terminal(task: berth.Task) -> Iterator[None]:
    """The keys go to the agent as they are, and it hears when the window changes."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    # Not in the handler itself: it runs in the middle of anything, a call of the client's too.
    resize = lambda *_: threading.Thread(target=task.resize, args=(size(),), daemon=True).start()  # noqa: E731
    handler = signal.signal(signal.SIGWINCH, resize)
    # What was typed ahead is not thrown away.
    tty.setraw(sys.stdin, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, handler)


def feed(task: berth.Task) -> None:
    """What is typed."""
    with contextlib.suppress(berth.BerthError):  # It has ended: its stream says how.
        while typed := os.read(sys.stdin.fileno(), 4096):
            task.write_stdin(typed)
        task.write_stdin(END_OF_INPUT)


def files_of(project: pathlib.Path) -> Iterator[pathlib.Path]:
    for directory, names, files in os.walk(project):
        names[:] = sorted(name for name in names if name not in LEFT_OUT)
        for name in sorted(files):
            path = pathlib.Path(directory, name)
            if path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size > LARGEST:
                print(f"left out, since it is large: {path}", file=sys.stderr)
                continue
            yield path


def copy_in(session: berth.Session, project: pathlib.Path) -> Dict[str, bytes]:
    """What the project is, by relative path."""
    session.files.mkdir("project", parents=True)
    before = {}
    for path in files_of(project):
        name = path.relative_to(project).as_posix()
        before[name] = path.read_bytes()
        session.files.write(f"project/{name}", before[name], make_parents=True, mode=path.stat().st_mode & 0o777)
    return before


def copy_out(session: berth.Session, project: pathlib.Path, before: Dict[str, bytes]) -> None:
    """Brings what was changed. The names are the sandbox's: only plain files, and never through a link of ours."""
    root = project.resolve()
    for entry in session.files.list("project", depth=DEEPEST):
        name = entry.path
        parts = pathlib.PurePosixPath(name).parts
        if not entry.is_file or entry.path_bytes or LEFT_OUT.intersection(parts) or ".." in parts:
            continue
        if entry.size > LARGEST:
            print(f"left in the sandbox, since it is large: {name}", file=sys.stderr)
            continue
        data = session.files.read(f"project/{name}")
        if before.get(name) == data:
            continue
        target = root.joinpath(*parts)
        if target.is_symlink() or not target.parent.resolve().is_relative_to(root):
            print(f"not written, since a link is in the way: {target}", file=sys.stderr)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        print(f"{'changed' if name in before else 'new'}: {project / name}")


def work(session: berth.Session, given: argparse.Namespace, command: List[str]) -> berth.Outcome:
    """Runs the agent on a terminal until it ends."""
    secrets: object = given.secret
    if given.secret_env:
        variable, _, name = given.secret_env.partition("=")
        secrets = {variable: name}
    stream = session.stream(
        command,
        cwd="project" if given.project else "",
        pty=size(),
        env={"TERM": os.environ.get("TERM", "xterm-256color")},
        secrets=secrets,
        timeout=0,
    )
    with stream:
        threading.Thread(target=feed, args=(stream.task,), daemon=True).start()
        with raw_terminal(stream.task):
            for event in stream:
                if isinstance(event, berth.Stdout):
                    sys.stdout.buffer.write(event.data)
                    sys.stdout.buffer.flush()
                elif isinstance(event, berth.Ended):
                    return event.info.end.outcome
    raise berth.BerthError("the agent's output ended without its end")


def main() -> int:
    given, command = parse()
    egress = berth.Egress(allow=given.allow)
    with berth.Client.connect() as client:
        session = client.create_session(template=given.template, ttl=given.ttl, egress=egress)
        try:
            before = copy_in(session, given.project) if given.project else {}
            outcome = work(session, given, command)
            if given.project and not given.no_copy:
                copy_out(session, given.project, before)
        finally:
            if given.keep:
                print(f"kept: berth shell {session.id}", file=sys.stderr)
            else:
                session.delete()
    print(f"the agent {outcome}", file=sys.stderr)
    return outcome.code if outcome.kind == "exited" and outcome.code is not None else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except berth.BerthError as error:
        sys.exit(f"error: {error}")
