-- Whose a checkpoint is: no look-up finds another tenant's. There was one tenant so far.
ALTER TABLE checkpoints ADD COLUMN tenant TEXT NOT NULL DEFAULT 'default';
CREATE INDEX checkpoints_of_tenant ON checkpoints (tenant, id);
