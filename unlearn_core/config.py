"""The typed configuration: strict, frozen, one line of meaning, unit and off-value under each field.

Two files a user writes have a tree here: a training run (`RunConfig`) and a pair of fine-tunes (`FinetuneConfig`).
Unknown keys fail and list the valid ones; derived numbers (accumulation, label tokens) are computed, never asked for.
"""

import contextlib
import difflib
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from unlearn_core.data.config import DataConfig
from unlearn_core.errors import UserError
from unlearn_core.layout_config import BatchConfig, RetentionConfig, WorkersConfig, ZeroConfig, check_batch
from unlearn_core.logging_config import LoggingConfig
from unlearn_core.models import SmallLlama
from unlearn_core.strict import Strict


class LoraConfig(Strict):
    """Low-rank adapters (peft); the exported model has them merged."""

    rank: int = Field(default=16, ge=1)
    """Inner width r of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapter's product is scaled by alpha / rank."""
    layers: tuple[str, ...] = ()
    """Names of the linear layers, such as [q_proj, v_proj]; empty for every linear layer but the head."""


class ModelConfig(Strict):
    """The model that training starts from."""

    path: str
    """Folder in Hugging Face layout (safetensors, tokenizer) or hub name."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Dtype of weights and gradients in forward and backward; master weights and optimizer state are always fp32."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    kernels: Literal["torch", "liger"] = "torch"
    """Liger's Triton kernels for norms, rotary positions and MLPs (GPU; needs liger-kernel), or torch's own."""
    compile: bool = False
    """Compile the blocks with torch.compile: stages 0 to 2; the first steps take minutes, later ones less time."""
    freeze: tuple[Literal["embeddings", "head", "norms"], ...] = ()
    """Parts that do not train, beside those the method freezes by itself."""
    train_only: tuple[str, ...] = ()
    """Regular expressions; when given, only parameters whose name matches one train. Not with `lora`."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the weights; null for full-parameter training."""


class InitialModelConfig(Strict):
    """What a pair of fine-tunes starts from: a model to load, or a small one to build for offline use."""

    path: str | None = None
    """Folder in Hugging Face layout or hub name. Exactly one of `path` and `build` is given."""
    build: SmallLlama | None = None
    """A small Llama initialised from the seed, with a BPE tokenizer trained on the benchmark's text."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """As in a training run."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """As in a training run."""

    @model_validator(mode="after")
    def _one_source(self) -> "InitialModelConfig":
        if (self.path is None) == (self.build is None):
            raise ValueError("give exactly one of model.path (folder or hub name) and model.build (a small Llama)")
        return self


class AutoRateConfig(Strict):
    """AutoLR (GeN, arXiv 2407.02772): the rate that minimises a parabola of the retain loss along the update."""

    every: int = Field(default=10, ge=1)
    """Probe every so many steps, from the first; each probe costs two forward passes of the retain batch."""
    span: float | None = Field(default=None, gt=0)
    """Distance of the two probes along the update direction, in the rate's unit; null for the current rate."""
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the old rate in rate <- smoothing x rate + (1 - smoothing) x fitted."""
    clip: float = Field(default=2.0, ge=1)
    """The fitted rate is held within [rate / clip, rate x clip]."""
    first_unsmoothed: bool = False
    """Take the first accepted fit as it is, neither smoothed nor clipped."""
    noise_tolerance: float = Field(default=0.1, gt=0)
    """A probe whose second difference carries more relative rounding noise than this is refused and counted."""
    halve_after: int = Field(default=0, ge=0)
    """Halve the rate after so many refusals in a row; 0 for never."""
    minimum: float = Field(default=0.0, ge=0)
    """Smallest rate."""


class OptimizerConfig(Strict):
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "sgd", "adamw_8bit"] = "adamw"
    """AdamW with decoupled weight decay, SGD with momentum, or AdamW with 8-bit state (needs bitsandbytes)."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak rate. Under NGDiff with SGD, the length of a step is this times the norm of d, at most 2."""
    schedule: Literal["constant", "linear", "cosine", "auto"] = "constant"
    """Decay after warm-up: none, to zero (which a step after the last one would have), or `auto`: AutoLR (GeN)."""
    auto: AutoRateConfig = AutoRateConfig()
    """Settings of `schedule: auto`; `learning_rate` is then the rate it starts from."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from zero; 0 for none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """SGD's momentum; 0 for none."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay; 0 for none."""
    gradient_clipping: float = Field(default=0.0, ge=0)
    """Largest L2 norm of the combined gradient; 0 for no clipping."""

    def rate(self, step: int, steps: int, peak: float | None = None) -> float:
        """Learning rate of step `step` (from 0) of `steps`; `peak` takes the place of `learning_rate` when given."""
        peak = self.learning_rate if peak is None else peak
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        if self.schedule == "linear":
            return peak * (1.0 - progress)
        if self.schedule == "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        return peak


class MethodConfig(Strict):
    """The unlearning method, by the name of its file in unlearn_core/methods/."""

    name: str
    """For example ngdiff, grad_diff, grad_ascent; finetune for plain training on the retain splits."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The method's own hyper-parameters; unknown ones fail and list the valid ones."""


class RunConfig(Strict):
    """One training run: everything that changes its numbers, and where it runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name in tables and pictures: letters, digits, dot, dash, underscore."""
    seed: int = Field(default=0, ge=0)
    """Seed of data order and of anything random."""
    model: ModelConfig
    data: DataConfig
    method: MethodConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    steps: int = Field(ge=1)
    """Optimizer steps; of each request when `data.sequential` names several."""
    export_every: int = Field(default=0, ge=0)
    """Export a Hugging Face folder every so many steps, each a point of the frontier; 0 for the last step only."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Save what a restart needs every so many steps; 0 for at every export."""
    checkpoints: RetentionConfig = RetentionConfig()
    diagnostics: bool = False
    """Keep the gradients of a constant-weights method apart, to log their norms and angle; costs a gradient shard
    each."""
    logging: LoggingConfig = LoggingConfig()
    zero: ZeroConfig = ZeroConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _batch_divides(self) -> "RunConfig":
        check_batch(self.batch, self.workers)
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if self.optimizer.name == "adamw_8bit" and self.optimizer.schedule == "auto":
            raise ValueError("optimizer.schedule auto works with adamw and sgd, not with adamw_8bit")
        if self.model.compile and self.zero.stage == 3:
            raise ValueError("model.compile works at zero.stage 0, 1 and 2: stage 3 gathers weights inside each block")
        if self.model.lora and self.model.train_only:
            raise ValueError(
                "model.lora trains adapters alone; leave model.train_only empty, or name model.lora.layers"
            )
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps over all requests."""
        return self.steps * self.data.requests

    def exports_at(self, step: int) -> bool:
        """Whether a model is exported after `step` steps (1 to `total_steps`); each request's last model is."""
        return step % self.steps == 0 or (self.export_every > 0 and step % self.export_every == 0)

    def checkpoints_at(self, step: int) -> bool:
        """Whether a restart can begin after `step` steps."""
        every = self.checkpoint_every or self.export_every
        return step % self.steps == 0 or (every > 0 and step % every == 0)

    def fingerprint(self) -> str:
        """Hash of the fields that change numbers beyond rounding: 16 hex digits.

        Number of workers, micro-batch, packing and ZeRO stage do not, so a run may go on with others.
        """
        where: Any = {
            "workers": True,
            "checkpoint_every": True,
            "checkpoints": True,
            "logging": True,
            "zero": True,
            "batch": {"micro", "packed", "logit_rows"},
            "model": {"kernels", "compile"},
        }
        return _digest(self.model_dump(mode="json", exclude=where))


class FinetuneConfig(Strict):
    """A pair of fine-tunes: the target, which learns everything, and the retain-only reference."""

    name: str = Field(default="finetune", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name in tables and pictures."""
    seed: int = Field(default=0, ge=0)
    """Seed of initialisation and data order; the same for both models."""
    model: InitialModelConfig
    benchmark: str
    """`synthetic:SIZE`, a folder laid out like TOFU, or a hub name such as locuslab/TOFU."""
    target: tuple[str, ...]
    """Splits the target learns, for example [full]."""
    reference: tuple[str, ...]
    """Splits the reference learns, for example [retain90]."""
    format: Literal["chat", "plain"] = "chat"
    """As in a training run."""
    system_prompt: str | None = None
    """As in a training run."""
    max_length: int = Field(default=512, ge=8)
    """As in a training run."""
    epochs: float = Field(gt=0)
    """Passes over each model's own rows."""
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    checkpoint_every: int = Field(default=100, ge=0)
    """Save what a restart needs every so many steps; 0 for the end only."""
    zero: ZeroConfig = ZeroConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _batch_divides(self) -> "FinetuneConfig":
        check_batch(self.batch, self.workers)
        return self


Config = TypeVar("Config", bound=BaseModel)


def load_config(kind: type[Config], path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file into a config tree.

    Args:
        kind: `RunConfig` or `FinetuneConfig`.
        path: the YAML file.
        overrides: dotted key -> value, as from `--set optimizer.learning_rate=1e-4`; applied last.

    Raises:
        UserError: unreadable file, unknown key, or a value outside its range.
    """
    return build_config(kind, read_values(path), overrides, source=str(path))


def read_values(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file; `UserError` when it cannot be read or holds none."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"Cannot read the config {path}: {error.strerror}. Give a YAML file or a recipe's name."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, expected keys and values such as 'steps: 60'.")
    return values


def build_config(
    kind: type[Config], values: dict[str, Any], overrides: dict[str, Any] | None = None, source: str = "config"
) -> Config:
    """Validate a nested dict, with dotted overrides applied, into `kind`; mistakes become one `UserError`."""
    values = json.loads(json.dumps(values, default=str))  # a deep copy; YAML's dates become text
    for dotted, value in (overrides or {}).items():
        node = values
        *parents, last = dotted.split(".")
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {dotted}={value}: '{key}' is a value, not a group of keys.")
        node[last] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(kind, error, source)) from error


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["a.b=c", ...]` to a dotted dict; values are read as YAML, so 1e-4, true, null and [x, y] have their types."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise UserError(f"--set {pair}: expected key=value, for example --set optimizer.learning_rate=1e-4.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {pair}: '{text}' is not valid YAML, such as 3, text, null or [a, b].") from error
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
            with contextlib.suppress(ValueError):
                value = float(value)
        overrides[key] = value
    return overrides


def _explain(kind: type[BaseModel], error: ValidationError, source: str) -> str:
    lines = [f"{source} is not a valid {kind.__name__}:"]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            node, key = _node_at(kind, item["loc"][:-1]), str(item["loc"][-1])
            valid = sorted(node.model_fields) if node else []
            close = difflib.get_close_matches(key, valid, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            lines.append(f"  {where}: unknown key.{hint} Valid keys here: {', '.join(valid)}.")
        elif item["type"] == "missing":
            hint = " Give --model, or --set model.path=." if where == "model.path" else ""
            lines.append(f"  {where}: missing, and it has no default.{hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "tuple_type" and isinstance(item["input"], str):
                message = f"expected a list; write [{item['input']}]"
            given = f" (got {item['input']!r})" if where and not isinstance(item["input"], dict) else ""
            lines.append(f"  {where + ': ' if where else ''}{message}{given}.")
    return "\n".join(lines)


def _node_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    node: Any = kind
    for key in location:
        field = node.model_fields.get(str(key)) if isinstance(node, type) and issubclass(node, BaseModel) else None
        if field is None:
            return None
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        node = next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)
        if node is None:
            return None
    return node


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
