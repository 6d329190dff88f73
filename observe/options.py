"""What all commands take: the log, and the baselines it is held against."""

import argparse
from pathlib import Path
from typing import Final

from formats.document import FormatError
from observe.baselines import Baselines
from observe.index import Index
from observe.reader import Reader

__all__ = ["add_log_arguments", "open_log"]

_STORE: Final = Path(__file__).resolve().parent.parent / "model_store"


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `LOG`, `--model-store` and `--baseline`."""
    parser.add_argument(
        "log", type=Path, metavar="LOG", help="MODEL.jsonl, or the folder of an activation log"
    )
    parser.add_argument(
        "--model-store",
        type=Path,
        metavar="DIR",
        help="archives whose baseline.json is compared with (default: model_store, if it is there)",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="[MODEL=]FILE",
        help="a .mar, or a baseline.json with MODEL= before it; before the store's; repeatable",
    )


def open_log(options: argparse.Namespace) -> tuple[Reader, Index, Baselines]:
    """Open what `add_log_arguments` asked for; nothing has been read yet.

    Raises:
        FormatError: the log, the model store or a baseline is not there, or cannot be read.
    """
    store: Path | None = options.model_store
    if store is None:
        store = _STORE if _STORE.is_dir() else None
    elif not store.is_dir():
        raise FormatError(f"{store} is not there; expected a folder of archives (.mar)")
    baselines = Baselines.of(store, options.baseline)
    index = Index()
    try:
        return Reader(options.log, index), index, baselines
    except BaseException:
        index.close()
        raise
