-- What triggers have dealt with, where one cursor can't tell: objects of a bucket, rows of a table.

-- `key` in bytes: object stores list in their order.
CREATE TABLE trigger_objects (
    trigger_id TEXT NOT NULL,
    key        BLOB NOT NULL,
    stamp      TEXT NOT NULL,
    birth      TEXT NOT NULL,
    size       INTEGER NOT NULL,
    etag       TEXT NOT NULL,
    PRIMARY KEY (trigger_id, key),
    FOREIGN KEY (trigger_id) REFERENCES triggers (id) ON DELETE CASCADE
);

-- Rows above the cursor; those of a generation that has passed are below it, and removed.
CREATE TABLE trigger_rows (
    trigger_id TEXT NOT NULL,
    id         TEXT NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (trigger_id, id),
    FOREIGN KEY (trigger_id) REFERENCES triggers (id) ON DELETE CASCADE
);
