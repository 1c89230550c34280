-- Roost's tables. Times are Unix seconds. Columns named `config`, `snapshot`, `weights` and `data` hold JSON.

CREATE TABLE functions (
    account       TEXT NOT NULL,
    name          TEXT NOT NULL,
    id            TEXT NOT NULL UNIQUE,
    config        TEXT NOT NULL,
    code_digest   TEXT NOT NULL,
    code_size     INTEGER NOT NULL,
    code_checksum TEXT NOT NULL,
    layers        TEXT NOT NULL,
    restriction   TEXT,
    last_version  INTEGER NOT NULL DEFAULT 0,
    created       REAL NOT NULL,
    modified      REAL NOT NULL,
    PRIMARY KEY (account, name)
) WITHOUT ROWID;

CREATE TABLE versions (
    account     TEXT NOT NULL,
    function    TEXT NOT NULL,
    version     INTEGER NOT NULL,
    description TEXT NOT NULL,
    snapshot    TEXT NOT NULL,
    created     REAL NOT NULL,
    PRIMARY KEY (account, function, version),
    FOREIGN KEY (account, function) REFERENCES functions (account, name) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE aliases (
    account     TEXT NOT NULL,
    function    TEXT NOT NULL,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    weights     TEXT NOT NULL,
    description TEXT NOT NULL,
    created     REAL NOT NULL,
    modified    REAL NOT NULL,
    PRIMARY KEY (account, function, name),
    FOREIGN KEY (account, function) REFERENCES functions (account, name) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE triggers (
    account     TEXT NOT NULL,
    function    TEXT NOT NULL,
    name        TEXT NOT NULL,
    id          TEXT NOT NULL UNIQUE,
    type        TEXT NOT NULL,
    qualifier   TEXT NOT NULL,
    description TEXT NOT NULL,
    config      TEXT NOT NULL,
    created     REAL NOT NULL,
    modified    REAL NOT NULL,
    PRIMARY KEY (account, function, name),
    FOREIGN KEY (account, function) REFERENCES functions (account, name) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE concurrency (
    account  TEXT NOT NULL,
    function TEXT NOT NULL,
    reserved INTEGER NOT NULL,
    PRIMARY KEY (account, function),
    FOREIGN KEY (account, function) REFERENCES functions (account, name) ON DELETE CASCADE
) WITHOUT ROWID;

-- Settings of one qualifier: kind is 'provision', 'scaling' or 'async'.
CREATE TABLE provision (
    account   TEXT NOT NULL,
    function  TEXT NOT NULL,
    qualifier TEXT NOT NULL,
    kind      TEXT NOT NULL,
    config    TEXT NOT NULL,
    created   REAL NOT NULL,
    modified  REAL NOT NULL,
    PRIMARY KEY (account, function, qualifier, kind),
    FOREIGN KEY (account, function) REFERENCES functions (account, name) ON DELETE CASCADE
) WITHOUT ROWID;

-- A layer's numbers go on after its last version is deleted, so the counter has a row of its own.
CREATE TABLE layer_names (
    account      TEXT NOT NULL,
    name         TEXT NOT NULL,
    public       INTEGER NOT NULL DEFAULT 0,
    last_version INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (account, name)
) WITHOUT ROWID;

CREATE TABLE layers (
    account       TEXT NOT NULL,
    name          TEXT NOT NULL,
    version       INTEGER NOT NULL,
    description   TEXT NOT NULL,
    license       TEXT NOT NULL,
    runtimes      TEXT NOT NULL,
    code_digest   TEXT NOT NULL,
    code_size     INTEGER NOT NULL,
    code_checksum TEXT NOT NULL,
    created       REAL NOT NULL,
    PRIMARY KEY (account, name, version),
    FOREIGN KEY (account, name) REFERENCES layer_names (account, name) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE tags (
    account TEXT NOT NULL,
    kind    TEXT NOT NULL,
    name    TEXT NOT NULL,
    key     TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (account, kind, name, key)
) WITHOUT ROWID;

CREATE TABLE sessions (
    account  TEXT NOT NULL,
    function TEXT NOT NULL,
    id       TEXT NOT NULL,
    data     TEXT NOT NULL,
    PRIMARY KEY (account, function, id)
) WITHOUT ROWID;

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
