-- The order in which a session's checkpoints were taken. Neither their times nor their ids tell it for sure: both follow
-- the wall clock, which may have been put back.
ALTER TABLE checkpoints ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
UPDATE checkpoints SET number = rowid;
CREATE INDEX checkpoints_in_order ON checkpoints (session_id, number);

-- One row: until when time is known to have passed (microseconds since 1970). See checkpoints/steady.rs.
CREATE TABLE clock (
    one INTEGER PRIMARY KEY NOT NULL CHECK (one = 1),
    at  INTEGER NOT NULL
) STRICT;
