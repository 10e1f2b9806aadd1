"""The planner: hand-worked bytes, what must grow or shrink, meta counts against real ones, engine against plan."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.memory_plan_check import Case, counted, llama, planned, row_shape, run_config, small_buckets
from unlearn_core.activation_plan import RowShape, pass_bytes
from unlearn_core.byte_ledger import ByteLedger
from unlearn_core.config import RunConfig, build_config
from unlearn_core.gpus import find_gpu
from unlearn_core.memory_plan import lower_bound, plan_memory
from unlearn_core.method import compose
from unlearn_core.model_shapes import Parameter, built_in, find_config, model_shape
from unlearn_core.plan_remedies import layouts, remedies
from unlearn_core.plan_remedies import planned as plan_of
from unlearn_core.plan_setting import GIB, Setting
from unlearn_core.step_time_plan import Rates, forward_flops, message_bytes, plan_step_time
from unlearn_core.zero_plan import Buckets, cut, groups_of

N7 = 6_738_415_616
NUMELS = {  # of the published models
    "Llama-2-7B": N7,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Mistral-7B": 7_241_732_096,
    "Phi-1.5": 1_418_270_720,
    "Qwen2.5-7B": 7_615_616_512,
}


def setting_of(method="ngdiff", model="Llama-2-7B", rows=None, **changes):
    """A bf16 run at ZeRO-2, one micro-batch of 4 rows a step and worker; `__` stands for a dot."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    workers = changes.setdefault("workers.count", 1)
    values = {
        "name": "plan",
        "model": {"path": model},
        "data": {"benchmark": "synthetic:tiny", "forget": ["forget10"], "retain": ["retain90"]},
        "method": {"name": method},
        "batch": {"rows": 4 * workers, "micro": 4},
        "steps": 10,
    }
    run = build_config(RunConfig, values, changes)
    shape = model_shape(*find_config(model), run, compose(method, run.method.settings))
    return Setting(shape, run, rows or RowShape(512, 511))


def moment(setting, name):
    found = [one for one in plan_memory(setting).moments if one.name == name]
    assert len(found) == 1, [one.name for one in plan_memory(setting).moments]
    return found[0].items


@pytest.mark.parametrize("name", NUMELS)
def test_built_in_shapes_have_the_published_number_of_parameters(name):
    assert setting_of(model=name).shape.numel == NUMELS[name]


def test_hub_names_find_built_in_shapes():
    for name in ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Meta-Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-v0.1"):
        assert built_in(name) is not None, name
    assert built_in("someone/else-7b") is None


@pytest.mark.parametrize(
    ("method", "changes", "bytes_each"),
    [
        # weights 2, gradients 2 and 2, master 4, moments 4 and 4
        ("ngdiff", {}, 18),
        ("grad_diff", {}, 16),
        ("ngdiff", {"zero__park_gradients": True}, 16),
        ("ngdiff", {"optimizer__name": "sgd"}, 10),
        ("ngdiff", {"optimizer__name": "adamw_8bit"}, 12 + 8 / 256),
        # weights 2, gradient 2, master 4, momentum 4, teacher 4
        (
            "mean_teacher",
            {"optimizer__name": "sgd", "optimizer__momentum": 0.9, "method__settings": {"freeze": []}},
            16,
        ),
    ],
)
def test_states_of_7b_on_one_gpu(method, changes, bytes_each):
    items = dict(moment(setting_of(method, **changes), "combining the gradients"))
    for extra in ("chunks of the Gram matrix", "teacher's states", "teacher's head"):
        items.pop(extra, None)
    assert sum(items.values()) == pytest.approx(bytes_each * N7, rel=1e-6)


def test_states_of_7b_on_eight_gpus():
    one_group = {"workers__count": 8, "zero__sub_group": 10**10}
    items = dict(moment(setting_of("grad_diff", **one_group), "combining the gradients"))
    items.pop("chunks of the Gram matrix")
    # 2 N + (2 + 12) N / 8; a rank's gradient buffer also holds the whole of a matrix that it shares with the next one
    assert sum(items.values()) / GIB == pytest.approx(12.55 + 14 / 8 * N7 / GIB, abs=2 * 2 * 4096 * 32000 / GIB)
    assert items["master weights"] + items["optimizer state"] == 12 * N7 // 8
    apart = moment(setting_of("grad_diff", workers__count=8, zero__stage=3), "combining the gradients")
    assert apart["weights"] == pytest.approx(2 * N7 / 8, rel=1e-3)


def test_more_workers_and_higher_stages_never_take_more_state():
    for stage in (1, 2, 3):
        peaks = [
            plan_memory(setting_of(zero__stage=stage, workers__count=workers)).resting.total for workers in (1, 2, 4, 8)
        ]
        assert peaks == sorted(peaks, reverse=True)
    resting = [plan_memory(setting_of(zero__stage=stage, workers__count=8)).resting.total for stage in (0, 1, 2)]
    assert resting == sorted(resting, reverse=True)


def test_less_of_everything_is_never_more():
    plain = plan_memory(setting_of(zero__stage=1)).peak.total
    for change in ({"zero__activation_checkpointing": True}, {"batch__micro": 2}, {"zero__park_gradients": True}):
        assert plan_memory(setting_of(zero__stage=1, **change)).peak.total <= plain, change
    shorter = replace(setting_of(), rows=RowShape(256, 255))
    assert plan_memory(shorter).peak.total < plan_memory(setting_of()).peak.total
    assert lower_bound(setting_of()) < plan_memory(setting_of()).peak.total


def test_a_block_keeps_what_a_hand_count_says():
    # fp32 Llama, no padding. Of a token: two norms keep x, x / rms and 1 / rms (2 D + 1 each; the product with the
    # weight is the input of the next layers: D each); q, k, v (D + 2 K); attention's result D and a log-sum H;
    # gate, its SiLU, up, their product 4 M. The input of the block is the first norm's x.
    config, run = llama(), run_config(Case("grad_diff", 2, 1), "fp32")
    shape = model_shape(config, "test", run, compose("grad_diff", {}))
    saved = {}
    for layers in (2, 3):
        config.num_hidden_layers = layers
        changed = model_shape(config, "test", run, compose("grad_diff", {}))
        saved[layers] = pass_bytes(changed, run, 0, RowShape(64, 63)).saved
    config.num_hidden_layers = shape.layers
    width, mlp, heads, keys = 256, 688, 4, 128
    token = 2 * (3 * width + 1) + (width + 2 * keys) + width + heads + 4 * mlp
    tokens = run.batch.micro * 64
    assert saved[3] - saved[2] == pytest.approx(4 * token * tokens, rel=0.03)


def test_a_ledger_counts_each_storage_once_and_no_view_of_what_was_there():
    weight = torch.ones(1000)
    with ByteLedger("cpu") as ledger:
        weight.view(10, 100).t()
        assert ledger.live == 0
        made = torch.zeros(500)
        view = made[:10]
        assert ledger.live == 2000
        del made
        assert ledger.live == 2000
        del view
        assert ledger.live == 0
        assert ledger.restart() == 2000
        assert ledger.peak == 0


def test_groups_are_the_engines():
    from unlearn_core.zero.engine import _parameter_groups

    sizes = [5, 3, 9, 1, 1, 7, 2]
    parameters = [Parameter(f"p{i}", size, (size,), True, "") for i, size in enumerate(sizes)]
    for most in (0, 1, 6, 10, 100):
        engines = _parameter_groups([torch.nn.Parameter(torch.zeros(size)) for size in sizes], most)
        assert [[p.numel for p in group] for group in groups_of(parameters, most)] == [
            [p.numel() for p in group["params"]] for group in engines
        ]


def test_cuts_by_hand():
    parameters = [Parameter(f"p{i}", size, (size,), True, "") for i, size in enumerate((10, 7, 4))]
    buckets = Buckets(persistent=4)
    first, last = (cut(parameters, 2, 2, rank, 0, buckets) for rank in (0, 1))
    assert first.masters == last.masters == (12,)  # 21 padded to 24
    assert (first.gradient, last.gradient) == (17, 11)  # the second parameter straddles the cut
    assert (first.reached, last.reached) == (17 / 21, 1.0)
    third = cut(parameters, 3, 2, 0, 6, buckets)
    assert third.masters == (9, 2)  # halves of 5, 4 and 2: a sub-group is closed when it has 6
    assert third.whole == 4


def test_bucket_sizes_are_deepspeeds_defaults():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs, ours = DeepSpeedZeroConfig(), Buckets()
    assert theirs.reduce_bucket_size == ours.reduce
    assert theirs.prefetch_bucket_size == ours.prefetch
    assert theirs.max_live_parameters == ours.live
    assert theirs.max_reuse_distance == ours.reuse
    assert theirs.param_persistence_threshold == ours.persistent


# -- time ------------------------------------------------------------------------------------------------------------


def test_operations_and_their_shares_by_hand():
    setting, rates = setting_of("grad_diff"), Rates(find_gpu("h200-141g"), mfu=0.5)
    blocks = N7 - 2 * 32000 * 4096
    forward = 2 * blocks + 2 * 32000 * 4096 * 511 / 512 + 2 * 32 * 4096 * 512
    assert forward_flops(setting) == pytest.approx(forward)
    plain = plan_step_time(setting, rates)
    assert plain.parts["forward and backward"] == pytest.approx(3 * forward * 2 * 2048 / (0.5 * 989e12))
    checkpointed = plan_step_time(setting_of("grad_diff", zero__activation_checkpointing=True), rates)
    assert checkpointed.parts["forward and backward"] == pytest.approx(4 / 3 * plain.parts["forward and backward"])
    auto = plan_step_time(setting_of(optimizer__schedule="auto"), rates)
    share = auto.parts["AutoLR's probes"] / auto.parts["forward and backward"]
    assert share == pytest.approx(2 / (6 * 10))  # m / (6 k)
    assert plain.seconds > plan_step_time(setting, Rates(find_gpu("b200-180g"), mfu=0.5)).seconds


def test_messages_by_hand():
    def sent(**changes):
        return message_bytes(setting_of("grad_diff", **changes))

    assert sent() == {}
    ring = 2 * N7 * 7 / 8
    two, three = sent(workers__count=8), sent(workers__count=8, zero__stage=3)
    assert two == pytest.approx({"reducing gradients": 2 * 2 * ring, "gathering weights": ring})
    assert three == pytest.approx({"reducing gradients": 2 * ring, "gathering weights": 4 * ring})


# -- remedies --------------------------------------------------------------------------------------------------------


def test_remedies_fit_and_are_ranked():
    setting, rates = setting_of(), Rates(find_gpu("h100-80g"))
    assert not plan_of(setting, rates).fits(rates.gpu.memory)
    found = remedies(setting, rates, rates.gpu.memory)
    assert found
    for one in found:
        assert one.memory.total <= rates.gpu.memory
        again = plan_of(setting, rates, one.changes)
        assert again.memory.total == one.memory.total
    spent = [one.time.seconds * one.setting.workers for one in found]
    assert spent == sorted(spent)
    host = [one for one in found if one.setting.run.zero.offload_optimizer]
    assert host
    assert not any(one.setting.run.zero.offload_optimizer for one in remedies(setting, rates, rates.gpu.memory, GIB))


def test_layouts_cover_stages_and_options():
    found = list(layouts(setting_of(workers__count=2), Rates(find_gpu("a100-80g"))))
    assert len(found) == 4 * 4 + 3 * 2  # 8-bit x checkpointing; offload has no stage 0
    assert {one.setting.run.zero.stage for one in found} == {0, 1, 2, 3}


# -- against the engine ----------------------------------------------------------------------------------------------


def count(rank, world_size, case):
    """A job for the ranks."""
    small_buckets()
    return counted(case, "fp32", rank)


@pytest.mark.parametrize(("method", "stage"), [("ngdiff", 2), ("npo", 1)])
def test_plan_and_count_agree_on_one_rank(one_rank, method, stage):
    case = Case(method, stage, 1)
    ((peak, resting),) = one_rank.run(count, case)
    plan = planned(case, "fp32", 0)
    assert plan.peak.total == pytest.approx(peak, rel=0.05)
    assert plan.resting.total == pytest.approx(resting, rel=0.01)


def test_plan_and_count_agree_on_two_ranks(two_ranks):
    case = Case("mollm", 3, 2)
    for rank, (peak, resting) in enumerate(two_ranks.run(count, case)):
        plan = planned(case, "fp32", rank)
        assert plan.peak.total == pytest.approx(peak, rel=0.05)
        assert plan.resting.total == pytest.approx(resting, rel=0.01)


def test_rows_of_the_check_are_uneven():
    rows = row_shape()
    assert rows.longest > rows.tokens > rows.labels


def test_the_page_on_scaling_has_the_planners_numbers():
    from benchmarks.scaling_tables import BEGIN, END, tables

    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == tables().strip()
