"""The command line: `python -m export MODEL_FILE...`, and what is done to archives."""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from export.errors import ExportError
from export.freshness import FilesRead, is_fresh, renew, write_sources
from formats.integrity import sha256

__all__ = ["main"]

# torch takes seconds to import, and an update that finds nothing to do never needs it: the
# stages are imported where they are called.

_EPILOG: Final = """examples:
  python -m export models/digits.py
  python -m export --module my_package.nets:make_net --weights net.safetensors \\
                   --example x.npy --name my_net
  python -m export models/digits.py --model-version 2.0
  python -m export inspect model_store/digits.mar
  python -m export verify model_store/*.mar
  python -m export tune model_store/digits.mar --goal latency
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when everything was exported or holds, 1 when a model was refused or a check fell,
        2 when what is to be verified is not an archive.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["inspect"]:
            return _inspect(given[1:])
        if given[:1] == ["verify"]:
            return _verify(given[1:])
        if given[:1] == ["tune"]:
            return _tune(given[1:])
        return _export(_parser().parse_args(given))
    except ExportError as error:
        print(f"python -m export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("python -m export: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Compile models to TorchScript, verify them, and archive them for serving.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="MODEL_FILE")
    parser.add_argument("--trace", action="store_true", help="record one path instead of scripting")
    parser.add_argument(
        "--accept-mismatch",
        action="store_true",
        help="with --trace: archive it even if some inputs are answered otherwise than by the "
        "eager module; the certificate says which",
    )
    parser.add_argument(
        "--layers",
        action="append",
        default=[],
        metavar="GLOB",
        help="observe the layers of this name (block*.relu) or class (type:Conv*); again for more "
        "(default: activation functions, and what feeds an output)",
    )
    parser.add_argument(
        "--precision",
        choices=("bfloat16",),
        help="keep weights and compute in this; inputs and outputs stay as they are, and the "
        "certificate says what it costs",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", "fastest", "torchscript", "onednn", "aot"),
        default="auto",
        help="what runs the model where nobody says otherwise: `auto` chooses onednn for large "
        "convolutions, `fastest` measures, `aot` is compiled for this processor, which takes a C++ "
        "compiler and a minute or two (default: %(default)s)",
    )
    parser.add_argument("--model-store", type=Path, default=Path("model_store"), metavar="DIR")
    parser.add_argument("--update", action="store_true", help="skip archives that are up to date")
    parser.add_argument("--name", help="serve the model under this name")
    parser.add_argument(
        "--model-version",
        metavar="VERSION",
        help="goes before VERSION of the model file, and into the archive's name, so that it lies "
        "beside other versions: NAME-VERSION.mar (default for --module: 1.0, in NAME.mar)",
    )
    own = parser.add_argument_group("instead of a model file")
    own.add_argument("--module", metavar="PACKAGE.MODULE:FACTORY", help="returns an nn.Module")
    own.add_argument("--weights", type=Path, metavar="FILE.safetensors", help="its state dict")
    own.add_argument(
        "--example",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.npy",
        help="an example input; once for each input, in order",
    )
    return parser


def _inspect(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m export inspect")
    parser.add_argument("archive", type=Path, help="a .mar file")
    parser.add_argument("--full", action="store_true", help="print the whole graph")
    options = parser.parse_args(arguments)
    from export.inspection import inspect_archive

    if not options.archive.is_file():
        raise ExportError("there is no such file", where=str(options.archive))
    with tempfile.TemporaryDirectory(prefix="vitrine-") as folder:
        print(inspect_archive(options.archive, Path(folder), options.full), end="")
    return 0


def _verify(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export verify",
        description="Check archives again on this machine, without their models' code. Exit code: "
        "0 when everything holds, 1 when something fell, 2 when a file is not an archive.",
    )
    parser.add_argument("archives", nargs="+", type=Path, metavar="FILE.mar")
    options = parser.parse_args(arguments)
    from export.verify import verify

    status = 0
    for archive in options.archives:
        print(archive, flush=True)
        try:
            with tempfile.TemporaryDirectory(prefix="vitrine-") as folder:
                for verdict in verify(archive, Path(folder)):
                    mark = "ok  " if verdict.held else "FELL"
                    print(f"  {mark} {verdict.name}: {verdict.detail}", flush=True)
                    status = max(status, 0 if verdict.held else 1)
        except ExportError as error:
            print(f"python -m export verify: {error}", file=sys.stderr)
            status = 2
    return status


def _tune(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export tune",
        description="Choose batch size, delay, workers, threads and engine by measuring them here, "
        "and write them into the archive. Leave the machine alone meanwhile.",
    )
    parser.add_argument("archives", nargs="+", type=Path, metavar="FILE.mar")
    parser.add_argument(
        "--goal",
        choices=("throughput", "latency"),
        default="throughput",
        help="the most requests per second, or the shortest time of a lone request (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--within",
        type=float,
        metavar="MS",
        help="with the goal throughput: the longest that a request may take on a busy server",
    )
    parser.add_argument("--engine", help="measure this one (default: the fastest)")
    parser.add_argument(
        "--cores", type=int, metavar="N", help="that the server may use (default: all)"
    )
    options = parser.parse_args(arguments)
    if options.within is not None and (options.goal != "throughput" or not options.within > 0):
        parser.error("--within goes with --goal throughput, and is a number of ms above 0")
    if options.cores is not None and options.cores < 1:
        parser.error(f"--cores is {options.cores}; expected 1 or more")
    for archive in options.archives:
        _tune_one(archive, options)
    return 0


def _tune_one(archive: Path, options: argparse.Namespace) -> None:
    from export.tune import describe, table, tune

    with tempfile.TemporaryDirectory(prefix="vitrine-") as folder:
        settings, chosen = tune(
            archive,
            Path(folder),
            options.goal,
            options.within,
            engine=options.engine,
            cores=options.cores,
            progress=lambda stage: print(f"{archive.stem}: {stage}", flush=True),
        )
    renew(archive.with_suffix(".sources.json"), archive)
    print(table(settings, chosen))
    print(f"{archive.stem}: {describe(settings, chosen)}")
    print(f"{archive.stem}: sha256 {sha256(archive.read_bytes())}")


def _export(options: argparse.Namespace) -> int:
    if bool(options.files) == bool(options.module):
        raise ExportError(
            "name model files, or --module with --example and --name",
            hint="python -m export models/digits.py; --help shows both forms",
        )
    if options.name and len(options.files) > 1:
        raise ExportError("--name fits one model file, not several")
    if options.module and not (options.example and options.name):
        raise ExportError("--module needs --example and --name as well")
    if options.files and (options.weights or options.example):
        raise ExportError(
            "--weights and --example go with --module",
            hint="a model file loads its own weights and has examples()",
        )
    if options.accept_mismatch and not options.trace:
        raise ExportError("--accept-mismatch goes with --trace; a scripted model has no excuse")
    names = [file.stem for file in options.files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ExportError(f"two model files are called {twice!r}; export them apart, with --name")
    try:
        options.model_store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"it cannot be made: {error.strerror}",
            where=str(options.model_store),
            hint="--model-store names a folder",
        ) from None
    failures = 0
    for file in options.files or [None]:
        try:
            _export_one(file, options)
        except ExportError as error:
            failures += 1
            print(f"refused {error}", file=sys.stderr)
        except Exception as error:
            # One model's surprise must not keep the others from being exported.
            failures += 1
            first = str(error).strip().partition("\n")[0]
            print(
                f"refused {file or options.module}: {type(error).__name__}: {first}\n"
                "  → Vitrine did not expect this; please report it with the model file",
                file=sys.stderr,
            )
    return 1 if failures else 0


def _export_one(file: Path | None, options: argparse.Namespace) -> None:
    name = options.name or (file.stem if file is not None else "")
    stem = f"{name}-{options.model_version}" if options.model_version else name
    record = options.model_store / f"{stem}.sources.json"
    outputs = [
        options.model_store / f"{stem}{end}" for end in (".mar", ".report.md", ".sample.json")
    ]
    arguments = _arguments(file, options)
    if options.update and is_fresh(record, outputs, arguments):
        print(f"{stem}: up to date")
        return
    started = time.monotonic()

    def progress(stage: str) -> None:
        print(f"{name}: {stage} (+{time.monotonic() - started:.1f} s)", flush=True)

    progress("loading")
    files = FilesRead(file)
    with files.watching():
        from export.definition import from_factory, from_model_file

        if file is not None:
            definition = from_model_file(file, options.name, options.model_version)
        else:
            definition = from_factory(
                options.module,
                options.weights,
                options.example,
                name,
                options.model_version or "1.0",
            )
    if options.precision:
        definition = replace(definition, precision=options.precision)
    from export.pipeline import export_model

    record.unlink(missing_ok=True)
    exported = export_model(
        definition,
        options.model_store,
        "trace" if options.trace else "script",
        layers=options.layers,
        stem=stem,
        accept_mismatch=options.accept_mismatch,
        engine=options.engine,
        progress=progress,
    )
    sources = files.paths()
    write_sources(record, sources, outputs, arguments)
    batching = exported.certificate.batching
    verdict = "may share a batch" if batching.independent else "are served one at a time"
    progress(f"wrote {exported.archive}; requests {verdict}")
    print(f"{name}: sha256 {sha256(exported.archive.read_bytes())}")
    for note in exported.certificate.notes:
        print(f"{name}: note: {note}")


def _arguments(file: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "file": str(file.resolve()) if file is not None else None,
        "trace": options.trace,
        "accept_mismatch": options.accept_mismatch,
        "layers": options.layers,
        "engine": options.engine,
        "precision": options.precision,
        "name": options.name,
        "module": options.module,
        "folder": str(Path.cwd()) if options.module else None,
        "weights": str(options.weights) if options.weights else None,
        "example": [str(path) for path in options.example],
        "model_version": options.model_version,
    }
