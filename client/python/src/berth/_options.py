"""What sessions and commands may be made with, by keyword. All of it may be left out."""

from __future__ import annotations

from typing import Mapping, TypedDict, Union

from .model import CheckpointPolicy, Egress, Limits, PtySize, Seconds
from ._wire import Secrets


class CreateOptions(TypedDict, total=False):
    """Of `create_session`, `session`, `restore` and `fork`."""

    template: str
    """`base` if left out."""
    limits: Limits
    """What is left out comes from the template."""
    env: Mapping[str, str]
    """Variables for every task of the session."""
    labels: Mapping[str, str]
    name: str
    """The label `name`: had by one live session of a tenant at a time."""
    ttl: Seconds
    """Life span from now; 0 is none."""
    idle_timeout: Seconds
    """Ends the session after this long without a running task or a call; 0 is none."""
    egress: Egress
    """What it may reach, in place of the template's."""
    worker_selector: Mapping[str, str]
    """Labels that its worker must have, with these values."""
    priority: int
    """-100 to 100; higher goes first in the queue."""
    wait: Seconds
    """How long to wait for a place (30 s if left out); 0: not at all."""
    task_timeout: Seconds
    """What a task may take that says nothing of it (300 s if left out); 0 is no limit."""
    max_concurrent_tasks: int
    """Tasks that may run at the same time."""
    on_worker_loss: str
    """`end` (if left out), or `restore`: it is placed elsewhere from its newest checkpoint."""
    checkpoints: CheckpointPolicy
    """Checkpoints that are taken without being asked for."""
    request_id: str
    """The same id with the same options within a day is the same session. If left out each call makes its own."""


class CommandOptions(TypedDict, total=False):
    """Of `run`, `stream` and `start`."""

    cwd: str
    """Where it starts: relative to the workspace, or absolute inside the sandbox."""
    env: Mapping[str, str]
    """On top of the session's."""
    timeout: Seconds
    """Wall-clock time that it may take; 0 is no limit. If left out the session's default holds (300 s unless set
    otherwise; none for a detached task)."""
    output_limit: int
    """Bytes on both streams together at which it is ended."""
    spool_bytes: int
    """Bytes kept of each stream on the worker (64 MiB if left out); the oldest go first."""
    pty: Union[bool, PtySize]
    """On a terminal of its own: all output is on stdout, and standard input is open."""
    stdin: bool
    """Keeps standard input open for `Task.write_stdin`."""
    detached: bool
    """Lives on without a watcher."""
    reattach_grace: Seconds
    """How long an attached task lives without a watcher (30 s if left out)."""
    secrets: Secrets
    """Secrets of the tenant's: names, each a file /run/secrets/NAME; or `{VARIABLE: name}`. One that can't be had is an
    error (SECRET_UNUSABLE), and nothing is started."""
    request_id: str
    """The same id in a session starts one task only. If left out each start makes its own."""
    retry_after_recovery: bool
    """Start it again where the answer to the start was lost and the session went back to a checkpoint meanwhile, so that
    nobody knows whether it has run. If left out that is an error (SESSION_RECOVERED, `in_doubt`)."""
