"""The training texts of the MUSE benchmark (Shi et al. 2024, arXiv 2407.06460): from hub, folder, or made by code.

A split is named as the hub does it, configuration / split:

    raw/forget, raw/retain1, raw/retain2    what is to be forgotten, and two halves of what is to be kept
    raw/holdout                             texts of the same kind that no model was trained on
    train/forget                            everything to be forgotten that the target model was trained on
    scal/forget_1 to forget_4               nested forget sets of growing size (News)
    sust/forget_1 to forget_4               disjoint forget sets, for requests one after the other (News)

The probes of the evaluation (knowmem, verbmem, privleak) are no training texts; `muse_probes` reads them, with the
same `MuseSplits`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn_core.data import synthetic_muse
from unlearn_core.data.files import read_values
from unlearn_core.data.hub import hub_errors, import_datasets
from unlearn_core.data.rows import Document, parse_document
from unlearn_core.data.sources import looks_like_path, no_such_split
from unlearn_core.errors import UserError

CONFIGS = ("raw", "train", "scal", "sust")
"""Configurations of the benchmark that hold training texts."""
PROBES = ("knowmem", "verbmem", "privleak")
"""Configurations of the benchmark that hold what models are evaluated on."""

# The first that exists is read: of the published forms of one split, .txt alone has lost where its documents end.
_SUFFIXES = (".json", ".jsonl", ".parquet", ".txt")
# The hub cuts a split into files such as forget-00000-of-00002.parquet.
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
_ROLES = ("forget", "retain", "holdout")


def is_muse(source: str) -> bool:
    """Whether `data.benchmark` means MUSE: a rule that no TOFU source meets.

    Args:
        source: `synthetic-muse:...`; a folder, which is MUSE's where it holds a folder of a MUSE configuration (`raw/`,
            `knowmem/`, ...) with a file of forget, retain or holdout rows; else a hub name, which is MUSE's where its
            last part starts with `MUSE-`, such as `muse-bench/MUSE-News`.

    Returns:
        True for MUSE, False for everything else.
    """
    if source.startswith(synthetic_muse.PREFIX):
        return True
    folder = Path(source).expanduser()
    if folder.is_dir():
        return any(split.split("/")[1].startswith(_ROLES) for split in _files(folder, (*CONFIGS, *PROBES)))
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


class MuseSplits:
    """The rows of some configurations, by split name, read when asked for and not yet checked.

    A folder may be a copy of the hub's (`{config}/{split}.json`, `.jsonl` or `.parquet`, also in shards) or one corpus
    of the authors' repository, such as `data/news` or `data/bbc`, where a `.json` file is a list of texts and a `.txt`
    file has a blank line between documents. Where a split exists in several forms, JSON comes first and `.txt` last:
    documents that hold blank lines themselves come out of a `.txt` file in pieces.

    Attributes:
        source: folder, hub name or `synthetic-muse:SIZE[:SEED]`.
        configs: the configurations that are looked at.
    """

    def __init__(self, source: str, configs: Sequence[str]) -> None:
        self.source = source
        self.configs = tuple(configs)
        self._generated: synthetic_muse.Splits | None = None
        self._files: dict[str, list[Path]] | None = None
        self._hub_splits: tuple[str, ...] | None = None
        self._hub_rows: dict[str, Sequence[Any] | ValueError] = {}
        folder = Path(source).expanduser()
        if source.startswith(synthetic_muse.PREFIX):
            made = synthetic_muse.generate(*synthetic_muse.parse_source(source))
            self._generated = {name: rows for name, rows in made.items() if name.split("/")[0] in self.configs}
        elif folder.is_dir():
            self._files = _files(folder, self.configs)
        elif looks_like_path(source):
            raise UserError(
                f"'{source}' is no folder; give a folder of MUSE's files, a hub name such as muse-bench/MUSE-News, or "
                f"{synthetic_muse.PREFIX}SIZE with SIZE one of {', '.join(synthetic_muse.SIZES)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the splits that exist, sorted. For a hub name this needs the network."""
        held = self._generated if self._files is None else self._files
        if held is not None:
            return tuple(sorted(held))
        if self._hub_splits is None:
            datasets = import_datasets()
            with hub_errors(self.source):
                configs = [name for name in datasets.get_dataset_config_names(self.source) if name in self.configs]
                names = [f"{c}/{split}" for c in configs for split in datasets.get_dataset_split_names(self.source, c)]
            self._hub_splits = tuple(sorted(names))
        return self._hub_splits

    def has(self, name: str) -> bool:
        """Whether there is a split configuration/split. A split that the hub's client has cached needs no network."""
        held = self._generated if self._files is None else self._files
        return name in held if held is not None else not isinstance(self._loaded(name), ValueError)

    def values(self, name: str) -> list[tuple[str, Any]]:
        """Rows of one split with the place that an error names, in file order.

        Args:
            name: configuration/split.

        Returns:
            (place, decoded value) pairs; never empty.

        Raises:
            UserError: no such split (the message lists the valid ones and the nearest), an empty one, or a hub that
                cannot be reached.
        """
        held = self._generated if self._files is None else self._files
        if held is not None and name not in held:
            raise no_such_split(self.source, name, self.names)
        if self._files is not None:
            values = [value for path in self._files[name] for value in read_values(path)]
        else:
            rows = self._generated[name] if self._generated is not None else self._loaded(name)
            if isinstance(rows, ValueError):
                if name not in self.names:
                    raise no_such_split(self.source, name, self.names) from rows
                raise UserError(f"cannot load split '{name}' of hub data set '{self.source}': {rows}") from rows
            values = [(f"{self.source}, split {name}, row {k}", row) for k, row in enumerate(rows)]
        if not values:
            raise UserError(f"split '{name}' of '{self.source}' holds no rows; expected at least one")
        return values

    def _loaded(self, name: str) -> Sequence[Any] | ValueError:
        """Rows of a split from the hub, or why it has none."""
        config, _, split = name.partition("/")
        if config not in self.configs or not split:
            return ValueError("no such configuration")
        if name not in self._hub_rows:
            datasets = import_datasets()
            with hub_errors(self.source):
                try:
                    self._hub_rows[name] = datasets.load_dataset(self.source, config, split=split)
                except ValueError as error:
                    self._hub_rows[name] = error
        return self._hub_rows[name]


class MuseTexts:
    """Splits of documents by name, read when asked for.

    Attributes:
        source: folder, hub name or `synthetic-muse:SIZE[:SEED]`; see `MuseSplits` for the layouts of a folder.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._held = MuseSplits(source, CONFIGS)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist, sorted. For a hub name this needs the network."""
        return self._held.names

    def split(self, name: str) -> list[Document]:
        """Documents of one split, in file order.

        Args:
            name: such as `raw/forget` or `scal/forget_2`.

        Returns:
            Documents with ids `{name}/{index:05d}`; never empty.

        Raises:
            UserError: as `MuseSplits.values`; a blank or malformed document.
        """
        values = enumerate(self._held.values(name))
        return [parse_document(value, f"{name}/{index:05d}", where) for index, (where, value) in values]


def _files(folder: Path, configs: Sequence[str]) -> dict[str, list[Path]]:
    """Split name -> its files: of one suffix, shards in order."""
    found: dict[str, list[Path]] = {}
    for config in configs:
        for suffix in _SUFFIXES:
            of_suffix: dict[str, list[Path]] = {}
            for path in sorted((folder / config).glob(f"*{suffix}")):
                shard = _SHARD.fullmatch(path.stem)
                of_suffix.setdefault(f"{config}/{shard['split'] if shard else path.stem}", []).append(path)
            for name, paths in of_suffix.items():
                found.setdefault(name, paths)
    return found
