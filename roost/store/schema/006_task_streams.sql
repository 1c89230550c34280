-- What tasks put out while they run, in the order of `number`, and events that are on their way to destinations.
-- Times are Unix seconds.

CREATE TABLE task_outputs (
    account  TEXT NOT NULL,
    function TEXT NOT NULL,
    task     TEXT NOT NULL,
    number   INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    at       REAL NOT NULL,
    kind     TEXT NOT NULL,
    data     BLOB NOT NULL,
    PRIMARY KEY (account, function, task, number),
    FOREIGN KEY (account, function, task) REFERENCES tasks (account, function, id) ON DELETE CASCADE
);

-- It outlives its task and its function: what was promised to a destination gets there. `epoch` is that of the end.
CREATE TABLE task_outbox (
    id          TEXT NOT NULL PRIMARY KEY,
    account     TEXT NOT NULL,
    function    TEXT NOT NULL,
    task        TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    destination TEXT NOT NULL,
    created     REAL NOT NULL,
    due         REAL NOT NULL,
    attempts    INTEGER NOT NULL,
    error       TEXT NOT NULL,
    body        BLOB NOT NULL
);

CREATE INDEX task_outbox_due ON task_outbox (due);
CREATE INDEX tasks_of_sessions ON tasks (account, function, session, enqueued, id) WHERE session <> '';
