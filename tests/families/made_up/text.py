"""Text of the made-up family: a token for each byte, and conversations as in a play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference_service.domain import ChatRequest, TextPart
from inference_service.families.family import TextOptions
from inference_service.model_spec import ModelSpec
from inference_service.text.prompt import ChatAbilities, ChatFormat, WrittenChat
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_tiktoken import TiktokenTokenizer
from tests.families.made_up.spec import END, IMAGE, IMAGE_BEGIN, IMAGE_END


def load_text(
    model_dir: Path, spec: ModelSpec, options: TextOptions
) -> tuple[Tokenizer, ChatFormat]:
    """See `Family.load_text`."""
    del model_dir, spec, options
    special = {"<end>": END, "<image>": IMAGE, "<begin>": IMAGE_BEGIN, "<close>": IMAGE_END}
    ranks = {bytes([value]): value for value in range(256)}
    tokenizer = TiktokenTokenizer(ranks, special, pattern=r"[\s\S]", normalize=False)
    return tokenizer, PlayScript(tokenizer)


class PlayScript:
    """`user (Ann): What is this?`, a line for each message; names are written."""

    abilities = ChatAbilities()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def write(self, request: ChatRequest) -> WrittenChat:
        """See `ChatFormat.write`."""
        token_ids: list[int] = []
        for message in request.messages:
            name = f" ({message.name})" if message.name else ""
            token_ids += self._tokenizer.encode_plain(f"{message.role.value}{name}: ")
            for part in message.parts:
                if isinstance(part, TextPart):
                    token_ids += self._tokenizer.encode_plain(part.text)
                else:
                    token_ids += [IMAGE_BEGIN, IMAGE, IMAGE_END]
            token_ids.append(END)
        return WrittenChat(token_ids=token_ids)

    def with_placeholders(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """See `ChatFormat.with_placeholders`."""
        del field
        return token_ids
