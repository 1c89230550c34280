"""Servers and helpers that tests share. Nothing here is part of Roost."""
