"""G <- G - (G U) U^T: keep a linear layer's output on retain inputs by projecting its gradient (PGU).

Projected-Gradient Unlearning (arXiv 2312.04095, WACV 2024). For a linear layer y = W x with retain inputs x_n,
C = sum_n x_n x_n^T has the eigenvectors U and S = sqrt(eigenvalues). The leading k columns of U, those that hold the
fraction `retained` of sum(S), span the inputs that matter to the retain set. With G = dL/dW of shape (out, in), the
projected gradient is zero on that span, so a step along it leaves W x as it was for every x inside.

It is orthogonal to the choice of objectives and combiner: projection is linear, so it may act on every micro-batch's
gradient on every worker before they are summed. What keeps the property: SGD, with or without momentum. What does not:
weight decay, and Adam, whose element-wise scale turns the step out of the subspace (the update would have to be
projected instead). Parameters that are not projected must be frozen by the caller (embeddings, norms and biases too),
else they change what the layers receive.

Deviations. The covariance is taken from the retain set itself, where the paper subtracts the forget set's from that of
all data. A positive `retained` keeps at least the first direction: a language model's inputs often have one that alone
exceeds the fraction, and the published rule would then protect nothing. Directions of zero variance up to rounding are
never kept, so `retained` = 1 leaves the null space free instead of freezing the layer.

Memory: 8 D^2 bytes for each distinct input of width D while collecting, 4 D k for each basis afterwards.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearn_core import storage
from unlearn_core.data.packing import prepare
from unlearn_core.data.tokenization import Batch, Example, collate
from unlearn_core.errors import UserError
from unlearn_core.method import ProjectionRule
from unlearn_core.references import rows_of_rank

if TYPE_CHECKING:
    from unlearn_core.zero.engine import ZeroEngine


class StreamingCovariance:
    """C = sum over rows of x x^T in fp64, gathered batch by batch; uncentred, as the paper's.

    Attributes:
        sum_DD: the sum so far, fp64; on the device of the first inputs.
        rows: how many were added.
    """

    def __init__(self, width: int) -> None:
        self.sum_DD = torch.zeros(width, width, dtype=torch.float64)
        self.rows = 0

    def add(self, inputs_ND: Tensor) -> None:
        """Add N rows of any float dtype and device."""
        if self.rows == 0:
            self.sum_DD = self.sum_DD.to(inputs_ND.device)
        rows_ND = inputs_ND.detach().double()
        self.sum_DD.addmm_(rows_ND.T, rows_ND)
        self.rows += rows_ND.shape[0]

    def all_reduce(self) -> None:
        """Sum over the ranks of torch.distributed; nothing without it. Every rank must have added at least one row."""
        if not dist.is_initialized():
            return
        dist.all_reduce(self.sum_DD)
        rows = torch.tensor(self.rows, device=self.sum_DD.device)
        dist.all_reduce(rows)
        self.rows = int(rows)


def retain_basis(covariance_DD: Tensor, retained: float) -> Tensor:
    """Orthonormal directions that hold a given share of the inputs' spread.

    k is the largest number of leading directions with (S_1 + ... + S_k) / sum(S) <= retained, S the square roots of the
    eigenvalues; at least 1 for a positive `retained`. The share is of S, not of the variance S^2: 0.95 keeps more
    directions than 95 % of the variance would.

    Args:
        covariance_DD: symmetric, non-negative definite.
        retained: in [0, 1]. 0: no direction, so no projection. 1: every direction that any input has.

    Returns:
        (D, k) of the covariance's dtype, columns by falling eigenvalue; k = 0 for a covariance of zeros.

    Raises:
        UserError: `retained` outside [0, 1].
    """
    _check_retained(retained)
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    values_D, vectors_DD = values_D.flip(0), vectors_DD.flip(1)
    width = covariance_DD.shape[0]
    noise = width * torch.finfo(covariance_DD.dtype).eps * values_D[0].clamp_min(0)
    spread_D = torch.where(values_D > noise, values_D, 0).sqrt()
    rank = int((spread_D > 0).sum())
    if rank == 0 or retained == 0.0:
        return vectors_DD[:, :0]
    shares = spread_D[:rank].cumsum(0) / spread_D.sum()
    # The last share is 1 up to rounding, and must count for retained = 1.
    kept = int((shares <= retained + 1e-12).sum())
    return vectors_DD[:, : max(1, kept)]


def project_out(gradient: Tensor, basis_Dk: Tensor) -> Tensor:
    """G - (G U) U^T in fp32, in the gradient's dtype.

    Args:
        gradient: (out, D), any float dtype.
        basis_Dk: orthonormal columns, fp32, same device.
    """
    whole = gradient.float()
    return (whole - (whole @ basis_Dk) @ basis_Dk.T).to(gradient.dtype)


class RetainProjection:
    """Projects the weight gradients of chosen linear layers out of the span of their retain inputs.

    Use: `collect` retain batches once, `install`, train with SGD, `remove`. Layers that are handed the very same input
    tensor one after the other (q, k and v; gate and up) share one covariance and one basis.

    Under ZeRO, at every stage, the hooks see whole local gradients before any reduction, which is where they belong.
    Collect before DeepSpeed takes the model; install before or after.
    """

    def __init__(self, module: nn.Module, patterns: Sequence[str], retained: float) -> None:
        r"""Choose the layers.

        Args:
            module: the model.
            patterns: regular expressions of weight names; a linear layer is chosen when one is found in the name of its
                weight, such as `down_proj` or `layers\.(0|1)\.mlp.*weight`.
            retained: share of the inputs' spread to protect, in [0, 1], see `retain_basis`.

        Raises:
            UserError: a pattern that is no regular expression or finds no linear layer, or `retained` out of range.
        """
        _check_retained(retained)
        linears = {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}
        found: set[str] = set()
        for pattern in patterns:
            try:
                named = {name for name in linears if re.search(pattern, f"{name}.weight")}
            except re.error as error:
                raise UserError(
                    f"'{pattern}' is no regular expression: {error}; expected one such as down_proj"
                ) from error
            if not named:
                raise UserError(
                    f"no linear layer's weight has '{pattern}' in its name; the layers' last names are "
                    f"{', '.join(sorted({name.rsplit('.', 1)[-1] for name in linears}))}"
                )
            found |= named
        if not found:
            raise UserError("no pattern was given; expected at least one, such as down_proj")
        self.layers: dict[str, nn.Linear] = {name: child for name, child in linears.items() if name in found}
        """The chosen layers, in the model's order."""
        self.retained = retained
        self._module = module
        self._groups: dict[str, list[str]] = {}
        self._bases: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def weights(self) -> list[Tensor]:
        """The projected parameters; the caller freezes all others."""
        return [layer.weight for layer in self.layers.values()]

    def collect(self, batches: Iterable[Batch], forward: Callable[[Batch], Any] | None = None) -> None:
        """Compute the bases from retain batches; padding is not counted. Under torch.distributed every rank takes part.

        Args:
            batches: this rank's share of the retain rows, at least one batch, on the module's device.
            forward: runs the module on a batch; None calls it as a causal language model.

        Raises:
            UserError: no batch, or a chosen layer that did not run, or ran on something else than (B, T, D) inputs.
        """
        run = forward or self._forward
        covariances: dict[str, StreamingCovariance] = {}
        groups: dict[str, list[str]] = {}
        leader_of: dict[str, str] = {}
        last: dict[str, Any] = {"name": None, "input": None, "mask": None}

        def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def see(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
                inputs_BTD, mask_BT = arguments[0], last["mask"]
                if inputs_BTD.shape[:-1] != mask_BT.shape:
                    raise UserError(
                        f"layer '{name}' was given inputs of shape {list(inputs_BTD.shape)} for a batch of "
                        f"{list(mask_BT.shape)} tokens; only layers that see every token in place can be projected"
                    )
                if name not in leader_of:
                    leader_of[name] = leader_of[last["name"]] if inputs_BTD is last["input"] else name
                    groups.setdefault(leader_of[name], []).append(name)
                if leader_of[name] == name:
                    covariance = covariances.setdefault(name, StreamingCovariance(inputs_BTD.shape[-1]))
                    covariance.add(inputs_BTD[mask_BT])
                last["name"], last["input"] = name, inputs_BTD

            return see

        hooks = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in self.layers.items()]
        try:
            with torch.no_grad():
                for batch in batches:
                    last["mask"] = batch.attention_mask_BT.bool()
                    run(batch)
                    last["input"] = None  # a later tensor may not be mistaken for it, nor its memory be kept
        finally:
            for hook in hooks:
                hook.remove()
        silent = [name for name in self.layers if name not in leader_of]
        if silent:
            raise UserError(f"layer '{silent[0]}' saw no retain token; give at least one retain batch that runs it")
        self._groups = groups
        self._bases = {}
        for name in groups:
            covariance = covariances.pop(name)
            covariance.all_reduce()
            self._bases[name] = retain_basis(covariance.sum_DD, self.retained).float().contiguous()

    def install(self) -> None:
        """From now on every gradient of the chosen weights is projected as it is made. A second call changes nothing.

        Raises:
            RuntimeError: nothing was collected or loaded.
        """
        if not self._bases:
            raise RuntimeError("no basis: call collect() or load_state() first")
        if self._hooks:
            return
        for leader, names in self._groups.items():
            if self._bases[leader].shape[1] == 0:
                continue
            for name in names:
                self._hooks.append(self.layers[name].weight.register_hook(self._projector(leader)))

    def remove(self) -> None:
        """Stop projecting."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def ranks(self) -> dict[str, int]:
        """Layer -> protected directions k, out of its input width."""
        return {name: self._bases[leader].shape[1] for leader, names in self._groups.items() for name in names}

    def state(self) -> dict[str, Tensor]:
        """The bases, to be saved: names of the layers that share one, joined by commas -> U (D, k), fp32 on the CPU."""
        return {",".join(names): self._bases[leader].cpu() for leader, names in self._groups.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take bases that `state` gave, for the same layers.

        Raises:
            UserError: other layers, or a basis of another width.
        """
        groups = {key.split(",")[0]: key.split(",") for key in state}
        named = {name for names in groups.values() for name in names}
        if named != set(self.layers):
            other = sorted(named ^ set(self.layers))[0]
            raise UserError(
                f"the saved projection is of other layers (first: '{other}'); give the same patterns as then"
            )
        for key, basis_Dk in state.items():
            for name in key.split(","):
                if basis_Dk.shape[0] != self.layers[name].in_features:
                    raise UserError(
                        f"the saved basis of '{name}' has width {basis_Dk.shape[0]}, the layer "
                        f"{self.layers[name].in_features}; collect again for this model"
                    )
        self.remove()
        self._groups = groups
        self._bases = {key.split(",")[0]: basis_Dk.float() for key, basis_Dk in state.items()}

    def _projector(self, leader: str) -> Callable[[Tensor], Tensor]:
        def project(gradient: Tensor) -> Tensor:
            if self._bases[leader].device != gradient.device:
                self._bases[leader] = self._bases[leader].to(gradient.device)
            return project_out(gradient, self._bases[leader])

        return project

    def _forward(self, batch: Batch) -> Any:
        return self._module(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)


def projection_for(
    engine: "ZeroEngine",
    rule: ProjectionRule,
    examples: Sequence[Example],
    micro_batch: int,
    pad_id: int,
    path: Path,
    fresh: bool,
) -> RetainProjection:
    """The projection of one forget request, installed: measured when it begins, read when a run resumes inside it.

    Args:
        engine: of the run; every rank calls this.
        rule: layers and protected share.
        examples: retain rows, all of them.
        micro_batch: rows of a forward pass on one rank.
        pad_id: any valid token id.
        path: where the bases are kept.
        fresh: whether to measure.

    Raises:
        UserError: a pattern that finds no layer; on resumption a file that is gone.
    """
    projection = RetainProjection(engine.module, rule.layers, rule.retained)
    if fresh:
        counted: set[str] = set()
        batches = []
        for number, rows in enumerate(rows_of_rank(examples, micro_batch, 0, 1)):
            if number % engine.world_size == engine.rank:
                batches.append(_count_once(collate(rows, pad_id), counted))
            else:
                counted |= {example.item_id for example in rows}
        # Every rank runs the same number of passes; an extra one counts nothing.
        while len(batches) * engine.world_size < len(rows_of_rank(examples, micro_batch, 0, 1)):
            batches.append(_count_once(collate(examples[:micro_batch], pad_id), {e.item_id for e in examples}))
        projection.collect(batches, lambda batch: _forward_all(engine, batch))
        if engine.rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".part")
            save_file(projection.state(), aside)
            aside.replace(path)
            storage.push(path)
        if dist.is_initialized():
            dist.barrier()
        projection.install()
        return projection
    storage.refresh(path)
    if path.is_file():
        projection.load_state(load_file(path))
    else:
        raise UserError(f"{path} is gone; a resumed run needs its projection. Start again in another --output.")
    projection.install()
    return projection


def _count_once(batch: Batch, counted: set[str]) -> Batch:
    """The batch with nothing to attend to in rows that were counted before; notes the others in `counted`."""
    mask_BT = batch.attention_mask_BT.clone()
    for row, item_id in enumerate(batch.item_ids):
        if item_id in counted:
            mask_BT[row] = 0
        counted.add(item_id)
    return replace(batch, attention_mask_BT=mask_BT)


def _forward_all(engine: "ZeroEngine", batch: Batch) -> None:
    """A forward pass that attends everywhere: with padding on the right, no real token sees it anyway."""
    whole = replace(batch, attention_mask_BT=torch.ones_like(batch.attention_mask_BT))
    for _ in engine.read([prepare(whole, packed=False)], lambda _: None):
        pass


def _check_retained(retained: float) -> None:
    if not 0.0 <= retained <= 1.0:
        raise UserError(f"retained is {retained:g}; expected a share from 0 (no projection) to 1 (all retain inputs)")
