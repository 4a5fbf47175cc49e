"""Compiles all GPU kernels for a Hopper card, without one, and prints what each takes, as JSON.

    python tests/kernels/gpu/compile_kernels.py [KERNEL ...]

Every row: kernel, constants, bytes of spilled registers, bytes of shared memory, and whether it has instructions for
matrices, asynchronous copies and loads of several values. A program of its own, as triton decides when it is imported
to compile or to interpret.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
import json
from pathlib import Path
import re
import subprocess
import sys
import tempfile
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.kernels.gpu.install_triton import FOLDER


GROUPS = (1, 4, 5, 6, 7, 8, 16)
HEAD_DIMS = (64, 80, 128, 256)
FLOATS = {"scale": "fp32", "eps": "fp32"}
INDICES = {
    *("pages", "contexts", "query_start"),
    *("low", "high", "drawn", "lengths", "places", "history", "counts"),
    *("page_table", "history_first", "history_ids", "count_values"),
}
LONG = {
    *("slots", "tokens", "last", "row_ids"),
    *("history_rows", "history_places", "count_rows", "count_bases"),
    *("page_places", "count_places", "top_k"),
}
WIDE = {
    *("parts", "extremes", "cos", "sin", "query_scale"),
    *("logits", "minimum", "values", "repetition", "frequency", "presence"),
    *("log_min_p", "top_p", "maxima", "table", "temperature"),
}
POINTERS = (
    INDICES
    | LONG
    | WIDE
    | {
        *("x", "residual", "weight", "out", "total", "gate_up"),
        *("fused", "q_weight", "k_weight", "q", "k_cache", "v_cache", "bias"),
    }
)


OPTIONS = {"skinny_linear_kernel": {"num_stages": 4}, "lowest_kept_kernel": {"num_warps": 8}}
"""As at the launch."""
DIVISIBLE = {"page_size", "width", "outputs", "inputs"}
"""Integers that are multiples of 16 in every model."""


def kernels() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every kernel with the constants of every shape."""
    rows = import_module("inference_service.kernels.gpu.rows")
    attention = import_module("inference_service.kernels.gpu.attention")
    heads = import_module("inference_service.kernels.gpu.heads")
    for adds in (False, True):
        for block in (128, 4096, 8192):
            yield rows.rms_norm_kernel, {"ADDS": adds, "BLOCK": block}
    yield rows.silu_and_mul_kernel, {"BLOCK": 1024}
    for adjacent in (False, True):
        for head_dim in HEAD_DIMS:
            block = 1 << (head_dim - 1).bit_length()
            yield rows.rope_kernel, {"ADJACENT": adjacent, "BLOCK": block}
    yield from few_rows()
    for head_dim in HEAD_DIMS:
        block = 1 << (head_dim - 1).bit_length()
        shape = {"QUERIES": 28, "KEYS": 4, "ROWS": max(1, 1024 // block), "BLOCK": block}
        for kind in (
            {"NORM": False, "SCALED": False, "ADJACENT": False},
            {"NORM": True, "SCALED": False, "ADJACENT": False},
            {"NORM": False, "SCALED": True, "ADJACENT": True},
        ):
            yield heads.rotate_and_write_kernel, shape | kind
    for head_dim in HEAD_DIMS:
        width = {"D": head_dim, "WIDTH": 1 << (head_dim - 1).bit_length()}
        yield attention.combine_kernel, width | {"SPLITS": 32, "SPLIT_KEYS": 512}
        for group in GROUPS:
            shape = width | {"GROUP": group}
            yield attention.decode_kernel, shape | {"ROWS": 16, "KEYS": 32, "SPLIT_KEYS": 512}
        yield attention.prefill_kernel, width | {"GROUP": 7, "ROWS": 32, "KEYS": 32}


def few_rows() -> Iterator[tuple[Any, dict[str, Any]]]:
    """The kernels that decoding alone uses, attention apart."""
    skinny = import_module("inference_service.kernels.gpu.skinny_linear")
    choice = import_module("inference_service.kernels.gpu.choice")
    penalties = import_module("inference_service.kernels.gpu.penalties")
    slot_state = import_module("inference_service.kernels.gpu.slot_state")
    for biased in (False, True):
        for whole in (False, True):
            tile = {"OUTPUTS": 64, "INPUTS": 64, "ROWS": 16}
            kind = {"WHOLE": whole, "BIASED": biased}
            yield skinny.skinny_linear_kernel, tile | kind
        yield skinny.add_parts_kernel, {"BIASED": biased, "BLOCK": 512}
    for cut in (False, True):
        kind = {"CUT": cut, "MIXED": cut, "INTERPRETED": False}
        yield choice.block_maximum_kernel, kind | {"BLOCK": 1024}
    for counts in (False, True):
        yield penalties.penalised_kernel, {"COUNTS": counts, "BLOCK": 256}
    for kernel in (penalties.write_penalised_kernel, penalties.scaled_history_kernel):
        yield kernel, {"BLOCK": 256}
    yield choice.row_maximum_kernel, {"BLOCK": 256}
    yield slot_state.begin_rows_kernel, {"BLOCK": 1024}
    for kernel in (slot_state.write_entries_kernel, slot_state.record_tokens_kernel):
        yield kernel, {"BLOCK": 64}
    filters = import_module("inference_service.kernels.gpu.filters")
    tables = {"CHUNK": 64, "TABLE": 8192, "BLOCK": 4096}
    yield filters.lowest_kept_kernel, tables | {"INTERPRETED": False}


def type_of(name: str, value: str) -> str:
    """The type of an argument in triton's notation; `value` is that of the activations."""
    if name in FLOATS:
        return FLOATS[name]
    if name not in POINTERS:
        return "i32"
    kinds = ((INDICES, "i32"), (LONG, "i64"), (WIDE, "fp32"))
    return "*" + next((kind for names, kind in kinds if name in names), value)


def compiled(kernel: Any, constants: Mapping[str, Any], value: str) -> Any:
    """A kernel for sm_90; as at run time, pointers and strides are multiples of 16 where it specialises on that."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else type_of(name, value) for name in names}
    divisible = [
        (index,)
        for index, name in enumerate(names)
        if name not in constants
        and (name in POINTERS or name.endswith("stride") or name in DIVISIBLE)
        and not kernel.params[index].do_not_specialize
        and not kernel.params[index].do_not_specialize_on_alignment
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=dict(constants),
        attrs={key: [["tt.divisibility", 16]] for key in divisible},
    )
    options = OPTIONS.get(kernel.__name__, {})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def spilled_bytes(cubin: bytes) -> int:
    """Bytes of local memory that a kernel stores registers to, by the tool that triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"STACK:(\d+).*?LOCAL:(\d+)", text)
    assert found, text
    return max(int(stack) + int(local) for stack, local in found)


def main() -> None:
    """Compiles all, or those that the arguments name, and prints the rows."""
    if not find_spec("triton"):
        sys.path.append(str(FOLDER))
    rows = []
    for kernel, constants in kernels():
        if sys.argv[1:] and kernel.__name__ not in sys.argv[1:]:
            continue
        result = compiled(kernel, constants, "bf16")
        text = result.asm["ptx"]
        rows.append(
            {
                "kernel": kernel.__name__,
                "constants": constants,
                "spilled": spilled_bytes(result.asm["cubin"]),
                "shared": result.metadata.shared,
                "matrix": "mma" in text,
                "asynchronous": "cp.async" in text,
                "vectors": bool(re.search(r"ld\.global\S*\.v[248]\.", text)),
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
