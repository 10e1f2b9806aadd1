"""Models, methods and layouts that `benchmarks.gpu_7b` measures, as configs of the real training run.

The planner's peak of tensors on one GPU (GiB; 8 rows of 1,024 tokens, activations recomputed, ZeRO-2) chose layouts:

    AdamW in fp32: GradDiff, NPO, NGDiff             7B 118    8B 141, more than an H200 has; at ZeRO-3 128
    NGDiff, its first gradient parked on the host                8B 126
    mean teacher, SGD with momentum                  7B 118    8B 142; with the teacher on the host 112
    NGDiff, 8-bit AdamW                              7B  80    8B  96
    NGDiff, SGD without momentum                     7B  68    8B  81

At ZeRO-2 a summed gradient costs as much as two kept apart: DeepSpeed adds the second pass's to a copy of the first's.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from unlearn_core.config import RunConfig, build_config
from unlearn_core.errors import UserError
from unlearn_core.method import Composition
from unlearn_core.models import DTYPES

PROBE_EVERY = 10
"""Steps from one AutoLR probe to the next."""


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights, and the rows of a micro-batch."""

    name: str
    title: str
    """Under which the planner knows it."""
    config: Mapping[str, Any]
    rows: int
    """Of a micro-batch; a step has one of each set."""
    length: int
    """Tokens of a row."""
    scored: int = 400
    """Rows that the evaluation engine scores, with seven answers each, as TOFU's forget10 has."""
    generated: int = 256
    """Answers that it generates."""
    answer: int = 128
    """Their length, tokens."""

    def llama(self) -> LlamaConfig:
        """Its config."""
        return LlamaConfig(**self.config)

    def model(self, device: torch.device, seed: int = 0) -> Any:
        """Fresh bf16 weights, made on the device itself: no copy in host memory."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                self.llama(), dtype=DTYPES["bf16"], attn_implementation="sdpa", trust_remote_code=False
            )
        return model.eval()

    def forward_flops(self, rows: int, labels: int) -> float:
        """Multiply-adds of one forward pass, each counted as two; causal attention counts its lower half.

        Args:
            rows: of `length` tokens.
            labels: tokens whose logits are needed.
        """
        c: Any = self.llama()
        width = c.num_attention_heads * c.head_dim
        attention = 2 * c.hidden_size * (width + c.num_key_value_heads * c.head_dim)
        weights = c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)
        tokens = rows * self.length
        scores = c.num_hidden_layers * 2 * tokens * self.length * width
        return 2.0 * weights * tokens + scores + 2.0 * c.vocab_size * c.hidden_size * labels


def _llama(hidden: int, mlp: int, layers: int, heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **more,
    }


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("llama-2-7b", "Llama-2-7B", _llama(4096, 11008, 32, 32, 32000), 8, 1024),
        Shape(
            "llama-3.1-8b", "Llama-3.1-8B", _llama(4096, 14336, 32, 32, 128256, num_key_value_heads=8), 8, 1024
        ),
        Shape(
            "llama-3.2-1b",
            "Llama-3.2-1B",
            _llama(2048, 8192, 16, 32, 128256, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True),
            8,
            1024,
        ),
        Shape("tiny", "tiny", _llama(64, 128, 2, 4, 512), 2, 32, scored=4, generated=3, answer=5),
    )
}  # fmt: skip
"""`tiny` is for trying everything on a CPU; the whole benchmark leaves it out where there is a GPU."""


@dataclass(frozen=True)
class Contender:
    """One method on an engine that several may share."""

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "constant"


@dataclass(frozen=True)
class Case:
    """One command: an engine, and the methods that take turns on it."""

    name: str
    contenders: tuple[Contender, ...]
    optimizer: Mapping[str, Any]
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Shape -> dotted config keys that it needs beside."""

    @property
    def compares(self) -> bool:
        """Whether it is there for ratios: several methods in one process, taking turns step by step."""
        return len(self.contenders) > 1


ADAMW = {"name": "adamw", "learning_rate": 1e-6}
MOMENTUM = {"name": "sgd", "learning_rate": 5e-4, "momentum": 0.95, "gradient_clipping": 1.0}
"""The mean-teacher paper's."""
_EIGHT = "llama-3.1-8b"
_PARKED = {_EIGHT: {"zero.park_gradients": True}}
_STAGE_3 = {_EIGHT: {"zero.stage": 3, "zero.park_gradients": True}}
_TEACHER_ON_HOST = {_EIGHT: {"zero.teacher_on_host": True}}
_GRAD_DIFF = Contender("grad_diff", "grad_diff")
_NGDIFF = Contender("ngdiff", "ngdiff")
_AUTO = Contender("ngdiff_autolr", "ngdiff", schedule="auto")
# The paper freezes embeddings, head and norms; here every method trains the same parameters.
_TEACHER = Contender("mean_teacher", "mean_teacher", {"freeze": []})

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("grad_diff", (_GRAD_DIFF,), ADAMW, _STAGE_3),
        Case("ngdiff", (_NGDIFF,), ADAMW, _PARKED),
        Case("ngdiff_autolr", (_AUTO,), ADAMW, _PARKED),
        Case("npo", (Contender("npo", "npo"),), ADAMW, _STAGE_3),
        Case("grad_diff_momentum", (_GRAD_DIFF,), MOMENTUM),
        Case("mean_teacher", (_TEACHER,), MOMENTUM, _TEACHER_ON_HOST),
        Case("ratios_adamw", (_GRAD_DIFF, _NGDIFF, _AUTO), ADAMW, _STAGE_3),
        Case("ratios_momentum", (_GRAD_DIFF, _TEACHER), MOMENTUM, _TEACHER_ON_HOST),
        Case("ngdiff_8bit", (_NGDIFF,), {"name": "adamw_8bit", "learning_rate": 1e-6}),
        Case("ngdiff_sgd", (_NGDIFF,), {"name": "sgd", "learning_rate": 1e-5}),
    )
}
"""In the order in which the whole benchmark runs them."""

EVALUATION = "evaluation"
"""The case that trains nothing: scoring and generation."""


def find_shape(name: str) -> Shape:
    """The shape of this name; `UserError` lists the known ones."""
    if name not in SHAPES:
        raise UserError(f"unknown shape '{name}'; expected one of {', '.join(SHAPES)}")
    return SHAPES[name]


def find_case(name: str) -> Case:
    """The training case of this name; `UserError` lists the known ones."""
    if name not in CASES:
        raise UserError(f"unknown method '{name}'; expected one of {', '.join((*CASES, EVALUATION))}")
    return CASES[name]


def run_config(shape: Shape, case: Case, contender: Contender, overrides: Mapping[str, Any]) -> RunConfig:
    """The training run of one contender; contenders of a case differ in method and schedule alone."""
    values = {
        "name": contender.label,
        "model": {"path": shape.title, "dtype": "bf16"},
        "data": {"max_length": shape.length},
        "method": {"name": contender.method, "settings": dict(contender.settings)},
        "optimizer": {**case.optimizer, "schedule": contender.schedule, "auto": {"every": PROBE_EVERY}},
        "batch": {"rows": shape.rows, "micro": shape.rows},
        "steps": 10**6,
        "zero": {"stage": 2, "activation_checkpointing": True},
        "workers": {"gpu": torch.cuda.is_available()},
    }
    return build_config(RunConfig, values, {**case.more.get(shape.name, {}), **overrides})


def fingerprint(shape: Shape, settings: Mapping[str, Any]) -> str:
    """Of everything that a row's numbers depend on but the machine and the code: 12 hex digits."""
    told = json.dumps([shape.__dict__, settings], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def step_flops(shape: Shape, composition: Composition, probing: bool) -> float:
    """Model FLOPs of an optimizer step: what the method itself needs, without recomputed activations.

    A pass with a backward counts three forward passes, a teacher's and each of a probe's two count one.
    """
    one = shape.forward_flops(shape.rows, shape.rows * (shape.length - 1))
    passes = sum(3 + objective.needs_teacher for objective in composition.objectives)
    return one * (passes + (2 if probing else 0))


def step_tokens(shape: Shape, composition: Composition) -> int:
    """Tokens that a step trains on: those of each objective's micro-batch."""
    return len(composition.objectives) * shape.rows * shape.length
