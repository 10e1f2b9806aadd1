"""Local shards of a DeepSpeed engine, one class per ZeRO layout.

Every private DeepSpeed attribute that this project touches is named in this file and checked when the engine is built,
so that a DeepSpeed whose internals moved fails at once instead of training on the wrong buffer. Tried with 0.19.8.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from unlearn_core.zero.shards import Fragment, GradientShards


def open_shards(engine: Any) -> "GradientShards":
    """The access class for this engine's ZeRO layout.

    Args:
        engine: a `deepspeed.DeepSpeedEngine` with an optimizer, with or without optimizer offload to the CPU.

    Raises:
        RuntimeError: the optimizer wrapper is none of those known, or lacks an attribute this file relies on.
    """
    wrapper = engine.optimizer
    kind = type(wrapper).__name__
    offloaded = bool(getattr(wrapper, "cpu_offload", False) or getattr(wrapper, "offload_optimizer", False))
    layouts: dict[str, type[GradientShards]] = {
        "DeepSpeedZeroOptimizer": Zero12Shards,
        "DeepSpeedZeroOptimizer_Stage3": Zero3Shards,
        "FP16_UnfusedOptimizer": ReplicatedBf16,
    }
    layout = layouts.get(kind)
    if layout is None and isinstance(wrapper, torch.optim.Optimizer):
        layout = ReplicatedFp32
    if layout is None:
        raise RuntimeError(f"No gradient access for DeepSpeed optimizer {kind}; known: {', '.join(layouts)}")
    missing = [name for name in layout.needs if not hasattr(wrapper, name)]
    if missing:
        raise RuntimeError(
            f"This DeepSpeed's {kind} lacks {', '.join(missing)}, which exact two-gradient steps rely on. "
            "Install the deepspeed version of constraints.txt."
        )
    if kind == "DeepSpeedZeroOptimizer" and offloaded:
        layout = OffloadedZero12Shards
    if kind == "DeepSpeedZeroOptimizer_Stage3" and offloaded:
        layout = OffloadedZero3Shards
    return layout(engine)


class ReplicatedFp32(GradientShards):
    """Stage 0 in fp32: no wrapper, each rank holds everything. No private attribute."""

    sharded = False

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.base_optimizer.param_groups for parameter in group["params"]]

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:  # noqa: D102
        return self.wrapper

    def live(self) -> list[torch.Tensor]:  # noqa: D102
        for parameter in self._parameters():
            if parameter.grad is None:  # not part of this objective's graph
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters() if parameter.grad is not None]

    def take(self) -> list[torch.Tensor]:  # noqa: D102
        taken = self.live()
        self.reset()  # sets .grad to None: the tensors are ours now, no copy
        return taken

    def reset(self) -> None:  # noqa: D102
        for parameter in self._parameters():
            parameter.grad = None

    def master(self) -> list[torch.Tensor]:  # noqa: D102
        return list(self._parameters())

    def pieces(self) -> list[list[torch.Tensor]]:  # noqa: D102
        return [[tensor] for tensor in self.live()]

    def fragments(self, names: Mapping[int, str]) -> list[list[Fragment]]:  # noqa: D102
        return [[Fragment(names[id(parameter)], 0, parameter.numel(), 0)] for parameter in self._parameters()]

    @torch.no_grad()
    def push(self, source: Iterable[torch.Tensor]) -> None:  # noqa: D102
        for parameter, tensor in zip(self._parameters(), source, strict=True):
            parameter.data.copy_(tensor)

    @contextmanager
    def swapped(self, source: Iterable[torch.Tensor]) -> Iterator[None]:  # noqa: D102
        # Here the master IS the weights: point the parameters elsewhere instead of writing over them.
        kept = [parameter.data for parameter in self._parameters()]
        for parameter, tensor in zip(self._parameters(), source, strict=True):
            parameter.data = tensor.data.to(parameter.device).view(parameter.shape)
        try:
            yield
        finally:
            for parameter, data in zip(self._parameters(), kept, strict=True):
                parameter.data = data


class ReplicatedBf16(GradientShards):
    """Stage 0 in bf16: each rank holds bf16 weights and gradients and an fp32 master of everything."""

    needs = ("fp16_groups", "fp32_groups", "optimizer")
    sharded = False

    def __init__(self, engine: Any):
        super().__init__(engine)
        # DeepSpeed 0.19.8 takes an optimizer step with zero gradients when it builds this wrapper: weight decay is
        # applied once and AdamW's step count starts at 1, which breaks its bias correction. Measured: displacement off
        # by 0.15 after 5 steps instead of 0.05. Start from the weights as loaded and from no state.
        self.base_optimizer.state.clear()
        with torch.no_grad():
            for master, weight in zip(self.master(), self._low_precision(), strict=True):
                master.copy_(weight)

    def _low_precision(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.wrapper.fp16_groups for parameter in group]

    def live(self) -> list[torch.Tensor]:  # noqa: D102
        for parameter in self._low_precision():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._low_precision() if parameter.grad is not None]

    def take(self) -> list[torch.Tensor]:  # noqa: D102
        taken = self.live()
        self.reset()
        return taken

    def reset(self) -> None:  # noqa: D102
        for parameter in self._low_precision():
            parameter.grad = None

    def master(self) -> list[torch.Tensor]:  # noqa: D102
        return [tensor for group in self.wrapper.fp32_groups for tensor in group]

    def pieces(self) -> list[list[torch.Tensor]]:  # noqa: D102
        return [[tensor] for tensor in self.live()]

    def fragments(self, names: Mapping[int, str]) -> list[list[Fragment]]:  # noqa: D102
        return [[Fragment(names[id(weight)], 0, weight.numel(), 0)] for weight in self._low_precision()]

    @torch.no_grad()
    def push(self, source: Iterable[torch.Tensor]) -> None:  # noqa: D102
        for parameter, tensor in zip(self._low_precision(), source, strict=True):
            parameter.data.copy_(tensor)


class Zero12Shards(GradientShards):
    """Stages 1 and 2: one flat fp32 master partition for each parameter group; gradients as a list of tensors."""

    needs = (
        "averaged_gradients",
        "all_grad_tensors",
        "single_partition_of_fp32_groups",
        "parallel_partitioned_bit16_groups",
        "real_dp_process_group",
        "round_robin_bit16_groups",
        "round_robin_bit16_padding",
        "micro_step_id",
        "cpu_offload",
        "optimizer",
    )

    def __init__(self, engine: Any):
        super().__init__(engine)
        self._numels: list[int] = []
        """Elements of the live gradient for each group: DeepSpeed may or may not add a tensor for the padding."""

    def live(self) -> list[torch.Tensor]:  # noqa: D102
        groups = self.pieces()
        self._numels = [sum(tensor.numel() for tensor in group) for group in groups]
        return [tensor for group in groups for tensor in group]

    def take(self) -> list[torch.Tensor]:  # noqa: D102
        taken = self.live()
        self.reset()  # DeepSpeed makes a new list at each boundary backward: keeping the old one needs no copy
        return taken

    def reset(self) -> None:  # noqa: D102
        self.wrapper.zero_grad()
        self.wrapper.micro_step_id = -1
        for index in self.wrapper.averaged_gradients:
            # zero_grad() leaves these lists: the next backward would add to a half-done accumulation
            self.wrapper.averaged_gradients[index] = None
            self.wrapper.all_grad_tensors[index] = None

    def master(self) -> list[torch.Tensor]:  # noqa: D102
        return list(self.wrapper.single_partition_of_fp32_groups)

    def pieces(self) -> list[list[torch.Tensor]]:  # noqa: D102
        groups = self.wrapper.averaged_gradients
        return [groups[index] for index in sorted(groups)]

    def fragments(self, names: Mapping[int, str]) -> list[list[Fragment]]:  # noqa: D102
        found = []
        for index, master in enumerate(self.master()):
            first = dist.get_rank(self.wrapper.real_dp_process_group[index]) * master.numel()
            past, position, here = first + master.numel(), 0, []
            group = self.wrapper.round_robin_bit16_groups[index]
            for weight, padding in zip(group, self.wrapper.round_robin_bit16_padding[index], strict=True):
                begin, end = max(first, position), min(past, position + weight.numel())
                if begin < end:
                    here.append(Fragment(names[id(weight)], begin - position, end - begin, begin - first))
                position += weight.numel() + padding
            found.append(here)
        return found

    def gradient_numel(self, master: torch.Tensor, fragments: list[Fragment]) -> int:  # noqa: D102
        return self._numels[[id(one) for one in self.master()].index(id(master))]

    @torch.no_grad()
    def push(self, source: Iterable[torch.Tensor]) -> None:  # noqa: D102
        for index, tensor in enumerate(source):
            parts = self.wrapper.parallel_partitioned_bit16_groups[index]
            group = self.wrapper.real_dp_process_group[index]
            mine = parts[dist.get_rank(group)]
            mine.data.copy_(tensor)
            if len(parts) > 1 and mine.device.type == "cpu":
                # gloo gathers by way of a buffer for all parts: three times the work of each owner sending its own.
                sent: list[Any] = [
                    dist.broadcast(part, group=group, group_src=k, async_op=True) for k, part in enumerate(parts)
                ]
                for part in sent:
                    part.wait()
            elif len(parts) > 1:
                dist.all_gather(list(parts), mine.clone(), group=group)


class OffloadedZero12Shards(Zero12Shards):
    """Stages 1 and 2 with optimizer state on the host: gradients are the fp32 `.grad` of the host masters."""

    sums_unused = False  # DeepSpeed copies a gradient to the host only when the boundary backward touches it

    def live(self) -> list[torch.Tensor]:  # noqa: D102
        return [_host_gradient(master) for master in self.master()]

    def take(self) -> list[torch.Tensor]:  # noqa: D102
        taken = [tensor.detach().clone() for tensor in self.live()]
        self.reset()
        return taken

    def reset(self) -> None:  # noqa: D102
        self.wrapper.zero_grad()
        self.wrapper.micro_step_id = -1  # else the next backward adds to the last step's gradient
        for master in self.master():
            # A parameter that the next objective does not use would keep a stale gradient.
            _host_gradient(master).zero_()

    def pieces(self) -> list[list[torch.Tensor]]:  # noqa: D102
        return [[tensor] for tensor in self.live()]

    def gradient_numel(self, master: torch.Tensor, fragments: list[Fragment]) -> int:  # noqa: D102
        return master.numel()


def _host_gradient(master: torch.Tensor) -> torch.Tensor:
    if master.grad is None:
        master.grad = torch.zeros_like(master)
    return master.grad


class Zero3Shards(GradientShards):
    """Stage 3: flat fp32 master for each sub-group; all gradients in one flat buffer."""

    needs = (
        "grad_partitions_flat_buffer",
        "fp32_partitioned_groups_flat",
        "fp16_partitioned_groups_flat",
        "fp16_groups",
        "averaged_gradients",
        "offload_optimizer",
        "parameter_offload",
        "persistent_parameters",
        "optimizer",
    )

    def live(self) -> list[torch.Tensor]:  # noqa: D102
        return [self.wrapper.grad_partitions_flat_buffer]

    def reset(self) -> None:  # noqa: D102
        self.wrapper.zero_grad()  # the next backward overwrites instead of adding
        self.wrapper.grad_partitions_flat_buffer.zero_()  # parameters that the next objective does not use

    def master(self) -> list[torch.Tensor]:  # noqa: D102
        return list(self.wrapper.fp32_partitioned_groups_flat)

    def pieces(self) -> list[list[torch.Tensor]]:  # noqa: D102
        return [self.wrapper.averaged_gradients[index] for index in range(len(self.master()))]

    def fragments(self, names: Mapping[int, str]) -> list[list[Fragment]]:  # noqa: D102
        found = []
        for group in self.wrapper.fp16_groups:
            offset, here = 0, []
            for weight in group:  # each is cut into equal parts, one a rank; the last may be padded
                part = weight.partition_numel()
                start = dist.get_rank() * part
                length = min(part, weight.ds_numel - start)
                if length > 0:
                    here.append(Fragment(names[id(weight)], start, length, offset))
                offset += part
            found.append(here)
        return found

    def from_master(self, flats: list[torch.Tensor]) -> list[torch.Tensor]:  # noqa: D102
        return [torch.cat(flats)]

    @torch.no_grad()
    def push(self, source: Iterable[torch.Tensor]) -> None:  # noqa: D102
        for flat, tensor in zip(self.wrapper.fp16_partitioned_groups_flat, source, strict=True):
            flat.data.copy_(tensor)
        self.wrapper.parameter_offload.empty_partition_cache()  # gathered copies hold the old values
        persistent = self.wrapper.persistent_parameters
        if persistent:
            persistent[0].all_gather(persistent)


class OffloadedZero3Shards(Zero3Shards):
    """Stage 3 with optimizer state on the host: gradients are the fp32 `.grad` of the host masters."""

    sums_unused = False  # as above

    def live(self) -> list[torch.Tensor]:  # noqa: D102
        return [_host_gradient(master) for master in self.master()]

    def reset(self) -> None:  # noqa: D102
        super().reset()
        for master in self.master():
            _host_gradient(master).zero_()

    def pieces(self) -> list[list[torch.Tensor]]:  # noqa: D102
        return [[tensor] for tensor in self.live()]

    def from_master(self, flats: list[torch.Tensor]) -> list[torch.Tensor]:  # noqa: D102
        return list(flats)
