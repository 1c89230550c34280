-- Asynchronous tasks. Times are Unix seconds, 0 for what has not happened. `fields` and `events` hold JSON.
-- What is large comes last, so that a list reads none of it.

CREATE TABLE tasks (
    account     TEXT NOT NULL,
    function    TEXT NOT NULL,
    id          TEXT NOT NULL,
    qualifier   TEXT NOT NULL,
    request_id  TEXT NOT NULL,
    session     TEXT NOT NULL,
    state       TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    spared      INTEGER NOT NULL,
    enqueued    REAL NOT NULL,
    ready       REAL NOT NULL,
    due         REAL NOT NULL,
    started     REAL NOT NULL,
    ended       REAL NOT NULL,
    heartbeat   REAL NOT NULL,
    troubles    INTEGER NOT NULL,
    troubled    REAL NOT NULL,
    hops        INTEGER NOT NULL,
    instance_id TEXT NOT NULL,
    error_type  TEXT NOT NULL,
    error       TEXT NOT NULL,
    destination TEXT NOT NULL,
    digest      TEXT NOT NULL,
    fields      TEXT NOT NULL,
    events      TEXT NOT NULL,
    payload     BLOB NOT NULL,
    result      BLOB,
    PRIMARY KEY (account, function, id),
    FOREIGN KEY (account, function) REFERENCES functions (account, name) ON DELETE CASCADE
);

-- Each of a lane's next tasks; a lane is a session, or all tasks of a function without one. Counts read no more than
-- these two.
CREATE INDEX tasks_pending ON tasks (account, function, session, due, state, ready)
    WHERE state IN ('Enqueued', 'Retrying');
CREATE INDEX tasks_held ON tasks (account, function, state, ready) WHERE state IN ('Running', 'Stopping');
CREATE INDEX tasks_ended ON tasks (ended) WHERE ended > 0;
CREATE INDEX tasks_listed ON tasks (account, function, enqueued, id);
