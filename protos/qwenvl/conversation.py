"""Conversations that remember their history, for both clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from qwenvl.answers import Answer, AnswerStream, AsyncAnswerStream, ChatEvent
from qwenvl.images import Images
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.messages import Content, messages_of, user
from qwenvl.options import ChatOptions
from qwenvl.rpc import DEFAULT_TIMEOUT_S


if TYPE_CHECKING:
    from qwenvl.async_client import AsyncClient
    from qwenvl.client import Client


class _History:
    """The messages of a conversation.

    Attributes:
        messages: The history, oldest message first; may be changed between questions.
    """

    def __init__(self, options: ChatOptions) -> None:
        self._options = options.copy()
        instructions = self._options.pop("system", None)
        self.messages: list[message_pb.Message] = messages_of((), None, instructions)

    def _with(self, parts: tuple[Content, ...], images: Images | None) -> list[message_pb.Message]:
        """The history with one more question."""
        return [*self.messages, *messages_of(user(*parts), images)]

    def _keep(self, asked: list[message_pb.Message], answer: Answer) -> None:
        """Makes a question and its answer the end of the history."""
        self.messages = [*asked, answer.message]

    def _merged(self, options: ChatOptions) -> ChatOptions:
        return {**self._options, **options}


class Conversation(_History):
    """A conversation with `qwenvl.Client`, from `Client.conversation`.

    A question becomes part of the history together with its answer, once that is complete: a failed call, or a stream
    that is closed early, leaves the history as it was. Of several choices, the first one is kept.
    """

    def __init__(self, client: Client, options: ChatOptions) -> None:
        super().__init__(options)
        self._client = client

    def ask(
        self,
        *parts: Content,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """Asks a question and returns the complete answer.

        Args:
            parts: Texts and images of the question, as of `qwenvl.user`.
            images: Images to put before them.
            timeout_s: Deadline in seconds.
            options: Those of the conversation apply unless given here.

        Raises:
            Error: The call failed; others as `Client.chat`.
        """
        asked = self._with(parts, images)
        answer = self._client.chat(asked, timeout_s=timeout_s, **self._merged(options))
        self._keep(asked, answer)
        return answer

    def send(
        self,
        *messages: message_pb.Message,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """Sends messages, such as `tool_result(...)` for every call of the last answer; otherwise as `ask`."""
        asked = [*self.messages, *messages]
        answer = self._client.chat(asked, timeout_s=timeout_s, **self._merged(options))
        self._keep(asked, answer)
        return answer

    def stream(
        self,
        *parts: Content,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> AnswerStream[ChatEvent]:
        """Asks a question and yields the text of the answer; arguments and errors as `ask`."""
        asked = self._with(parts, images)
        events = self._client.events(asked, timeout_s=timeout_s, **self._merged(options))
        response = chat_pb.CreateChatCompletionResponse()
        return AnswerStream(events, response, lambda answer: self._keep(asked, answer))


class AsyncConversation(_History):
    """`Conversation` for asyncio, from `AsyncClient.conversation`."""

    def __init__(self, client: AsyncClient, options: ChatOptions) -> None:
        super().__init__(options)
        self._client = client

    async def ask(
        self,
        *parts: Content,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """Asks a question and returns the complete answer; arguments and errors as `Conversation.ask`."""
        asked = self._with(parts, images)
        answer = await self._client.chat(asked, timeout_s=timeout_s, **self._merged(options))
        self._keep(asked, answer)
        return answer

    async def send(
        self,
        *messages: message_pb.Message,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """Sends messages; arguments and errors as `Conversation.send`."""
        asked = [*self.messages, *messages]
        answer = await self._client.chat(asked, timeout_s=timeout_s, **self._merged(options))
        self._keep(asked, answer)
        return answer

    def stream(
        self,
        *parts: Content,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> AsyncAnswerStream[ChatEvent]:
        """Asks a question and yields the text of the answer; arguments and errors as `Conversation.ask`."""
        asked = self._with(parts, images)
        events = self._client.events(asked, timeout_s=timeout_s, **self._merged(options))
        response = chat_pb.CreateChatCompletionResponse()
        return AsyncAnswerStream(events, response, lambda answer: self._keep(asked, answer))
