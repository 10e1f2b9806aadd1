"""Rows of `benchmarks.faults`: what may happen to the processes of a training run."""

import signal
import time

from benchmarks.faults_run import (
    STEPS,
    Moment,
    Row,
    Workspace,
    freeze_when,
    newest_checkpoint,
    step_lines,
    steps_done,
    stop_all,
    wait_for,
)
from unlearn_core.events import read_events


def nothing(work: Workspace) -> Row:
    """The undisturbed run, that all others are compared with."""
    from safetensors.torch import load_file

    from unlearn_core.loop import model_folder

    command = work.train("undisturbed")
    if command.wait():
        return Row("none", "failed", False, result=command.said()[-300:])
    work.undisturbed = load_file(model_folder(command.output, STEPS) / "model.safetensors")
    return Row("none", "finished", read_events(command.output) == [], result=f"{len(step_lines(command.output))} steps")


def worker_killed_in_a_step(work: Workspace) -> Row:
    """SIGKILL to one of two workers."""
    command = work.train("killed-in-step")
    wait_for(lambda: steps_done(command.output) >= 25, command)
    moment = Moment(command.output)
    command.children()[0].kill()
    moment.until_further(command)
    return work.ended_equal("worker SIGKILL during a step", command, moment)


def worker_killed_in_a_checkpoint(work: Workspace) -> Row:
    """SIGKILL while the ranks' files lie aside."""
    command = work.train("killed-in-checkpoint")
    folder = command.output / "checkpoints"
    wait_for(lambda: newest_checkpoint(command.output) >= 20, command)
    workers = freeze_when(command, lambda: any(folder.glob(".step-*.part")))
    moment = Moment(command.output)
    stop_all(workers, signal.SIGKILL)
    moment.until_further(command)
    return work.ended_equal("worker SIGKILL during checkpoint writing", command, moment)


def worker_killed_in_an_export(work: Workspace) -> Row:
    """SIGKILL while a model lies aside."""
    command = work.train("killed-in-export")
    folder = command.output / "models"
    workers = freeze_when(command, lambda: any(folder.glob(".step-*.part")))
    moment = Moment(command.output)
    stop_all(workers, signal.SIGKILL)
    moment.until_further(command)
    row = work.ended_equal("worker SIGKILL during export", command, moment)
    left = [path.name for path in folder.glob(".*.part")]
    # The half export of the killed worker is cleared at the next start of the command; it never has a model's name.
    return row if len(left) <= 1 else Row(row.fault, f"half exports left: {left}", False)


def worker_asked_to_go(work: Workspace) -> Row:
    """SIGTERM to a worker, as a machine that is taken away sends it: a checkpoint of the very step, no step lost."""
    command = work.train("preempted")
    wait_for(lambda: steps_done(command.output) >= 25, command)
    moment = Moment(command.output)
    started = time.monotonic()
    command.children()[0].send_signal(signal.SIGTERM)
    wait_for(lambda: read_events(command.output), command)
    grace = time.monotonic() - started
    moment.checkpoint = newest_checkpoint(command.output)
    moment.step = moment.checkpoint
    moment.until_further(command)
    row = work.ended_equal("SIGTERM to a worker (pre-emption)", command, moment)
    first = read_events(command.output)[0]
    good = row.passed and first["kind"] == "preempted" and moment.checkpoint % 10
    told = f"checkpoint and end of the workers {grace:.1f} s after the signal; {row.happened}"
    return Row(row.fault, told, bool(good), moment.recovery, moment.lost, row.result)


def driver_asked_to_go(work: Workspace) -> Row:
    """SIGTERM to the command, as `unlearn jobs stop` and schedulers send it; then the same command."""
    command = work.train("stopped")
    wait_for(lambda: steps_done(command.output) >= 25, command)
    command.process.terminate()
    started = time.monotonic()
    code = command.wait(60)
    grace = time.monotonic() - started
    lost = steps_done(command.output) - newest_checkpoint(command.output)
    if code != 143:
        return Row("SIGTERM to the driver", f"exit code {code}", False, result=command.said()[-300:])
    again = work.train("stopped", again=True)
    row = work.ended_equal("SIGTERM to the driver", again)
    told = f"exit code 143 after {grace:.1f} s, checkpoint of its last step; the same command went on"
    return Row(row.fault, told, row.passed and lost == 0, None, lost, row.result)


def driver_killed(work: Workspace) -> Row:
    """SIGKILL to the command; its cluster dies with it; then the same command."""
    command = work.train("driver-killed")
    wait_for(lambda: steps_done(command.output) >= 25, command)
    # Ray's two agents (no CPUs, no memory to speak of) outlive their cluster; whatever works must not.
    family = [process for name in ("ray::RayTrain", "raylet", "gcs_server") for process in command.children(name)]
    command.process.kill()
    moment = Moment(command.output)
    command.process.wait()
    wait_for(lambda: not any(process.is_running() and process.status() != "zombie" for process in family), None, 60)
    again = work.train("driver-killed", again=True)
    moment.until_further(again)
    row = work.ended_equal("driver SIGKILL", again)
    return Row(
        row.fault,
        "its cluster ended by itself; the same command went on",
        row.passed,
        moment.recovery,
        moment.lost,
        row.result,
    )


def rank_stalls(work: Workspace) -> Row:
    """SIGSTOP to one worker: it is named, the group is started again."""
    command = work.train("stalled", workers__stall_seconds=5)
    wait_for(lambda: steps_done(command.output) >= 25, command)
    moment = Moment(command.output)
    workers = command.children()
    victim = workers[1]
    victim.send_signal(signal.SIGSTOP)
    moment.until_further(command)
    row = work.ended_equal("a rank stalls (SIGSTOP)", command, moment)
    named = f"pid {victim.pid}" in row.happened or "rank 0, which holds the group's store" in row.happened
    return Row(row.fault, row.happened, row.passed and named, row.recovery, row.lost, row.result)


def two_runs_at_one_output(work: Workspace) -> Row:
    """The second is refused at once and the first not disturbed."""
    first = work.train("claimed")
    wait_for(lambda: (first.output / "owner.json").is_file(), first)
    second = work.train("second", output=first.output, again=True)
    code = second.wait()
    said = next((line for line in second.said().splitlines() if "being written by another run" in line), "")
    row = work.ended_equal("two runs pointed at one output", first)
    good = row.passed and code == 2 and f"process {first.process.pid}" in said
    return Row(row.fault, f"second: exit code {code}: {said[:160]}", good, result=f"first {row.result}")


HEAVY = (
    nothing,
    worker_killed_in_a_step,
    worker_killed_in_a_checkpoint,
    worker_killed_in_an_export,
    worker_asked_to_go,
    driver_asked_to_go,
    driver_killed,
    rank_stalls,
    two_runs_at_one_output,
)
