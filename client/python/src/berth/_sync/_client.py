# Made by generate.py of aio/_client.py: don't change it here.
"""Connecting, and what is asked of the coordinator as a whole: sessions and checkpoints. (`_kept`: what else it keeps.)"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Iterable, List, Mapping, Optional, Type

from .. import _local, _policy, _wire, model
from .._proto import checkpoint_pb2, session_pb2
from ._kept import Kept
from ._session import Session, SessionContext
from ._transport import Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CreateOptions


class Client(Kept):
    """A connection to a coordinator. It comes up again by itself after a break.

    Every method raises `berth.BerthError`. A call that is safe to repeat is repeated, briefly, when the connection
    breaks; one that is not gets an id by which the server knows it.
    """

    def __init__(self, transport: Transport, resume_for: float) -> None:
        """Use `connect`."""
        super().__init__(transport)
        self._resume_for = resume_for

    @classmethod
    def connect(
        cls,
        address: Optional[str] = None,
        *,
        token: Optional[str] = None,
        ca: Optional[_local.Path] = None,
        resume_for: model.Seconds = 30,
    ) -> Client:
        """Connects, or says that nothing answers there.

        What is not given is found as the command line finds it: the address in BERTH_ADDRESS or COORDINATOR_ADDR, else
        where the `berth up` of this machine listens; the token in BERTH_TOKEN, else, for an address on this machine,
        that of BERTH_STATE_DIR; the CA's certificate in BERTH_TLS_CA or BERTH_TLS_DIR, else, for an `https://` address,
        in BERTH_STATE_DIR.

        address: `host:port` or a URI; `https://` is over TLS.
        ca: path of the certificate of the CA that issued the coordinator's (`ca.pem` of `berth tls init`).
        resume_for: how long an interrupted stream tries to resume, counted from the last sign of life.
        """
        within = model.seconds(resume_for)
        transport = Transport(_local.find(address, token, ca))
        try:
            transport.ready()
        except BaseException:
            transport.close()
            raise
        return cls(transport, within)

    @property
    def address(self) -> str:
        """The address that it was given, or found."""
        return self._transport.target.address

    def close(self) -> None:
        """Ends the connection. Sessions live on."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def session(self, **options: Unpack[CreateOptions]) -> SessionContext:
        """A session for the length of a `with`: made at its beginning, deleted at its end.

            with client.session(ttl=600) as session:
                print((session.run("uname -a")).stdout_text)

        The options are those of `create_session`.
        """
        return SessionContext(self, options)

    def create_session(self, **options: Unpack[CreateOptions]) -> Session:
        """Makes a session and waits until it is ready. It lives until it is deleted or its life span is over.

        template: `base` if left out.
        limits: `Limits`; what is left out comes from the template.
        env: variables for every task of the session.
        labels: names and values to find it by.
        name: the label `name`, had by one live session of a tenant at a time.
        ttl: its life span; 0 is none.
        idle_timeout: ends it after this long without a running task or a call; 0 is none.
        egress: `Egress`, what it may reach, in place of the template's.
        worker_selector: labels that its worker must have, with these values.
        priority: -100 to 100; higher goes first in the queue.
        wait: how long to wait for a place (30 s if left out); 0: not at all.
        task_timeout: what a task may take that says nothing of it (300 s if left out); 0 is no limit.
        max_concurrent_tasks: tasks that may run at the same time.
        on_worker_loss: `end` (if left out) or `restore`.
        checkpoints: `CheckpointPolicy`.
        request_id: the same id with the same options within a day is the same session.

        Spans of time are seconds or a `timedelta`.
        Raises `BerthError`: NO_PLACE, QUEUE_FULL, NAME_TAKEN, TEMPLATE_NOT_FOUND, QUOTA_EXCEEDED and others.
        """
        request = _wire.create_request(**options)
        # Its request id makes it safe to repeat.
        policy = _policy.repeatable(_patience(request) + _policy.START)
        wire: session_pb2.Session = self._call(policy, self._transport.sessions.CreateSession, request)
        return Session(self, wire.id, wire.epoch)

    def attach(self, session_id: str) -> Session:
        """A handle for a session that is there already. Asks nothing of the server."""
        return Session(self, session_id)

    def get_session(self, session_id: str) -> model.SessionInfo:
        """What the coordinator knows of a session now. Raises `BerthError`: SESSION_NOT_FOUND."""
        return self.attach(session_id).info()

    def list_sessions(
        self, *, labels: Optional[Mapping[str, str]] = None, states: Iterable[str] = ()
    ) -> List[model.SessionInfo]:
        """Sessions with all of these labels, in one of these states (all but `ended` if left out), newest first."""
        request = session_pb2.ListSessionsRequest(
            labels=labels, states=_wire.session_states(states), page_size=500
        )
        found: List[model.SessionInfo] = []
        while True:
            page: session_pb2.ListSessionsResponse = self._call(
                _policy.repeatable(), self._transport.sessions.ListSessions, request
            )
            found += [_wire.session_info(session) for session in page.sessions]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def delete_session(self, session_id: str, *, skip_checkpoint: bool = False) -> model.SessionInfo:
        """Ends a session and removes its files. No error if it has ended already."""
        return self.attach(session_id).delete(skip_checkpoint=skip_checkpoint)

    def list_checkpoints(self, session_id: str = "") -> List[model.CheckpointInfo]:
        """All checkpoints, or those of one session, newest first. The session may have ended."""
        request = checkpoint_pb2.ListCheckpointsRequest(session_id=session_id, page_size=500)
        found: List[model.CheckpointInfo] = []
        while True:
            page: checkpoint_pb2.ListCheckpointsResponse = self._call(
                _policy.repeatable(), self._transport.checkpoints.ListCheckpoints, request
            )
            found += [_wire.checkpoint_info(checkpoint) for checkpoint in page.checkpoints]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def get_checkpoint(self, checkpoint_id: str) -> model.CheckpointInfo:
        """One checkpoint. Raises `BerthError`: CHECKPOINT_NOT_FOUND."""
        request = checkpoint_pb2.GetCheckpointRequest(checkpoint_id=checkpoint_id)
        method = self._transport.checkpoints.GetCheckpoint
        return _wire.checkpoint_info(self._call(_policy.repeatable(), method, request))

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Deletes a checkpoint. No error if it is gone already. Raises `BerthError`: CHECKPOINT_IN_USE."""
        request = checkpoint_pb2.DeleteCheckpointRequest(checkpoint_id=checkpoint_id)
        self._call(_policy.repeatable(), self._transport.checkpoints.DeleteCheckpoint, request)

    def restore(self, checkpoint_id: str, **options: Unpack[CreateOptions]) -> Session:
        """Makes a session of a checkpoint and waits until it is ready.

        The options are those of `create_session`. What they leave out stays as it was: template (no other is possible),
        limits, env, labels but the name, task defaults. Life span and idle timeout are the template's.
        """
        request = checkpoint_pb2.RestoreSessionRequest(
            checkpoint_id=checkpoint_id, session=_wire.create_request(**options)
        )
        policy = _policy.repeatable(_patience(request.session) + _policy.RESTORE)
        wire: session_pb2.Session = self._call(policy, self._transport.checkpoints.RestoreSession, request)
        return Session(self, wire.id, wire.epoch)

    def __repr__(self) -> str:
        return f"Client({self.address!r})"


def _patience(request: session_pb2.CreateSessionRequest) -> float:
    """How long a new session waits for a place, in seconds."""
    if not request.HasField("wait_for_place"):
        return _policy.WAIT_FOR_PLACE
    return float(request.wait_for_place.seconds + 1)
