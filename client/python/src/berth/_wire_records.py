"""Messages of artifacts, secrets, the audit record and usage as values: what `_wire` is for the rest."""

from __future__ import annotations

import datetime
from typing import Any, Optional

from google.protobuf.timestamp_pb2 import Timestamp

from . import records
from ._proto import artifact_pb2, audit_pb2, secret_pb2, task_pb2
from ._wire import time_in
from .errors import BerthError

_EPOCH = datetime.datetime.fromtimestamp(0, datetime.timezone.utc)


def time_out(value: Optional[datetime.datetime]) -> Optional[Timestamp]:
    """A time. None stays None, which leaves the field out."""
    if value is None:
        return None
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        hint = "give a datetime with its zone, such as datetime.now(timezone.utc) - timedelta(hours=1)"
        raise BerthError(f"{value!r} is no time that means one moment", hint=hint)
    whole, part = divmod((value - _EPOCH) // datetime.timedelta(microseconds=1), 1_000_000)
    return Timestamp(seconds=whole, nanos=part * 1000)


def artifact(wire: artifact_pb2.Artifact) -> records.ArtifactInfo:
    """An artifact."""
    return records.ArtifactInfo(
        id=wire.id,
        session=wire.session_id,
        task=wire.task_id or None,
        name=wire.name,
        size=wire.size,
        sha256=wire.sha256,
        media_type=wire.media_type,
        created_at=time_in(wire, "created_at"),
        expires_at=time_in(wire, "expires_at"),
        tenant=wire.tenant,
    )


def not_kept(wire: artifact_pb2.NotKept) -> records.NotKept:
    """A file that did not become an artifact."""
    return records.NotKept(wire.name, wire.size, wire.why)


def secret(wire: secret_pb2.Secret) -> records.SecretInfo:
    """A secret, but its value."""
    return records.SecretInfo(
        tenant=wire.tenant,
        name=wire.name,
        bytes=wire.bytes,
        updated_at=time_in(wire, "updated_at"),
        expires_at=time_in(wire, "expires_at"),
        unusable=wire.unusable or None,
    )


def audit_record(wire: audit_pb2.AuditRecord) -> records.AuditRecord:
    """One thing that was done."""
    return records.AuditRecord(
        sequence=wire.sequence,
        at=time_in(wire, "at"),
        who=wire.who,
        tenant=wire.tenant,
        what=wire.what,
        session=wire.session_id or None,
        task=wire.task_id or None,
        outcome=wire.outcome,
        details=dict(wire.details),
    )


def audit_check(wire: audit_pb2.VerifyAuditResponse) -> records.AuditCheck:
    """Whether the record is as it was written."""
    return records.AuditCheck(wire.records, wire.first, wire.last, wire.sum, _optional(wire, "broken_at"))


def _optional(message: Any, field: str) -> Optional[int]:
    return getattr(message, field) if message.HasField(field) else None


def session_usage(wire: task_pb2.SessionUsage) -> records.SessionUsage:
    """What a session takes."""
    micros = _optional(wire, "cpu_micros")
    return records.SessionUsage(
        read_at=time_in(wire, "read_at"),
        cpu_seconds=None if micros is None else micros / 1e6,
        cpu_limit_millis=_optional(wire, "cpu_limit_millis"),
        memory_bytes=_optional(wire, "memory_bytes"),
        memory_cache_bytes=_optional(wire, "memory_cache_bytes"),
        memory_peak_bytes=_optional(wire, "memory_peak_bytes"),
        memory_limit_bytes=_optional(wire, "memory_limit_bytes"),
        pids=_optional(wire, "pids"),
        pids_limit=_optional(wire, "pids_limit"),
        disk_bytes=_optional(wire, "disk_bytes"),
        disk_limit_bytes=_optional(wire, "disk_limit_bytes"),
        inodes=_optional(wire, "inodes"),
        inodes_limit=_optional(wire, "inodes_limit"),
        tasks=wire.tasks,
        tasks_limit=wire.tasks_limit,
        summed=wire.summed,
    )
