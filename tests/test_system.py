"""What the machine is asked for."""

import sys

import pytest
import torch

from benchmark_adapters.runs.system import forget_peak, peak_memory_mib

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_every_run_has_a_peak_of_its_own():
    forget_peak(CPU)
    before = peak_memory_mib(CPU)
    held = torch.ones(64 * 2**20)  # 256 MiB, all touched
    assert peak_memory_mib(CPU) > before + 200
    del held
    assert peak_memory_mib(CPU) > before + 200
    forget_peak(CPU)
    assert peak_memory_mib(CPU) < before + 100
