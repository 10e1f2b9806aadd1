"""The training texts of the MUSE benchmark (Shi et al. 2024, arXiv 2407.06460), News and Books, from hub or folder.

A split is named as the hub does it, configuration / split:

    raw/forget, raw/retain1, raw/retain2    what is to be forgotten, and two halves of what is to be kept
    train/forget                            everything to be forgotten that the target model was trained on
    scal/forget_1 to forget_4               nested forget sets of growing size (News)
    sust/forget_1 to forget_4               disjoint forget sets, for requests one after the other (News)

The probes of the evaluation (knowmem, verbmem, privleak) are no training texts and are not read here.
"""

import re
from pathlib import Path

from unlearn_core.data.files import read_values
from unlearn_core.data.hub import hub_errors, import_datasets
from unlearn_core.data.rows import Document, parse_document
from unlearn_core.data.sources import looks_like_path, no_such_split
from unlearn_core.errors import UserError

CONFIGS = ("raw", "train", "scal", "sust")
"""Configurations of the benchmark that hold training texts."""

# The first that exists is read: of the published forms of one split, .txt alone has lost where its documents end.
_SUFFIXES = (".json", ".jsonl", ".parquet", ".txt")
# The hub cuts a split into files such as forget-00000-of-00002.parquet.
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
_ROLES = ("forget", "retain", "holdout")


def is_muse(source: str) -> bool:
    """Whether `data.benchmark` means MUSE: a rule that no TOFU source meets.

    Args:
        source: a folder, which is MUSE's where it holds `raw/`, `train/`, `scal/` or `sust/` with a file of forget,
            retain or holdout texts; else a hub name, which is MUSE's where its last part starts with `MUSE-`, such as
            `muse-bench/MUSE-News`.

    Returns:
        True for MUSE, False for everything else.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return any(split.split("/")[1].startswith(_ROLES) for split in _files(folder))
    return not looks_like_path(source) and source.rpartition("/")[2].lower().startswith("muse-")


def corpora(source: str) -> tuple[str, ...]:
    """MUSE corpora inside a folder that is none itself, such as the authors' repository or its folder `data`.

    Args:
        source: anything; only a folder has corpora inside.

    Returns:
        Paths that `is_muse` accepts, sorted; empty where there are none.
    """
    folder = Path(source).expanduser()
    inside = (*folder.glob("*"), *folder.glob("data/*")) if folder.is_dir() else ()
    return tuple(sorted(str(path) for path in inside if path.is_dir() and is_muse(str(path))))


class MuseTexts:
    """Splits of documents by name, read when asked for.

    A folder may be a copy of the hub's (`{config}/{split}.json`, `.jsonl` or `.parquet`, also in shards) or one corpus
    of the authors' repository, such as `data/news` or `data/bbc`, where a `.json` file is a list of texts and a `.txt`
    file has a blank line between documents. Where a split exists in several forms, JSON comes first and `.txt` last:
    documents that hold blank lines themselves come out of a `.txt` file in pieces.

    Attributes:
        source: folder or hub name.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        folder = Path(source).expanduser()
        self._files = _files(folder) if folder.is_dir() else None
        self._hub_splits: tuple[str, ...] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist, sorted. For a hub name this needs the network."""
        if self._files is not None:
            return tuple(sorted(self._files))
        if self._hub_splits is None:
            datasets = import_datasets()
            with hub_errors(self.source):
                configs = [name for name in datasets.get_dataset_config_names(self.source) if name in CONFIGS]
                names = [f"{c}/{split}" for c in configs for split in datasets.get_dataset_split_names(self.source, c)]
            self._hub_splits = tuple(sorted(names))
        return self._hub_splits

    def split(self, name: str) -> list[Document]:
        """Documents of one split, in file order.

        Args:
            name: such as `raw/forget` or `scal/forget_2`.

        Returns:
            Documents with ids `{name}/{index:05d}`; never empty.

        Raises:
            UserError: no such split (the message lists the valid ones and the nearest), a blank or malformed document,
                or a hub that cannot be reached.
        """
        if self._files is None:
            values = self._from_hub(name)
        elif name in self._files:
            values = [value for path in self._files[name] for value in read_values(path)]
        else:
            raise no_such_split(self.source, name, self.splits)
        if not values:
            raise UserError(f"split '{name}' of '{self.source}' holds no documents; expected texts")
        return [parse_document(value, f"{name}/{index:05d}", where) for index, (where, value) in enumerate(values)]

    def _from_hub(self, name: str) -> list[tuple[str, object]]:
        config, _, split = name.partition("/")
        if config not in CONFIGS or not split:
            raise no_such_split(self.source, name, self.splits)
        datasets = import_datasets()
        with hub_errors(self.source):
            try:
                rows = datasets.load_dataset(self.source, config, split=split)
            except ValueError as error:
                if name in self.splits:
                    raise UserError(f"cannot load split '{name}' of hub data set '{self.source}': {error}") from error
                raise no_such_split(self.source, name, self.splits) from error
        return [(f"{self.source}, split {name}, row {index}", value) for index, value in enumerate(rows)]


def _files(folder: Path) -> dict[str, list[Path]]:
    """Split name -> its files: of one suffix, shards in order."""
    found: dict[str, list[Path]] = {}
    for config in CONFIGS:
        for suffix in _SUFFIXES:
            of_suffix: dict[str, list[Path]] = {}
            for path in sorted((folder / config).glob(f"*{suffix}")):
                shard = _SHARD.fullmatch(path.stem)
                of_suffix.setdefault(f"{config}/{shard['split'] if shard else path.stem}", []).append(path)
            for name, paths in of_suffix.items():
                found.setdefault(name, paths)
    return found
