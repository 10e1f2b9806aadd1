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

    token_budget: int = Field(default=8192, ge=1)
    """Most tokens of one forward pass, padding included (a longer example goes alone). It is a memory bound: numbers
    change by rounding only."""
