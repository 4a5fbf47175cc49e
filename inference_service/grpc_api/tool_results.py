"""Binds the results of tools to their calls, and puts them into the order of the calls.

Chat formats have no ids: a model reads the first result as that of the first call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api.field_checks import quoted
from qwenvl.inference.v1 import message_pb2 as message_pb


_RESULT: Final = message_pb.ROLE_TOOL
_ANSWER: Final = message_pb.ROLE_ASSISTANT


def messages_in_order(messages: Sequence[message_pb.Message]) -> list[int]:
    """The order of messages in which the results of a turn are in the order of its calls.

    A turn is an answer with calls, or several answers in a row. A result belongs to the newest call with its id; one
    without an id, to the first call of the last turn that no other result belongs to. Results change places only with
    results of the same turn.

    Args:
        messages: The conversation, oldest first.

    Returns:
        Indices into `messages`, each once.

    Raises:
        InvalidArgumentError: Calls of a turn have the same id, a result belongs to no call or to one that has a result,
            or a call has no result. Only the calls that end a conversation may have none, all of them.
    """
    turns: list[_Turn] = []
    newest: dict[str, _Turn] = {}
    goes_on = False  # another call would belong to the last turn
    for index, message in enumerate(messages):
        if message.tool_calls:
            if not goes_on:
                turns.append(_Turn())
            turns[-1].add_calls(message, index)
            newest |= dict.fromkeys((call.id for call in message.tool_calls), turns[-1])
            goes_on = True
            continue
        goes_on = goes_on and message.role == _ANSWER
        if message.role == _RESULT:
            _turn_of(message, index, turns, newest).results.append(index)
    order = list(range(len(messages)))
    for turn in turns:
        if turn.results or turn.last != len(messages) - 1:
            by_call = turn.by_call(messages)
            for place, result in zip(turn.results, by_call, strict=True):
                order[place] = result
    return order


@dataclass(slots=True)
class _Turn:
    """Calls that were made before any of their results.

    Attributes:
        ids: The id of each call; may be empty.
        by_id: The call of each id.
        paths: The field of each call.
        results: Indices of the messages with their results, in ascending order.
        last: Index of the last message with calls.
    """

    ids: list[str] = field(default_factory=list)
    by_id: dict[str, int] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    last: int = 0

    def add_calls(self, message: message_pb.Message, index: int) -> None:
        """Adds the calls of an answer."""
        for number, call in enumerate(message.tool_calls):
            path = f"spec.messages[{index}].tool_calls[{number}]"
            if call.id in self.by_id:
                raise InvalidArgumentError(
                    f"id is {quoted(call.id)}, as that of an earlier call of this turn, but results are told apart"
                    " by the ids of their calls.",
                    field=f"{path}.id",
                )
            if call.id:
                self.by_id[call.id] = len(self.ids)
            self.ids.append(call.id)
            self.paths.append(path)
        self.last = index

    def by_call(self, messages: Sequence[message_pb.Message]) -> Iterator[int]:
        """The results in the order of the calls: one for each."""
        found: dict[int, int] = {}
        others: list[int] = []
        for result in self.results:
            call_id = messages[result].tool_call_id
            call = self.by_id.get(call_id)
            if call is None:
                others.append(result)
                continue
            if call in found:
                raise InvalidArgumentError(
                    f"tool_call_id is {quoted(call_id)}, but an earlier result is of this call.",
                    field=f"spec.messages[{result}].tool_call_id",
                )
            found[call] = result
        calls = [call for call in range(len(self.ids)) if call not in found]
        if len(others) > len(calls):
            raise _no_call(messages[others[len(calls)]], others[len(calls)])
        if len(calls) > len(others):
            path = self.paths[calls[len(others)]]
            raise InvalidArgumentError(
                "tool_calls has no result, but every call needs one before the conversation goes on.",
                field=path,
            )
        found |= zip(calls, others, strict=True)
        return (found[call] for call in range(len(self.ids)))


def _turn_of(
    result: message_pb.Message, index: int, turns: Sequence[_Turn], newest: Mapping[str, _Turn]
) -> _Turn:
    """The turn of the call that a result belongs to; `newest` is that of each id."""
    call_id = result.tool_call_id
    # Some clients send an id that is not that of the call; of one call, there can be no doubt.
    last = turns[-1] if turns and (not call_id or len(turns[-1].ids) == 1) else None
    turn = newest.get(call_id, last) if call_id else last
    if turn is None:
        raise _no_call(result, index)
    return turn


def _no_call(result: message_pb.Message, index: int) -> InvalidArgumentError:
    path = f"spec.messages[{index}]"
    if result.tool_call_id:
        return InvalidArgumentError(
            f"tool_call_id is {quoted(result.tool_call_id)}, but no call before it has this id.",
            field=f"{path}.tool_call_id",
        )
    return InvalidArgumentError(
        "role is ROLE_TOOL, but no call before this message waits for a result.",
        field=f"{path}.role",
    )
