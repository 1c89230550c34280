"""Copies of live processes: `ptrace` (the kernel's calls), `x86_64` (all that depends on the processor), `tracee` (one
task that is held, and what it is made to do), `memory` (mappings, judged; pure), `status` (what a copy must be given of
the original), `shadows` (the steps). Standard library only: `namespaces.tracer` runs them in a process of its own.
"""
