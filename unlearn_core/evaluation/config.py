"""Settings of an evaluation that change its numbers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EvaluationConfig(BaseModel):
    """How models are scored. Same settings, rows and weights give the same records."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    style: Literal["chat", "plain"] = "chat"
    """How a question becomes a prompt: the tokenizer's chat template, or plain text for a model without one."""

    max_length: int = Field(default=512, ge=8)
    """Longest question plus answer, tokens."""

    system_prompt: str | None = None
    """System turn of the chat template; None leaves it out."""

    max_new_tokens: int = Field(default=200, ge=1)
    """Longest generated answer, tokens. Published TOFU numbers use 200."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of weights and activations; log-probabilities are always taken in fp32."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel."""

    compat: bool = False
    """Compute as open-unlearning does where it is wrong, to compare with published numbers; docs/metrics.md lists each
    place."""

    min_k: float = Field(default=0.4, gt=0, le=1)
    """Share of the least likely tokens that the min-k attacks look at."""

    gradient_norm: bool = False
    """Also measure the gradient-norm attack: one backward pass for each forget and holdout row."""

    samples: int = Field(default=0, ge=0)
    """Sampled answers to each forget question; 0 for none."""

    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of sampled answers."""

    seed: int = Field(default=0, ge=0)
    """Seed of sampled answers."""

    token_budget: int | None = Field(default=None, ge=1)
    """Most tokens of one forward pass, padding included (a longer example goes alone). It is a memory bound: numbers
    change by rounding only. None for 8,192 on a GPU and 2,048 on a CPU, where smaller batches stay in its cache."""

    generation_gib: float = Field(default=4.0, gt=0)
    """Most memory for keys and values while generating, GiB; at least one row is generated at a time. Numbers change by
    rounding only."""
