"""The daemon inside every room. Ships alone: it imports nothing but the standard library and itself.

main         the entry point; wires the supervisor
supervisor   PID 1: control connection, ports, logs, the life of the worker
worker       a fork of the supervisor that loads the user's code and serves app.sock
sandbox      what is such a fork in a sandbox: its daemon for processes, files and code
"""
