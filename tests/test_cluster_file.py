"""cluster.yaml is what Ray's cluster launcher accepts, rayjob.yaml what KubeRay reads; both run the tested versions."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).parents[1]


def pinned(package):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{package}=="))


def accepted(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def job():
    return yaml.safe_load((ROOT / "kuberay" / "rayjob.yaml").read_text())


def test_ray_accepts_it(config):
    accepted(config)
    with pytest.raises(Exception, match="idle_minutes"):
        accepted(config | {"idle_minutes": 5})


def test_it_installs_the_tested_versions(config):
    commands = " ".join(config["setup_commands"])
    assert f"torch=={pinned('torch')}" in commands
    assert "unlearn/constraints.txt" in commands


def test_gpu_workers_are_spot_and_end_when_idle(config):
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert workers and config["idle_timeout_minutes"] <= 30
    assert sum(kind["max_workers"] for kind in workers.values()) == config["max_workers"]
    for kind in workers.values():
        assert kind["min_workers"] == 0
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_its_head_is_reached_by_ssh_alone_and_its_jobs_find_python(config):
    start = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_JOB_STOP_WAIT_TIME_S=60" in start
    for command in (start, config["worker_start_ray_commands"][-1]):
        assert command.startswith("export PATH=/home/ubuntu/venv/bin:$PATH ")


def containers(job):
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        yield group["template"]["spec"], container


def test_the_ray_job_has_the_tested_ray(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")
    for _, container in containers(job):
        assert container["image"].endswith(f":ray-{pinned('ray')}")
    assert f"ray-{pinned('ray')}" in (ROOT / "kuberay" / "Dockerfile").read_text()


def test_the_ray_job_is_a_command_that_parses(job, tmp_path, monkeypatch):
    from pipelines.job_arguments import check_command

    monkeypatch.chdir(tmp_path)
    words = job["spec"]["entrypoint"].split()
    assert words[0] == "unlearn" and check_command(words[1:]) == words[1:]
    assert words[words.index("-o") + 1].startswith("/shared/")
    gpus = sum(
        group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert f"workers.count={gpus}" in words


def test_the_ray_job_ends_its_cluster_and_leaves_time_to_checkpoint(job):
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    for pod, _ in containers(job):
        assert pod["terminationGracePeriodSeconds"] == 120
    _, head = next(containers(job))
    hook = head["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "pkill -TERM" in hook
    assert job["spec"]["entrypoint"].startswith("unlearn train ")
    for pattern in re.findall(r"-f '(.+?)'", hook):
        assert re.search(pattern, job["spec"]["entrypoint"]) and not re.search(pattern, hook)
    waits = re.search(r"seq (\d+)", hook)
    assert waits and int(waits[1]) < 120


def test_the_ray_job_asks_for_what_it_may_use_and_shares_its_outputs(job):
    for pod, container in containers(job):
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    *_, (_, worker) = containers(job)
    assert int(worker["resources"]["limits"]["nvidia.com/gpu"]) > 0


def test_the_ray_job_wants_a_token(job):
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_slurm_script_is_a_shell_script():
    page = (ROOT / "docs" / "cluster.md").read_text()
    (script,) = (block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "#SBATCH" in block)
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert script.index("export RAY_AUTH_MODE=token") < script.index("ray start --head")
    assert "trap" in script and "chmod 600" in script


def test_the_ray_job_holds_no_secret(job):
    from pipelines.job_arguments import looks_secret

    for _, container in containers(job):
        for variable in container["env"]:
            if looks_secret(variable["name"]):
                assert "value" not in variable
                assert set(variable["valueFrom"]) == {"secretKeyRef"}
    assert any(looks_secret(variable["name"]) for _, c in containers(job) for variable in c["env"])
