-- API tokens and the credentials of workers. Never a token itself: its SHA-256.
CREATE TABLE tokens (
    id         TEXT PRIMARY KEY NOT NULL,
    digest     BLOB NOT NULL,
    name       TEXT NOT NULL,
    -- client, admin, join, or worker: a worker's own credential.
    kind       TEXT NOT NULL,
    tenant     TEXT NOT NULL,
    worker_id  TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    -- Workers that may still register with it. NULL: any number.
    uses_left  INTEGER,
    -- The token that the worker registered with.
    issued_by  TEXT,
    -- 1: the worker has its credential, and is given no other.
    kept       INTEGER NOT NULL,
    sum        INTEGER
) STRICT;

-- What a tenant may have. NULL: no limit.
CREATE TABLE quotas (
    tenant             TEXT PRIMARY KEY NOT NULL,
    sessions           INTEGER,
    cpu_millis         INTEGER,
    memory_bytes       INTEGER,
    disk_bytes         INTEGER,
    streams            INTEGER,
    creates_per_minute INTEGER,
    sum                INTEGER
) STRICT;

-- Request ids are each tenant's own. There was one tenant so far.
UPDATE request_keys SET key = 'default/' || key, sum = NULL;
