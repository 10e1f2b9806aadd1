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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from unlearn_core.config import OptimizerConfig, ZeroConfig
from unlearn_core.data.tokenization import Batch
from unlearn_core.errors import MissingPackageError

# DeepSpeed 0.19 still calls names that torch 2.13 renamed: two lines a step in every worker's log.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402  (reads DS_ACCELERATOR when imported)

from unlearn_core.zero.layouts import open_shards  # noqa: E402
from unlearn_core.zero.passes import Pass  # noqa: E402
from unlearn_core.zero.shards import GradientShards  # noqa: E402

GRAM_CHUNK = {"cpu": 2**17, "cuda": 2**24}
"""Elements cast to fp64 at a time: 1 MiB stays in a CPU's cache, 128 MiB keeps a GPU busy; a shard is never doubled."""


class ZeroEngine:
    """DeepSpeed engine, gradient shards and learning rate of one training run.

    Args:
        model: a causal LM in fp32 or bf16, whole on every rank (DeepSpeed partitions it).
        zero: stage and activation checkpointing.
        optimizer: name and hyper-parameters; its schedule is the caller's.
        bf16: train in bf16 with fp32 master weights.
        micro_batch: rows a forward pass.

    torch.distributed must be initialised. Attributes: `device`, `rank`, `world_size`, `shards`, `module`.
    """

    def __init__(
        self, model: torch.nn.Module, zero: ZeroConfig, optimizer: OptimizerConfig, bf16: bool, micro_batch: int
    ):
        # Without this DeepSpeed compiles a shared-memory collective on CPU (over 40 s, needs a compiler); gloo serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.bf16 = bf16
        if zero.activation_checkpointing:
            enable: Any = model.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_torch_optimizer(parameters, optimizer),  # type: ignore[arg-type]
            config=_deepspeed_config(zero, bf16, micro_batch),
            dist_init_required=not deepspeed.comm.is_initialized(),
        )
        self.module: Any = self.engine.module
        self.device = self.engine.device
        self.shards: GradientShards = open_shards(self.engine)
        self.progress: Callable[[], None] = lambda: None
        """Called at each sign of progress, before the ranks next wait for each other."""

    def gradient(self, *passes: Pass) -> tuple[list[float], list[torch.Tensor]]:
        """Gradient of sum_k weight_k loss_k over the global batch, by one backward for each micro-batch.

        Args:
            passes: one for an objective's own gradient, several for a summed one.

        Returns:
            Each pass's loss, a mean over its normaliser, equal on every rank and without its weight; and this rank's
            gradient shard: the live buffers, until `take` or `step`.
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
        return self._means(totals, passes), self.shards.live()

    def _gradient_by_parts(self, passes: Sequence[Pass]) -> tuple[list[float], list[torch.Tensor]]:
        """The same, each pass reduced on its own and summed afterwards: one more gradient shard, on the host."""
        losses: list[float] = []
        total: list[torch.Tensor] = []
        for item in passes:
            (loss,), live = self.gradient(item)
            losses.append(loss)
            if total:
                self.combine(live, 1.0, [(total, 1.0)])
            if item is not passes[-1]:
                total = self.take()
        return losses, self.shards.live()

    @torch.no_grad()
    def losses(self, *passes: Pass) -> list[float]:
        """Each pass's loss at the weights that forward passes now see, without a gradient; equal on every rank."""
        totals = torch.zeros(len(passes), dtype=torch.float64, device=self.device)
        for number, item in enumerate(passes):
            for index, batch in enumerate(item.micro_batches):
                totals[number] += self._loss_sum(item, batch, index).double()
        return self._means(totals, passes)

    @torch.no_grad()
    def outputs(self, batches: Sequence[Batch], hidden: bool = False) -> Iterator[tuple[Any, Batch]]:
        """The model's output for each micro-batch, and that batch on the device; every rank has the same number."""
        for batch in batches:
            here = batch.to(self.device)
            yield self._forward(here, hidden), here

    @contextmanager
    def swapped(self, source: list[torch.Tensor]) -> Iterator[None]:
        """Forward passes inside see `source`, laid out like `shards.master()`; afterwards all is as before."""
        with self.shards.swapped(source):
            yield

    def _loss_sum(self, item: Pass, batch: Batch, index: int) -> torch.Tensor:
        here = batch.to(self.device)
        loss_sum = item.loss(self._forward(here, item.hidden), here, index)
        return loss_sum if batch.counts else loss_sum * 0.0

    def _forward(self, batch: Batch, hidden: bool) -> Any:
        self.progress()
        extra = {"output_hidden_states": True} if hidden else {}
        return self.engine(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False, **extra
        )

    @staticmethod
    def _means(totals: torch.Tensor, passes: Sequence[Pass]) -> list[float]:
        dist.all_reduce(totals)
        return [float(total) / item.normaliser for total, item in zip(totals.cpu(), passes, strict=True)]

    def parameter_names(self) -> dict[int, str]:
        """Id of each parameter -> its name in the model."""
        return {id(parameter): name for name, parameter in self.module.named_parameters()}

    def take(self) -> list[torch.Tensor]:
        """Keep the live gradient aside and clean the buffers for the next objective."""
        return self.shards.take()

    def gram(self, shards: Sequence[list[torch.Tensor]]) -> NDArray[np.float64]:
        """Global dot products of K gradients: shape (K, K), fp64, equal on every rank.

        fp64 because an fp32 dot on CPU was off by 2.4e-5 in the diagonal; one all-reduce of K x K numbers.
        """
        count = len(shards)
        device = shards[0][0].device  # the host's under optimizer offload
        size = GRAM_CHUNK["cpu" if device.type == "cpu" else "cuda"]
        gram_KK = torch.zeros(count, count, dtype=torch.float64, device=device)
        for tensors in zip(*shards, strict=True):
            chunks = zip(*(tensor.detach().reshape(-1).split(size) for tensor in tensors), strict=True)
            for chunk in chunks:
                doubles = [part.double() for part in chunk]
                for i in range(count):
                    for j in range(i, count):
                        gram_KK[i, j] += torch.dot(doubles[i], doubles[j])
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
        for index, tensor in enumerate(live):
            if live_weight != 1.0:
                tensor.mul_(live_weight)
            for shard, weight in others:
                if weight != 0.0:
                    tensor.add_(shard[index], alpha=weight)

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


def _torch_optimizer(parameters: list[torch.nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
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


def _deepspeed_config(zero: ZeroConfig, bf16: bool, micro_batch: int) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        # Accumulation is ours: boundaries are set by hand, once for each objective.
        "gradient_accumulation_steps": 1,
        # Explicit: DeepSpeed's default of 1.0 would silently rescale the combined gradient.
        "gradient_clipping": 0.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": zero.overlap_comm,
            "contiguous_gradients": True,
            "round_robin_gradients": False,
            **({"offload_optimizer": {"device": "cpu", "pin_memory": on_gpu}} if zero.offload_optimizer else {}),
        },
        "zero_allow_untested_optimizer": True,
        # torch's optimizers step on the host as well; DeepSpeed's own CPU Adam would need a compiler.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
