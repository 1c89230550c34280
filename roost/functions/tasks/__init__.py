"""Asynchronous tasks: accepted durably, started when they are due, never silently twice.

`queue` takes them in, `worker` runs them, `service` shows and changes them, `policy` decides (pure), `backlog` knows
what waits where. What a run is made of is the data plane's, behind `ports.Runner`.
"""
