"""Access to data sets on the Hugging Face hub: the optional package, and its failures as our errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from unlearn_core.errors import MissingPackageError, UserError


def import_datasets() -> ModuleType:
    """The package `datasets`; `MissingPackageError` where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError(
            "reading from the hub needs the package 'datasets' (pip install datasets); local files need nothing"
        ) from error
    return datasets


@contextmanager
def hub_errors(source: str) -> Iterator[None]:
    """Turn what the hub client raises when a name is unknown or the network is away (all `OSError`) into our error."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read data set '{source}' from the Hugging Face hub: {error}. Check the name and the network, "
            "or download its files once and give their folder instead"
        ) from error
