"""Rooms made of Linux namespaces, forked from a warm template.

On the host: `driver` (the rooms), `room`, `live` (their contexts), `zygotes`, `seeds`, `pool`, `helper`, `preflight`.
In helper processes, with only the standard library: `launcher`, `maker` and `tracer` (host's interpreter), `zygote`,
`enter`, `filesystem`, `targets` (the guest bundle's). `wire`, `request` and `policy` are what both sides speak.
"""
