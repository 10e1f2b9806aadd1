"""Model cards beside exports, and sending a model to the hub; the hub is a server on the loopback that speaks five of
its endpoints to the real client."""

import base64
import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipelines import cli, hub
from pipelines.model_cards import evaluation_of, write_cards
from unlearn_core.config import RunConfig, build_config
from unlearn_core.data.tokenization import Example
from unlearn_core.errors import UserError
from unlearn_core.method import methods
from unlearn_core.model_card import card, data_facts, read_facts, training_record
from unlearn_core.publish import MARKER, publish_folder, write_json


def record(method="npo", **overrides):
    values = {
        "name": "mine",
        "model": {"path": "/home/somebody/secret/outputs/tofu/target/models/step-00087"},
        "data": {"forget": ["/home/somebody/secret/forget.jsonl"], "retain": ["b.jsonl"]},
        "method": {"name": method},
        "steps": 12,
    }
    return training_record(build_config(RunConfig, values, overrides))


def test_fingerprints_of_rows_by_hand():
    one, two = Example("a", (5, 6, 7), 1), Example("b", (5, 8), 1)
    lines = b'["a", [5, 6, 7], 1]\n["b", [5, 8], 1]\n'
    first, second, third = data_facts([{"forget": [one, two], "retain": [two]}, {"forget": [one], "retain": [two]}])
    assert first == {
        **{"rows": "forget", "request": 1, "count": 2, "label_tokens": 3},
        "sha256": hashlib.sha256(lines).hexdigest(),
    }
    assert (second["rows"], second["label_tokens"]) == ("retain", 1)
    assert (third["rows"], third["request"], third["count"]) == ("forget", 2, 1)  # retain is the same: told once


def test_a_card_says_what_made_the_model_and_no_path():
    facts = data_facts([{"forget": [Example("a", (5, 6), 1)]}])
    made = card(record(), 8, facts)
    assert made.data.to_dict()["unlearn"]["data"] == facts
    assert made.data.tags == ["machine-unlearning", "unlearn", "npo"]
    assert made.data.base_model is None
    assert "secret" not in str(made)
    told = made.text
    for expected in (
        "# mine, step 8",
        "`target` after NPO, made to forget `forget.jsonl` and to keep `b.jsonl`",
        "arXiv 2404.05868",
        "alpha L_R - gamma (2/beta) log sigmoid(-beta log(p / p_0))",
        "| method.settings.beta | 0.1 |",  # a default, which the config does not name
        f"| forget | 1 | 1 | `{facts[0]['sha256']}` |",
        "Not evaluated",
        "(relearning), and quantised",
        "transformers 5.",
    ):
        assert expected in told
    on_hub = card(record(**{"model.path": "owner/base", "data.benchmark": "locuslab/TOFU"}), 8)
    assert (on_hub.data.base_model, on_hub.data.datasets) == ("owner/base", ["locuslab/TOFU"])
    assert "Limits" not in card(record("finetune"), 8).text


@pytest.mark.parametrize("name", [*methods(), "slug", "task_vector", "interpolation"])
def test_every_method_has_a_card(name):
    required = {"composed": {"forget": {"loss": "cross_entropy"}}, "pdu": {"epsilon": 0.1}}
    if name in methods():
        made = card(record(name, **{"method.settings": required.get(name, {})}), 3)
    else:
        config = {"name": "e", "model": "owner/base", "weights": [0.5]}
        made = card({"run": "e", "method": name, "fingerprint": "f", "config": config}, 3)
    assert made.data.to_dict()["unlearn"]["method"] == name


@pytest.fixture
def run(tmp_path):
    """A run with two exports and a half-written one, and an evaluation beside it."""
    folder = tmp_path / "run"
    for step in (4, 8):
        publish_folder(
            folder / f"models/step-{step:05d}",
            lambda aside: (aside / "model.safetensors").write_bytes(b"weights"),
            {"step": step, "method": "npo", "run": "mine"},
        )
    (folder / "models/step-00012").mkdir()
    write_json(folder / "run.json", record() | {"status": "finished", "last_model": "models/step-00008"})
    evaluation = tmp_path / "evaluation"
    about = {"suite": "tofu", "benchmark": "synthetic:tiny", "forget_split": "forget10", "benchmark_fingerprint": "abc"}
    write_json(evaluation / "evaluation.json", about)
    names = ("model", "run", "method", "step", "role", "path", "variant", "model_utility", "privleak", "other")
    rows = (
        ("target", "t", "finetune", 1, "target", "/elsewhere", "", 0.9, -50, 1),
        ("mine@8", "mine", "npo", 8, "checkpoint", folder / "models/step-00008", "", 0.75, "", 2),
    )
    with open(evaluation / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return folder


def test_cards_of_a_run_get_the_scores_of_an_evaluation(run, monkeypatch, capsys):
    assert [one["metrics"] for one in write_cards(run)] == [0, 0]
    model = run / "models/step-00008"
    held = read_facts(model)
    assert held is not None
    kept = {"data": [{**data_facts([{"forget": [Example("a", (5, 6), 1)]}])[0]}], "versions": {"unlearn": "0.0.9"}}
    text = (model / "README.md").read_text()
    data = ModelCard(text).data.to_dict() | {"unlearn": {**ModelCard(text).data.to_dict()["unlearn"], **kept}}
    (model / "README.md").write_text(f"---\n{json.dumps(data)}\n---\nold text")

    monkeypatch.setattr("sys.argv", ["unlearn", "card", str(run), "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    document = json.loads(capsys.readouterr().out)
    assert [(Path(one["model"]).name, one["metrics"]) for one in document["cards"]] == [
        ("step-00004", 0),
        ("step-00008", 2),
    ]
    made = ModelCard((model / "README.md").read_text())
    assert "| model_utility | 0.75 | 0.9 |" in made.text
    assert "| other | 2 | 1 |" in made.text
    assert "privleak" not in made.text  # the model has none
    assert made.data.eval_results is not None
    assert [(one.metric_type, one.metric_value) for one in made.data.eval_results] == [("model_utility", 0.75)]
    assert read_facts(model) == kept  # what trained it is not what wrote the card
    assert "unlearn 0.0.9" in made.text

    (model / "README.md").write_text("# Notes of mine\n")
    with pytest.raises(UserError, match="not a card that `unlearn` wrote"):
        write_cards(run)
    assert (model / "README.md").read_text() == "# Notes of mine\n"
    (model / "README.md").unlink()
    with pytest.raises(UserError, match="no scores of the models"):
        (run.parent / "evaluation" / "metrics.csv").write_text("model,role,path,variant\n")
        write_cards(run, run.parent / "evaluation")
    with pytest.raises(UserError, match="did not finish"):
        write_cards(run, run)
    assert evaluation_of(run) is None


class Hub(ThreadingHTTPServer):
    """Enough of the hub for one commit: make a repository, describe it, say how files are to be sent, take them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        name = self.path.removeprefix("/api/models/")
        if name in self.server.repositories:
            self._send({"id": name, "modelId": name, "private": self.server.repositories[name], "siblings": []})
        else:
            self._send({"error": self.path}, 404)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        here = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.server.repositories
            private = asked.get("private", asked.get("visibility") == "private")
            self.server.repositories.setdefault(name, private)
            self._send({"url": f"{here}/{name}"}, 409 if known else 200)
        elif self.path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(sent)["files"]]
            self._send({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._send({"commitUrl": f"{here}/mine/model/commit/1", "commitOid": "1", "hookOutput": ""})
        else:
            self._send({"error": self.path}, 404)

    def _send(self, document, code=200):
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake_hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(server, *arguments):
    """`unlearn push`, in a process whose hub is the fake one."""
    root = str(Path(__file__).parents[1])
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "push", *map(str, arguments)],
        env=os.environ | address | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_nothing_is_sent_unasked(run, monkeypatch, capsys):
    write_cards(run)
    monkeypatch.setattr("sys.argv", ["unlearn", "push", str(run), "mine/model"])
    monkeypatch.setattr(hub, "push", None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert "Say --yes" in said.err
    assert "model.safetensors  7 B" in said.err
    assert "(private)" in said.err


def test_a_model_is_sent_on_request(run, fake_hub):
    write_cards(run)
    sent = push(fake_hub, run, "mine/model", "--yes", "--json")
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["commit"].endswith("/mine/model/commit/1")
    assert fake_hub.repositories == {"mine/model": True}
    assert fake_hub.tokens == {"Bearer hf_test"}
    assert fake_hub.files.keys() == {"README.md", "model.safetensors"}  # not complete.json
    assert fake_hub.files["model.safetensors"] == b"weights"
    assert b"# mine, step 8" in fake_hub.files["README.md"]

    fake_hub.repositories["mine/model"] = False
    fake_hub.files.clear()
    refused = push(fake_hub, run, "mine/model", "--step", 4, "--yes")
    assert (refused.returncode, fake_hub.files) == (2, {})
    assert "everybody can read it" in refused.stderr


def test_a_hub_out_of_reach_is_told(run, monkeypatch):
    import httpx2  # huggingface_hub's client

    def away(*_, **__):
        raise httpx2.ConnectError("Connection refused")

    write_cards(run)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", away)
    with pytest.raises(UserError, match=r"The hub cannot be reached \(Connection refused\)"):
        hub.push(hub.parcel(hub.chosen_model(str(run))), "mine/model")
    with pytest.raises(UserError, match="no name of a repository"):
        monkeypatch.undo()
        hub.push(hub.parcel(hub.chosen_model(str(run))), "not a name")


def test_what_is_not_whole_is_not_sent(run):
    with pytest.raises(UserError, match="has no model card"):
        hub.parcel(hub.chosen_model(str(run)))
    write_cards(run)
    (run / "models/step-00008/.hidden").write_text("x")
    assert hub.parcel(hub.chosen_model(str(run), 8)).files.keys() == {"README.md", "model.safetensors"}
    with pytest.raises(UserError, match=r"no whole model step-00012; it has step-00004, step-00008"):
        hub.chosen_model(str(run), 12)
    (run / "models/step-00008" / MARKER).unlink()
    with pytest.raises(UserError, match="half-written"):
        hub.parcel(hub.chosen_model(str(run)))
    with pytest.raises(UserError, match="no folder"):
        hub.parcel(run / "nothing")
