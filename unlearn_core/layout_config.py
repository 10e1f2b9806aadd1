"""How a run lies on a cluster: batch, ZeRO stage, workers, checkpoints. Only the batch's `rows` change its numbers."""

from typing import Literal

from pydantic import Field, model_validator

from unlearn_core.strict import Strict


class BatchConfig(Strict):
    """Rows of one optimizer step. The global batch is given; accumulation follows from it."""

    rows: int = Field(default=32, ge=1)
    """Global batch: rows of each set (forget and retain) in one optimizer step, over all workers."""
    micro: int = Field(default=4, ge=1)
    """Rows of one forward pass on one worker. rows must be a multiple of micro x workers."""
    packed: bool = True
    """Compute the rows of a forward pass one behind the other, without padding; false for padded rows, which models
    that are not built like Llama have anyway."""
    logit_rows: int = Field(default=1024, ge=1)
    """Label tokens whose logits exist at a time; memory is about 14 bytes x this x vocabulary, 24 with a teacher."""


class ZeroConfig(Strict):
    """How DeepSpeed partitions state over workers. No choice here changes the result beyond rounding."""

    stage: Literal[0, 1, 2, 3] = 2
    """0: replicated; 1: optimizer state sharded; 2: gradients too; 3: parameters too."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    overlap_comm: bool = False
    """Overlap gradient reduction with the backward pass (GPU)."""
    offload_optimizer: bool = False
    """Keep fp32 master weights and optimizer state in host memory and step there; stages 1, 2 and 3."""
    park_gradients: bool = False
    """Let the gradients of a step's earlier objectives wait in host memory: 2 bytes a parameter less, over workers."""
    teacher_on_host: bool = False
    """Keep a teacher's weights in host memory: 4 bytes a parameter less, over workers."""
    sub_group: int = Field(default=500_000_000, ge=1)
    """Elements that the optimizer steps at a time at stages 1, 2 and 3: so many gradients are copied to fp32."""

    @model_validator(mode="after")
    def _offload_needs_shards(self) -> "ZeroConfig":
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("zero.offload_optimizer needs zero.stage 1, 2 or 3; stage 0 keeps no separate master")
        return self


class WorkersConfig(Strict):
    """What the run asks of the Ray cluster."""

    count: int = Field(default=1, ge=1)
    """Ray Train workers, one process each."""
    minimum: int | None = Field(default=None, ge=1)
    """Go on with as few as so many when the cluster has no more, and with more again later; null for `count` always."""
    gpu: bool = False
    """One GPU for each worker."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs reserved for each worker; torch uses as many threads."""
    max_restarts: int = Field(default=3, ge=0)
    """How often a failed worker group is started again from the last checkpoint; 0 for never. Pre-emption is free."""
    skip_memory_check: bool = False
    """Start even where weights, optimizer state and gradients alone are more than the memory that there is."""
    stall_seconds: float = Field(default=600.0, ge=0)
    """A run without progress for so long is ended, the rank that holds it up named, and restarted; 0 to wait."""

    @model_validator(mode="after")
    def _fewer(self) -> "WorkersConfig":
        if self.minimum is not None and self.minimum > self.count:
            raise ValueError(f"workers.minimum {self.minimum} is more than workers.count {self.count}")
        return self


class RetentionConfig(Strict):
    """Which checkpoints (what a restart needs, about 12 bytes a parameter each) are kept while a run goes on."""

    last: int = Field(default=2, ge=1)
    """The newest so many; a second one is what a run falls back to when the newest is found damaged."""
    best: int = Field(default=0, ge=0)
    """Beside them the best so many by `best_by`, kept after the run's end too; 0 for none."""
    best_by: str = ""
    """A number of the step's log line, such as loss_retain; needed when `best` is not 0."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which end of `best_by` is good."""

    @model_validator(mode="after")
    def _named(self) -> "RetentionConfig":
        if bool(self.best) != bool(self.best_by):
            raise ValueError("checkpoints.best and checkpoints.best_by belong together: how many, and by which number")
        return self


def check_batch(batch: BatchConfig, workers: WorkersConfig) -> None:
    """Accumulation must come out whole; `ValueError` shows the arithmetic."""
    if workers.minimum is not None:
        # Any number of workers may come: one with fewer micro-batches than the others repeats one that does not count.
        if batch.rows % batch.micro:
            raise ValueError(f"batch.rows {batch.rows} is not a multiple of batch.micro {batch.micro}; change one")
        return
    pass_rows = batch.micro * workers.count
    if batch.rows % pass_rows:
        nearest = max(1, round(batch.rows / pass_rows)) * pass_rows
        raise ValueError(
            f"batch.rows {batch.rows} is not a multiple of batch.micro {batch.micro} x workers.count {workers.count} "
            f"= {pass_rows} rows a pass; set batch.rows={nearest}, or change the other two"
        )
