"""Computes the logits of one sequence after the other with a model of the library, each with a cache of its own.

`generate` prepares what a model needs for its first step (positions, image features, the kind of cache), and calls a
decoding loop that is passed to it; here that loop is left at once, and its steps are taken one by one, as the library's
own loop takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from typing import Any, Final

import torch
from torch import Tensor
from transformers import GenerationConfig


_Place = tuple[int, str]
_ABSENT: Final = object()


class ModuleState:
    """What a model keeps in its modules from one step to the next: offsets of positions, frequencies of dynamic RoPE.

    The library's models do that as if only one sequence were computed at a time. Each sequence gets its own: what
    changes in the modules during any of its steps is put back before each of them, and removed after it, so that every
    sequence begins as if the model had just been loaded.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        modules = list(model.modules())
        self._places: list[dict[str, Any]] = [
            *(vars(module) for module in modules),
            *(module._buffers for module in modules),  # noqa: SLF001 - there is no other way to replace one
        ]
        self._initial: dict[_Place, Any] = {}

    @contextmanager
    def of(self, own: dict[_Place, Any]) -> Iterator[None]:
        """Puts a sequence's state into the modules, and takes it back at the end, with what has changed within."""
        before = [dict(place) for place in self._places]
        for (index, name), value in own.items():
            _set(self._places[index], name, value)
        try:
            yield
        finally:
            self._notice(before)
            for (index, name), value in self._initial.items():
                place = self._places[index]
                own[index, name] = place.get(name, _ABSENT)
                _set(place, name, value)

    def _notice(self, before: list[dict[str, Any]]) -> None:
        """Adds to the known state what differs from that of no sequence."""
        for index, (place, old) in enumerate(zip(self._places, before, strict=True)):
            if len(place) == len(old) and all(map(is_, place.values(), old.values())):
                continue
            for name in place.keys() | old.keys():
                values = (place.get(name, _ABSENT), old.get(name, _ABSENT))
                if values[0] is not values[1] and any(map(_is_computed, values)):
                    self._initial.setdefault((index, name), values[1])


def _is_computed(value: Any) -> bool:
    """Whether a module computes such values; flags, functions and modules are set up once, for all sequences."""
    return isinstance(value, Tensor | int | float | tuple | list) and not isinstance(value, bool)


def _set(place: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        place.pop(name, None)
    else:
        place[name] = value


class Generation:
    """One sequence: its tokens, its cache and its state; `logits` is called once for every token.

    Attributes:
        prompt_logits: [tokens of the prompt, V] float32, if they were asked for; None after they were taken.
    """

    def __init__(
        self,
        model: Any,
        state: ModuleState,
        inputs: Mapping[str, Tensor],
        *,
        max_length: int,
        all_logits: bool,
    ) -> None:
        """Computes nothing yet.

        Args:
            model: The model.
            state: What its modules keep.
            inputs: The prompt, a batch of one.
            max_length: Maximum tokens of prompt and answer.
            all_logits: Keep the logits of the whole prompt.
        """
        self._model = model
        self._state = state
        self._inputs: dict[str, Tensor] | None = dict(inputs)
        self._max_length = max_length
        self._all_logits = all_logits
        self._own: dict[_Place, Any] = {}
        self._ids = torch.empty(1, 0, dtype=torch.int64)
        self._kwargs: dict[str, Any] = {}
        self.prompt_logits: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens computed so far: those of the prompt, after the first step, and of the answer."""
        return self._ids.shape[1]

    @property
    def cache(self) -> Any:
        """The library's cache of this sequence; None before the first step."""
        return self._kwargs.get("past_key_values")

    @torch.inference_mode()
    def logits(self, token_id: int | None) -> Tensor:
        """The logits [1, V] float32 of the next token.

        Args:
            token_id: The token that was chosen after the last call; None = this is the first call.
        """
        with self._state.of(self._own):
            outputs = self._prefill() if token_id is None else self._step(token_id)
        self._kwargs = self._model._update_model_kwargs_for_generation(  # noqa: SLF001 - as the library's loop
            outputs, self._kwargs, is_encoder_decoder=False
        )
        logits: Tensor = outputs.logits[:, -1].to(torch.float32, copy=True)
        if token_id is None and self._all_logits:
            self.prompt_logits = outputs.logits[0].float()
        return logits

    def _step(self, token_id: int) -> Any:
        last = torch.tensor([[token_id]], device=self._ids.device)
        self._ids = torch.cat([self._ids, last], dim=1)
        prepared = self._model.prepare_inputs_for_generation(
            self._ids, next_sequence_length=1, **self._kwargs
        )
        return self._model(**prepared, return_dict=True)

    def _prefill(self) -> Any:
        assert self._inputs is not None
        inputs, self._inputs = self._inputs, None  # images are needed once
        device, dtype = self._model.device, self._model.dtype
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        keep = (
            {"logits_to_keep": 0} if self._all_logits else {}
        )  # of all tokens; else the library asks for the last
        config = GenerationConfig(
            do_sample=False,
            max_length=self._max_length,
            use_cache=True,
            pad_token_id=0,
            eos_token_id=None,
        )
        taken: dict[str, Any] = {}

        def leave(model: Any, input_ids: Tensor, **arguments: Any) -> Tensor:
            del model
            taken["config"] = arguments.pop("generation_config")
            arguments.pop("logits_processor"), arguments.pop("stopping_criteria")
            self._ids, self._kwargs = input_ids, arguments
            return input_ids

        self._model.generate(**moved, **keep, generation_config=config, custom_generate=leave)
        outputs = self._model._prefill(self._ids, taken["config"], self._kwargs)  # noqa: SLF001
        if self._all_logits:
            self._kwargs["logits_to_keep"] = 1
        return outputs
