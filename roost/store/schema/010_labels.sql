-- What is known of where data came from, by what keeps it: a sandbox, an instance, a folder of a volume.
CREATE TABLE labels (
    holder TEXT PRIMARY KEY,
    data   TEXT NOT NULL
) WITHOUT ROWID;
