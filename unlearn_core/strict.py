"""The base of every config node."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of every config node: frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
