"""Finding a coordinator: what the environment names, else what `berth up` left on this machine for its users.

The token that is found there is only ever sent to this machine: an address elsewhere, given by hand or by a stray
variable, must not be handed the local administrator's rights.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import pathlib
from typing import Optional, Union

from .errors import BerthError, local_io

#: Where a coordinator listens unless it is told otherwise.
DEFAULT_ADDRESS = "127.0.0.1:50051"

Path = Union[str, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class Target:
    """Where to connect, and as whom."""

    address: str
    """As it was given: `host:port` or a URI."""
    host_port: str
    ca: Optional[bytes]
    """The CA's certificate. None: without TLS."""
    token: Optional[str] = dataclasses.field(repr=False)


def _variable(name: str) -> Optional[str]:
    return os.environ.get(name) or None


def state_dir() -> Optional[pathlib.Path]:
    """BERTH_STATE_DIR, else /var/lib/berth as root, else $XDG_STATE_HOME/berth or ~/.local/state/berth."""
    set_dir = _variable("BERTH_STATE_DIR")
    if set_dir is not None:
        return pathlib.Path(set_dir)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return pathlib.Path("/var/lib/berth")
    xdg = _variable("XDG_STATE_HOME")
    if xdg is not None and os.path.isabs(xdg):
        return pathlib.Path(xdg) / "berth"
    home = _variable("HOME")
    return None if home is None else pathlib.Path(home) / ".local/state/berth"


def find(address: Optional[str], token: Optional[str], ca: Optional[Path]) -> Target:
    """Fills in what is not given."""
    state = state_dir()
    address = address or _variable("BERTH_ADDRESS") or _variable("COORDINATOR_ADDR") or _running(state)
    address = address or DEFAULT_ADDRESS
    token = token or _variable("BERTH_TOKEN")
    if token is None and state is not None and is_loopback(address):
        token = _read_token(state / "credentials" / "admin.token")
    if token is not None and not (token.isascii() and token.isprintable()):
        raise BerthError("the token has characters that no token has")
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    rest = rest[:-1] if separator and rest.endswith("/") else rest
    certificate = _ca(ca, state if scheme == "https" else None)
    if scheme not in ("", "http", "https") or not _is_host_port(rest):
        raise BerthError(f"{address!r} is no address", hint="give host:port, for example localhost:50051")
    if scheme == "https" and certificate is None:
        raise BerthError(f"no CA is known for {address}", hint="set BERTH_TLS_CA to the cluster's ca.pem")
    if scheme == "http" and certificate is not None:
        raise BerthError(
            f"{address} says http://, but certificates are given", hint="write https://, or leave BERTH_TLS_CA out"
        )
    return Target(address=address, host_port=rest, ca=certificate, token=token)


def _is_host_port(text: str) -> bool:
    host, separator, port = text.rpartition(":")
    plain = not any(c.isspace() or c in "/@?#" for c in host)
    return bool(separator and host) and plain and port.isascii() and port.isdigit() and int(port) < 65536


def is_loopback(address: str) -> bool:
    """Whether `address` (`host:port` or a URI) is this machine's loopback."""
    authority = address.partition("://")[2] if "://" in address else address
    authority = authority.split("/")[0]
    # `user@host` would send the call to `host`.
    if "@" in authority:
        return False
    if authority.startswith("["):
        host = authority[1:].split("]")[0]
    else:
        host = authority.rpartition(":")[0] if ":" in authority else authority
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _running(state: Optional[pathlib.Path]) -> Optional[str]:
    """Where the `berth up` of this machine listens, as its record says."""
    if state is None:
        return None
    path = state / "up.json"
    try:
        text = path.read_text()
    # Another user's is as good as none: the address may still be given by hand.
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None
    except OSError as error:
        raise local_io(f"can't read {path}", error) from error
    try:
        address = json.loads(text)["address"]
    except (ValueError, KeyError, TypeError) as error:
        raise BerthError(f"{path} is damaged: {error}") from error
    return str(address)


def _read_token(path: pathlib.Path) -> Optional[str]:
    try:
        text = path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        hint = "run as the user that started Berth, or set BERTH_TOKEN"
        raise local_io(f"can't read the token in {path}", error, hint) from error
    if not text:
        raise BerthError(f"{path} is empty")
    return text


def _ca(given: Optional[Path], state: Optional[pathlib.Path]) -> Optional[bytes]:
    """The CA's certificate: the file that was named, else that of the directory that was named, else that of the state."""
    variable, directory = _variable("BERTH_TLS_CA"), _variable("BERTH_TLS_DIR")
    if given is not None:
        path = pathlib.Path(given)
    elif variable is not None:
        path = pathlib.Path(variable)
    elif directory is not None:
        path = pathlib.Path(directory) / "ca.pem"
    elif state is not None and (state / "tls" / "ca.pem").exists():
        path = state / "tls" / "ca.pem"
    else:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise local_io(f"can't read the CA's certificate in {path}", error) from error
