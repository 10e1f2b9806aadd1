"""What a job takes along, and how its command line is made to mean the same there. Nothing here starts Ray."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from pipelines import job_package, jobs, local_cluster
from pipelines.job_arguments import check_command, entrypoint, forwarded, remote_command, subcommand_of
from pipelines.job_package import MIB, choose_files, stage, stage_own_code
from unlearn_core.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def write(folder, *names, size=3):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)


def packed(folder):
    return {path.as_posix() for path in choose_files(folder).files}


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def test_without_git_all_travels_but_data_outputs_and_weights(folder, tmp_path):
    write(
        folder, "run.yaml", "sub/mine.jsonl", "outputs/a", "data/b", "x/models/c", ".git/d", ".venv/e", "checkpoints/f"
    )
    write(folder, "m.safetensors", "m.bin", "m.pt", "m.gguf", ".env", "host.pem")
    write(folder, "big.jsonl", size=10 * MIB + 1)
    write(folder, "fits.jsonl", size=10 * MIB)
    write(tmp_path, "secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to(folder / "run.yaml")
    (folder / "parent").symlink_to(tmp_path)
    package = choose_files(folder)
    assert {path.as_posix() for path in package.files} == {"run.yaml", "sub/mine.jsonl", "fits.jsonl", "in"}
    assert package.size == 3 + 3 + 10 * MIB + 3
    assert package.left_out == {
        "weight files": 4, "files that may hold secrets": 2, "larger than 10 MiB": 1, "links to outside": 2,
    }  # fmt: skip
    assert str(package).startswith("packed 4 files, 10.0 MiB; left out: ")


def test_in_a_git_work_tree_ignored_files_stay(folder):
    git(folder, "init")
    write(folder, "tracked.yaml", "untracked.yaml", "ignored.yaml", "gone.yaml", "data/kept-out", "deep/in.yaml")
    (folder / ".gitignore").write_text("ignored.yaml\n")
    git(folder, "add", "tracked.yaml", "gone.yaml", "data", ".gitignore")
    (folder / "gone.yaml").unlink()
    assert packed(folder) == {"tracked.yaml", "untracked.yaml", "deep/in.yaml", ".gitignore"}
    assert packed(folder / "deep") == {"in.yaml"}  # a folder of the tree travels alone


def test_too_much_is_an_error_that_names_the_biggest(folder, monkeypatch):
    write(folder, "small", size=10)
    write(folder, "large", size=2000)
    monkeypatch.setattr(job_package, "TOTAL_LIMIT", 2010)
    assert len(choose_files(folder).files) == 2
    write(folder, "one-more", size=1)
    with pytest.raises(UserError, match=r"3 files.*Biggest: large \(0.0 MiB\), small"):
        choose_files(folder)


def test_staging_copies_what_was_chosen(folder, tmp_path):
    write(folder, "a/b.yaml", "outputs/c")
    (folder / "link").symlink_to(folder / "a" / "b.yaml")
    staged = stage(choose_files(folder), tmp_path / "staged")
    assert {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()} == {"a/b.yaml", "link"}
    assert not (staged / "link").is_symlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert list(stage(choose_files(empty), tmp_path / "none").iterdir())  # Ray refuses an empty folder


def test_the_installations_own_code_travels_and_a_tree_cannot_shadow_it(folder, tmp_path):
    write(folder, "pipelines/__init__.py", "pipelines/recipes/mine.yaml", "tune/space.py", "pipelines.py")
    assert packed(folder) == {"pipelines/recipes/mine.yaml", "pipelines.py"}
    folders = [Path(name) for name in stage_own_code(tmp_path / "code")]
    assert [path.name for path in folders] == ["pipelines", "tune", "unlearn_core"]
    assert (folders[0] / "cli.py").read_text() == Path(job_package.__file__).with_name("cli.py").read_text()
    assert (folders[0] / "recipes" / "demo-ngdiff.yaml").is_file()
    assert not list((tmp_path / "code").rglob("__pycache__"))


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        ("train demo-ngdiff -o runs/x", "train demo-ngdiff -o {here}/runs/x"),
        ("train demo-ngdiff --output=runs/x", "train demo-ngdiff --output={here}/runs/x"),
        ("train demo-ngdiff -oruns/x", "train demo-ngdiff -o{here}/runs/x"),
        ("train demo-ngdiff -o /abs/x", "train demo-ngdiff -o /abs/x"),
        ("train demo-ngdiff -o s3://bucket/x", "train demo-ngdiff -o s3://bucket/x"),
        ("train mine.yaml -o x", "train mine.yaml -o {here}/x"),  # the recipe is packed
        ("train outputs/late.yaml -o x", "train {here}/outputs/late.yaml -o {here}/x"),
        ("train mine.yaml --model outputs/run -o x", "train mine.yaml --model {here}/outputs/run -o {here}/x"),
        ("train mine.yaml --model=outputs/run -o x", "train mine.yaml --model={here}/outputs/run -o {here}/x"),
        ("train mine.yaml --model org/model -o x", "train mine.yaml --model org/model -o {here}/x"),
        ("train mine.yaml --model ngdiff -o x", "train mine.yaml --model {here}/ngdiff -o {here}/x"),
        # a folder may be called as a method is
        ("train mine.yaml --set method.name=ngdiff -o x", "train mine.yaml --set method.name=ngdiff -o {here}/x"),
        (
            "train mine.yaml --set model.path=outputs/run -o x",
            "train mine.yaml --set model.path={here}/outputs/run -o {here}/x",
        ),
        (
            "train mine.yaml --set data.forget=[small.jsonl,data/rows.jsonl,forget10] -o x",
            "train mine.yaml --set data.forget=[small.jsonl,{here}/data/rows.jsonl,forget10] -o {here}/x",
        ),
        (
            "train mine.yaml --sequential small.jsonl data/rows.jsonl --evaluate scores -o x",
            "train mine.yaml --sequential small.jsonl {here}/data/rows.jsonl --evaluate {here}/scores -o {here}/x",
        ),
        # runs may exist on the cluster alone
        ("evaluate runs/a outputs/run --gpu -o x", "evaluate {here}/runs/a {here}/outputs/run --gpu -o {here}/x"),
        ("evaluate --forget small.jsonl -o x", "evaluate --forget small.jsonl -o {here}/x"),
        ("evaluate --benchmark synthetic:small -o x", "evaluate --benchmark synthetic:small -o {here}/x"),
        ("frontier outputs --reference-point 0 -1 -o x", "frontier {here}/outputs --reference-point 0 -1 -o {here}/x"),
        ("logs import a=outputs/log.json@20 -o x", "logs import a={here}/outputs/log.json@20 -o {here}/x"),
        ("edit slug --target outputs/run -o x", "edit slug --target {here}/outputs/run -o {here}/x"),
        ("recipes", "recipes"),
        ("space ngdiff", "space ngdiff"),
    ],
)  # fmt: skip
def test_paths_mean_the_same_on_the_cluster(folder, typed, there):
    write(folder, "mine.yaml", "small.jsonl", "data/rows.jsonl", "outputs/late.yaml", "outputs/run/run.json")
    write(folder, "outputs/log.json", "ngdiff/models/model.safetensors")
    words, changed = remote_command(shlex.split(typed), choose_files(folder))
    assert shlex.join(words) == shlex.join(shlex.split(there.format(here=folder)))
    assert all(os.path.isabs(absolute) for absolute in changed.values())
    assert len(changed) == there.count("{here}") + there.count(" /abs")


def test_a_default_output_is_said_in_full(folder):
    assert check_command(["demo"]) == ["demo", "--output", "outputs/demo"]
    assert check_command(["demo", "-o", "x"]) == ["demo", "-o", "x"]
    assert check_command(["recipes"]) == ["recipes"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("tran demo-ngdiff -o x", "'tran' is no sub-command for a job; expected one of finetune, train"),
        ("edit slugg", "'edit slugg' is no sub-command for a job; expected one of edit"),
        ("edit", "sub-command is missing"),
        ("submit recipes", "'submit' is no sub-command for a job"),
        ("cluster start", "'cluster' is no sub-command for a job"),
        ("train none.yaml -o x", "recipe file none.yaml does not exist"),
        ("train demo-ngdif -o x", "Did you mean 'demo-ngdiff'"),
        ("search none.yaml --target x -o x", "recipe file none.yaml does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(folder, typed, message):
    with pytest.raises(UserError, match=message):
        check_command(typed.split())


def test_wrong_options_are_told_before_anything_is_sent(folder):
    with pytest.raises(Exception, match="No such option: --modell"):
        check_command(["train", "demo-ngdiff", "--modell", "x", "-o", "x"])


def test_the_shell_sees_one_word_for_each_argument():
    command = ["train", "a b.yaml", "--among", "x<=0.1; rm -rf $HOME", "--set", "name='q'"]
    assert shlex.split(entrypoint(command)) == ["python", "-m", "pipelines.cli", *command]
    assert subcommand_of(entrypoint(command)) == "train"
    assert subcommand_of("sleep 5") == "sleep 5"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "API_KEYS", "apikey", "GOOGLE_CREDENTIALS", "MYTOKEN"]
)
def test_secrets_are_not_forwarded(name):
    with pytest.raises(UserError, match=r"everybody who sees the dashboard.*Set .* on the nodes"):
        forwarded([name], {name: "x"})


def test_other_variables_are():
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OTHER": "x"}
    assert forwarded(["HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"], environment) == {
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    with pytest.raises(UserError, match="RAY_ADDRESS: Ray's own"):
        forwarded(["RAY_ADDRESS"], environment)
    with pytest.raises(UserError, match=r"no such environment variable.*name alone"):
        forwarded(["A=B"], environment)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No cluster in the environment nor in a state file."""
    monkeypatch.setenv("UNLEARN_HOME", str(tmp_path / "home"))
    for name in jobs.ADDRESSES:
        monkeypatch.delenv(name, raising=False)


def test_where_the_jobs_api_is_looked_for(nowhere, monkeypatch):
    with pytest.raises(UserError, match="No cluster is known"):
        jobs.jobs_url(None)
    here = local_cluster.Cluster(1, 0.0, "", "127.0.0.1:6380", "http://127.0.0.1:8266", None)
    monkeypatch.setattr(local_cluster, "running", lambda: here)
    assert jobs.jobs_url(None) == "http://127.0.0.1:8266"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6380")  # the same cluster, by its other address
    assert jobs.jobs_url(None) == "http://127.0.0.1:8266"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with pytest.raises(UserError, match=r"RAY_ADDRESS is 10.0.0.5:6379.*http://10.0.0.5:8265"):
        jobs.jobs_url(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert jobs.jobs_url(None) == "http://head:8265"
    assert jobs.jobs_url("https://other") == "https://other"


def test_nobody_there_is_one_line(nowhere):
    with pytest.raises(UserError, match=r"No Ray cluster answers at http://127\.0\.0\.1:1 "):
        jobs.connect("http://127.0.0.1:1")


def test_a_record_of_a_dead_cluster_is_no_cluster(nowhere):
    assert local_cluster.recorded() is None
    local_cluster.home().joinpath("cluster.json").write_text(
        '{"pid": 999999999, "created": 0, "mark": "m", "address": "a", "jobs_url": "u", "token_path": null}'
    )
    assert local_cluster.recorded() is not None and local_cluster.running() is None
    own = local_cluster.Cluster(os.getpid(), 0.0, "m", "a", "u", None)
    assert not own.runs  # the pid lives, but was created at another time: it is somebody else's now
    assert local_cluster.stop(local_cluster.recorded()) == 0
    assert local_cluster.recorded() is None
    local_cluster.home().joinpath("cluster.json").write_text("{}")
    with pytest.raises(UserError, match="is no state file"):
        local_cluster.recorded()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"host": "0.0.0.0"}, "stands for all addresses"),
        ({"host": "head.example"}, "expected an IP address"),
        ({"host": "192.0.2.77"}, "192.0.2.77 port .* cannot be used"),
        ({"port": 8265}, "are both 8265"),
    ],
)
def test_wrong_addresses_are_told_before_starting(nowhere, arguments, message):
    with pytest.raises(UserError, match=message):
        local_cluster.start(**arguments)
    assert not local_cluster.home().joinpath("token").exists()


def test_a_taken_port_is_told_before_starting(nowhere):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1 port {number} cannot be used .*Give another --port"):
            local_cluster.start(port=number)
