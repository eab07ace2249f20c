-- Who did what. Rows are added, and the oldest go when their time is over; none is ever changed.
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL, -- microseconds of the Unix epoch
    who      TEXT NOT NULL,
    tenant   TEXT NOT NULL,
    what     TEXT NOT NULL,
    session  TEXT NOT NULL,
    task     TEXT NOT NULL,
    outcome  TEXT NOT NULL,
    details  TEXT NOT NULL,    -- JSON
    sum      BLOB NOT NULL     -- SHA-256 over the sum of the row before and all of this one
) STRICT;
CREATE INDEX audit_session ON audit (session, sequence) WHERE session != '';
CREATE INDEX audit_at ON audit (at);

CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'an audit record is never changed'); END;

-- What the oldest row that is left follows.
CREATE TABLE audit_start (one INTEGER PRIMARY KEY CHECK (one = 1), sequence INTEGER NOT NULL, sum BLOB NOT NULL) STRICT;
INSERT INTO audit_start VALUES (1, 0, x'0000000000000000000000000000000000000000000000000000000000000000');
