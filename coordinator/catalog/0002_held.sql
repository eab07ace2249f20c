-- A parked session has its files in this checkpoint alone: it stays, whatever its retention says, until it is let go.
ALTER TABLE checkpoints ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
CREATE INDEX checkpoints_held ON checkpoints (held) WHERE held = 1;
