"""What can be found wrong with a run before any worker starts: parts that do not fit each other or the model."""

import re

import torch
from transformers import PreTrainedTokenizerBase

from unlearn_core.config import RunConfig
from unlearn_core.data.tokenization import Example, load_tokenizer
from unlearn_core.data.training import training_sets
from unlearn_core.errors import UserError
from unlearn_core.method import Composition, compose
from unlearn_core.models import build_without_weights, check_model_source
from unlearn_core.trainable import choose_trainable


def preflight(config: RunConfig) -> None:
    """Every check that needs no worker: method and settings, model folder, names of layers, rows of every request.

    Raises:
        UserError: with value, expectation and remedy.
    """
    composition = compose(config.method.name, config.method.settings)
    check_composition(config, composition)
    check_model_source(config.model.path)
    check_layers(config, composition)
    request_sets(config, composition, load_tokenizer(config.model.path))


def request_sets(
    config: RunConfig, composition: Composition, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, list[Example]]]:
    """The tokenised rows of every forget request; without `data.sequential` there is one.

    Raises:
        UserError: as `training_sets`, for any of them.
    """
    found = []
    for request in range(config.data.requests):
        data = config.data.request(request)
        try:
            found.append(training_sets(data, composition.data_sets, tokenizer, config.seed, config.method.name))
        except UserError as error:
            if not config.data.sequential:
                raise
            name = config.data.sequential[request]
            said = str(error).replace("data.forget", "data.sequential")
            raise UserError(f"request {request + 1} ({name}): {said}") from error
    return found


def check_composition(config: RunConfig, composition: Composition) -> None:
    """Whether method, optimizer and adapters fit together.

    Raises:
        UserError: AutoLR without a retain loss, a projection under an optimizer that would leave it, adapters for a
            method that trains weights it names.
    """
    name, optimizer = config.method.name, config.optimizer
    if optimizer.schedule == "auto" and composition.retain_objective is None:
        raise UserError(
            f"optimizer.schedule auto probes the retain loss, and {name} has none. "
            "Use constant, linear or cosine, or a method with a retain loss."
        )
    if composition.projection and (optimizer.name != "sgd" or optimizer.weight_decay):
        raise UserError(
            f"{name} projects gradients, and only plain SGD's step stays in the projection: set optimizer.name=sgd "
            f"and optimizer.weight_decay=0 (now {optimizer.name}, {optimizer.weight_decay:g})."
        )
    if config.model.lora and composition.train_only:
        raise UserError(
            f"{name} trains weights that it names ({', '.join(composition.train_only)}), model.lora trains adapters "
            "instead: leave model.lora empty, or empty the method's list."
        )


def check_layers(config: RunConfig, composition: Composition) -> None:
    """Whether the names and numbers of layers that config and method give exist in the model; loads no weights.

    Raises:
        UserError: a pattern or layer name that matches nothing, a layer number beyond the last.
    """
    with torch.device("meta"):
        model = build_without_weights(config.model.path)
        blocks = getattr(model.config, "num_hidden_layers", None)
        names = [name for name, _ in model.named_parameters()]
        choose_trainable(model, config, composition)
    for objective in composition.objectives:
        if objective.kind == "hidden" and blocks is not None and objective.layer >= blocks:
            raise UserError(
                f"{config.method.name} steers the output of layer {objective.layer}, and the model has layers 0 to "
                f"{blocks - 1}. Set method.settings.layer to one of them."
            )
    for pattern in composition.projection.layers if composition.projection else ():
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"'{pattern}' in method.settings.layers matches no weight, such as {names[1]}.")
