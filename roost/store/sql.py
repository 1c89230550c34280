"""SQL that several tables share, in words that every backend understands."""

from __future__ import annotations


def upsert(table: str, key: str, values: str = "") -> str:
    """Insert a row, or replace the values of the one that has this key. Both are names, separated by commas."""
    names = [name.strip() for name in f"{key},{values}".split(",") if name.strip()]
    changes = ", ".join(f"{name}=excluded.{name}" for name in names if name not in key.replace(",", " ").split())
    insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
    return f"{insert} ON CONFLICT ({key}) DO {f'UPDATE SET {changes}' if changes else 'NOTHING'}"
