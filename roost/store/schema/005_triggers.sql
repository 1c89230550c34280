-- Triggers of all types: what Function Compute's API has beside the settings, and how far each has come.

ALTER TABLE triggers ADD COLUMN source_arn TEXT NOT NULL DEFAULT '';
ALTER TABLE triggers ADD COLUMN invocation_role TEXT NOT NULL DEFAULT '';

-- `value` is the type's own: a timer's is the last time that it has dealt with.
CREATE TABLE trigger_cursors (
    trigger_id TEXT NOT NULL PRIMARY KEY,
    value      TEXT NOT NULL,
    FOREIGN KEY (trigger_id) REFERENCES triggers (id) ON DELETE CASCADE
);
