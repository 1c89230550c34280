"""Nouns, ids, errors and state tables. Pure: no I/O, no clock."""
