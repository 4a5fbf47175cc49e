"""Captures the graphs of decode steps when the engine starts, and compares each with the step that it replaces.

Whatever goes wrong here costs speed only: a size whose graph cannot be captured, or gives other results, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
import logging
import time
from typing import Final, Protocol

import torch

from inference_service.engine.failures import DeviceLostError
from inference_service.engine.graph_check import GraphCheck
from inference_service.engine.graphs import DecodeGraph, DecodeGraphs, DecodeStep, Surroundings
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.kernels.ops import REFERENCE
from inference_service.kernels.self_check import in_one_line
from inference_service.models.vision_language import VisionLanguageModel


CAPTURE_S: Final = 60.0
"""After this time, no further graph is begun: the start of the engine has a limit."""

logger = logging.getLogger(__name__)


class Capture(Protocol):
    """Records work that is queued on a device."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Runs some work, then records it; returns what queues it again, with the same addresses."""

    def settle(self) -> None:
        """Waits for the device; raises if it has failed for good."""

    def trim(self) -> None:
        """Gives memory back that nothing uses."""


class CudaCapture:
    """Records CUDA graphs, which share one pool of memory, as only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Capture`. The first run compiles kernels and loads libraries, which a capture does not permit."""
        graph = torch.cuda.CUDAGraph()
        # `torch.cuda.graph` leaves its stream the current one if the capture ends with an error.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            torch.cuda.synchronize(self._device)
            work()
            torch.cuda.synchronize(self._device)
            try:
                # Other threads may use CUDA meanwhile.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    work()
            except Exception:
                # Torch's allocator may take the failed capture for one that goes on in this pool.
                self._pool = torch.cuda.graph_pool_handle()
                raise
        return graph.replay

    def settle(self) -> None:
        """See `Capture`."""
        torch.cuda.synchronize(self._device)

    def trim(self) -> None:
        """See `Capture`."""
        torch.cuda.empty_cache()


def obstacle(config: EngineConfig, model: VisionLanguageModel) -> str:
    """Why no decode steps are to be captured, in a few words; empty if they are."""
    if config.cuda_graphs == "off":
        return "--cuda-graphs is off"
    if model.device.type != "cuda":
        return "the device is no GPU"
    if model.placement is not None:
        return "layers are on several devices"
    if model.ops.paged_attention is REFERENCE.paged_attention:
        return "the torch reference of attention needs lengths on the host"
    return ""


def most_rows(config: EngineConfig, num_pages: int) -> int:
    """The maximum number of sequences of a decode step: each has two tokens and a page of its own at least."""
    pages_each = -(-2 // config.page_size)
    return min(config.max_num_seqs, config.max_num_batched_tokens, num_pages // pages_each)


@torch.inference_mode()
def capture_graphs(
    sizes: Seq[int],
    around: Surroundings,
    check: Callable[[], GraphCheck],
    capture: Capture,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> DecodeGraphs:
    """Captures a graph for each size that allows it, the largest first, as the others then fit into its memory.

    Args:
        sizes: Numbers of rows.
        around: What the steps share.
        check: Makes the comparison.
        capture: Records.
        clock: Seconds.

    Raises:
        DeviceLostError: The device has failed for good.
    """
    begin_s = clock()
    graphs: dict[int, DecodeGraph] = {}
    causes: dict[int, str] = {}
    try:
        checker = check()
        for rows in sorted(sizes, reverse=True):
            if clock() - begin_s > CAPTURE_S:
                causes[rows] = f"the {CAPTURE_S:.0f} s for capturing are over"
                continue
            found = _captured(rows, around, checker, capture)
            if isinstance(found, DecodeGraph):
                graphs[rows] = found
            else:
                causes[rows] = found
                capture.trim()
        checker.clear()
    except Exception as error:  # noqa: BLE001 - whatever it is, the engine can work without graphs
        graphs, causes = {}, dict.fromkeys(sizes, in_one_line(error))
    _settle(capture)
    _tell(graphs, causes, clock() - begin_s)
    return DecodeGraphs(graphs)


def _captured(
    rows: int, around: Surroundings, check: GraphCheck, capture: Capture
) -> DecodeGraph | str:
    """The graph of one size, or why there is none."""
    try:
        step = DecodeStep(rows, around)
        graph = DecodeGraph(step, capture.record(step.compute))
        return check.defect(graph) or graph
    except Exception as error:  # noqa: BLE001 - compilers and drivers may raise anything
        return in_one_line(error)


def _settle(capture: Capture) -> None:
    try:
        capture.settle()
    except Exception as error:
        raise DeviceLostError(
            f"the GPU failed while CUDA graphs were captured (--cuda-graphs off does without): {in_one_line(error)}"
        ) from error


def _tell(graphs: dict[int, DecodeGraph], causes: dict[int, str], seconds: float) -> None:
    if graphs:
        sizes = ", ".join(map(str, sorted(graphs)))
        logger.info("CUDA graphs for steps of up to %s sequences, in %.1f s", sizes, seconds)
    if causes:
        logger.warning(
            "no CUDA graph for steps of up to %s sequences, which run in a larger one or without: %s",
            ", ".join(map(str, sorted(causes))),
            "; ".join(dict.fromkeys(causes.values())),
        )
