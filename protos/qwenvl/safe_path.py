"""Keeps modules of the working directory out: it may be a model's, with a `torch.py` in it.

Imports nothing but what Python has loaded itself.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
import sys


_PROGRAMS = ("inference_service", "rest_adapter")


def leave_out_working_directory() -> None:
    """Removes the working directory from the search path of this process and its children, before further imports.

    It is there as an empty or relative entry of `PYTHONPATH` (`PYTHONPATH=$PYTHONPATH:/x` makes one), or because a
    program of this distribution was started with `python -m` without `-P`.
    """
    here = _working_directory()
    if path := os.environ.get("PYTHONPATH"):
        entries = path.split(os.pathsep)
        named = [*filter(os.path.isabs, entries)]
        unnamed = {os.path.normpath(os.path.join(here, entry)) for entry in entries} - {*named}  # noqa: PTH118
        sys.path[:] = [entry for entry in sys.path if entry not in unnamed]
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started_as_module = spec is not None and spec.name.partition(".")[0] in _PROGRAMS
    if started_as_module and not sys.flags.safe_path and sys.path[:1] == [here]:
        del sys.path[0]


def _working_directory() -> str:
    """The working directory; empty if it was removed: then the root takes its place, as libraries fail without any."""
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:
        os.chdir("/")
        return ""


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process that is started with `-P`.

    `PYTHONSAFEPATH` keeps the working directory out of the path of grandchildren too, and `PYTHONPATH` has no empty or
    relative entry. Without `PYTHONINSPECT`, with which Python would wait for input in place of ending.
    """
    environment = {**environ, "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONINSPECT", None)
    if "PYTHONPATH" in environment:
        entries = environment.pop("PYTHONPATH").split(os.pathsep)
        if kept := [*filter(os.path.isabs, entries)]:
            environment["PYTHONPATH"] = os.pathsep.join(kept)
    return environment
