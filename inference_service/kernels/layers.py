"""The layers that decoder and vision towers are built of: linear maps in any weight form, embeddings, RMS norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from inference_service.kernels.ops import REFERENCE, Ops


def parameter(*shape: int) -> nn.Parameter:
    """An unfilled parameter; nothing here is ever trained."""
    return nn.Parameter(torch.empty(shape), requires_grad=False)


class WeightForm(Protocol):
    """The weight of a linear map in some form: dense, packed, quantised."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds beside the parameters of modules."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out] in the dtype of `x`, bias included."""


class Embedding(nn.Module):
    """Vectors by id: `weight` [rows, width]. A tied output head multiplies by the same weight."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = parameter(rows, width)
        self.bias: nn.Parameter | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[T] int64 -> [T, width]."""
        return embedding(ids, self.weight)


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """The form of checkpoints: the parameters `weight` [out, in] and `bias` [out] or None of a module.

    They are looked up in every call, because a module gets new ones when it goes to a device.
    """

    module: Linear | Embedding

    @property
    def nbytes(self) -> int:
        """None of its own."""
        return 0

    @property
    def weight(self) -> torch.Tensor:
        """[out, in]."""
        weight = self.module.weight
        assert weight is not None, "taken from a layer that holds another form"
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """[out], if there is one."""
        return self.module.bias

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        weight = self.module.weight
        assert weight is not None, "taken from a layer that holds another form"
        return linear(x, weight, self.module.bias)


class Linear(nn.Module):
    """x -> x W^T + b, whatever form W and b are held in.

    A new layer is dense: checkpoints are loaded into its parameters `weight` [out, in] and `bias` [out].

    Attributes:
        form: What multiplies.
    """

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, tied_to: Embedding | None = None
    ) -> None:
        """A dense layer.

        Args:
            inputs: Size of the last dimension of what comes in.
            outputs: Size of the last dimension of what goes out.
            bias: Whether something is added.
            tied_to: The embedding that has the weight; there are no parameters of its own then, and no bias.
        """
        super().__init__()
        self.weight = None if tied_to else parameter(outputs, inputs)
        self.bias = parameter(outputs) if bias and not tied_to else None
        self.form: WeightForm = DenseWeight(tied_to or self)

    def hold(self, form: WeightForm) -> None:
        """Replace the dense weight, whose memory is free then (that of an embedding stays)."""
        self.form = form
        self.weight = self.bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.form.apply(x)


def convert_linears(model: nn.Module, convert: Callable[[DenseWeight], WeightForm]) -> None:
    """Give every dense linear layer of a loaded model its weight in another form.

    Args:
        model: Changed in place.
        convert: Makes the new form, or returns what it was given to leave a layer as it is.
    """
    for module in list(model.modules()):
        if isinstance(module, Linear) and isinstance(module.form, DenseWeight):
            form = convert(module.form)
            if form is not module.form:
                module.hold(form)


class RMSNorm(nn.Module):
    """RMS norm with a learned `weight` [width]."""

    def __init__(self, width: int, eps: float, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.eps = eps
        self._ops = ops
        self.weight = parameter(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., width]."""
        return self._ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, residual stream) -> (the normalised sum, the sum), all [..., width]."""
        return self._ops.add_rms_norm(x, residual, self.weight, self.eps)
