"""Any composition in one process, on whole tensors, in plain PyTorch: what the ZeRO engine is compared with.

No DeepSpeed, no shards, no accumulation, no swapping: whole-batch losses by autograd, dot products of flattened
gradients in fp64, a teacher as a second dictionary of weights, torch's optimizers on whole tensors. It shares with the
engine the pure functions (losses, combiners' weights, AutoLR's decision, the span of retain activations), which have
tests of their own.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from unlearn_core.autolr import AutoRate, Probe, ulp_noise
from unlearn_core.config import RunConfig
from unlearn_core.data.batches import PairedBatches
from unlearn_core.data.packing import PassInputs, prepare
from unlearn_core.data.tokenization import Batch, Formatter, collate, load_tokenizer
from unlearn_core.data.training import training_sets
from unlearn_core.gradient_projection import StreamingCovariance, retain_basis
from unlearn_core.head import HiddenRows, WholeLogits
from unlearn_core.method import compose
from unlearn_core.models import load_model
from unlearn_core.objective import Objective
from unlearn_core.objectives.representation import control_vector
from unlearn_core.trainable import set_trainable

Weights = dict[str, torch.Tensor]


@dataclass
class PlainRun:
    """A run of the reference.

    Args:
        config: as for the loop; workers, accumulation and ZeRO are ignored.
        dtype: of weights and arithmetic.
    """

    config: RunConfig
    dtype: torch.dtype = torch.float32
    gradients: list[Weights] = field(default_factory=list)
    """What the optimizer was given at each step."""
    probes: list[tuple[float, float, float]] = field(default_factory=list)
    """AutoLR's losses behind, here and ahead."""
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.config
        self.parts = compose(config.method.name, config.method.settings)
        tokenizer = load_tokenizer(config.model.path)
        formatter = Formatter(tokenizer, config.data.format, config.data.max_length, config.data.system_prompt)
        self.pad_id = formatter.pad_id
        self.sets = training_sets(config.data, self.parts.data_sets, tokenizer, config.seed)
        rows = config.batch.rows
        self.batches = PairedBatches(self.sets, rows, rows, 0, 1, config.seed, self.pad_id)
        model: Any = load_model(config.model.path, "fp32")
        self.model = model.to(self.dtype).train()
        set_trainable(self.model, (*config.model.freeze, *self.parts.freeze), self.parts.train_only)
        self.named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.teacher = {name: p.detach().clone() for name, p in self.named.items()}
        self.tracked: dict[int, Weights] = {}
        self.bases = self._bases() if self.parts.projection else {}
        self.references = {key: value for name in self.parts.reference_sets for key, value in self._log_probs(name)}
        settings = config.optimizer
        self.optimizer: torch.optim.Optimizer
        if settings.name == "sgd":
            self.optimizer = torch.optim.SGD(
                self.named.values(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
            )
        else:
            self.optimizer = torch.optim.AdamW(
                self.named.values(),
                settings.learning_rate,
                settings.betas,
                settings.epsilon,
                weight_decay=settings.weight_decay,
            )
        self.auto: AutoRate | None = None
        if settings.schedule == "auto":
            self.auto = AutoRate(settings.learning_rate, **settings.auto.model_dump())

    @classmethod
    def unclipped(cls, config: RunConfig) -> Weights:
        """The first gradient as it is before clipping."""
        optimizer = config.optimizer.model_copy(update={"gradient_clipping": 0.0})
        plain = cls(config.model_copy(update={"optimizer": optimizer}))
        plain.run(1)
        return plain.gradients[0]

    def run(self, steps: int) -> Weights:
        """Take `steps` optimizer steps; the final weights that train."""
        for step in range(steps):
            self._step(step)
        return {name: p.detach().clone() for name, p in self.named.items()}

    def _step(self, step: int) -> None:
        objectives, combiner = self.parts.objectives, self.parts.combiner
        gradients, losses = [], []
        for k in range(len(objectives)):
            loss = self._loss(k, step)
            parts = torch.autograd.grad(loss, list(self.named.values()), allow_unused=True, materialize_grads=True)
            gradients.append(self._projected(dict(zip(self.named, parts, strict=True))))
            losses.append(float(loss.detach()))
        vectors, signs = list(gradients), [objective.sign for objective in objectives]
        for tracking in combiner.tracked:
            k, rate = tracking.objective, combiner.tracking_rate(tracking.objective, step)
            old: Weights = self.tracked.get(k) or gradients[k]
            self.tracked[k] = {name: old[name] + rate * (gradients[k][name] - old[name]) for name in old}
            if tracking.replaces:
                vectors[k] = self.tracked[k]
            else:
                vectors.append(self.tracked[k])
                signs.append(signs[k])
        signs_V = np.array(signs)
        flat = torch.stack([torch.cat([part.double().flatten() for part in vector.values()]) for vector in vectors])
        gram_VV = (flat @ flat.T).numpy()
        for k, objective in enumerate(objectives):
            if objective.vanishes_at_teacher and step == 0:  # exactly zero there, but for rounding
                gram_VV[k, :] = gram_VV[:, k] = 0.0
        descent_VV = gram_VV * np.outer(signs_V, signs_V) if combiner.needs_gradients else None
        weights_V = signs_V * combiner.weights(descent_VV, np.array(losses), step)
        norm = float(np.sqrt(max(0.0, weights_V @ gram_VV @ weights_V)))
        most = self.config.optimizer.gradient_clipping
        clip = 1.0 if most == 0 or norm <= most else most / norm
        damping = self.parts.teacher.damping if self.parts.teacher else 0.0
        combined = {
            name: clip * sum(w * vector[name] for w, vector in zip(weights_V, vectors, strict=True))
            + damping * clip * (self.named[name].detach() - self.teacher[name])
            for name in self.named
        }
        self.gradients.append({name: part.clone() for name, part in combined.items()})
        for name, p in self.named.items():
            p.grad = combined[name]
        if self.auto and self.auto.due(step):
            self._probe(step, losses)
        rate = self.config.optimizer.rate(step, self.config.steps, self.auto.rate if self.auto else None)
        self.rates.append(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.parts.teacher:
            moved = self.parts.teacher.rate * clip
            for name, p in self.named.items():
                self.teacher[name] = torch.lerp(self.teacher[name], p.detach(), moved)
        after = None
        if combiner.needs_losses_after:
            with torch.no_grad():
                after = np.array([float(self._loss(k, step)) for k in range(len(objectives))])
        combiner.after_step(np.array(losses), after, step)

    def _loss(self, k: int, step: int) -> torch.Tensor:
        objective = self.parts.objectives[k]
        batch = self._batch(objective, step)
        inputs = prepare(batch, packed=False, skip_first=objective.skip_first)
        readout = self._readout(objective, batch, inputs, None)
        teacher = None
        if objective.needs_teacher:
            with torch.no_grad():
                teacher = self._readout(objective, batch, inputs, self.teacher).keep()
        control = None
        if objective.control is not None:
            control = control_vector(self.model.config.hidden_size, objective.control)
        total = objective.sum(readout, inputs, self.references, teacher, control)
        rows = self.config.batch.rows
        tokens = self.batches.label_tokens(step, objective.rows, objective.skip_first)
        return total / (rows if objective.per_row else tokens)

    def _batch(self, objective: Objective, step: int) -> Batch:
        return objective.input({name: self.batches.micro_batches(step, name)[0] for name in objective.sets})

    def _readout(self, objective: Objective, batch: Batch, inputs: PassInputs, weights: Weights | None) -> Any:
        """From padded rows and all of their logits."""
        output = self._forward(batch, weights)
        if objective.read_layer is not None:
            return HiddenRows(output.hidden_states[objective.read_layer + 1].flatten(0, 1)[inputs.labels_at_N])
        return WholeLogits(output.logits.flatten(0, 1)[inputs.predictors_N], inputs)

    def _forward(self, batch: Batch, weights: Weights | None) -> Any:
        inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
        inputs |= {"output_hidden_states": True, "use_cache": False}
        return self.model(**inputs) if weights is None else functional_call(self.model, weights, (), inputs)

    def _log_probs(self, name: str) -> list[tuple[tuple[str, str], float]]:
        """Each row's summed log-probability, one row at a time."""
        found = []
        for example in self.sets[name]:
            batch = collate([example], self.pad_id)
            with torch.no_grad():
                log_p_TV = torch.log_softmax(self._forward(batch, None).logits[0, :-1], dim=-1)
            labels_T = batch.labels_BT[0, 1:]
            kept_T = labels_T >= 0
            picked = log_p_TV[kept_T].gather(1, labels_T[kept_T].unsqueeze(1))
            found.append(((name, example.item_id), float(picked.sum())))
        return found

    def _bases(self) -> Weights:
        """Weight's name -> directions of its layer's inputs on all retain rows, from one pass."""
        rule = self.parts.projection
        assert rule is not None
        batch = collate(self.sets["retain"], self.pad_id)
        real_BT = batch.attention_mask_BT.bool()
        layers = {
            name.removesuffix(".weight"): self.model.get_submodule(name.removesuffix(".weight")) for name in self.named
        }
        seen: Weights = {}
        hooks = [
            layer.register_forward_hook(lambda _m, args, _out, name=name: seen.update({name: args[0][real_BT]}))
            for name, layer in layers.items()
        ]
        with torch.no_grad():
            self._forward(batch, None)
        for hook in hooks:
            hook.remove()
        bases = {}
        for name, inputs_ND in seen.items():
            covariance = StreamingCovariance(inputs_ND.shape[1])
            covariance.add(inputs_ND)
            bases[f"{name}.weight"] = retain_basis(covariance.sum_DD, rule.retained).to(self.dtype)
        return bases

    def _projected(self, gradient: Weights) -> Weights:
        return {name: part - (part @ self.bases[name]) @ self.bases[name].T if name in self.bases else part
                for name, part in gradient.items()}  # fmt: skip

    def _probe(self, step: int, losses: list[float]) -> None:
        """The optimizer's own step, taken and undone on copies; the retain loss on both sides."""
        assert self.auto is not None
        before = {name: p.detach().clone() for name, p in self.named.items()}
        state = {p: {key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in self.optimizer.state[p].items()}
                 for p in self.named.values()}  # fmt: skip
        span = self.auto.span_at()
        for group in self.optimizer.param_groups:
            group["lr"] = span
        self.optimizer.step()
        k = self.parts.retain_objective
        assert k is not None
        moved = {name: p.detach() - before[name] for name, p in self.named.items()}  # -span d
        with torch.no_grad():
            ahead = float(self._loss(k, step))
            for name, p in self.named.items():
                p.copy_(before[name] - moved[name])
            behind = float(self._loss(k, step))
            for name, p in self.named.items():
                p.copy_(before[name])
        for p in self.named.values():
            self.optimizer.state[p] = state[p]
        self.probes.append((behind, losses[k], ahead))
        epsilon = 2.0**-52 if self.dtype == torch.float64 else 2.0**-23
        self.auto.update(Probe(span, behind, losses[k], ahead), ulp_noise(losses[k], epsilon))
