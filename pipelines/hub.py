"""Send an exported model to the Hugging Face hub, on request only."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pipelines.locations import folder_or_uri
from pipelines.runs import resolve_model
from unlearn_core.errors import UserError
from unlearn_core.model_card import CARD
from unlearn_core.publish import MARKER, is_complete
from unlearn_core.storage import fetch


@dataclass(frozen=True)
class Parcel:
    """What would be sent.

    Attributes:
        folder: the model's.
        files: name -> bytes.
    """

    folder: Path
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(self.files.values())


def chosen_model(run: str, step: int | None = None) -> Path:
    """The model of a run that is to be sent, on this node.

    Args:
        run: a run's folder or URI, or, without `step`, a model folder of one.
        step: which model; None for the last one.

    Raises:
        UserError: there is no such model, or no whole one.
    """
    if step is None:
        return fetch(resolve_model(run))
    folder = folder_or_uri(run) / "models" / f"step-{step:05d}"
    if not is_complete(folder):
        whole = [path.name for path in sorted(folder.parent.glob("step-*")) if is_complete(path)]
        raise UserError(f"{run} has no whole model {folder.name}; it has {', '.join(whole) or 'none'}.")
    return fetch(folder)


def parcel(folder: Path) -> Parcel:
    """The files of a whole export: all but its marker and hidden ones.

    Raises:
        UserError: no export, a half-written one, or one without a card.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a run with a finished model, or a model folder of one.")
    if not is_complete(folder):
        raise UserError(
            f"{folder} lacks {MARKER}, so it is half-written or no export of `unlearn`; let the run finish it, or give "
            "a model folder in OUTPUT/models/."
        )
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} has no model card; write it first: unlearn card RUN.")
    names = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sent = {path.relative_to(folder): path.stat().st_size for path in names if path.name != MARKER}
    return Parcel(folder, {str(name): size for name, size in sent.items() if not _hidden(name)})


def push(what: Parcel, repository: str, private: bool = True, message: str = "") -> str:
    """Make the repository if there is none, and send a model there in one commit.

    Args:
        what: of `parcel`.
        repository: OWNER/NAME.
        private: who may read a new repository. A public one that exists is refused.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        UserError: a malformed name, no token, no network, a public repository in place of a private one, or what else
            the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UserError(
                f"{repository} exists and everybody can read it. Choose another name, make it private, or say --public."
            )
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=what.folder,
            allow_patterns=list(what.files),
            commit_message=message or f"Upload {what.folder.name}",
        )
    except HFValidationError as error:
        raise UserError(f"'{repository}' is no name of a repository, such as my-name/my-model: {error}") from error
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(f"{error} Log in with `hf auth login` or set HF_TOKEN; unset HF_HUB_OFFLINE.") from error
    except HfHubHTTPError as error:
        raise UserError(f"The hub refused {repository}: {error}. Is the token one that may write there?") from error
    except _no_network() as error:
        raise UserError(f"The hub cannot be reached ({error}). Nothing of it has appeared there; try again.") from error
    return str(commit.commit_url)


def _no_network() -> tuple[type[Exception], ...]:
    """What huggingface_hub's HTTP client raises without a connection: httpx up to its version 1, then httpx2."""
    return tuple(import_module(name).TransportError for name in ("httpx", "httpx2") if find_spec(name))


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)
