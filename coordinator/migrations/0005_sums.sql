-- A sum over the other columns of its row (store/sums.rs): a bit that flips inside a value is found. Absent in rows of
-- before; those but of tasks get theirs at the next start.
ALTER TABLE sessions ADD COLUMN sum INTEGER;
ALTER TABLE workers ADD COLUMN sum INTEGER;
ALTER TABLE request_keys ADD COLUMN sum INTEGER;
ALTER TABLE lease ADD COLUMN sum INTEGER;
ALTER TABLE tasks ADD COLUMN sum INTEGER;
