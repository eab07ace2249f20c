# Made by generate.py of aio/_kept.py: don't change it here.
"""What the coordinator keeps beside sessions: artifacts for everybody; secrets and the audit record for operators."""

from __future__ import annotations

import datetime
import hashlib
from typing import Iterator, List, Optional, Union

from .. import _policy, _wire, _wire_records, model, records
from .._proto import artifact_pb2, audit_pb2, secret_pb2
from ..errors import BerthError, strange
from ._caller import Caller
from ._files import READ_LIMIT

#: Asked for at a time.
PAGE = 500
#: The most records of the audit that come in one answer.
AUDIT_PAGE = 1000


class Kept(Caller):
    """The part of `Client` that is about them."""

    def list_artifacts(self, session_id: str = "") -> records.ArtifactList:
        """All artifacts, or those of one session, newest first. The session may have ended; of one that is up, what the tasks
        that have ended left is there when this returns, or the list says that it is `pending`."""
        request = artifact_pb2.ListArtifactsRequest(session_id=session_id, page_size=PAGE)
        first: Optional[artifact_pb2.ListArtifactsResponse] = None
        found: List[records.ArtifactInfo] = []
        while True:
            page: artifact_pb2.ListArtifactsResponse = self._call(
                _policy.repeatable(), self._transport.artifacts.ListArtifacts, request
            )
            first = first or page
            found += [_wire_records.artifact(artifact) for artifact in page.artifacts]
            if not page.next_page_token:
                left_out = [_wire_records.not_kept(file) for file in first.not_kept]
                return records.ArtifactList(found, left_out, first.more_not_kept, first.pending)
            request.page_token = page.next_page_token

    def get_artifact(self, artifact_id: str) -> records.ArtifactInfo:
        """One artifact, but its content. Raises `BerthError`: ARTIFACT_NOT_FOUND."""
        request = artifact_pb2.GetArtifactRequest(artifact_id=artifact_id)
        method = self._transport.artifacts.GetArtifact
        return _wire_records.artifact(self._call(_policy.repeatable(), method, request))

    def read_artifact(self, artifact_id: str, *, offset: int = 0, length: int = 0) -> bytes:
        """Its content, or `length` bytes of it from `offset`; 0 is to the end. At most 256 MiB: `read_artifact_pieces` has no
        limit. It is what a sandbox left: take it as a stranger's."""
        data = bytearray()
        for piece in self.read_artifact_pieces(artifact_id, offset=offset, length=length):
            data += piece
            if len(data) > READ_LIMIT:
                raise BerthError("the artifact is too big to be read into memory", hint="use read_artifact_pieces")
        return bytes(data)

    def read_artifact_pieces(
        self, artifact_id: str, *, offset: int = 0, length: int = 0
    ) -> Iterator[bytes]:
        """The same, piece by piece. When this ends without an error it was all, and what is read whole fits its hash."""
        with _wire.checked():
            request = artifact_pb2.ReadArtifactRequest(artifact_id=artifact_id, offset=offset, length=length)
        stream = self._transport.stream(self._transport.artifacts.ReadArtifact, request)
        try:
            first: Optional[artifact_pb2.ReadArtifactResponse] = stream.next()
            if first is None or not first.HasField("info"):
                raise strange("an artifact's content came without its description")
            rest = max(first.info.size - offset, 0)
            missing = min(length, rest) if length else rest
            hashed = hashlib.sha256()
            while True:
                message: Optional[artifact_pb2.ReadArtifactResponse] = stream.next()
                if message is None:
                    break
                missing -= len(message.data)
                hashed.update(message.data)
                yield message.data
            whole = offset == 0 and length == 0
            if missing != 0 or (whole and hashed.hexdigest() != first.info.sha256):
                raise strange("an artifact's content is not what its description says")
        finally:
            stream.cancel()

    def delete_artifact(self, artifact_id: str) -> None:
        """Deletes an artifact. No error if it is gone already. The file in the workspace stays."""
        request = artifact_pb2.DeleteArtifactRequest(artifact_id=artifact_id)
        self._call(_policy.repeatable(), self._transport.artifacts.DeleteArtifact, request)

    def set_secret(
        self,
        name: str,
        value: Union[bytes, str],
        *,
        tenant: str = "",
        ttl: Optional[model.Seconds] = None,
    ) -> records.SecretInfo:
        """Makes a secret, or gives the one with this name a new value, which the next task has that is given it
        (`secrets` of `Session.run`). For operators: needs a token of scope admin.

        name: 1 to 64 of A-Z, a-z, 0-9, _ and -.
        value: 1 byte to 64 KiB. Nobody is told it again but the tasks.
        tenant: `default` if left out.
        ttl: it expires after this long. If left out never, also where the earlier value did.
        """
        data = value.encode() if isinstance(value, str) else value
        with _wire.checked():
            request = secret_pb2.SetSecretRequest(
                tenant=tenant, name=name, value=data, ttl=_wire.duration_out(ttl)
            )
        return _wire_records.secret(
            self._call(_policy.repeatable(), self._transport.secrets.SetSecret, request)
        )

    def list_secrets(self, tenant: str = "") -> List[records.SecretInfo]:
        """All but their values, by tenant and name; of all tenants if none is named. For operators."""
        request = secret_pb2.ListSecretsRequest(tenant=tenant)
        listed: secret_pb2.ListSecretsResponse = self._call(
            _policy.repeatable(), self._transport.secrets.ListSecrets, request
        )
        return [_wire_records.secret(secret) for secret in listed.secrets]

    def delete_secret(self, name: str, *, tenant: str = "") -> None:
        """Removes a secret. Tasks that have it keep it. For operators. Raises `BerthError`: SECRET_NOT_FOUND."""
        request = secret_pb2.DeleteSecretRequest(tenant=tenant, name=name)
        self._call(_policy.once(), self._transport.secrets.DeleteSecret, request)

    def list_audit(
        self,
        *,
        since: Optional[datetime.datetime] = None,
        until: Optional[datetime.datetime] = None,
        who: str = "",
        tenant: str = "",
        what: str = "",
        session_id: str = "",
        task_id: str = "",
        refused: bool = False,
        most: int = 1000,
    ) -> List[records.AuditRecord]:
        """What was done, by whom, and what came of it: the newest `most` records that fit, newest first. For operators: needs
        a token of scope admin.

        since, until: a `datetime` with its zone.
        who: the id of a token, or the name of a credential file (`admin.token`).
        what: how it begins, such as `TaskService/` or `session ended`.
        refused: only calls that were refused or failed.
        """
        if most < 1:
            raise BerthError("most is at least 1")
        request = audit_pb2.ListAuditRequest(
            since=_wire_records.time_out(since),
            until=_wire_records.time_out(until),
            who=who,
            tenant=tenant,
            what=what,
            session_id=session_id,
            task_id=task_id,
            refused=refused,
        )
        found: List[records.AuditRecord] = []
        while len(found) < most:
            request.page_size = min(most - len(found), AUDIT_PAGE)
            page: audit_pb2.ListAuditResponse = self._call(
                _policy.repeatable(), self._transport.audit.ListAudit, request
            )
            found += [_wire_records.audit_record(record) for record in page.records]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return found

    def verify_audit(self) -> records.AuditCheck:
        """Whether the audit record is as it was written: reads all of it. For operators."""
        request = audit_pb2.VerifyAuditRequest()
        method = self._transport.audit.VerifyAudit
        return _wire_records.audit_check(self._call(_policy.repeatable(_policy.TREE), method, request))
