"""Rooms made of Linux namespaces, forked from a warm template.

On the host: `driver`, `room`, `zygotes`, `preflight`. In the helper processes, standard library only: `launcher` and
`maker` (host's interpreter), `zygote` and `enter` (the guest bundle's). `wire` and `policy` are shared.
"""
