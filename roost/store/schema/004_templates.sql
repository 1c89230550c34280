-- Templates that accounts built, and snapshots. A name is an account's own; a snapshot may have none.
CREATE TABLE templates (
    id      TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    kind    TEXT NOT NULL,
    name    TEXT NOT NULL,
    created REAL NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX templates_by_name ON templates (account, name) WHERE name != '';

-- Their states; `template_tags` says which of them a name with a tag means.
CREATE TABLE template_builds (
    id       TEXT PRIMARY KEY,
    template TEXT NOT NULL,
    data     TEXT NOT NULL
) WITHOUT ROWID;
