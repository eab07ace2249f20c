-- Artifacts: files that tasks left, kept past their session. Times are microseconds since 1970, UTC, but for a file's own.
CREATE TABLE artifacts (
    -- The order in which they were made.
    number     INTEGER PRIMARY KEY NOT NULL,
    id         TEXT NOT NULL UNIQUE,
    tenant     TEXT NOT NULL,
    session_id TEXT NOT NULL,
    -- As it came.
    name       TEXT NOT NULL,
    size       INTEGER NOT NULL,
    sha256     BLOB NOT NULL,
    -- Nanoseconds since 1970: the file's, when it was last found to have this content.
    modified   INTEGER NOT NULL,
    -- A berth.v1.Artifact.
    shown      BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    -- Of one that was removed, or whose time is over, the row stays while its session is up: its file is not new.
    gone       INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX artifacts_of_session ON artifacts (session_id, name, number);
CREATE INDEX artifacts_of_tenant ON artifacts (tenant, id);
CREATE INDEX artifacts_by_expiry ON artifacts (expires_at) WHERE gone = 0;

-- Their content, in pieces of 1 MiB.
CREATE TABLE artifact_pieces (
    artifact_id TEXT NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    at          INTEGER NOT NULL,
    piece_id    INTEGER NOT NULL REFERENCES pieces (id),
    PRIMARY KEY (artifact_id, at)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifact_pieces_by_piece ON artifact_pieces (piece_id);

-- What a session's last look left out.
CREATE TABLE looks (
    session_id TEXT PRIMARY KEY NOT NULL,
    tenant     TEXT NOT NULL,
    -- A berth.v1.ListArtifactsResponse with nothing else in it.
    left_out   BLOB NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
