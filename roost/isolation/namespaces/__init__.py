"""Rooms made of Linux namespaces, forked from a warm template.

On the host: `driver` (the rooms), `room`, `zygotes`, `pool`, `helper`, `preflight`. In helper processes, with only
the standard library: `launcher` and `maker` (host's interpreter), `zygote`, `enter`, `filesystem`, `targets` (the guest
bundle's). `wire`, `request` and `policy` are what both sides speak.
"""
