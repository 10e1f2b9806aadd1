"""A ZeRO engine that gives one exact gradient shard for each objective.

One optimizer step of K objectives:

    for each objective k:  backward over its micro-batches, reduced at the last one;  take() the shard
    G = Gram matrix of the shards, one all-reduce of K x K numbers in fp64
    w = combiner(G);  d = sum_k w_k g_k, written into the live buffers;  ONE optimizer step

It costs K - 1 gradient shards of memory over a summed backward, which the engine does too where the weights are known
beforehand: `gradient` of several passes at once. DeepSpeed's own clipping stays off (its default, 1.0,
would rescale NGDiff, whose norm is near 1.41); clipping by the combined norm is folded into w.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from unlearn_core.config import BatchConfig, OptimizerConfig, ZeroConfig
from unlearn_core.data.packing import PassInputs
from unlearn_core.errors import MissingPackageError
from unlearn_core.forward import Forward, Read

# DeepSpeed 0.19 still calls names that torch 2.13 renamed: two lines a step in every worker's log.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402  (reads DS_ACCELERATOR when imported)

from unlearn_core.zero.layouts import open_shards  # noqa: E402
from unlearn_core.zero.passes import Pass  # noqa: E402
from unlearn_core.zero.shards import GradientShards  # noqa: E402
from unlearn_core.zero.waiting_room import WaitingRoom  # noqa: E402

# Else DeepSpeed compiles a shared-memory collective on a CPU (over 40 s, needs a compiler); gloo serves.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

GRAM_CHUNK = {"cpu": 2**17, "cuda": 2**24}
"""Elements cast up at a time: 1 MiB of fp64 stays in a CPU's cache, 64 MiB of fp32 keep a GPU busy."""
GRAM_BLOCK = 2**12
"""Elements whose products a GPU adds up in fp32; the sums of blocks are added in fp64."""


class ZeroEngine:
    """DeepSpeed engine, gradient shards and learning rate of one training run.

    Args:
        model: a causal LM in fp32 or bf16, whole on every rank (DeepSpeed partitions it), or partitioned already.
        zero: stage and activation checkpointing.
        optimizer: name and hyper-parameters; its schedule is the caller's.
        bf16: train in bf16 with fp32 master weights.
        batch: rows a forward pass, whether they are packed, label rows whose logits exist at a time.

    torch.distributed must be initialised. Attributes: `device`, `rank`, `world_size`, `shards`, `module` (the model),
    `packs` (whether forward passes take packed rows).
    """

    def __init__(
        self, model: torch.nn.Module, zero: ZeroConfig, optimizer: OptimizerConfig, bf16: bool, batch: BatchConfig
    ):
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.bf16 = bf16
        if zero.activation_checkpointing:
            enable: Any = model.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        forward = Forward(model, batch.packed, batch.logit_rows)
        self.packs = forward.packs
        groups = _parameter_groups(parameters, zero.sub_group if zero.stage in (1, 2) else 0)
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=forward,
            optimizer=_torch_optimizer(groups, optimizer),  # type: ignore[arg-type]
            config=deepspeed_config(zero, bf16, batch.micro),
            dist_init_required=not deepspeed.comm.is_initialized(),
        )
        self.module: Any = model
        self._waiting = WaitingRoom() if zero.park_gradients else None
        self.device = self.engine.device
        self.shards: GradientShards = open_shards(self.engine)
        self.progress: Callable[[], None] = lambda: None
        """Called at each sign of progress, before the ranks next wait for each other."""

    def gradient(self, *passes: Pass) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Gradient of sum_k weight_k loss_k over the global batch, by one backward for each micro-batch.

        Args:
            passes: one for an objective's own gradient, several for a summed one.

        Returns:
            Each pass's loss on this rank, without its weight: a sum, for `means`, on the device, since to read it would
            make the CPU wait; and this rank's gradient shard: the live buffers, until `take` or `step`.
        """
        if len(passes) > 1 and not self.shards.sums_unused:
            return self._gradient_by_parts(passes)
        totals = torch.zeros(len(passes), dtype=torch.float64, device=self.device)
        last = len(passes) - 1
        for number, item in enumerate(passes):
            # DeepSpeed averages gradients over ranks; multiplying by the world size makes that a sum.
            scale = item.weight * self.world_size / item.normaliser
            for index, batch in enumerate(item.micro_batches):
                boundary = number == last and index == len(item.micro_batches) - 1
                self.engine.set_gradient_accumulation_boundary(boundary)
                loss_sum = self._loss_sum(item, batch, index)
                self.progress()
                self.engine.backward(loss_sum * scale, scale_wrt_gas=False)
                totals[number] += loss_sum.detach().double()
        return totals, self.shards.live()

    def _gradient_by_parts(self, passes: Sequence[Pass]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The same, each pass reduced on its own and summed afterwards: one more gradient shard, on the host."""
        totals: list[torch.Tensor] = []
        summed: list[torch.Tensor] = []
        for item in passes:
            total, live = self.gradient(item)
            totals.append(total)
            if summed:
                self.combine(live, 1.0, [(summed, 1.0)])
            if item is not passes[-1]:
                summed = self.take()
        return torch.cat(totals), self.shards.live()

    @torch.no_grad()
    def losses(self, *passes: Pass) -> list[float]:
        """Each pass's loss at the weights that forward passes now see, without a gradient; equal on every rank."""
        totals = torch.zeros(len(passes), dtype=torch.float64, device=self.device)
        for number, item in enumerate(passes):
            for index, batch in enumerate(item.micro_batches):
                totals[number] += self._loss_sum(item, batch, index).double()
        return self.means(totals, passes)

    @torch.no_grad()
    def read(self, inputs: Sequence[PassInputs], read: Read, layer: int | None = None) -> Iterator[Any]:
        """What `read` makes of each forward pass, without a gradient; every rank has the same number."""
        for one in inputs:
            yield self._forward(one.to(self.device), read, layer)

    @contextmanager
    def swapped(self, source: Iterable[torch.Tensor]) -> Iterator[None]:
        """Forward passes inside see `source`, laid out like `shards.master()`; afterwards all is as before."""
        with self.shards.swapped(source):
            yield

    def _loss_sum(self, item: Pass, inputs: PassInputs, index: int) -> torch.Tensor:
        here = inputs.to(self.device)
        loss_sum = self._forward(here, lambda readout: item.loss(readout, here, index), item.layer)
        return loss_sum if inputs.counts else loss_sum * 0.0

    def _forward(self, inputs: PassInputs, read: Read, layer: int | None) -> Any:
        self.progress()
        return self.engine(inputs, read, layer)

    @staticmethod
    def means(totals: torch.Tensor, passes: Sequence[Pass]) -> list[float]:
        """Each pass's loss over the global batch, a mean over its normaliser, equal on every rank."""
        dist.all_reduce(totals)
        return [float(total) / item.normaliser for total, item in zip(totals.cpu(), passes, strict=True)]

    def parameter_names(self) -> dict[int, str]:
        """Id of each parameter -> its name in the model."""
        return {id(parameter): name for name, parameter in self.module.named_parameters()}

    def take(self) -> list[torch.Tensor]:
        """Keep the live gradient aside and clean the buffers for the next objective."""
        taken = self.shards.take()
        return taken if self._waiting is None else self._waiting.enter(taken)

    def gram(self, shards: Sequence[list[torch.Tensor]]) -> NDArray[np.float64]:
        """Global dot products of K gradients: shape (K, K), fp64, equal on every rank.

        fp64 on a CPU, where an fp32 dot was off by 2.4e-5 in the diagonal; on a GPU fp32 within blocks and fp64 over
        them. One all-reduce of K x K numbers.
        """
        if self._waiting is not None:
            self._waiting.leave_in_order()
        count = len(shards)
        device = shards[-1][0].device  # the host's under optimizer offload
        size = GRAM_CHUNK["cpu" if device.type == "cpu" else "cuda"]
        gram_KK = torch.zeros(count, count, dtype=torch.float64, device=device)
        for tensors in zip(*shards, strict=True):
            chunks = zip(*(tensor.detach().reshape(-1).split(size) for tensor in tensors), strict=True)
            for chunk in chunks:
                add_products(gram_KK, [part.to(device, non_blocking=True) for part in chunk])
        gram_KK = (gram_KK + gram_KK.triu(1).T).to(self.device)
        if self.shards.sharded:
            dist.all_reduce(gram_KK)
        else:
            # Equal already, unless the ranks differ in hardware: then weights, and so the replicas, would drift apart.
            dist.broadcast(gram_KK, src=0)
        return gram_KK.cpu().numpy()

    @torch.no_grad()
    def combine(
        self, live: list[torch.Tensor], live_weight: float, others: Sequence[tuple[list[torch.Tensor], float]] = ()
    ) -> None:
        """Write live_weight x live + sum of weight x other into the live buffers.

        Args:
            live: the live buffers.
            live_weight: their own factor.
            others: gradients or tracking buffers kept aside, and their factors; a factor of 0 is skipped.
        """
        if live_weight != 1.0:
            torch._foreach_mul_(live, live_weight)  # pyright: ignore[reportPrivateImportUsage]
        for shard, weight in others:
            if weight == 0.0:
                continue
            if shard[0].device == live[0].device:
                torch._foreach_add_(live, shard, alpha=weight)  # pyright: ignore[reportPrivateImportUsage]
                continue
            for tensor, parked in zip(live, shard, strict=True):
                size = GRAM_CHUNK["cuda"]
                for part, waiting in zip(tensor.view(-1).split(size), parked.view(-1).split(size), strict=True):
                    part.add_(waiting.to(part.device, non_blocking=True), alpha=weight)

    def step(self, learning_rate: float) -> None:
        """One optimizer step along the live buffers, which are clean afterwards."""
        self.shards.set_learning_rate(learning_rate)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.step()
        # Stage 3 keeps d in its buffer; a parameter that the next objective does not use would count it again.
        self.shards.reset()

    def close(self) -> None:
        """Remove DeepSpeed's hooks and buffers; the engine is unusable afterwards."""
        self.engine.destroy()

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers, on every rank."""
        tensor = torch.tensor(number, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def weights_are_finite(self) -> bool:
        """Whether every fp32 master weight on every rank is finite; the same answer on all ranks."""
        bad = torch.zeros((), device=self.device)
        for tensor in self.shards.master():
            bad += (~torch.isfinite(tensor)).any().to(self.device)
        dist.all_reduce(bad)
        return bool(bad.item() == 0)


def add_products(gram_KK: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
    """Add the dot products of K flat pieces to the upper triangle of `gram_KK`."""
    on_cpu = gram_KK.device.type == "cpu"
    wide = [part.double() if on_cpu else blocks(part) for part in parts]
    for i in range(len(wide)):
        for j in range(i, len(wide)):
            gram_KK[i, j] += torch.dot(wide[i], wide[j]) if on_cpu else block_dot(wide[i], wide[j])


def blocks(flat: torch.Tensor) -> torch.Tensor:
    """A flat tensor in fp32 as rows of `GRAM_BLOCK`, filled up with zeros."""
    missing = -flat.numel() % GRAM_BLOCK
    return torch.nn.functional.pad(flat.float(), (0, missing)).view(-1, GRAM_BLOCK)


def block_dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Dot product of two tensors from `blocks`: fp32 within a row, fp64 over rows."""
    return torch.linalg.vecdot(left, right).double().sum()


def _parameter_groups(parameters: list[torch.nn.Parameter], most: int) -> list[dict[str, Any]]:
    """Groups of at most `most` elements, or of one parameter: DeepSpeed casts a whole group's gradient to fp32."""
    groups: list[dict[str, Any]] = [{"params": []}]
    size = 0
    for parameter in parameters:
        if most and groups[-1]["params"] and size + parameter.numel() > most:
            groups.append({"params": []})
            size = 0
        groups[-1]["params"].append(parameter)
        size += parameter.numel()
    return groups


def _torch_optimizer(parameters: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    if config.name == "adamw_8bit":
        try:
            from bitsandbytes.optim.adamw import AdamW8bit
        except ImportError as error:
            raise MissingPackageError(
                "optimizer.name adamw_8bit needs the package 'bitsandbytes' (pip install 'unlearn[adamw8bit]')"
            ) from error
        return AdamW8bit(
            parameters,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def deepspeed_config(zero: ZeroConfig, bf16: bool, micro_batch: int) -> dict[str, Any]:
    """What DeepSpeed is told."""
    on_gpu = torch.cuda.is_available()
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        # Accumulation is ours: boundaries are set by hand, once for each objective.
        "gradient_accumulation_steps": 1,
        # Explicit: DeepSpeed's default of 1.0 would silently rescale the combined gradient.
        "gradient_clipping": 0.0,
        # The Gram matrix says whether gradients are finite, before the step; another pass over them is saved.
        "bf16": {"enabled": bf16, "check_grad_overflow": False},
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": zero.overlap_comm,
            "contiguous_gradients": True,
            "round_robin_gradients": False,
            **({"sub_group_size": zero.sub_group} if zero.stage == 3 else {}),
            **({"offload_optimizer": {"device": "cpu", "pin_memory": on_gpu}} if zero.offload_optimizer else {}),
        },
        "zero_allow_untested_optimizer": True,
        # torch's optimizers step on the host as well; DeepSpeed's own CPU Adam would need a compiler.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
