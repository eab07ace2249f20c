-- Since when a session is paused, and, if it was parked, of when its files are.
ALTER TABLE sessions ADD COLUMN paused_at INTEGER;
ALTER TABLE sessions ADD COLUMN parked_at INTEGER;
