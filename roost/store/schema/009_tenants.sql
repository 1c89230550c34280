-- Keys of accounts: their secrets are sealed with the server's key file, since a signature is checked with the secret itself.
-- Times are Unix seconds; `used` is coarse, 0 for never; a revoked key's row stays, without its secret.
CREATE TABLE access_keys (
    id      TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    name    TEXT NOT NULL,
    role    TEXT NOT NULL,
    sealed  BLOB NOT NULL,
    created REAL NOT NULL,
    used    REAL NOT NULL,
    revoked REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE quotas (
    account TEXT PRIMARY KEY,
    data    TEXT NOT NULL
) WITHOUT ROWID;
