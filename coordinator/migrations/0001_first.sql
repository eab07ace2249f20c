-- What workers can't tell us after a restart. Times are microseconds since 1970, UTC.
CREATE TABLE sessions (
    id           TEXT PRIMARY KEY NOT NULL,
    state        TEXT NOT NULL,
    epoch        INTEGER NOT NULL,
    worker_id    TEXT,
    backend      TEXT NOT NULL,
    end_reason   TEXT,
    message      TEXT NOT NULL,
    labels       TEXT NOT NULL,
    -- JSON: what the session was made with. Its env is emptied when the session ends.
    spec         TEXT NOT NULL,
    idle_timeout INTEGER,
    created_at   INTEGER NOT NULL,
    ready_at     INTEGER,
    ended_at     INTEGER,
    expires_at   INTEGER
) STRICT;

CREATE TABLE request_keys (
    key        TEXT PRIMARY KEY NOT NULL,
    body       BLOB NOT NULL,
    session_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE workers (
    id          TEXT PRIMARY KEY NOT NULL,
    incarnation INTEGER NOT NULL,
    scheduling  TEXT NOT NULL,
    drain_until INTEGER
) STRICT;

-- Finished tasks, for answers after their session's end. Ids grow with time.
CREATE TABLE tasks (
    session_id TEXT NOT NULL,
    id         TEXT NOT NULL,
    -- A berth.v1.Task.
    summary    BLOB NOT NULL,
    PRIMARY KEY (session_id, id)
) STRICT, WITHOUT ROWID;
