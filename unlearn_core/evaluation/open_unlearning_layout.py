"""Which entry of an open-unlearning log holds which field of which group's records.

A log is a JSON object: metric name to `{"agg_value": ..., "value_by_index": {"0": {...}, ...}}`. Membership metrics
have the same shape twice, as `forget` and `holdout`, and their AUC as `agg_value` and `auc`. Reader and writer share
the tables below, so that what one writes the other finds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from unlearn_core.errors import UserError
from unlearn_core.evaluation import metrics, muse, tofu
from unlearn_core.evaluation.membership import ATTACKS
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.evaluation.suite import present

SUITES: Mapping[str, ModuleType] = {"tofu": tofu, "muse": muse}
"""Suites that open-unlearning writes logs of: name to the module with their `aggregate` and `NAMES`."""

WITHOUT_REFERENCE = "privleak_without_reference"
"""Our column for what a log made without a reference calls `privleak`: measured against a constant AUC of 0.5."""

WITHOUT_ITEMS = ("forget_quality", "model_utility", "privleak")
"""Metrics that hold an aggregate only."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log keeps values of the items of one group.

    Attributes:
        metric: top-level name.
        fields: key of an item's entry to the record field; for ROUGE the numbers only, texts come on top.
        part: `forget` or `holdout` of a membership metric; "" where the metric holds its items itself.
        lists: whether a value is a list, one number for each wrong answer.
        rouge: the key whose mean is the aggregate of a ROUGE metric; "" for any other metric.
    """

    metric: str
    fields: Mapping[str, str]
    part: str = ""
    lists: bool = False
    rouge: str = ""

    @property
    def name(self) -> str:
        """The metric, with its part."""
        return f"{self.metric}.{self.part}" if self.part else self.metric


def _score(metric: str, field: str, part: str = "") -> Place:
    return Place(metric, {"score": field}, part)


def _rouge(metric: str, counted: str) -> Place:
    return Place(metric, {key: key for key in ("rouge1_recall", "rougeL_f1", "rougeL_recall")}, rouge=counted)


def _membership(part: str) -> tuple[Place, ...]:
    return tuple(_score(metric, field, part) for metric, field in ATTACKS.items())


def _question_group(group: str) -> tuple[Place, ...]:
    paraphrase = Place(f"{group}_Q_A_PARA_Prob", {"prob": "paraphrased_prob", "avg_loss": "paraphrased_loss"})
    return (
        Place(f"{group}_Q_A_Prob", {"prob": "prob", "avg_loss": "avg_loss"}),
        *((paraphrase,) if group in ("forget", "retain") else ()),
        Place(f"{group}_Q_A_PERT_Prob", {"prob": "perturbed_probs", "avg_loss": "perturbed_losses"}, lists=True),
        _rouge(f"{group}_Q_A_ROUGE", "rougeL_recall"),
    )


_MEMORISATION = (
    _score("extraction_strength", "extraction_strength"),
    _score("exact_memorization", "exact_memorization"),
)

LAYOUT: Mapping[str, Mapping[str, tuple[Place, ...]]] = {
    "tofu": {
        "forget": (*_question_group("forget"), *_MEMORISATION, *_membership("forget")),
        "retain": _question_group("retain"),
        "ra": _question_group("ra"),
        "wf": _question_group("wf"),
        "holdout": _membership("holdout"),
    },
    "muse": {
        "verbmem": (_rouge("forget_verbmem_ROUGE", "rougeL_f1"), *_MEMORISATION),
        "knowmem_forget": (_rouge("forget_knowmem_ROUGE", "rougeL_f1"),),
        "knowmem_retain": (_rouge("retain_knowmem_ROUGE", "rougeL_f1"),),
        "privleak_forget": _membership("forget"),
        "privleak_holdout": _membership("holdout"),
    },
}
"""Suite to group to the places of its records' fields."""


def suites_of(names: Iterable[str], file_name: str) -> tuple[str, ...]:
    """Suites that a log's metrics belong to.

    Args:
        names: top-level names of the log.
        file_name: decides for a log whose known metrics are all shared by the suites: `TOFU_EVAL.json` or
            `MUSE_EVAL.json`, as open-unlearning calls them.

    Returns:
        One suite, or two for a log that was put together from both.

    Raises:
        UserError: of neither suite, or of either; the message says what would tell.
    """
    given = set(names)
    own = {suite: given & (metrics_of(suite) - _SHARED) for suite in SUITES}
    found = tuple(suite for suite, present_names in own.items() if present_names)
    if found:
        return found
    shared = sorted(given & _SHARED)
    named = tuple(suite for suite in SUITES if suite in file_name.lower())
    if shared and len(named) == 1:
        return named
    if shared:
        raise UserError(
            f"{', '.join(shared)} may be of TOFU or of MUSE; expected a metric that only one of them has, such as "
            "forget_Q_A_Prob or forget_knowmem_ROUGE, or the file name TOFU_EVAL.json or MUSE_EVAL.json"
        )
    raise UserError(
        f"no log of TOFU or MUSE: it has {', '.join(sorted(given)[:5]) or 'no metric'}; expected metrics such as "
        "forget_Q_A_Prob, forget_knowmem_ROUGE or mia_min_k"
    )


def layout_of(suites: Sequence[str]) -> dict[str, tuple[Place, ...]]:
    """Groups and places of a log; a metric that both suites have belongs to the first."""
    groups = dict(LAYOUT[suites[0]])
    for suite in suites[1:]:
        for group, places in LAYOUT[suite].items():
            own = tuple(place for place in places if place.metric not in _SHARED)
            if own:
                groups[group] = own
    return groups


def metrics_of(suite: str) -> set[str]:
    """Names of all metrics that a log of the suite may have and that we read."""
    derived = {name for group in LAYOUT[suite] for name in _derivations(suite, group)}
    placed = {place.metric for places in LAYOUT[suite].values() for place in places}
    return placed | derived | {name for name in WITHOUT_ITEMS if suite == "tofu" or name == "privleak"}


def derived_items(suite: str, group: str, rows: Sequence[ItemRecord]) -> dict[str, tuple[str, dict[str, float]]]:
    """Per-item values that a log holds though they follow from others: truth ratios, normalised probabilities.

    Args:
        suite: `tofu` or `muse`; only the first has such values.
        group: the rows' group.
        rows: its records.

    Returns:
        Metric to (key of an item's entry, item id to value). A metric whose ingredients were not measured is left out.

    Raises:
        ValueError: a measurement is not finite.
    """
    found: dict[str, tuple[str, dict[str, float]]] = {}
    for metric, (key, compute) in _derivations(suite, group).items():
        try:
            found[metric] = (key, compute(rows))
        except UserError:
            continue
    return found


_PerItem = Callable[[Sequence[ItemRecord]], dict[str, float]]


def _derivations(suite: str, group: str) -> dict[str, tuple[str, _PerItem]]:
    if suite != "tofu" or group == "holdout":
        return {}
    ratio = "forget_truth_ratio" if group == "forget" else f"{group}_Truth_Ratio"
    found: dict[str, tuple[str, _PerItem]] = {ratio: ("score", tofu.truth_ratios)}
    if group in ("ra", "wf"):
        found[f"{group}_Q_A_Prob_normalised"] = ("prob", _normalised)
    return found


def _normalised(rows: Sequence[ItemRecord]) -> dict[str, float]:
    shares = metrics.normalised_probability(present(rows, "prob"), present(rows, "perturbed_probs"))
    return dict(zip((row.item_id for row in rows), shares.tolist(), strict=True))


_SHARED = metrics_of("tofu") & metrics_of("muse")
