"""docs/methods.md says what the code does: its one table is made from the methods, its lists name every part.

`.venv/bin/python -m tests.test_methods_doc` writes the table into the page.
"""

import re
from pathlib import Path

import pytest

from benchmarks.exactness_methods import LAYOUTS, cases
from pipelines.edit_commands import edit_app
from unlearn_core.method import Composition, Method, compose, methods
from unlearn_core.parts import COMBINERS, LOSSES

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
BEGIN, END = "<!-- the table of methods: begin -->", "<!-- the table of methods: end -->"
NEEDED = {"pdu": {"epsilon": 1.0}}
"""Settings without a default."""
OF_ALL = ("The mean is over", "Losses are means over")
"""Deviations that every method shares: the page says them once, above the table."""
HEADER = ("method", "equation", "paper", "extra memory", "extra compute", "ZeRO stages tested", "where it differs")
EDITS = {
    "slug": (
        "`theta_l + lam G_F,l` for one layer l, lam by bisection",
        "'Targeted Unlearning with Single Layer Unlearning Gradient', arXiv 2407.11867",
        "two fp32 gradients of all weight matrices, on the host",
        "no steps: 1 F + 1 B over all forget and all retain rows, then at most 10 scorings of both for each layer",
        "none: one device, the model whole",
        "Stops at a threshold of the forget probability, not at forget accuracy 0. The retain loss chooses among the "
        "models that meet it. The paper edits vision-language and diffusion models.",
    ),
    "task-vector": (
        "`theta - a (theta_reinforced - theta)`",
        "Ilharco et al., 'Editing models with task arithmetic', arXiv 2212.04089",
        "one tensor at a time",
        "no steps: two models read, one written; before it, a fine-tune on the forget rows",
        "none: files",
        "The vector starts at the model being edited, not at the pre-trained one.",
    ),
    "interpolate": (
        "`(1 - a) theta_unlearned + a theta_target`",
        "UWC's calibration, arXiv 2406.09179",
        "one tensor at a time",
        "no steps: two models read, one written",
        "none: files",
        "The weight counts from the unlearned model; the paper's from the target.",
    ),
}
"""`unlearn edit` commands, which compose nothing: name -> the cells after the name."""


def made(name: str) -> Composition:
    return compose(name, NEEDED.get(name, {}))


def count(amount: int, what: str) -> str:
    return f"{amount} {what}" if amount == 1 else f"{amount} {what}s"


def memory(parts: Composition) -> str:
    """Beyond GradDiff's one live gradient shard."""
    averages = len(parts.combiner.tracked)
    found = []
    if stored := parts.extra_gradient_shards - averages:
        found.append(count(stored, "gradient shard"))
    if averages:
        found.append(count(averages, "fp32 gradient average"))
    if parts.extra_weight_shards:
        moves = parts.teacher is not None and (parts.teacher.rate > 0 or parts.teacher.damping > 0)
        found.append(count(parts.extra_weight_shards, "fp32 weight shard" if moves else "weight shard (model's dtype)"))
    if parts.reference_sets:
        found.append(count(len(parts.reference_sets), "float") + " a forget row")
    if parts.projection:
        found.append("4 D k bytes a projected input (width D, k directions)")
    return " + ".join(found) or "none"


def compute(parts: Composition) -> str:
    """Passes of a step beyond GradDiff's 2 F + 2 B."""
    objectives = parts.objectives
    own = sum(len(objective.sets) for objective in objectives)  # a pair's two answers are two rows
    probes = parts.combiner.needs_losses_first + parts.combiner.needs_losses_after
    forward = own * (1 + probes) + sum(objective.needs_teacher for objective in objectives) - 2
    cells = [f"{amount:+d} {what}" for amount, what in ((forward, "F"), (own - 2, "B")) if amount]
    found = " ".join(cells) or "none"
    if parts.reference_sets:
        found += f"; once {len(parts.reference_sets)} F of all forget rows"
    if parts.projection:
        found += "; 2 matrix products a weight and micro-batch; once 1 F of all retain rows"
    return found


def stages(name: str) -> str:
    """Where `benchmarks.exactness` runs it."""
    if name not in {case.method for case in cases()}:
        return "none yet"
    plain, offloaded = (", ".join(str(stage) for stage, host in LAYOUTS if host is wanted) for wanted in (False, True))
    return f"{plain}; offload {offloaded}"


def linked(paper: str) -> str:
    return re.sub(r"(?:arXiv )?(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", paper)


def differs(method: Method) -> str:
    return " ".join(said for said in method.deviations if not said.startswith(OF_ALL)) or "-"


def rows() -> list[tuple[str, ...]]:
    found = []
    for name, method in methods().items():
        parts = made(name)
        extra = (memory(parts), compute(parts)) if name != "composed" else ("that of its parts", "that of its parts")
        equation = f"`{method.equation}`"
        found.append((f"`{name}`", equation, linked(method.paper), *extra, stages(name), differs(method)))
    for name, (equation, paper, *rest) in EDITS.items():
        found.append((f"`edit {name}`", equation, linked(paper), *rest))
    return found


def table() -> str:
    lines = [HEADER, tuple("---" for _ in HEADER), *rows()]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def page_parts() -> tuple[str, str, str]:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside.strip(), after


def test_the_table_is_that_of_the_code():
    assert page_parts()[1] == table(), "run .venv/bin/python -m tests.test_methods_doc"


def test_the_table_has_every_method_and_edit_once():
    names = re.findall(r"^\| `([^`]+)` \|", page_parts()[1], flags=re.MULTILINE)
    edits = {command.name or command.callback.__name__.replace("_", "-") for command in edit_app.registered_commands}
    assert sorted(names) == sorted([*methods(), *(f"edit {name}" for name in edits)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grad_diff", ("none", "none")),
        ("finetune", ("none", "-1 F -1 B")),
        ("ngdiff", ("1 gradient shard", "none")),
        # Both averages and one gradient beside the live one; the averages are of fp32.
        ("moco", ("1 gradient shard + 2 fp32 gradient averages", "none")),
        ("npo", ("1 float a forget row", "none; once 1 F of all forget rows")),
        ("idk_dpo", ("2 floats a forget row", "+1 F +1 B; once 2 F of all forget rows")),
        # Teacher's pass of generic text.
        ("mean_teacher", ("1 fp32 weight shard", "+1 F")),
        ("kl_min", ("1 weight shard (model's dtype)", "+1 F")),
        # Retain, retain again for the KL, forget; and the start model's pass.
        ("mollm", ("2 gradient shards + 1 weight shard (model's dtype)", "+2 F +1 B")),
        # Both losses before the backward pass and after the step.
        ("famo", ("none", "+4 F")),
    ],
)
def test_costs_counted_by_hand(name, expected):
    assert (memory(made(name)), compute(made(name))) == expected


def test_every_loss_and_combiner_is_explained():
    _, _, after = page_parts()
    named = set(re.findall(r"^\| `([a-z_]+)` \|", after, flags=re.MULTILINE))
    assert named == {*LOSSES, *COMBINERS}


if __name__ == "__main__":
    before, _, after = page_parts()
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
