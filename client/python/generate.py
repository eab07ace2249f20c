"""Makes what is made of something else: the messages and stubs of the protos, the reasons of errors, and the sync client of
the async one.

    python generate.py            writes it
    python generate.py --check    changes nothing; says what is stale, and ends with 1 if anything is

`scripts/python-proto.sh` calls it with the version of grpcio-tools that the package is made with: another one makes other
files. They are committed, so that whoever installs the package needs neither.

The async client is the one that is written by hand: what it says with `await` the sync one says without. What differs in
more than that is in `_transport.py`, of which there are two.
"""

import difflib
import pathlib
import re
import sys
import tempfile
from typing import Dict, List

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE / "src" / "berth"
PROTOS = HERE.parent.parent / "proto"
#: What a client of the coordinator needs.
SERVICES = [
    "common",
    "session",
    "task",
    "file",
    "checkpoint",
    "interpreter",
    "port",
    "artifact",
    "secret",
    "audit",
]
#: The modules of the async client that have a sync twin.
TWINS = ["_caller", "_client", "_files", "_interpreter", "_kept", "_ports", "_session", "_stream", "_task"]
#: Tests of the async client, and what those of the sync one are called.
TESTS = {"aio_case": "case", "test_aio_client": "test_client", "test_aio_services": "test_services"}
HEAD = "# Made by generate.py of {what}: don't change it here.\n"

REASONS = '''
import enum


class Reason(str, enum.Enum):
    """Why a call failed: a closed set, for programs. A newer server may know more; `BerthError.reason` is then its text."""

'''

#: How async becomes sync, one after the other.
SYNC = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"__a(enter|exit|iter|next)__", r"__\1__"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bAsync(Iterator|Iterable)\b", r"\1"),
    (r"\bberth\.aio\b", "berth"),
    # Of the tests.
    (r"\baio_case\b", "case"),
    (r"\bIsolatedAsyncioTestCase\b", "TestCase"),
    (r"\basync(SetUp|TearDown)\b", lambda match: match[1][0].lower() + match[1][1:]),
]


def protos(out: pathlib.Path) -> Dict[str, str]:
    """The messages and stubs, flat, with imports that work in the package."""
    from importlib import resources

    from grpc_tools import protoc

    known = str(resources.files("grpc_tools").joinpath("_proto"))
    files = [str(PROTOS / "berth" / "v1" / f"{name}.proto") for name in SERVICES]
    made = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{known}", *made, *files]) != 0:
        sys.exit("protoc failed")
    own = [f"--python_out={out}", f"--pyi_out={out}", str(HERE / "proto" / "status.proto")]
    if protoc.main(["protoc", f"-I{HERE / 'proto'}", f"-I{known}", *own]) != 0:
        sys.exit("protoc failed")
    texts = {}
    for path in sorted(out.rglob("*.py*")):
        text = re.sub(r"^from berth\.v1 import ", "from berth._proto import ", path.read_text(), flags=re.M)
        # A module that only has messages has nothing to serve.
        if path.name.endswith("_pb2_grpc.py") and "Stub" not in text:
            continue
        texts[f"_proto/{path.name}"] = text
    texts["_proto/__init__.py"] = '"""Messages and stubs, generated from the protos."""\n'
    return texts


def reasons() -> Dict[str, str]:
    """Why a call may fail, as the server says it."""
    known = re.findall(r'^    \w+ = "([A-Z_]+)": "([^"]*)",$', (PROTOS / "src" / "error.rs").read_text(), flags=re.M)
    if not known:
        sys.exit("proto/src/error.rs has no reasons that this can read")
    lines = [f'    {name} = "{name}"\n    """{about}"""\n' for name, about in known]
    return {"_reason.py": HEAD.format(what="proto/src/error.rs") + REASONS + "".join(lines)}


def sync_of(text: str) -> str:
    """The sync twin of a module."""
    for pattern, by in SYNC:
        text = re.sub(pattern, by, text)
    return text


def twins() -> Dict[str, str]:
    """The sync client."""
    texts = {}
    for name in TWINS:
        text = (PACKAGE / "aio" / f"{name}.py").read_text()
        texts[f"_sync/{name}.py"] = HEAD.format(what=f"aio/{name}.py") + sync_of(text)
    # The tests of the one are those of the other.
    for name, twin in TESTS.items():
        text = (HERE / "tests" / f"{name}.py").read_text()
        texts[f"../../tests/{twin}.py"] = HEAD.format(what=f"{name}.py") + sync_of(text)
    return texts


def main(check: bool) -> int:
    with tempfile.TemporaryDirectory() as out:
        wanted = {**protos(pathlib.Path(out)), **reasons(), **twins()}
    stale: List[str] = []
    there = [path for path in (PACKAGE / "_proto").glob("*.py*")]
    for path in there:
        if f"_proto/{path.name}" not in wanted:
            stale.append(f"_proto/{path.name} is made of nothing any more")
            if not check:
                path.unlink()
    for name, text in wanted.items():
        path = PACKAGE / name
        old = path.read_text() if path.exists() else ""
        if old == text:
            continue
        lines = difflib.unified_diff(old.splitlines(), text.splitlines(), "there", "made", lineterm="", n=0)
        stale.append(f"{name} is stale:\n" + "\n".join(list(lines)[:12]))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if check and stale:
        print("\n".join(stale), "\nscripts/python-proto.sh makes them anew", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
