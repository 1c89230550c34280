"""What must outlive the process: SQLite in the data directory, one writer, one query module per table."""
