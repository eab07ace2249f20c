"""What is kept and counted beside sessions, as plain values: artifacts, secrets, the audit record, and what a session takes.
Durations are seconds, sizes are bytes, times are `datetime` in UTC."""

from __future__ import annotations

import dataclasses
from typing import List, Mapping, Optional

from .model import Time


@dataclasses.dataclass(frozen=True)
class ArtifactInfo:
    """A file that a task left in /workspace/artifacts, kept past its session."""

    id: str
    """32 lower-case hex digits."""
    session: str
    task: Optional[str]
    """At whose end it was found. None: at its session's."""
    name: str
    """Its path below /workspace/artifacts. A task chose it: any characters but NUL, so it is no path to write to unseen."""
    size: int
    """In bytes."""
    sha256: str
    """64 lower-case hex digits, of the whole content."""
    media_type: str
    """As far as the name tells."""
    created_at: Time
    expires_at: Time
    """When it is removed."""
    tenant: str


@dataclasses.dataclass(frozen=True)
class NotKept:
    """A file that did not become an artifact."""

    name: str
    size: int
    """In bytes."""
    why: str
    """For people."""


@dataclasses.dataclass(frozen=True)
class ArtifactList:
    """Artifacts, and what is to be said of those that are not there."""

    artifacts: List[ArtifactInfo]
    """Newest first."""
    not_kept: List[NotKept]
    """Of one session: what was there and was not kept, at most 100 of them."""
    more_not_kept: int
    """So many more there were."""
    pending: bool
    """What the session's last tasks left may still come: list again."""


@dataclasses.dataclass(frozen=True)
class SecretInfo:
    """A secret as it is listed: all but its value, which nobody is told."""

    tenant: str
    name: str
    bytes: int
    """Of its value."""
    updated_at: Time
    expires_at: Time
    """None: never."""
    unusable: Optional[str]
    """Why tasks can't be given it. None: they can."""


@dataclasses.dataclass(frozen=True)
class AuditRecord:
    """One thing that was done."""

    sequence: int
    """Grows by one with each record."""
    at: Time
    who: str
    """The id of a token, `admin.token`, `join.token`, `-` for Berth itself, or nothing for a call without a good token."""
    tenant: str
    """Whose the session is, or the caller. Empty: nobody's."""
    what: str
    """A call as `Service/Method`, or `task ended`, `session ended`, `egress`, `lost`."""
    session: Optional[str]
    task: Optional[str]
    outcome: str
    """`OK`, a refusal's code and reason, a task's outcome, or why a session ended."""
    details: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class AuditCheck:
    """What looking through the whole record came to."""

    records: int
    first: int
    last: int
    sum: str
    """Of the last record, in hex: kept elsewhere, it tells later whether anything up to here was changed."""
    broken_at: Optional[int]
    """The first record that is not as it was written, or does not follow the one before it. None: there is none."""


@dataclasses.dataclass(frozen=True)
class SessionUsage:
    """One reading of what a session takes: its tasks and contexts together. What can't be counted where the session is, or has no
    limit there, is None."""

    read_at: Time
    """By the clock of the session's worker."""
    cpu_seconds: Optional[float]
    """CPU time since its sandbox was started; a placement begins at zero."""
    cpu_limit_millis: Optional[int]
    """1000 is one CPU."""
    memory_bytes: Optional[int]
    """With page cache, and with files in memory."""
    memory_cache_bytes: Optional[int]
    """Of these: page cache that the kernel takes back when memory is short."""
    memory_peak_bytes: Optional[int]
    memory_limit_bytes: Optional[int]
    pids: Optional[int]
    """Processes and their threads, with up to two that are kept ready for the next tasks."""
    pids_limit: Optional[int]
    disk_bytes: Optional[int]
    """The session's files."""
    disk_limit_bytes: Optional[int]
    inodes: Optional[int]
    inodes_limit: Optional[int]
    tasks: int
    """Tasks that run."""
    tasks_limit: int
    summed: bool
    """Added up over the processes that run, since there are no cgroups for it: near the truth, and no more."""
