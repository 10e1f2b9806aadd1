"""The table of `benchmarks.gpu_7b` and its bounds, from rows alone. Only whole rows of a GPU count for a bound."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.one_gpu import CPU

GIB = 2**30
Row = Mapping[str, Any]
LEAST_MFU, NGDIFF, TEACHER, AUTOLR, PLAN = 0.35, 1.05, 1.22, 0.05, 0.10
DONE, TOO_LARGE = "done", "does not fit"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Gate:
    """A bound and what was found."""

    what: str
    bound: str
    found: str
    verdict: str
    """PASS, FAIL or `not measured`."""


def report(rows: Sequence[Row]) -> tuple[str, bool]:
    """The result as Markdown, and whether a bound was missed.

    Args:
        rows: of any machines; each has its own section.
    """
    if not rows:
        return "Nothing has been measured yet: run `python -m benchmarks.gpu_7b` where a GPU is.", False
    parts, failed = ["# One GPU, one model: speed and memory", "", "By `python -m benchmarks.gpu_7b table`."], False
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = [row for row in rows if row["device"] == device]
        parts += ["", f"## {device}", "", *_facts(mine)]
        if device == CPU:
            parts += ["", "**Made without a GPU, to try the paths. No result: nothing here counts for a bound.**"]
        parts += ["", *_steps(mine), *_ratios(mine), *_parts(mine), *_evaluation(mine), *_unfinished(mine)]
        gates = [] if device == CPU else gates_of(mine)
        failed |= any(gate.verdict == "FAIL" for gate in gates)
        if gates:
            lines = [f"| {gate.what} | {gate.bound} | {gate.found} | {gate.verdict} |" for gate in gates]
            parts += ["", "| bound | wanted | found | |", "|---|---|---|---|", *lines]
    return "\n".join(parts), failed


def gates_of(rows: Sequence[Row]) -> list[Gate]:
    """Every bound, judged by one machine's whole rows under the layouts' own settings."""
    whole = {(row["shape"], row["method"]): row for row in rows if row["status"] == DONE and not row["overrides"]}
    too_large = {(row["shape"], row["method"]) for row in rows if row["status"] == TOO_LARGE and not row["overrides"]}
    seven = whole.get(("llama-2-7b", "ngdiff"))
    gates = [
        _fits("7B NGDiff without offload fits", ("llama-2-7b", ("ngdiff",)), whole, too_large),
        _fits("8B NGDiff, parked or 8-bit, fits", ("llama-3.1-8b", ("ngdiff", "ngdiff_8bit")), whole, too_large),
        _number(
            "7B NGDiff, model FLOPs utilisation",
            f"at least {LEAST_MFU}",
            [seven["figures"]["ngdiff"]["mfu"]] if seven else [],
            lambda found: found >= LEAST_MFU,
        ),
    ]
    for name, case, bound in (
        ("ngdiff / grad_diff", "ratios_adamw", NGDIFF),
        ("mean_teacher / grad_diff", "ratios_momentum", TEACHER),
        ("autolr", "ratios_adamw", AUTOLR),
    ):
        row = whole.get(("llama-2-7b", case))
        title = "AutoLR's share of a step" if name == "autolr" else name
        found = row["ratios"][name] if row else []
        gates.append(_number(f"7B {title}", f"at most {bound}", found, lambda f, bound=bound: f <= bound))
    errors = [one for one in map(plan_error, whole.values()) if one is not None]
    worst = [max(errors, key=abs)] if errors else []
    title = f"planned peak against allocated, largest error of {len(errors)} rows"
    gates.append(_number(title, "within 10 %", worst, lambda found: abs(found) <= PLAN))
    return gates


def plan_error(row: Row) -> float | None:
    """Planned over allocated bytes, minus 1; None where one of them is missing."""
    plan, memory = row.get("plan") or {}, row.get("memory") or {}
    return plan["tensors"] / memory["allocated"] - 1 if plan and memory else None


def _fits(what: str, wanted: tuple[str, Sequence[str]], whole: Mapping[Any, Row], too_large: set[Any]) -> Gate:
    shape, methods = wanted
    for method in methods:
        if row := whole.get((shape, method)):
            memory = row.get("memory") or {}
            peak = f", peak {memory['allocated'] / GIB:.1f} GiB" if memory else ""
            return Gate(what, "fits", f"{method}{peak}", "PASS")
    if all((shape, method) in too_large for method in methods):
        return Gate(what, "fits", "out of memory", "FAIL")
    return Gate(what, "fits", "", NOT_MEASURED)


def _number(what: str, bound: str, found: Sequence[float], holds: Callable[[float], bool]) -> Gate:
    if not found:
        return Gate(what, bound, "", NOT_MEASURED)
    middle = statistics.median(found)
    spread = f" ({min(found):.3f} to {max(found):.3f})" if len(found) > 1 else ""
    return Gate(what, bound, f"{middle:.3f}{spread}", "PASS" if holds(middle) else "FAIL")


def _facts(rows: Sequence[Row]) -> list[str]:
    """Dates, packages, the matrix rate and the text."""
    machine = rows[-1]["machine"]
    packages = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "transformers", "deepspeed") if name in machine
    )
    dates = sorted({row["date"] for row in rows})
    sources = sorted({row["machine"]["source"] for row in rows})
    memory = f", {machine['gpu_bytes'] / GIB:.1f} GiB" if "gpu_bytes" in machine else ""
    lines = [f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}{memory}; {packages}; source {', '.join(sources)}."]
    rates = [row["matrix_flops"] / 1e12 for row in rows if "matrix_flops" in row]
    if rates:
        side = next(row["matrix_side"] for row in rows if "matrix_flops" in row)
        spread = f"{statistics.median(rates):.4g} TFLOP/s (median of {len(rates)} processes"
        lines.append(f"bf16 products of {side} x {side} matrices: {spread}, {min(rates):.4g} to {max(rates):.4g}).")
    lines += [f"Text: {text}." for text in sorted({row["text"] for row in rows if "text" in row})]
    return [*lines[:1], *(line for more in lines[1:] for line in ("", more))]


def _steps(rows: Sequence[Row]) -> list[str]:
    shown = [row for row in rows if row["status"] == DONE and "figures" in row and len(row["figures"]) == 1]
    if not shown:
        return []
    head = ["shape", "method", "s / step", "tokens / s", "MFU", "peak GiB", "reserved GiB", "planned GiB", "plan error"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in shown:
        ((_, found),) = row["figures"].items()
        memory, plan, error = row.get("memory") or {}, row.get("plan") or {}, plan_error(row)
        cells = [
            row["shape"],
            row["method"] + _changed(row),
            f"{found['step_seconds']:.4g}",
            f"{found['tokens_a_second']:,.0f}",
            f"{found['mfu']:.3f}",
            f"{memory['allocated'] / GIB:.1f}" if memory else NOT_MEASURED,
            f"{memory['reserved'] / GIB:.1f}" if memory else NOT_MEASURED,
            f"{plan['tensors'] / GIB:.1f}" if plan else "no plan",
            "" if error is None else f"{error:+.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratios(rows: Sequence[Row]) -> list[str]:
    found = [
        (row, name, values)
        for row in rows
        if row["status"] == DONE
        for name, values in row.get("ratios", {}).items()
        if "grad_diff" in name or row["method"].startswith("ratios")
    ]
    if not found:
        return []
    lines = ["", "| shape | turns in one process | median | range | rounds |", "|---|---|---|---|---|"]
    for row, name, values in found:
        title = "AutoLR's probes, share of a step" if name == "autolr" else name
        spread = f"{min(values):.3f} to {max(values):.3f}"
        middle = statistics.median(values)
        lines.append(f"| {row['shape']}{_changed(row)} | {title} | {middle:.3f} | {spread} | {len(values)} |")
    return [*lines, *_across(rows)]


def _across(rows: Sequence[Row]) -> list[str]:
    """Ratios of separate commands, where taking turns in one process was not measured."""
    done = {(row["shape"], row["method"]): row for row in rows if row["status"] == DONE and not row["overrides"]}
    lines = []
    for top, bottom, together in (
        ("ngdiff", "grad_diff", "ratios_adamw"),
        ("mean_teacher", "grad_diff_momentum", "ratios_momentum"),
    ):
        for shape in dict.fromkeys(row["shape"] for row in rows):
            if (shape, together) in done or not {(shape, top), (shape, bottom)} <= done.keys():
                continue
            seconds = [next(iter(done[shape, name]["figures"].values()))["step_seconds"] for name in (top, bottom)]
            ratio = seconds[0] / seconds[1]
            lines.append(f"{shape}: {top} / {bottom} {ratio:.3f}, from two commands on this machine, not in turns.")
    return ["", *lines] if lines else []


def _parts(rows: Sequence[Row]) -> list[str]:
    shown = [row for row in rows if row["status"] == DONE and row.get("parts") and len(row["figures"]) == 1]
    lines = []
    for row in shown:
        for name, parts in row["parts"].items():
            total = sum(parts.values())
            told = ", ".join(f"{part} {seconds / total:.1%}" for part, seconds in parts.items())
            kind = " probing" if name.endswith(" probing") else ""
            lines.append(f"- {row['shape']} {row['method']}{kind}{_changed(row)}, {total:.4g} s: {told}")
    return ["", "Where a step's time goes:", "", *lines] if lines else []


def _evaluation(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"- {row['shape']}: {row['scoring']['tokens_a_second']:,.0f} tokens scored a second, "
        f"{row['generation']['tokens_a_second']:,.0f} generated a second"
        for row in rows
        if row["status"] == DONE and row["method"] == "evaluation"
    ]
    return ["", "Evaluation engine, bf16:", "", *lines] if lines else []


def _unfinished(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"- {row['shape']} {row['method']}{_changed(row)}: {row['status']}. {row.get('reason', '')}".rstrip()
        for row in rows
        if row["status"] != DONE
    ]
    return ["", "Without numbers:", "", *lines] if lines else []


def _changed(row: Row) -> str:
    """The settings that differ from the layout's."""
    told = ", ".join(f"{key}={value}" for key, value in row.get("overrides", {}).items())
    return f" ({told})" if told else ""
