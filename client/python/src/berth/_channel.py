"""What both clients tell gRPC of their connection."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple, Union

import grpc

from ._local import Target

#: Time for a connection to come up, in seconds.
CONNECT_TIMEOUT = 5.0
#: Asked when a client connects: open to everybody, and of no service in particular.
HEALTH = "/grpc.health.v1.Health/Check"

Option = Tuple[str, Union[int, str]]

OPTIONS: List[Option] = [
    # Larger data comes in pieces.
    ("grpc.max_receive_message_length", 4 << 20),
    # A silent connection is probed, and given up when the probe has no answer: else a healed partition is never noticed.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # After a break streams are resumed within a window: the connection must be tried more often than by default.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # What is repeated, and when, is decided here: see _policy.py.
    ("grpc.enable_retries", 0),
    # The token goes to the coordinator and to nobody else.
    ("grpc.enable_http_proxy", 0),
    # Two clients are two connections.
    ("grpc.use_local_subchannel_pool", 1),
]


def metadata(target: Target) -> Optional[Sequence[Tuple[str, str]]]:
    """The token, as each call carries it."""
    return None if target.token is None else [("authorization", f"Bearer {target.token}")]


def credentials(target: Target) -> Optional[grpc.ChannelCredentials]:
    """Whom to trust. None: without TLS."""
    return None if target.ca is None else grpc.ssl_channel_credentials(root_certificates=target.ca)
