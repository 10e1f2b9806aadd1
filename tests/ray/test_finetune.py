"""The pair that unlearning is measured between: same start, same tokenizer, other rows."""

import json

import pytest
from safetensors.torch import load_file

from pipelines.finetune import finetune
from pipelines.runs import resolve_model
from unlearn_core.config import FinetuneConfig, build_config
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import load_tokenizer
from unlearn_core.errors import UserError
from unlearn_core.models import load_model

# Ray Train 2.60 and its dependencies.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")


def pair_config(**changes):
    values = {
        "name": "pair",
        "model": {
            "dtype": "fp32",
            "build": {"hidden_size": 32, "layers": 1, "heads": 2, "mlp_size": 32, "vocab_size": 400},
        },
        "benchmark": "synthetic:tiny",
        "target": ["full"],
        "reference": ["retain90"],
        "format": "plain",
        "epochs": 0.5,
        "optimizer": {"learning_rate": 1e-3},
        "batch": {"rows": 4, "micro": 4},
    }
    return build_config(FinetuneConfig, values | changes)


def test_target_and_reference_differ_in_their_rows_alone(cluster, tmp_path):
    pair = finetune(pair_config(), tmp_path / "pair")
    start = load_file(tmp_path / "pair" / "initial" / "model.safetensors")
    text = open_benchmark("synthetic:tiny").split("forget10")[0].answer
    ids = load_tokenizer(str(tmp_path / "pair" / "initial"))(text)["input_ids"]
    # 40 and 36 rows, half an epoch, 4 rows a step.
    for folder, steps, splits in ((pair.target, 5, ["full"]), (pair.reference, 5, ["retain90"])):
        record = json.loads((folder / "run.json").read_text())
        assert (record["status"], record["step"], record["config"]["data"]["retain"]) == ("finished", steps, splits)
        model = resolve_model(str(folder))
        assert load_tokenizer(model)(text)["input_ids"] == ids
        trained = load_model(model, "fp32").state_dict()
        assert any(not trained[name].equal(start[name]) for name in start)
    with pytest.raises(UserError, match="of another config"):
        finetune(pair_config(epochs=1), tmp_path / "pair")


def test_a_folder_with_other_things_is_left_alone(cluster, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no earlier fine-tune"):
        finetune(pair_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
