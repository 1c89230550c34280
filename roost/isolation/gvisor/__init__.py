"""Rooms whose programs run on gVisor's kernel instead of the host's: gVisor in a room of namespaces.

On the host: `driver`, `runsc` (the program and what it can), `preflight`, `oci` (pure: what runsc is told). In the
room's first process, with only the standard library: `inside` (what runsc sees) and `keeper` (starts it, hands
connections in).
"""
