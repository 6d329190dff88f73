"""What drift detection finds, and how often it is wrong: `scripts/benchmark drift`.

Exports `digits` and `dann`, records single digits as a server would, draws windows of traffic
from them, and holds each against a baseline. Every draw is seeded. Of the 450 held-out digits,
300 are the archive's calibration and 150 have been seen by nothing (`models.data.held_apart`).
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.drifting.inputs import SHIFTED, STRANGE, strange
from benchmarks.drifting.roc import Separation, draw, scores, separate
from benchmarks.drifting.subject import FAULTS, Subject, baseline_of
from benchmarks.drifting.windows import alarms, drawn, merged
from export.definition import from_model_file
from export.pipeline import export_model
from models import data
from observe.outliers import threshold

__all__ = ["MODELS", "Found", "detections", "false_alarms", "main", "mixtures", "roc"]

MODELS: Final = ("digits", "dann")
SIZES: Final = (50, 100, 200, 500)
_SEED: Final = 0
_FOLDER: Final = Path(__file__).resolve().parent.parent / "models"


@dataclass
class Found:
    """A table: what was tried to the share of windows that alarmed, by what the columns are."""

    title: str
    columns: list[str]
    lines: dict[str, list[float | None]] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return it as Markdown, in percent."""
        text = [
            f"| {self.title} | {' | '.join(self.columns)} |",
            "|---" * (len(self.columns) + 1) + "|",
        ]
        for name, shares in self.lines.items():
            cells = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
            text.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(text)


def false_alarms(subject: Subject, many: int, sizes: Sequence[int] = SIZES) -> Found:
    """Draw windows of usual digits; none of them should alarm.

    Args:
        subject: the model.
        many: windows for each figure.
        sizes: rows of a window.
    """
    rng = np.random.default_rng(_SEED)
    calibration, unseen = (one.images for one in data.held_apart())
    found = Found("usual digits", [f"{size} rows" for size in sizes])
    for name, images in (("never seen", unseen), ("of the calibration", calibration)):
        records = subject.records(images)
        found.lines[f"{name} ({len(images)}, with replacement)"] = [
            alarms(records, rng.integers(0, len(images), (many, size)), [subject.baseline])
            for size in sizes
        ]
    held_out = subject.records(torch.cat([calibration, unseen]))
    trained = subject.records(data.split().train.images)
    for name, records, kept in (
        ("held out, a new baseline of 250 each time", held_out, 250),
        ("held out, a new baseline of 24 each time", held_out, 24),
        ("trained on, a new baseline of 800 each time", trained, 800),
    ):
        count = len(records.record["rows"])
        order = rng.permuted(np.tile(np.arange(count), (many, 1)), axis=1)
        baselines = [baseline_of(drawn(records, one[:kept])) for one in order]
        found.lines[name] = [
            None
            if kept + size > count
            else alarms(records, order[:, kept : kept + size], baselines)
            for size in sizes
        ]
    return found


def detections(
    subjects: Mapping[str, Subject], many: int, sizes: Sequence[int] = (20, *SIZES)
) -> Found:
    """Draw windows of nothing but shifted digits, and of digits for models with a fault.

    Args:
        subjects: by what is seen of it: a model as it is gets shifted digits.
        many: windows for each figure.
        sizes: rows of a window.
    """
    rng = np.random.default_rng(_SEED)
    unseen = data.held_apart()[1].images
    found = Found("windows that alarm", [f"{size} rows" for size in sizes])
    for name, subject in subjects.items():
        images = strange(SHIFTED, unseen) if name == SHIFTED else unseen
        records = subject.records(images)
        found.lines[name] = [
            alarms(records, rng.integers(0, len(unseen), (many, size)), [subject.baseline])
            for size in sizes
        ]
    return found


def mixtures(
    subject: Subject,
    many: int,
    sizes: Sequence[int] = (200, 500),
    shares: Sequence[float] = (0.05, 0.1, 0.25, 0.5),
) -> Found:
    """Draw windows of which a part is shifted digits, the rest digits that were never seen."""
    rng = np.random.default_rng(_SEED)
    unseen = data.held_apart()[1].images
    records = merged(subject.records(unseen), subject.records(strange(SHIFTED, unseen)))
    found = Found("shifted part", [f"{size} rows" for size in sizes])
    for share in shares:
        found.lines[f"{100 * share:.0f} %"] = []
        for size in sizes:
            draws = rng.integers(0, len(unseen), (many, size))
            draws[:, : round(share * size)] += len(unseen)
            found.lines[f"{100 * share:.0f} %"].append(alarms(records, draws, [subject.baseline]))
    return found


def roc(subject: Subject) -> tuple[float, dict[str, Separation]]:
    """Hold the scores of strange inputs against those of digits that were never seen.

    Returns:
        The share of the usual digits over the threshold, and by what is strange, how it separates.
    """
    unseen = data.held_apart()[1].images
    usual = scores(subject.records(unseen), subject.baseline)
    assert subject.baseline.score is not None
    over = float((usual > threshold(subject.baseline.score)).mean())
    return over, {
        name: separate(
            usual,
            scores(subject.records(strange(name, unseen)), subject.baseline),
            subject.baseline,
        )
        for name in STRANGE
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark drift", description="What drift detection finds, and where it errs."
    )
    parser.add_argument("--windows", type=int, default=1000, metavar="N", help="for each figure")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the scores' ROC curves")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    curves = {}
    lines: dict[str, list[str]] = {name: [text] for name, (text, _) in STRANGE.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            archive = export_model(from_model_file(_FOLDER / f"{name}.py"), Path(folder)).archive
            subject = Subject(archive)
            print(f"\n## {name}: shares of {options.windows} windows that alarm\n", flush=True)
            print(false_alarms(subject, options.windows).markdown(), "\n", flush=True)
            faulty = {fault: Subject(archive, fault) for fault in FAULTS}
            table = detections({SHIFTED: subject, **faulty}, options.windows)
            print(table.markdown(), "\n", flush=True)
            print(mixtures(subject, options.windows).markdown(), flush=True)
            over, curves[name] = roc(subject)
            print(f"\nUsual digits over the score's threshold: {100 * over:.1f} %")
            for strange_name, one in curves[name].items():
                lines[strange_name] += [f"{one.area:.3f}", f"{100 * one.found:.0f} %"]
    heads = [f"{name}: {what}" for name in options.models for what in ("area", "found")]
    print(f"\n## Scores\n\n| input | | {' | '.join(heads)} |\n{'|---' * (len(heads) + 2)}|")
    for name, cells in lines.items():
        print(f"| {name} | {' | '.join(cells)} |")
    if options.plot is not None:
        draw(curves, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
