-- What a session can be restored from, and what it was restored from last: JSON, or nothing.
ALTER TABLE sessions ADD COLUMN checkpoint TEXT;
ALTER TABLE sessions ADD COLUMN recovered TEXT;
