"""The limit of open files, of which every connection is one."""

from __future__ import annotations

import resource


def raise_descriptor_limit(wanted: int) -> int:
    """Raises the soft limit of open files towards `wanted`, as far as the hard limit allows.

    Returns:
        How many of the wanted descriptors the process may have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
