"""Train the example models on the CPU, in seconds: `python -m models.train digits|dann|all`.

Every run is seeded. For the domain-adversarial network each seed is trained twice, with the
reversal and without it, all else equal: the same first weights, the same batches, and a domain
head that learns either way but without the reversal passes nothing to the features. Target labels
are read only to report the held-out accuracy of the finished network; the weights that are written
are those of the first seed given, never of the best. Schedules of alpha and of the learning rate
are those of Ganin & Lempitsky (arXiv 1409.7495), section 4; the final alpha is 0.3 where the paper
has 1, at which this small network sometimes diverges. That constant, the learning rate, the number
of epochs and the shift itself were chosen by target accuracy on other splits of the same digits, so
the gain is not that of a blind trial.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from models import data
from models.dann import ALPHA, DANN
from models.digits import WEIGHTS, DigitsNet
from models.gradient_report import Flow, write

BATCH = 64
DIGITS_EPOCHS = 20
DANN_EPOCHS = 30
SEEDS = (0, 1, 2, 3)
REPORTS = Path(__file__).parents[1] / "model_store"

Report = Callable[[int, int, float], None]


def silent(epoch: int, epochs: int, loss: float) -> None:
    """Report nothing."""


@dataclass
class Progress:
    """Report on stderr: one line kept up to date on a terminal, else a line each ten epochs."""

    name: str

    def __call__(self, epoch: int, epochs: int, loss: float) -> None:
        """Show that `epoch` of `epochs` is done, with its mean loss."""
        line = f"{self.name}: epoch {epoch}/{epochs}, loss {loss:.4f}"
        if sys.stderr.isatty():
            end = "\n" if epoch == epochs else ""
            print(f"\r{line}\033[K", end=end, file=sys.stderr, flush=True)
        elif epoch % 10 == 0 or epoch == epochs:
            print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Comparison:
    """Held-out accuracies, 0 to 1, of one seed, trained without and with the reversal."""

    seed: int
    source_without: float
    source_with: float
    target_without: float
    target_with: float

    @property
    def gain(self) -> float:
        """Target accuracy that the reversal adds."""
        return self.target_with - self.target_without


def batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield shuffled indices, int64 [BATCH], of one epoch; a last short batch is dropped."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - BATCH + 1, BATCH):
        yield order[start : start + BATCH]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share, 0 to 1, of rows whose first output has its arg-max at the label."""
    with torch.no_grad():
        output = model(images)
    scores = output[0] if isinstance(output, tuple) else output
    return float((scores.argmax(dim=1) == labels).float().mean())


def train_digits(seed: int, epochs: int = DIGITS_EPOCHS, report: Report = silent) -> DigitsNet:
    """Return the digits network trained on the training images, in eval mode."""
    train = data.split().train
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DigitsNet()
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(train) // BATCH)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    loss_function = nn.CrossEntropyLoss()
    for epoch in range(1, epochs + 1):
        losses = []
        for index in batches(len(train), generator):
            batch = train.take(index)
            loss = loss_function(model.logits(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        report(epoch, epochs, sum(losses) / len(losses))
    return model.eval()


def _nothing() -> None:
    pass


def train_dann(
    seed: int,
    reversal: bool,
    epochs: int = DANN_EPOCHS,
    report: Report = silent,
    flow: Flow | None = None,
) -> DANN:
    """Return the domain-adversarial network, in eval mode; without `reversal`, source-only.

    With a `flow`, the gradients are observed; that changes no weight.
    """
    domains = data.domains()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DANN()
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (min(len(domains.source), len(domains.target)) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_function = nn.CrossEntropyLoss()
    domain_labels = torch.tensor([0, 1]).repeat_interleave(BATCH)
    step = 0
    with flow.observe(model) if flow else nullcontext(_nothing) as observe_step:
        for epoch in range(1, epochs + 1):
            losses = []
            pairs = zip(
                batches(len(domains.source), generator),
                batches(len(domains.target), generator),
                strict=False,
            )
            for source, target in pairs:
                progress = step / steps
                ramp = 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0
                model.reversal.alpha = ALPHA * ramp if reversal else 0.0
                optimizer.param_groups[0]["lr"] = 0.1 / (1.0 + 10.0 * progress) ** 0.75
                images = torch.cat([domains.source.images[source], domains.target[target]])
                digit, domain = model.logits(images)
                digit_loss = loss_function(digit[:BATCH], domains.source.labels[source])
                loss = digit_loss + loss_function(domain, domain_labels)
                optimizer.zero_grad()
                loss.backward()
                observe_step()
                optimizer.step()
                losses.append(digit_loss.item())
                step += 1
            report(epoch, epochs, sum(losses) / len(losses))
    model.reversal.alpha = ALPHA
    return model.eval()


def compare(seed: int, without: nn.Module, adapted: nn.Module) -> Comparison:
    """Measure the two networks of one seed on the held-out images of both domains."""
    held_out = data.split().held_out
    shifted = data.shift(held_out.images)
    return Comparison(
        seed,
        accuracy(without, held_out.images, held_out.labels),
        accuracy(adapted, held_out.images, held_out.labels),
        accuracy(without, shifted, held_out.labels),
        accuracy(adapted, shifted, held_out.labels),
    )


def table(rows: Sequence[Comparison]) -> str:
    """Return the comparisons as lines of text, in percent, with the mean over seeds last."""
    lines = [
        "held-out accuracy, %   source           target",
        "seed              without   with   without   with    gain",
    ]
    for row in rows:
        lines.append(_line(str(row.seed), row))
    count = len(rows)
    mean = Comparison(
        -1,
        sum(row.source_without for row in rows) / count,
        sum(row.source_with for row in rows) / count,
        sum(row.target_without for row in rows) / count,
        sum(row.target_with for row in rows) / count,
    )
    return "\n".join([*lines, _line("mean", mean)])


def _line(name: str, row: Comparison) -> str:
    return (
        f"{name:<16}{100 * row.source_without:9.1f}{100 * row.source_with:7.1f}"
        f"{100 * row.target_without:10.1f}{100 * row.target_with:7.1f}{100 * row.gain:+8.1f}"
    )


def save(model: nn.Module, path: Path) -> None:
    """Write the weights of `model` to `path` as safetensors; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # save_file would make a file that only its owner can read.
    path.write_bytes(serialize(model.state_dict()))


def run_digits(seed: int, out: Path, epochs: int = DIGITS_EPOCHS) -> None:
    """Train the digits network, write its weights under `out`, print its accuracy."""
    model = train_digits(seed, epochs, Progress(f"digits, seed {seed}"))
    held_out = data.split().held_out
    save(model, out / "digits.safetensors")
    share = accuracy(model, held_out.images, held_out.labels)
    print(f"digits: {100 * share:.2f} % of {len(held_out)} held-out digits")


def run_dann(seeds: Sequence[int], out: Path, reports: Path, epochs: int = DANN_EPOCHS) -> None:
    """Train with and without reversal for each seed, and print the table.

    The weights of the first seed go to `out`, the report on its gradients to `reports`.
    """
    rows: list[Comparison] = []
    for seed in seeds:
        flows = None if rows else (Flow(), Flow())
        without, adapted = (
            train_dann(seed, reversal, epochs, Progress(f"dann {word} reversal, seed {seed}"), flow)
            for reversal, word, flow in zip(
                (False, True), ("without", "with"), flows or (None, None), strict=True
            )
        )
        if flows:
            save(adapted, out / "dann.safetensors")
            print(f"gradient flow: {write(reports, *flows)}")
        rows.append(compare(seed, without, adapted))
    print(table(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="models.train", description="Train the example models.")
    parser.add_argument("model", choices=["digits", "dann", "all"])
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=list(SEEDS),
        metavar="SEED",
        help="the first seed's weights are written; dann compares all (default: 0 1 2 3)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=WEIGHTS.parent,
        metavar="DIR",
        help="where the .safetensors files go (default: models/weights)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        default=REPORTS,
        metavar="DIR",
        help="where dann's report on its gradients goes (default: model_store)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"passes over the data (default: {DIGITS_EPOCHS} for digits, {DANN_EPOCHS} for dann)",
    )
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1:
        parser.error("--epochs must be at least 1")
    # Tensors this small gain nothing from a second thread and lose much when the core is shared.
    torch.set_num_threads(1)
    start = time.perf_counter()
    if options.model in ("digits", "all"):
        run_digits(options.seeds[0], options.out, options.epochs or DIGITS_EPOCHS)
    if options.model in ("dann", "all"):
        run_dann(options.seeds, options.out, options.report, options.epochs or DANN_EPOCHS)
    print(f"{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
