"""Measures how long event loops stand still, in every process that finds this module on its path.

The measure is CPU time of the whole process between two iterations: what others compute on the machine does not count.
The largest so far stands in the file `LOOP_PROBE/PID`, in seconds.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
import sys
import threading
import time
import traceback
from typing import Any


_DIRECTORY = os.environ.get("LOOP_PROBE", "")
_TICK_S = 0.01
_STACKS_S = float(os.environ.get("LOOP_PROBE_STACKS", "0"))


class _Probe:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._largest = 0.0
        self._last = time.process_time()
        self._thread = threading.get_ident()
        self._file = Path(_DIRECTORY) / str(os.getpid())
        loop.call_soon(self._tick)
        if _STACKS_S:
            threading.Thread(target=self._watch, daemon=True).start()

    def _tick(self) -> None:
        now = time.process_time()
        if not self._file.exists():
            self._largest = 0.0
        if now - self._last > self._largest:
            self._largest = now - self._last
            self._file.write_text(f"{self._largest:.3f}")
        self._last = time.process_time()
        self._loop.call_later(_TICK_S, self._tick)

    def _watch(self) -> None:
        seen = 0.0
        while True:
            time.sleep(0.02)
            last = self._last
            late = time.process_time() - last
            if late > _STACKS_S and seen != last:
                seen = last
                with self._file.with_suffix(".stacks").open("a") as out:
                    out.write(f"\n==== {late:.3f}\n")
                    for thread, frame in sys._current_frames().items():
                        if thread == threading.get_ident():
                            continue
                        lines = traceback.format_stack(frame)[
                            -5 if thread == self._thread else -3 :
                        ]
                        kind = "LOOP" if thread == self._thread else "thread"
                        if kind == "LOOP" or not any(
                            "wait" in x or "queue" in x or ".get(" in x for x in lines[-1:]
                        ):
                            out.write(kind + "\n" + "".join(lines))


def _install() -> None:
    run = asyncio.Runner.run

    def probed(runner: asyncio.Runner, main: Any, **options: Any) -> Any:
        async def measured() -> Any:
            _Probe(asyncio.get_running_loop())
            return await main

        return run(runner, measured(), **options)

    asyncio.Runner.run = probed  # type: ignore[method-assign, assignment]


if _DIRECTORY:
    _install()
