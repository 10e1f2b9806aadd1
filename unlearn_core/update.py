"""One optimizer step of any composition of objectives, combiner, teacher and step-size rule.

    teacher's forward passes, where an objective needs them        (the student's weights swapped out and back)
    a gradient for each objective -> Gram matrix -> weights        (or one summed backward, where weights are known
    before)
    d = c sum_k w_k g_k, c the clipping factor                     (+ the mean teacher's damping)
    AutoLR's probes along the optimizer's own step, when due       (parameters put back bit for bit)
    optimizer step; the teacher follows

What a method carries from step to step lives here and nowhere else: the combiner's numbers, tracking buffers, the
teacher's shards and AutoLR's rate. `tensors` and `state` give all of it to a checkpoint.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from unlearn_core.autolr import AutoRate, Probe, ulp_noise
from unlearn_core.combine import clip_factor, combined_norm, cosine
from unlearn_core.config import RunConfig
from unlearn_core.data.packing import PassInputs, prepare
from unlearn_core.data.tokenization import Batch
from unlearn_core.mean_teacher import Teacher
from unlearn_core.method import Composition
from unlearn_core.objective import Objective
from unlearn_core.objectives.representation import control_vector
from unlearn_core.references import References
from unlearn_core.zero.direction import points_beside
from unlearn_core.zero.passes import Pass

if TYPE_CHECKING:
    from unlearn_core.zero.engine import ZeroEngine
    from unlearn_core.zero.saved_shards import SavedShards

Shard = list[torch.Tensor]


@dataclass(frozen=True)
class StepRows:
    """The rows of one step: this rank's micro-batches, and what the whole global batch counts."""

    inputs: Sequence[Sequence[PassInputs]]
    """Objective -> its micro-batches, the same number on every rank; see `step_inputs`."""
    label_tokens: Mapping[tuple[str, int], int]
    """(set, labels ignored at the start of each row) -> label tokens of the global batch."""
    rows: int
    """Rows of the global batch, for each set."""

    def normaliser(self, objective: Objective) -> int:
        """What the objective's sum over the global batch is divided by."""
        return self.rows if objective.per_row else self.label_tokens[objective.rows, objective.skip_first]


def step_inputs(
    composition: Composition, micro_batches: Mapping[str, Sequence[Batch]], packed: bool
) -> list[list[PassInputs]]:
    """What each objective's forward passes of a step read, from each set's batches; in page-locked memory for a GPU."""
    found = []
    for objective in composition.objectives:
        batches = zip(*(micro_batches[name] for name in objective.sets), strict=True)
        inputs = [
            prepare(objective.input(dict(zip(objective.sets, batch, strict=True))), packed, objective.skip_first)
            for batch in batches
        ]
        found.append([one.pinned() for one in inputs] if torch.cuda.is_available() else inputs)
    return found


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is not finite, on any rank; raised on all of them, before the optimizer step."""


@dataclass
class Update:
    """Takes optimizer steps and holds what they carry along.

    Args:
        engine: model and optimizer.
        composition: the method's parts.
        config: optimizer, seed and whether gradients are kept apart for their diagnostics.
    """

    engine: "ZeroEngine"
    composition: Composition
    config: RunConfig
    references: References = field(default_factory=dict)
    """Of the present request; see `unlearn_core.references`."""
    teacher: Teacher | None = field(init=False, default=None)
    auto: AutoRate | None = field(init=False, default=None)
    tracked: dict[int, Shard] = field(init=False, default_factory=dict)
    """Objective -> its EMA gradient, fp32, laid out like the live gradient."""
    _restored: dict[int, Shard] = field(init=False, default_factory=dict)
    """The same out of a checkpoint, laid out like the masters until there is a live gradient to take the shapes of."""

    def __post_init__(self) -> None:
        if self.composition.teacher is not None:
            on_host = self.config.zero.teacher_on_host
            self.teacher = Teacher(self.engine.shards, self.composition.teacher, self.engine.bf16, on_host)
        settings = self.config.optimizer
        if settings.schedule == "auto":
            self.auto = AutoRate(rate=settings.learning_rate, **settings.auto.model_dump())
        self._controls = self._control_vectors()

    def step(self, rows: StepRows, step: int, request_step: int) -> dict[str, Any]:
        """One optimizer step.

        Args:
            rows: of this step.
            step: optimizer steps done so far, over all requests.
            request_step: the same within the present request; the schedule follows it.

        Returns:
            What there is to log: losses, norms, angle, rate; equal on every rank but for `seconds`.

        Raises:
            NonFiniteError: before the optimizer step, on all ranks together.
        """
        started = time.perf_counter()
        engine, combiner = self.engine, self.composition.combiner
        passes = self._passes(rows)
        weighed_by = engine.losses(*passes) if combiner.needs_losses_first else None
        if combiner.needs_gradients or self.config.diagnostics:
            losses, clip, metrics = self._apart(passes, weighed_by, step)
        else:
            losses, clip, metrics = self._summed(passes, weighed_by, step)
        if self.teacher:
            self.teacher.damp(clip)
        peak = self._probed_rate(passes, losses, step) if self.auto else None
        rate = self.config.optimizer.rate(request_step, self.config.steps, peak)
        engine.step(rate)
        if self.teacher:
            self.teacher.follow(clip)
            self.teacher.at_student = False
        after = engine.losses(*passes) if combiner.needs_losses_after else None
        combiner.after_step(np.array(losses), None if after is None else np.array(after), step)
        names = [objective.name for objective in self.composition.objectives]
        return {
            "step": step + 1,
            **{f"loss_{name}": loss for name, loss in zip(names, losses, strict=True)},
            **metrics,
            **self._teacher_gap(),
            "learning_rate": rate,
            **self._auto_metrics(),
            "seconds": time.perf_counter() - started,
        }

    def begin_request(self, references: References, fresh: bool) -> None:
        """Another forget request, or a resumed one; when `fresh`, the teacher starts again from the student."""
        self.references = references
        if self.teacher and fresh:
            self.teacher.reset()

    def tensors(self) -> dict[str, torch.Tensor]:
        """This rank's tensors that a checkpoint must hold, by name, each laid out like `shards.master()`."""
        found: dict[str, torch.Tensor] = {}
        for k, shard in self.tracked.items():
            flats = self.engine.shards.to_master(shard, self.engine.parameter_names())
            found |= {f"tracked/{k}/{i}": flat for i, flat in enumerate(flats)}
        found |= {f"tracked/{k}/{i}": flat for k, flats in self._restored.items() for i, flat in enumerate(flats)}
        if (self.teacher and self.teacher.moves) or (self.teacher and self.config.data.requests > 1):
            found |= {f"teacher/{i}": tensor for i, tensor in enumerate(self.teacher.weights)}
        return found

    def load_tensors(self, saved: "SavedShards", numels: Sequence[int]) -> None:
        """Put back what `tensors` gave, whatever layout wrote it; `numels` are those of this layout's masters."""
        self.tracked = {}
        for k in range(len(self.composition.objectives)):
            if saved.has(kind := f"tracked/{k}/{{}}"):
                self._restored[k] = [saved.read(kind, i, numel) for i, numel in enumerate(numels)]
        if self.teacher and saved.has("teacher/{}"):
            for i, mine in enumerate(self.teacher.weights):
                mine.copy_(saved.read("teacher/{}", i, mine.numel()).view(mine.shape))
        if self.teacher:
            self.teacher.at_student = False  # a checkpoint comes after a step; a new request sets it again

    def state(self) -> dict[str, Any]:
        """The small numbers that a checkpoint must hold; the same on every rank, JSON."""
        return {
            "combiner": self.composition.combiner.state(),
            "auto": self.auto.state() if self.auto else {},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.composition.combiner.load_state(state["combiner"])
        if self.auto:
            self.auto.load_state(state["auto"])

    # -- passes ------------------------------------------------------------------------------------------------------

    def _passes(self, rows: StepRows) -> list[Pass]:
        views = self._teacher_views(rows.inputs)
        return [
            Pass(
                loss=self._loss(k, objective, views.get(k)),
                micro_batches=rows.inputs[k],
                normaliser=rows.normaliser(objective),
                layer=objective.read_layer,
            )
            for k, objective in enumerate(self.composition.objectives)
        ]

    def _teacher_views(self, inputs: Sequence[Sequence[PassInputs]]) -> dict[int, list[Any]]:
        """Objective -> what the teacher says of each micro-batch; one swap of the weights for all objectives."""
        wanted = [k for k, objective in enumerate(self.composition.objectives) if objective.needs_teacher]
        if not wanted:
            return {}
        assert self.teacher is not None
        views: dict[int, list[Any]] = {k: [] for k in wanted}
        head: list[Any] = []  # the first pass's view, which holds the teacher's head for all others
        with self.engine.swapped(self.teacher.weights):
            for k in wanted:
                layer = self.composition.objectives[k].read_layer
                lent = None if layer is not None else head

                def keep(readout: Any, lent: list[Any] | None = lent) -> Any:
                    view = readout.keep(lent[0] if lent else None)
                    if lent is not None and not lent:
                        lent.append(view)
                    return view

                views[k] += self.engine.read(inputs[k], keep, layer)
        return views

    def _loss(self, k: int, objective: Objective, views: list[Any] | None) -> Any:
        control_D = self._controls.get(k)

        def loss(readout: Any, inputs: PassInputs, index: int) -> torch.Tensor:
            return objective.sum(readout, inputs, self.references, views[index] if views else None, control_D)

        return loss

    def _control_vectors(self) -> dict[int, torch.Tensor]:
        size = getattr(self.engine.module.config, "hidden_size", 0)
        return {
            k: control_vector(size, objective.control).to(self.engine.device)
            for k, objective in enumerate(self.composition.objectives)
            if objective.control is not None
        }

    # -- gradients ---------------------------------------------------------------------------------------------------

    def _summed(self, passes: list[Pass], weighed_by: list[float] | None, step: int) -> tuple[list[float], float, dict]:
        """One backward of the weighted sum: no gradient is stored."""
        weights_K = self._known_weights(weighed_by, step) * self._signs()
        weighted = [
            Pass(p.loss, p.micro_batches, p.normaliser, float(w), p.layer)
            for p, w in zip(passes, weights_K, strict=True)
        ]
        totals, live = self.engine.gradient(*weighted)
        gram_11 = self.engine.gram([live])
        losses = self.engine.means(totals, passes)
        self._check(losses, gram_11)
        one = np.ones(1)
        clip = clip_factor(gram_11, one, self.config.optimizer.gradient_clipping)
        if clip != 1.0:
            self.engine.combine(live, clip)
        norm = combined_norm(gram_11, one)
        metrics = self._weights_log(weights_K)
        if len(passes) == 1:
            metrics[f"norm_{self.composition.objectives[0].name}"] = norm / abs(float(weights_K[0]))
        return losses, clip, metrics | {"update_norm": clip * norm}

    def _apart(self, passes: list[Pass], weighed_by: list[float] | None, step: int) -> tuple[list[float], float, dict]:
        """A gradient for each objective; weights from their Gram matrix."""
        totals: list[torch.Tensor] = []
        gradients: list[Shard] = []
        for item in passes:
            if gradients:
                gradients[-1] = self.engine.take()
            total, shard = self.engine.gradient(item)
            totals.append(total)
            gradients.append(shard)
            del shard  # or what waits on the host would stay on the device as well
        live = gradients[-1]
        vectors, signs_V = self._vectors(gradients, step)
        gram_VV = self.engine.gram(vectors)
        losses = self.engine.means(torch.cat(totals), passes)
        self._check(losses, gram_VV)
        for k, objective in enumerate(self.composition.objectives):
            if objective.vanishes_at_teacher and self.teacher and self.teacher.at_student:
                gram_VV[k, :] = gram_VV[:, k] = 0.0
        combiner = self.composition.combiner
        if combiner.needs_gradients:
            weights_V = combiner.weights(gram_VV * np.outer(signs_V, signs_V), np.array(losses), step)
        else:
            weights_V = self._known_weights(weighed_by, step)
        weights_V = weights_V * signs_V
        clip = clip_factor(gram_VV, weights_V, self.config.optimizer.gradient_clipping)
        weights_V = weights_V * clip
        last = next((v for v, vector in enumerate(vectors) if vector is live), None)
        others = [(vectors[v], float(weights_V[v])) for v in range(len(vectors)) if v != last]
        self.engine.combine(live, 0.0 if last is None else float(weights_V[last]), others)
        names = [objective.name for objective in self.composition.objectives]
        metrics = {f"norm_{name}": math.sqrt(gram_VV[k, k]) for k, name in enumerate(names)}
        if len(names) == 2:
            metrics["cosine"] = cosine(gram_VV, 0, 1)
        metrics["update_norm"] = combined_norm(gram_VV, weights_V)
        return losses, clip, metrics

    def _vectors(self, gradients: list[Shard], step: int) -> tuple[list[Shard], np.ndarray]:
        """What the combiner weighs: gradients, or their tracking buffers; and the sign of each one's objective."""
        signs_K = self._signs()
        vectors, signs, appended = list(gradients), list(signs_K), []
        for tracking in self.composition.combiner.tracked:
            k = tracking.objective
            rate = self.composition.combiner.tracking_rate(k, step)
            # Where gradients wait on the host, only the GPU knows when they have arrived.
            here = [tensor.to(gradients[-1][0].device) for tensor in gradients[k]]
            buffer = self._follow(k, here, rate)
            if tracking.replaces:
                vectors[k] = buffer
            else:
                appended.append((buffer, signs_K[k]))
        vectors += [buffer for buffer, _ in appended]
        signs += [sign for _, sign in appended]
        return vectors, np.array(signs)

    @torch.no_grad()
    def _follow(self, k: int, gradient: Shard, rate: float) -> Shard:
        """Y <- y + rate (g - y), in fp32; the first y is g."""
        if k in self._restored:
            restored = self.engine.shards.from_master(self._restored.pop(k))
            self.tracked[k] = [flat.to(tensor.device) for flat, tensor in zip(restored, gradient, strict=True)]
        if k not in self.tracked:
            self.tracked[k] = [tensor.detach().float().clone() for tensor in gradient]
        else:
            for buffer, tensor in zip(self.tracked[k], gradient, strict=True):
                buffer.lerp_(tensor.detach().float(), rate)
        return self.tracked[k]

    def _known_weights(self, losses: list[float] | None, step: int) -> np.ndarray:
        return self.composition.combiner.weights(None, None if losses is None else np.array(losses), step)

    def _signs(self) -> np.ndarray:
        return np.array([objective.sign for objective in self.composition.objectives])

    def _weights_log(self, weights_K: np.ndarray) -> dict[str, float]:
        if type(self.composition.combiner).__name__ == "WeightedSum":
            return {}
        names = [objective.name for objective in self.composition.objectives]
        return {f"weight_{name}": float(weight) for name, weight in zip(names, weights_K, strict=True)}

    def _check(self, losses: list[float], gram_VV: np.ndarray) -> None:
        if not (np.isfinite(gram_VV).all() and np.isfinite(losses).all()):
            raise NonFiniteError(f"losses {losses}")

    # -- step size ---------------------------------------------------------------------------------------------------

    def _probed_rate(self, passes: list[Pass], losses: list[float], step: int) -> float:
        """AutoLR's rate, after probing the retain loss on both sides of the weights when a probe is due."""
        assert self.auto is not None and self.composition.retain_objective is not None
        if self.auto.due(step):
            k = self.composition.retain_objective
            span = self.auto.span_at()
            behind, ahead = self._losses_beside(passes[k], span)
            # Rounding errors of bf16 passes are independent over the tokens whose losses are averaged.
            epsilon = 2.0**-8 / math.sqrt(passes[k].normaliser) if self.engine.bf16 else 2.0**-23
            self.auto.update(Probe(span, behind, losses[k], ahead), ulp_noise(losses[k], epsilon))
        return self.auto.rate

    @torch.no_grad()
    def _losses_beside(self, item: Pass, span: float) -> tuple[float, float]:
        """The pass's loss at theta + span x d and at theta - span x d; the weights are put back once, at the end."""
        shards = self.engine.shards
        masters = [master.detach() for master in shards.master()]
        with self.engine.swapped(points_beside(shards, masters, span)):
            behind = self.engine.losses(item)[0]
            shards.push(points_beside(shards, masters, -span))
            return behind, self.engine.losses(item)[0]

    def _auto_metrics(self) -> dict[str, Any]:
        return {"auto_rate": self.auto.rate, "auto_probes": dict(self.auto.counts)} if self.auto else {}

    def _teacher_gap(self) -> dict[str, float]:
        """|w - v|, the L2 distance of student and teacher over all ranks; nothing without a moving teacher."""
        if self.teacher is None or not self.teacher.moves:
            return {}
        total = self.teacher.gap().to(self.engine.device)
        if self.engine.shards.sharded:
            dist.all_reduce(total)
        return {"teacher_gap": math.sqrt(float(total))}
