"""The model card beside exported weights: README.md, as the hub shows it, with what made them and what is not known.

Everything in it comes from the run's record and its rows. Of local paths only the last parts are told, since cards
travel with models. The block of metadata has, under `unlearn`, what a program needs to write the card anew.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_core.data.sources import looks_like_path
from unlearn_core.method import find_method, method_settings
from unlearn_core.publish import write_text

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from unlearn_core.config import RunConfig
    from unlearn_core.data.tokenization import Example

CARD = "README.md"

_EDITS = {
    "slug": ("SLUG", "'Targeted Unlearning with Single Layer Unlearning Gradient', arXiv 2407.11867",
             "theta_l + lam G_F,l for one layer l"),
    "task_vector": ("Task vector", "Ilharco et al., 'Editing models with task arithmetic', arXiv 2212.04089",
                    "theta - a (theta_reinforced - theta)"),
    "interpolation": ("Interpolation", "calibration of UWC, arXiv 2406.09179",
                      "(1 - a) theta_unlearned + a theta_target"),
}  # fmt: skip
_NOT_SETTINGS = ("name", "data", "workers", "logging", "zero", "checkpoints", "export_every", "checkpoint_every")
_PACKAGES = ("unlearn", "torch", "transformers", "deepspeed", "ray")

_LIMITS = """\
- That the forget data is gone is not proven. The scores, where there are any, are of these rows asked in these ways;
  other wording, other languages or sampling many answers may still bring something out.
- A few steps of training on the forgotten rows, or on related ones, may bring them back (relearning), and quantised
  weights may remember what these do not. `unlearn robustness` measures both; this card does not say that it was done.
- Who has this model and the one before it can compare the two, and may learn from that what was to be forgotten.
- What else the model knows about the same people or works from other training data was not looked for.
- Apart from the retain rows and the scores, nothing says what else has become worse. Test it on your own task.
"""


@dataclass(frozen=True)
class Scores:
    """What an evaluation measured on the model, and on the two it is compared with.

    Attributes:
        about: the evaluation's settings: `suite`, `benchmark`, `forget_split`, `benchmark_fingerprint`.
        model: metric -> value; None for one that has none.
        headline: the metrics that go into the metadata too, which the hub draws.
        target: the same of the model before unlearning, if it was evaluated.
        reference: the same of the model retrained without the forget data, if it was evaluated.
    """

    about: Mapping[str, Any]
    model: Mapping[str, float | None]
    headline: Sequence[str]
    target: Mapping[str, float | None] | None = None
    reference: Mapping[str, float | None] | None = None


def data_facts(requests: Sequence[Mapping[str, "Sequence[Example]"]]) -> list[dict[str, Any]]:
    """How many rows of each set a run reads, and a fingerprint of them.

    Args:
        requests: set name -> tokenised rows, for each forget request.

    Returns:
        For each set `rows` (its name), `request` (from 1), `count`, `label_tokens` and `sha256`, of the rows' ids and
        tokens in their order. A set that a later request has in common with an earlier one is listed once.
    """
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    for request, sets in enumerate(requests, start=1):
        for name, examples in sets.items():
            digest = hashlib.sha256()
            for example in examples:
                digest.update(json.dumps([example.item_id, example.input_ids, example.prompt_length]).encode() + b"\n")
            counts = {"count": len(examples), "label_tokens": sum(example.label_count for example in examples)}
            found = {"rows": name, "request": request, **counts, "sha256": digest.hexdigest()}
            facts.setdefault((name, digest.hexdigest()), found)
    return list(facts.values())


def training_record(config: "RunConfig") -> dict[str, Any]:
    """What a card tells of a training run, as `write_card` takes it."""
    values = config.model_dump(mode="json")
    return {"run": config.name, "method": config.method.name, "fingerprint": config.fingerprint(), "config": values}


def write_card(
    folder: Path,
    record: Mapping[str, Any],
    step: int,
    data: Sequence[Mapping[str, Any]] = (),
    scores: Scores | None = None,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write a model's card; one that is there already is replaced in one rename.

    Args:
        folder: of the exported model.
        record: `run`, `method`, `fingerprint` and `config`, as in run.json.
        step: optimizer steps taken, or the number of an edit's point.
        data: what `data_facts` gave; empty when it is not known.
        scores: of an evaluation; None before there is one.
        versions: of the packages that made the model; None for those that are installed here.

    Returns:
        The card's path.
    """
    write_text(folder / CARD, str(card(record, step, data, scores, versions)))
    return folder / CARD


def read_facts(folder: Path) -> dict[str, Any] | None:
    """The `data` and `versions` that a card was written with; None if there is no card, or somebody else's."""
    from huggingface_hub import ModelCard

    if not (folder / CARD).is_file():
        return None
    held = ModelCard((folder / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    ours = held.get("unlearn")
    return {name: ours[name] for name in ("data", "versions")} if isinstance(ours, dict) else None


def card(
    record: Mapping[str, Any],
    step: int,
    data: Sequence[Mapping[str, Any]] = (),
    scores: Scores | None = None,
    versions: Mapping[str, str] | None = None,
) -> "ModelCard":
    """The card as huggingface_hub's object; arguments as of `write_card`."""
    from huggingface_hub import ModelCard, ModelCardData

    method, config = str(record["method"]), record["config"]
    base, benchmark = _base_of(config), (config.get("data") or config).get("benchmark")
    made_with = dict(versions or _installed())
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if base and _on_hub(base) else None,
        datasets=[benchmark] if benchmark and _on_hub(benchmark) else None,
        tags=["unlearn", method] if method == "finetune" else ["machine-unlearning", "unlearn", method],
        model_name=str(record["run"]) if scores else None,
        eval_results=_results(scores) if scores else None,
        unlearn={
            "run": record["run"],
            "method": method,
            "step": step,
            "fingerprint": record["fingerprint"],
            "data": [dict(one) for one in data],
            "versions": made_with,
        },
    )
    parts = [
        f"# {record['run']}, {_counted(step, method)}",
        _summary(method, config, made_with.get("unlearn", "")),
        f"## Method\n\n{_method_text(method)}",
        f"## Settings\n\n{_settings_table(method, config, str(record['fingerprint']))}",
        f"## Data\n\n{_data_text(config, data)}",
        f"## Scores\n\n{_scores_text(scores)}",
        *([] if method == "finetune" else [f"## Limits\n\n{_LIMITS.rstrip()}"]),
        "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in made_with.items()),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _summary(method: str, config: Mapping[str, Any], version: str) -> str:
    base = _base_of(config)
    named = f"[{base}](https://huggingface.co/{base})" if base and _on_hub(base) else f"`{_public(base)}`"
    made = f"Made by `unlearn` {version}".rstrip() + "."
    data = config.get("data") or config
    forget, retain = (_listed(data.get(key) or ()) for key in ("forget", "retain"))
    forget = forget or _listed(data.get("sequential") or ())
    if method == "finetune":
        return f"{named} trained on {retain}: a model to unlearn from or to compare with. {made}"
    rows = f"to forget {forget}" + (f" and to keep {retain}" if retain else "") if forget else "to forget"
    return f"{named} after {_title(method)}, made {rows}. {made}"


def _method_text(method: str) -> str:
    if method in _EDITS:
        title, paper, equation = _EDITS[method]
        return f"{title} (`{method}`): {paper}.\n\n    {equation}"
    found = find_method(method)
    text = f"{found.title} (`{method}`): {found.paper}. It minimises, or goes down along,\n\n    {found.equation}"
    if found.deviations:
        text += "\n\nWhere it differs from the paper:\n\n" + "\n".join(f"- {one}" for one in found.deviations)
    return text


def _settings_table(method: str, config: Mapping[str, Any], fingerprint: str) -> str:
    kept = {name: value for name, value in config.items() if name not in _NOT_SETTINGS}
    if method not in _EDITS:  # with those that were left at their defaults
        settings = method_settings(find_method(method), config["method"]["settings"])
        kept["method"] = {"name": method, "settings": settings.model_dump(mode="json")}
    if (kept.get("optimizer") or {}).get("schedule") != "auto" and "optimizer" in kept:
        kept["optimizer"] = {name: value for name, value in kept["optimizer"].items() if name != "auto"}
    lines = [f"| {name} | {_public(value)} |" for name, value in _flat("", kept) if value not in (None, [], {})]
    return "\n".join(["| setting | value |", "|---|---|", *lines, f"| fingerprint of the run | `{fingerprint}` |"])


def _data_text(config: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> str:
    data = config.get("data") or {name: config.get(name) for name in ("benchmark", "forget", "retain")}
    named = [
        f"- {name}: {_listed(value) if isinstance(value, list | tuple) else _public(value)}"
        for name, value in data.items()
        if name in ("benchmark", "forget", "retain", "sequential", "format", "max_length") and value
    ]
    if generic := data.get("generic"):
        named.append(f"- generic text: {_public(generic['source'])}")
    text = "\n".join(named) or "- none of its own: it is computed from other models' weights"
    if not facts:
        return text
    several = any(one["request"] > 1 for one in facts)
    head = "| rows | " + ("request | " if several else "") + "number | label tokens | SHA-256 |"
    lines = [
        f"| {one['rows']} | " + (f"{one['request']} | " if several else "")
        + f"{one['count']} | {one['label_tokens']} | `{one['sha256']}` |"
        for one in facts
    ]  # fmt: skip
    rule = "|" + "---|" * (head.count("|") - 1)
    return (
        f"{text}\n\n"
        + "\n".join([head, rule, *lines])
        + "\n\nThe SHA-256 is over ids and tokens of the rows, in their order."
    )


def _scores_text(scores: Scores | None) -> str:
    if scores is None:
        return "Not evaluated when this card was written. `unlearn evaluate` measures, `unlearn card` writes it here."
    about = scores.about
    who = {"this model": scores.model, "before": scores.target, "retrained": scores.reference}
    shown = {name: values for name, values in who.items() if values is not None}
    text = f"`unlearn evaluate`, suite {about['suite']}, {_public(about['benchmark'])}"
    text += f", forget split {about['forget_split']}" if about.get("forget_split") else ""
    text += f"; SHA-256 of the rows `{about['benchmark_fingerprint']}`." if about.get("benchmark_fingerprint") else "."
    if len(shown) > 1:
        text += " `before` is the model before unlearning, `retrained` one that never saw the forget data."
    lines = [
        f"| {metric} | " + " | ".join(_number(values.get(metric)) for values in shown.values()) + " |"
        for metric, value in scores.model.items()
        if value is not None
    ]
    head = ["| metric | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
    return "\n".join([text, "", *head, *lines])


def _results(scores: Scores) -> list[Any]:
    from huggingface_hub import EvalResult

    benchmark = _public(scores.about["benchmark"])
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=benchmark,
            dataset_name=benchmark,
            dataset_split=scores.about.get("forget_split"),
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in scores.model.items()
        if value is not None and metric in scores.headline
    ]


def _installed() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # no ray in a plain process, a checkout in a job
            found[name] = importlib.metadata.version(name)
    return found


def _title(method: str) -> str:
    return _EDITS[method][0] if method in _EDITS else find_method(method).title


def _counted(step: int, method: str) -> str:
    return f"point {step}" if method in _EDITS else f"step {step}"


def _base_of(config: Mapping[str, Any]) -> str | None:
    """The model before unlearning: of a training its start, of an edit the model that is edited."""
    found = config.get("model") or config.get("target") or config.get("unlearned")
    return found.get("path") if isinstance(found, Mapping) else found


def _on_hub(name: str) -> bool:
    return "/" in name and not looks_like_path(name)


def _public(value: Any) -> str:
    """A value for the card; of a path only the end, which tells nothing about who made it where."""
    if isinstance(value, str) and ("://" in value or looks_like_path(value)):
        parts = value.split("://")[-1].rstrip("/").split("/")
        return parts[-3] if len(parts) > 2 and parts[-2] == "models" else parts[-1]
    return value if isinstance(value, str) else json.dumps(value)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{_public(name)}`" for name in names)


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    inside = [_flat(f"{prefix}.{key}" if prefix else str(key), one) for key, one in value.items()]
    return [pair for pairs in inside for pair in pairs]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
