"""A ZeRO engine that gives one exact gradient shard for each objective.

One optimizer step of K objectives:

    for each objective k:  backward over its micro-batches, reduced at the last one;  take() the shard
    G = Gram matrix of the shards, one all-reduce of K x K numbers in fp64
    w = combiner(G);  d = sum_k w_k g_k, written into the live buffers;  ONE optimizer step

It costs K - 1 gradient shards of memory over a summed backward. DeepSpeed's own clipping stays off (its default, 1.0,
would rescale NGDiff, whose norm is near 1.41); clipping by the combined norm is folded into w.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from unlearn_core.config import OptimizerConfig, ZeroConfig
from unlearn_core.data.tokenization import Batch

# DeepSpeed 0.19 still calls names that torch 2.13 renamed: two lines a step in every worker's log.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402  (reads DS_ACCELERATOR when imported)

from unlearn_core.zero.shards import GradientShards, open_shards  # noqa: E402

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits_BTV, labels_BT) -> scalar sum over label tokens."""

GRAM_CHUNK = 2**24
"""Elements cast to fp64 at a time (128 MiB for each objective), so that a 7B shard is never doubled whole."""


@dataclass(frozen=True)
class ObjectiveGradient:
    """One objective's loss and this rank's shard of its gradient."""

    loss: float
    """Mean over the global batch's label tokens, in nats; equal on every rank."""
    shard: list[torch.Tensor]


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
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
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

    def gradient(self, loss: Loss, micro_batches: Sequence[Batch], label_tokens: int) -> ObjectiveGradient:
        """Gradient of one objective over the global batch.

        Args:
            loss: sum over label tokens of a micro-batch.
            micro_batches: this rank's part; every rank has the same number.
            label_tokens: label tokens of the whole global batch: the one normaliser of every micro-batch and rank.

        Returns:
            Loss and gradient of (sum over the global batch) / label_tokens. The live buffers hold the same gradient
            until `take` or `combine_and_step`.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        # DeepSpeed averages gradients over ranks; multiplying by the world size makes that a sum.
        scale = self.world_size / label_tokens
        for index, batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            output = self.engine(
                input_ids=batch.input_ids_BT.to(self.device),
                attention_mask=batch.attention_mask_BT.to(self.device),
                use_cache=False,
            )
            loss_sum = loss(output.logits, batch.labels_BT.to(self.device))
            self.engine.backward(loss_sum * scale, scale_wrt_gas=False)
            total += loss_sum.detach().double()
        dist.all_reduce(total)
        return ObjectiveGradient(loss=float(total) / label_tokens, shard=self.shards.live())

    def take(self, gradient: ObjectiveGradient) -> ObjectiveGradient:
        """Keep a gradient aside and clean the live buffers for the next objective."""
        return ObjectiveGradient(gradient.loss, self.shards.take())

    def gram(self, shards: Sequence[list[torch.Tensor]]) -> NDArray[np.float64]:
        """Global dot products of K gradients: shape (K, K), fp64, equal on every rank.

        fp64 because an fp32 dot on CPU was off by 2.4e-5 in the diagonal; one all-reduce of K x K numbers.
        """
        count = len(shards)
        gram_KK = torch.zeros(count, count, dtype=torch.float64, device=self.device)
        for tensors in zip(*shards, strict=True):
            chunks = zip(*(tensor.detach().reshape(-1).split(GRAM_CHUNK) for tensor in tensors), strict=True)
            for chunk in chunks:
                doubles = [part.double() for part in chunk]
                for i in range(count):
                    for j in range(i, count):
                        gram_KK[i, j] += torch.dot(doubles[i], doubles[j])
        gram_KK = gram_KK + gram_KK.triu(1).T
        if self.shards.sharded:
            dist.all_reduce(gram_KK)
        else:
            # Equal already, unless the ranks differ in hardware: then weights, and so the replicas, would drift apart.
            dist.broadcast(gram_KK, src=0)
        return gram_KK.cpu().numpy()

    @torch.no_grad()
    def combine(self, shards: Sequence[list[torch.Tensor]], weights_K: NDArray[np.float64]) -> list[torch.Tensor]:
        """Write sum_k weights_k g_k into the live buffers and return them.

        Args:
            shards: K gradients; the last one must be the live buffers themselves.
            weights_K: from a combiner.
        """
        live = shards[-1]
        for index, tensor in enumerate(live):
            tensor.mul_(float(weights_K[-1]))
            for shard, weight in zip(shards[:-1], weights_K[:-1], strict=True):
                tensor.add_(shard[index], alpha=float(weight))
        return live

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

    def weights_are_finite(self) -> bool:
        """Whether every fp32 master weight on every rank is finite; the same answer on all ranks."""
        bad = torch.zeros((), device=self.device)
        for tensor in self.shards.master():
            bad += (~torch.isfinite(tensor)).any()
        dist.all_reduce(bad)
        return bool(bad.item() == 0)


def _torch_optimizer(parameters: list[torch.nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def _deepspeed_config(zero: ZeroConfig, bf16: bool, micro_batch: int) -> dict[str, Any]:
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
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
