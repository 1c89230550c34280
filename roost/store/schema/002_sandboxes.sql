CREATE TABLE sandboxes (
    id      TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    data    TEXT NOT NULL
) WITHOUT ROWID;

-- Why sandboxes are gone; a bounded memory.
CREATE TABLE sandbox_ends (
    id      TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    reason  TEXT NOT NULL,
    at      REAL NOT NULL
) WITHOUT ROWID;

-- Idempotency keys of the requests that made sandboxes; a bounded memory. `digest` is of the request's body.
CREATE TABLE sandbox_keys (
    account TEXT NOT NULL,
    key     TEXT NOT NULL,
    digest  TEXT NOT NULL,
    sandbox TEXT NOT NULL,
    at      REAL NOT NULL,
    PRIMARY KEY (account, key)
) WITHOUT ROWID;

CREATE TABLE volumes (
    account TEXT NOT NULL,
    id      TEXT NOT NULL UNIQUE,
    name    TEXT NOT NULL,
    token   TEXT NOT NULL,
    created REAL NOT NULL,
    PRIMARY KEY (account, name)
) WITHOUT ROWID;

CREATE TABLE secrets (
    account TEXT NOT NULL,
    id      TEXT NOT NULL UNIQUE,
    name    TEXT NOT NULL,
    data    TEXT NOT NULL,
    PRIMARY KEY (account, name)
) WITHOUT ROWID;

-- What a name with a tag means, beside `default` and `latest`.
CREATE TABLE template_tags (
    account  TEXT NOT NULL,
    template TEXT NOT NULL,
    tag      TEXT NOT NULL,
    build    TEXT NOT NULL,
    created  REAL NOT NULL,
    PRIMARY KEY (account, template, tag)
) WITHOUT ROWID;
