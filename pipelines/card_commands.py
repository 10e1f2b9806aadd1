"""`unlearn card` and `unlearn push`: model cards, and models for the hub."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import terminal
from pipelines.locations import followed_place, input_place
from unlearn_core.errors import UserError

CARD_EPILOG = (
    "**Examples**\n\n"
    "`unlearn card outputs/ngdiff`  (with the scores of the evaluation beside it, if there is one)\n\n"
    "`unlearn card outputs/ngdiff --evaluation outputs/evaluation`"
)
PUSH_EPILOG = (
    "**Examples**\n\n"
    "`unlearn push outputs/ngdiff my-name/my-model`  (shows what would be sent, and asks)\n\n"
    "`unlearn push outputs/ngdiff my-name/my-model --step 40 --yes`"
)


def card(
    run: Annotated[Path, typer.Argument(parser=followed_place, help="Folder of a training or an edit.")],
    evaluation: Annotated[
        Path | None, typer.Option(parser=input_place, help="Evaluation to take scores from, in place of the one near.")
    ] = None,
) -> Any:
    """Write the model cards (README.md) of a run's models anew, with the scores of an evaluation."""
    from pipelines.model_cards import evaluation_of, write_cards

    source = evaluation or evaluation_of(run)
    written = write_cards(run, source)
    for one in written:
        told = f"{one['metrics']} metrics of {source}" if one["metrics"] else "no scores"
        terminal.out.print(f"{one['card']}: {told}", highlight=False, markup=False, soft_wrap=True)
    return {"evaluation": source, "cards": written}


def push(
    run: Annotated[str, typer.Argument(help="A run, whose last model is sent, or a model folder of one.")],
    repository: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the hub; made if missing.")],
    step: Annotated[int | None, typer.Option(help="Send the run's model of this step.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read a repository made here.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> Any:
    """Send a model with its card to the Hugging Face hub: private unless you say otherwise, and never by itself."""
    from pipelines import hub

    what = hub.parcel(hub.chosen_model(run, step))
    who = "public" if public else "private"
    lines = [f"{name}  {_size(size)}" for name, size in what.files.items()]
    text = "\n  ".join([f"{what.folder} to {repository} ({who}), {_size(what.bytes)}:", *lines])
    (terminal.work if yes else terminal.err).print(text, highlight=False, markup=False, soft_wrap=True)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"Nobody is there to be asked whether to send this to {repository}. Say --yes to send it.")
        if not typer.confirm("Send it?", err=True):
            terminal.work.print("Nothing was sent.")
            return {"sent": False, "repository": repository, "files": what.files}
    address = hub.push(what, repository, private=not public)
    terminal.out.print(f"sent: {address}", highlight=False, markup=False, soft_wrap=True)
    return {"sent": True, "repository": repository, "files": what.files, "commit": address}


def _size(count: int) -> str:
    unit = next((power for power in (3, 2, 1) if count >= 1000**power), 0)
    return f"{count / 1000**unit:.3g} {('B', 'kB', 'MB', 'GB')[unit]}"
