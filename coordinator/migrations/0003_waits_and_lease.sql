-- Since when and until when a session waits for a place, or last waited. Absent in rows of before.
ALTER TABLE sessions ADD COLUMN waits_since INTEGER;
ALTER TABLE sessions ADD COLUMN waits_until INTEGER;

-- One row at most: the longest lease (microseconds) that some worker may still hold sessions under.
CREATE TABLE lease (
    one      INTEGER PRIMARY KEY NOT NULL CHECK (one = 1),
    promised INTEGER NOT NULL
) STRICT;
