-- One row: who this catalog is. The blob store that it describes carries the same mark.
CREATE TABLE owner (
    id TEXT NOT NULL
) STRICT;
INSERT INTO owner VALUES (lower(hex(randomblob(16))));

-- Checkpoints, and the pieces that they are made of. Times are microseconds since 1970, UTC.
CREATE TABLE checkpoints (
    id         TEXT PRIMARY KEY NOT NULL,
    session_id TEXT NOT NULL,
    -- A berth.v1.Checkpoint.
    shown      BLOB NOT NULL,
    -- JSON: what the session was made with.
    spec       TEXT NOT NULL,
    -- BLAKE3 of the root piece.
    root       BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT;
CREATE INDEX checkpoints_by_session ON checkpoints (session_id, id);
CREATE INDEX checkpoints_by_expiry ON checkpoints (expires_at) WHERE expires_at IS NOT NULL;

-- What is in the blob store. A row comes after its blob and goes before it.
CREATE TABLE pieces (
    id         INTEGER PRIMARY KEY NOT NULL,
    digest     BLOB NOT NULL UNIQUE,
    -- Compressed.
    size       INTEGER NOT NULL,
    -- When somebody last counted on it: what nobody refers to is kept for a while, since a checkpoint that is
    -- being taken was told that it is there.
    touched_at INTEGER NOT NULL,
    -- It was found to be gone or damaged: the next checkpoint that has it brings it again.
    lost       INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE uses (
    checkpoint_id TEXT NOT NULL REFERENCES checkpoints (id) ON DELETE CASCADE,
    piece_id      INTEGER NOT NULL REFERENCES pieces (id),
    PRIMARY KEY (checkpoint_id, piece_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX uses_by_piece ON uses (piece_id);
