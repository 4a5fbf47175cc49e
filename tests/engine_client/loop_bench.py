"""An engine loop whose turns the test counts."""

from __future__ import annotations

from collections.abc import Iterator

from inference_service.engine.loop import Core, EngineLoop
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import ChoiceOutput


class LoopBench:
    """Commands go in by `turn`, which returns the outputs that the turn sent."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.events: list[wire.Event] = []
        self._commands: list[wire.Command] = []
        self._loop = EngineLoop(core, self, self._send)

    def take(self, timeout_s: float) -> Iterator[tuple[wire.Command, memoryview]]:
        commands, self._commands = self._commands, []
        return iter([(command, memoryview(b"")) for command in commands])

    def turn(self, *commands: wire.Command) -> list[ChoiceOutput]:
        self._commands.extend(commands)
        self.events.clear()
        self._loop.turn()
        return [o for e in self.events if isinstance(e, wire.Outputs) for o in e.outputs]

    @property
    def heartbeats(self) -> list[wire.Heartbeat]:
        return [event for event in self.events if isinstance(event, wire.Heartbeat)]

    def _send(self, event: wire.Event) -> None:
        wire.encode(event)  # refuses what is too long
        self.events.append(event)
