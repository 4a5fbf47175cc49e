"""Every Triton kernel works on every GPU of the machine, in every dtype."""

from __future__ import annotations

import pytest
import torch

from inference_service.kernels.ops import choose_ops, gpu_kernels
from inference_service.kernels.self_check import LIMITS


pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_no_kernel_is_left_out(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton")
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    kernels = gpu_kernels()
    assert kernels
    chosen = choose_ops(devices, dtype, kernels)
    assert caplog.messages == []
    assert all(getattr(chosen, kernel.op) is kernel.run for kernel in kernels)
