"""The end of a process, seen by a descriptor of it."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess

import pytest

from roost.isolation import linux


@pytest.mark.parametrize("above", [3, 1500])  # what `select` takes, and what it does not
def test_an_end_is_seen_by_a_descriptor_of_any_number(above: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    try:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            opened = os.pidfd_open(process.pid)
            pidfd = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, above)
            os.close(opened)
            try:
                assert not linux.has_ended(pidfd)
                process.communicate()
                assert linux.has_ended(pidfd)
            finally:
                os.close(pidfd)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
