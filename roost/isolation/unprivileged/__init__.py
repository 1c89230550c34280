"""Rooms that a user makes who isn't root: namespaces within a user namespace, without cgroups. See ARCHITECTURE.md."""
