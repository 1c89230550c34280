"""What runs in the peers' own environments, without Roost: a task that has an effect, and the client that submits it.

Each module has the task as its library's documentation writes it, a `Producer` for `produce.py`, and where the library
has no command for it, a worker (`python -m bench.task_peers.<module>`). Where they connect to is in the environment.
"""
