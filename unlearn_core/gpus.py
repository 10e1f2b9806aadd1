"""GPUs that a plan knows: memory, rates and links as their makers state them, and prices as assumptions.

Rates are of dense bf16 matrix products with fp32 accumulation, without sparsity. A datasheet's rate is never reached;
the share that is (MFU) is the plan's assumption (`step_time_plan.py`).
"""

from dataclasses import dataclass

from unlearn_core.errors import UserError

PRICES_OF = "2026-11"
"""Month in which the price assumptions below were set. They are round numbers of on-demand offers, not quotations."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU in a node of eight."""

    name: str
    memory: int
    """Bytes that CUDA reports as total: a little less than the label says."""
    flops: float
    """Dense bf16 multiply-adds a second, counted as two operations each."""
    bandwidth: float
    """Bytes a second between the GPU's memory and its cores."""
    link: float
    """Bytes a second that one GPU sends to the others of its node, one direction: NVLink, or else PCIe."""
    price: float
    """Dollars a GPU-hour: an assumption, see `PRICES_OF`."""


_GIB = 2**30
_TERA, _GIGA = 1e12, 1e9

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA H100 datasheet, SXM: 80 GB, 989 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s both directions.
        Gpu("h100-80g", int(79.1 * _GIB), 989 * _TERA, 3.35 * _TERA, 450 * _GIGA, 3.0),
        # NVIDIA H200 datasheet: 141 GB, 989 TFLOP/s, 4.8 TB/s, NVLink 900 GB/s.
        Gpu("h200-141g", int(139.8 * _GIB), 989 * _TERA, 4.8 * _TERA, 450 * _GIGA, 3.8),
        # NVIDIA HGX B200 datasheet: 180 GB a GPU, 2,250 TFLOP/s, 7.7 TB/s, NVLink 1.8 TB/s.
        Gpu("b200-180g", int(178.0 * _GIB), 2250 * _TERA, 7.7 * _TERA, 900 * _GIGA, 6.0),
        # NVIDIA A100 datasheet, SXM: 312 TFLOP/s; 2.04 TB/s (80 GB), 1.56 TB/s (40 GB), NVLink 600 GB/s.
        Gpu("a100-80g", int(79.1 * _GIB), 312 * _TERA, 2.04 * _TERA, 300 * _GIGA, 1.8),
        Gpu("a100-40g", int(39.4 * _GIB), 312 * _TERA, 1.56 * _TERA, 300 * _GIGA, 1.3),
        # NVIDIA L40S datasheet: 48 GB, 362 TFLOP/s, 864 GB/s, PCIe 4.0 x16 (64 GB/s both directions).
        Gpu("l40s-48g", int(44.4 * _GIB), 362 * _TERA, 0.864 * _TERA, 32 * _GIGA, 1.0),
        # NVIDIA RTX A6000 datasheet and GA102 whitepaper: 48 GB, 155 TFLOP/s, 768 GB/s, PCIe 4.0 x16.
        Gpu("a6000-48g", int(47.5 * _GIB), 155 * _TERA, 0.768 * _TERA, 32 * _GIGA, 0.6),
        # NVIDIA Ada whitepaper: 24 GB, 165 TFLOP/s with fp32 accumulation, 1,008 GB/s, PCIe 4.0 x16.
        Gpu("rtx4090-24g", int(23.6 * _GIB), 165 * _TERA, 1.008 * _TERA, 32 * _GIGA, 0.4),
    )
}

NODE = 8
"""GPUs of a node."""
NETWORK = 400 * _GIGA / 8
"""Bytes a second of one GPU's network adapter: 400 Gbit/s, as in eight-GPU H100 nodes; an assumption."""
HOST_LINK = 50 * _GIGA
"""Bytes a second between a GPU and pinned host memory: PCIe 5.0 x16 in practice; an estimate."""


def find_gpu(name: str) -> Gpu:
    """The GPU of this name; `UserError` lists the known ones."""
    if name not in GPUS:
        raise UserError(f"unknown GPU '{name}'; expected one of {', '.join(GPUS)}, or give --gpu-memory beside one")
    return GPUS[name]
