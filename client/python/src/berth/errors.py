"""What goes wrong, as one exception: a gRPC code, a machine-readable reason, a message and a hint for people.

What a server said goes through as it said it: the reason travels in `google.rpc.ErrorInfo` (domain `berth`), the hint in
its metadata. What the transport says ("failed to connect to all addresses") is turned into words that name the address
and what to do.
"""

from __future__ import annotations

import enum
from typing import Dict, Iterable, Optional, Tuple, Union

import grpc

from ._proto import status_pb2
from ._reason import Reason as Reason

#: Domain of Berth's `google.rpc.ErrorInfo`.
DOMAIN = "berth"


class Origin(enum.Enum):
    """Where an error came about."""

    ANSWERED = "answered"
    """A server answered with it."""
    NOT_CONNECTED = "not connected"
    """No connection came up: nothing was sent."""
    BROKEN = "broken"
    """The connection broke: what was sent may have been done."""
    LOCAL = "local"
    """Found on this side, before or after the call."""


class BerthError(Exception):
    """What went wrong with a call."""

    code: grpc.StatusCode
    """The gRPC code."""
    reason: Optional[str]
    """Why, for programs: a `Reason`. None: not one of Berth's own answers."""
    message: str
    """Why, for people."""
    hint: str
    """What the reader may do about it. Always there."""
    details: Dict[str, str]
    """More for programs, e.g. `first_kept` of OUTPUT_LOST."""
    origin: Origin
    """Where it came about."""
    cause: Optional[str]
    """What the transport said, for a log."""
    request_id: Optional[str]
    """Of the request that failed: the logs of all components tell of it under this id, and a trace has it. None: no server
    answered."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        reason: Optional[str] = None,
        hint: Optional[str] = None,
        details: Optional[Dict[str, str]] = None,
        origin: Origin = Origin.LOCAL,
        cause: Optional[str] = None,
        request_id: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = _known(reason)
        self.message = message
        self.hint = hint or _usual_hint(code, origin)
        self.details = details or {}
        self.origin = origin
        self.cause = cause
        self.request_id = request_id
        self._doubt = False

    def __str__(self) -> str:
        reason = f" [{str.__str__(self.reason)}]" if self.reason else ""
        request = f"\nrequest: {self.request_id}" if self.request_id else ""
        return f"{self.message}{reason}\nhint: {self.hint}{request}"

    def __repr__(self) -> str:
        return f"BerthError({self.code.name}/{str.__str__(self.reason or '-')}: {self.message!r})"

    @property
    def is_not_connected(self) -> bool:
        """No connection came up: the call was certainly not made."""
        return self.origin is Origin.NOT_CONNECTED

    @property
    def is_temporary(self) -> bool:
        """The way to the session is interrupted: the same call, if it is safe to repeat, may work in a moment."""
        return self.code is grpc.StatusCode.UNAVAILABLE

    @property
    def in_doubt(self) -> bool:
        """Whether the call may have been carried out all the same: it was sent, and its answer was lost."""
        return self._doubt or self.origin is Origin.BROKEN

    @property
    def was_lost(self) -> bool:
        """Whether it may have been carried out: it was sent, and who answers did not carry it out itself."""
        relayed = self.reason in (None, Reason.WORKER_UNREACHABLE, Reason.AGENT_UNREACHABLE)
        answered = self.origin is Origin.ANSWERED and self.is_temporary and relayed
        return self.origin is Origin.BROKEN or answered

    def doubtful(self, what: Optional[str] = None) -> BerthError:
        """Says of itself that an earlier try may have been carried out."""
        if what is not None:
            self.message += f" (an earlier try was not answered: whether the {what} is not known)"
        self._doubt = True
        return self


def _known(reason: Optional[str]) -> Optional[str]:
    return Reason(reason) if reason in Reason.__members__ else reason


def _usual_hint(code: grpc.StatusCode, origin: Origin) -> str:
    """Where nothing more fitting was said."""
    if origin is Origin.LOCAL:
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return "correct that value, and try again"
        return "look at the path, at who may use it, and at the space on its disk"
    if code.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"):
        return "try again in a moment; `berth info` shows whether the coordinator answers, its log what became of it"
    if code.name in ("INVALID_ARGUMENT", "OUT_OF_RANGE"):
        return "correct the request; berth/v1/*.proto says what it takes"
    if code.name == "PERMISSION_DENIED":
        return "use the token in <state>/credentials of the coordinator that you call"
    if code.name == "UNIMPLEMENTED":
        return "is this the address of a Berth coordinator, and of this version?"
    return "see the coordinator's log"


def strange(what: str) -> BerthError:
    """An answer that this package does not understand."""
    return BerthError(
        f"the coordinator's answer makes no sense: {what}",
        code=grpc.StatusCode.INTERNAL,
        hint="are both of the same version? See `berth info`",
    )


def broken(address: str, cause: str) -> BerthError:
    """The connection broke, or a stream did."""
    return BerthError(
        f"the connection to the coordinator at {address} broke",
        code=grpc.StatusCode.UNAVAILABLE,
        hint="is it still running? See `berth status`, or its log",
        origin=Origin.BROKEN,
        cause=cause,
    )


def not_connected(address: str, cause: str) -> BerthError:
    """Nothing answers at this address, or what does is no coordinator that can be trusted."""
    for said, message, hint in _HANDSHAKE:
        if said in cause:
            message = f"no connection to the coordinator at {address}: {message}"
            break
    else:
        message = f"no coordinator answers at {address}"
        hint = "start one with `berth up`, or set COORDINATOR_ADDR"
    return BerthError(
        message, code=grpc.StatusCode.UNAVAILABLE, hint=hint, origin=Origin.NOT_CONNECTED, cause=cause
    )


def closed() -> BerthError:
    """A call through a client that was closed: it was not made."""
    return BerthError("the client is closed", code=grpc.StatusCode.FAILED_PRECONDITION, hint="connect anew")


def deadline(address: str, after: float) -> BerthError:
    """No answer came in time."""
    return BerthError(
        f"the coordinator at {address} did not answer within {after:.0f} s",
        code=grpc.StatusCode.DEADLINE_EXCEEDED,
        hint="see its log, and `berth workers` for the state of the fleet",
        origin=Origin.BROKEN,
    )


def local_io(what: str, error: OSError, hint: Optional[str] = None) -> BerthError:
    """Something of this machine."""
    return BerthError(f"{what}: {error.strerror}", code=grpc.StatusCode.UNKNOWN, hint=hint)


def output_lost(stream: str, start: int, end: int) -> BerthError:
    """Output was asked for that is no longer kept."""
    return BerthError(
        f"bytes {start} to {end} of {stream} are no longer kept",
        code=grpc.StatusCode.OUT_OF_RANGE,
        reason=Reason.OUTPUT_LOST,
        hint="watch from that offset, or with skip_lost=True",
        details={"first_kept": str(end)},
    )


#: What the port says to one who comes without TLS.
_WANTS_TLS = "this port has TLS"
#: What gRPC says of a connection that did not come up, and what that means.
_HANDSHAKE = [
    (_WANTS_TLS, _WANTS_TLS, "write https://host:port, and set BERTH_TLS_CA to the cluster's ca.pem (`berth tls`)"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not one that this CA vouches for under this name",
        "set BERTH_TLS_CA to the ca.pem of that very cluster, and use a name that its certificate has",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "what answers there has no TLS",
        "leave https:// and BERTH_TLS_CA out, or start the coordinator with BERTH_TLS_DIR",
    ),
]
_NO_CONNECTION = ("failed to connect to all addresses", "DNS resolution failed", "Connection refused", _WANTS_TLS)

Metadata = Iterable[Tuple[str, Union[str, bytes]]]


def from_status(
    code: grpc.StatusCode, said: str, trailing: Optional[Metadata], address: str, waited: Optional[float] = None
) -> BerthError:
    """The error that a status of the wire says. `waited`: the deadline of the call, in seconds."""
    info = _error_info(trailing)
    if info is not None:
        details = dict(info.metadata)
        hint = details.pop("hint", None)
        if code is grpc.StatusCode.UNAUTHENTICATED:
            # The server's own hint is for those who speak gRPC by hand.
            hint = "set BERTH_TOKEN, or use the machine and user that ran `berth up`"
        return BerthError(
            said or code.name,
            code=code,
            reason=info.reason,
            hint=hint,
            details=details,
            origin=Origin.ANSWERED,
            request_id=_request_id(trailing),
        )
    if any(text in said for text in _NO_CONNECTION):
        return not_connected(address, said)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and waited is not None:
        return deadline(address, waited)
    # What gRPC says where the stream or its connection was reset: no status came.
    reset = code is grpc.StatusCode.INTERNAL and "RST_STREAM" in said
    if reset or code.name in ("UNAVAILABLE", "UNKNOWN", "CANCELLED"):
        return broken(address, said)
    hint = "set BERTH_TOKEN" if code is grpc.StatusCode.UNAUTHENTICATED else None
    request_id = _request_id(trailing)
    return BerthError(said or code.name, code=code, hint=hint, origin=Origin.ANSWERED, request_id=request_id)


def _request_id(trailing: Optional[Metadata]) -> Optional[str]:
    return next((value for key, value in trailing or () if key == "berth-request-id" and isinstance(value, str)), None)


def _error_info(trailing: Optional[Metadata]) -> Optional[status_pb2.ErrorInfo]:
    """Berth's own, if the status has it."""
    for key, value in trailing or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                    info = status_pb2.ErrorInfo.FromString(detail.value)
                    if info.domain == DOMAIN:
                        return info
        except Exception:  # protobuf's DecodeError has no stable home: what can't be read says nothing.
            return None
    return None
