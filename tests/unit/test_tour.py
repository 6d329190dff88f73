"""The tour's model is as faulty as the tour says."""

import re

import torch

from export.definition import from_model_file
from models import data, digits
from tests.conftest import ROOT

TOUR = (ROOT / "docs" / "tour.md").read_text()


def test_its_mistakes_and_its_units_are_those_of_the_page():
    reader = from_model_file(ROOT / "docs" / "tour" / "reader.py").module
    held_out = data.split().held_out
    right = {
        name: int((model(held_out.images).argmax(dim=1) == held_out.labels).sum())
        for name, model in (("digits", digits.build()), ("reader", reader))
    }
    told = {name: f"{count} of {len(held_out)}" for name, count in right.items()}
    assert str(told) in TOUR
    silent = [unit for unit, own in enumerate(reader.features[2].weight) if not own.any()]
    assert re.findall(r"^(\[\d+, .*\])$", TOUR, re.M) == [str(silent)] * 2
    with torch.no_grad():
        fired = (
            reader.features[:4](held_out.images.unsqueeze(1) / 8.0 - 1.0).flatten(2).any(2).any(0)
        )
    assert (~fired).nonzero().flatten().tolist() == silent
