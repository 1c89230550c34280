"""Rooms made of Linux namespaces, forked from a warm template.

On the host: `driver` (the rooms), `room`, `zygotes`, `pool`, `helper`, `preflight`. In helper processes, standard library
and plain modules of Roost only: `launcher` and `maker` (host's interpreter), `zygote`, `enter`, `filesystem` and `targets`
(the guest bundle's). `wire`, `request` and `policy` are what both sides speak.
"""
