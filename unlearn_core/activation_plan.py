"""Activation bytes of one forward and backward pass, by running the pass on the meta device and counting.

    forward over L blocks                        L saved blocks
    forward of the head, and the loss            the same, + what the head needs
    backward of the head                         the same, + the head's gradients
    backward, its first block (the last one)     L saved blocks + that block's gradients
    backward, its last block and the embedding   what is left, + weight gradients where each rank keeps all of them

Each of these peaks is linear in the number of blocks, so a model of 2 and one of 3 blocks tell those of any number.
The modules, the head in slices and the objective's loss are the ones that training runs (`unlearn_core/forward.py`);
attention is counted as the fused kernels keep it.
"""

import gc
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unlearn_core.byte_ledger import ByteLedger, fused_attention
from unlearn_core.config import RunConfig
from unlearn_core.data.packing import Packing, PassInputs
from unlearn_core.forward import Forward
from unlearn_core.method import Composition, compose
from unlearn_core.model_shapes import ModelShape, build_on_meta, with_layers
from unlearn_core.models import DTYPES
from unlearn_core.objective import Objective
from unlearn_core.packed_attention import PACKED, packed_sdpa


@dataclass(frozen=True)
class RowShape:
    """Rows as the plan takes them to be, all alike."""

    tokens: int
    """Of a row, padding left out."""
    labels: int
    """Label tokens of a row."""
    longest: int | None = None
    """Tokens of the longest row of a micro-batch; None for rows of equal length, which have no padding."""


@dataclass(frozen=True)
class PassBytes:
    """Most bytes in the parts of a pass, beside weights and the gradients of earlier passes."""

    blocks: int
    """Forward through the blocks."""
    forward: int
    """The same, head and loss included; the gradients of hidden states and head are made there."""
    head: int
    """Backward as far as the last block."""
    first_block: int
    """Backward in the last block."""
    last_block: int
    """Backward in the first block and the embedding; `kept` weight gradients are in it."""
    saved: int
    """Of what waits for the backward pass when it begins."""


def pass_bytes(
    shape: ModelShape,
    run: RunConfig,
    number: int,
    rows: RowShape,
    keeps_gradients: bool = False,
    teacher: bool = False,
) -> PassBytes:
    """Bytes of one micro-batch's pass for one objective.

    Args:
        shape: of the model.
        run: method, number format, micro-batch, slices, packing, checkpointing.
        number: of the objective in the method's composition.
        rows: what the rows are like.
        keeps_gradients: whether weight gradients stay where autograd made them (stage 0), or are taken out of its hands
            as they are made (stages 1 to 3).
        teacher: the teacher's pass instead, which has no backward; what it keeps is not counted.
    """
    key = (_key(shape, run, 0), number, rows, keeps_gradients, teacher)
    if key not in _COUNTS:
        _COUNTS[key] = _pass_bytes(shape, run, number, rows, keeps_gradients, teacher)
    return _COUNTS[key]


_COUNTS: dict[Any, PassBytes] = {}


def _pass_bytes(
    shape: ModelShape, run: RunConfig, number: int, rows: RowShape, keeps_gradients: bool, teacher: bool
) -> PassBytes:
    composition = compose(run.method.name, run.method.settings)
    objective = composition.objectives[number]
    lora = run.model.lora
    # Names may pick single blocks: then no smaller model stands for the whole one.
    whole = shape.layers <= 3 or composition.train_only or run.model.train_only or (lora and lora.layers)
    counts = (shape.layers,) if whole else (2, 3)
    found = [_counted(shape, run, composition, objective, rows, n, keeps_gradients, teacher) for n in counts]
    if len(found) == 1:
        return found[0]
    two, three = found
    # A hidden loss reads the output of one block: no gradient reaches those above it.
    deep = shape.layers if objective.kind != "hidden" else min(shape.layers, objective.layer + 1)

    def at(layers: int, pick: Callable[[PassBytes], int]) -> int:
        return pick(two) + (layers - 2) * (pick(three) - pick(two))

    return PassBytes(
        at(shape.layers, lambda b: b.blocks),
        at(shape.layers, lambda b: b.forward),
        at(deep, lambda b: b.head),
        at(deep, lambda b: b.first_block),
        at(deep, lambda b: b.last_block),
        at(deep, lambda b: b.saved),
    )


def _counted(
    shape: ModelShape,
    run: RunConfig,
    composition: Composition,
    objective: Objective,
    rows: RowShape,
    layers: int,
    keeps_gradients: bool,
    teacher: bool,
) -> PassBytes:
    forward, blocks = _model(_key(shape, run, layers), shape, run, composition, layers)
    inputs = meta_inputs(objective, run, rows, forward.packs)
    if _plain(forward.model).config._attn_implementation != PACKED:
        # Attention that keeps its scores wants a whole mask; transformers takes one of four dimensions as it is.
        tokens = inputs.input_ids.shape[1]
        mask = torch.empty(1, 1, tokens, tokens, dtype=DTYPES[run.model.dtype], device="meta")
        inputs = replace(inputs, attention_mask=mask)
    # The hidden loss of a small model reads the last of its blocks.
    depth = objective.layer if layers == shape.layers else layers - 1
    reads = replace(objective, layer=depth) if objective.kind == "hidden" else objective
    if teacher:
        through: list[int] = []
        ledger = ByteLedger()
        handle = blocks[-1].register_forward_hook(lambda *_: through.append(ledger.peak))
        with torch.no_grad(), fused_attention(), ledger:
            forward(inputs, lambda readout: readout.keep(_lent(forward)), reads.read_layer)
        handle.remove()
        return PassBytes(through[0], ledger.peak, 0, 0, 0, 0)
    return _with_backward(forward, blocks, reads, inputs, keeps_gradients)


def _with_backward(
    forward: Forward, blocks: list[Any], objective: Objective, inputs: PassInputs, keeps_gradients: bool
) -> PassBytes:
    ledger = ByteLedger()
    marks: dict[int, int] = {}
    through: list[int] = []
    handles: list[Any] = [blocks[-1].register_forward_hook(lambda *_: through.append(ledger.peak))]
    for index, block in enumerate(blocks):

        def see(_module: Any, _inputs: Any, output: Any, index: int = index) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if states.requires_grad:
                # The most before the backward pass reached this block, since it reached the one above.
                states.register_hook(lambda _: marks.setdefault(index, ledger.restart()) and None)

        handles.append(block.register_forward_hook(see))
    if not keeps_gradients:
        for parameter in forward.parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(_drop))
    kept = _kept(forward, objective, inputs)
    width: Any = getattr(forward.model.config, "hidden_size", 0)
    control_D = torch.empty(width, device="meta") if objective.control is not None else None
    with fused_attention(), ledger:

        def read(readout: Any) -> torch.Tensor:
            return objective.sum(readout, inputs, _Anything(), kept, control_D)

        loss = forward(inputs, read, objective.read_layer)
        saved, before = ledger.live, ledger.restart()
        loss.backward()
    last = ledger.restart()
    for handle in handles:
        handle.remove()
    forward.zero_grad(set_to_none=True)
    top = max(marks, default=0)
    # One block: what lies between its output and the end is first and last at once.
    first = marks.get(top - 1, last)
    return PassBytes(through[0], before, marks.get(top, last), first, last, saved)


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _lent(forward: Forward) -> Any:
    """Stands for the head's copy, which is counted as an item of its own."""
    from unlearn_core.head import KeptHead

    return KeptHead(torch.empty(0, device="meta"), None, None)


def _kept(forward: Forward, objective: Objective, inputs: PassInputs) -> Any:
    """What a teacher's pass has left for the student's; made outside of the count."""
    if not objective.needs_teacher:
        return None
    with torch.no_grad(), fused_attention():
        return forward(inputs, lambda readout: readout.keep(_lent(forward)), objective.read_layer)


class _Anything(defaultdict):
    """References of rows that nobody has."""

    def __init__(self) -> None:
        super().__init__(float)


def _key(shape: ModelShape, run: RunConfig, layers: int) -> tuple[str, ...]:
    """Everything that decides what a pass of a model with so many blocks takes."""
    method, batch = run.method.model_dump_json(), run.batch
    layout = f"{layers} {batch.micro} {batch.packed} {batch.logit_rows} {run.zero.activation_checkpointing}"
    return shape.config.to_json_string(), run.model.model_dump_json(), method, layout


_MODELS: dict[tuple[str, ...], tuple[Forward, list[Any]]] = {}


def _model(
    key: tuple[str, ...], shape: ModelShape, run: RunConfig, composition: Composition, layers: int
) -> tuple[Forward, list[Any]]:
    if key not in _MODELS:
        if len(_MODELS) > 8:
            _MODELS.clear()
            gc.collect()
        model = build_on_meta(with_layers(shape.config, layers), run, composition, DTYPES[run.model.dtype])
        if run.zero.activation_checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # transformers 5 has a new name beside it
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        with torch.device("meta"):
            forward = Forward(model, run.batch.packed, run.batch.logit_rows)
        plain = _plain(model)
        if plain.config._attn_implementation == "sdpa":
            # With this one no mask is looked into, which is impossible on the meta device.
            ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_sdpa)
            plain.set_attn_implementation(PACKED)
        _MODELS[key] = forward, _blocks(model, layers)
    return _MODELS[key]


def _plain(model: Any) -> Any:
    """The model without its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _blocks(model: torch.nn.Module, layers: int) -> list[Any]:
    """The transformer blocks: the first list of modules of this length."""
    lists = [child for child in model.modules() if isinstance(child, torch.nn.ModuleList) and len(child) == layers]
    assert lists, f"no list of {layers} blocks in {type(model).__name__}"
    return list(lists[0])


def meta_inputs(objective: Objective, run: RunConfig, rows: RowShape, packs: bool) -> PassInputs:
    """A pass's inputs without content; a pair's answers go through together, so it has twice the rows."""
    count = run.batch.micro * (2 if objective.kind == "pair" else 1)
    longest = rows.longest or rows.tokens
    uneven = longest > rows.tokens
    tokens, labels = count * rows.tokens, count * max(0, rows.labels - objective.skip_first)

    def indices(*size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device="meta")

    packing = positions = None
    ids = indices(count, longest)
    if uneven and packs:
        packing = Packing(indices(tokens), count, longest, indices(count + 1, dtype=torch.int32))
        ids, positions = indices(1, tokens), indices(1, tokens)
    return PassInputs(
        input_ids=ids,
        attention_mask=None,
        position_ids=positions,
        packing=packing,
        predictors_N=indices(labels),
        labels_at_N=indices(labels),
        targets_N=indices(labels),
        rows_N=indices(labels),
        item_ids=tuple(str(number) for number in range(count)),
    )
