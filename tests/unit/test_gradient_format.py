import math

import pytest
import torch

from engine.statistics import summarise_rows
from formats.gradient import gradient_flow
from formats.observation import merge_gradient
from formats.statistics import GradientStatistics, LayerRecord


def record(norm, non_finite=0, elements=4):
    numbers = GradientStatistics(elements, 0.0, 0.0, 0.0, 0.0, 0.0, non_finite, norm)
    return LayerRecord(numbers)


def flags(**norms):
    flow = gradient_flow("y", {name: record(norm) for name, norm in norms.items()})
    return flow.vanishing, flow.exploding


def test_norms_are_compared_with_the_layer_where_the_way_back_begins():
    assert flags(a=0.5, b=2.0, c=1.0) == ((), ())
    assert flags(a=0.9e-3, b=1.1e-3, c=1.0) == (("a",), ())
    assert flags(a=1.1e3, b=0.9e3, c=1.0) == ((), ("a",))
    # The last layer itself may have lost all of it; then it begins before that.
    assert flags(a=1.0, b=1.0, c=0.0) == (("c",), ())
    assert flags(a=0.0, b=0.0) == (("a", "b"), ())


def test_what_is_not_finite_explodes_and_an_empty_gradient_is_nothing():
    layers = {"a": record(None), "b": record(1.0, non_finite=1), "c": record(None, elements=0)}
    flow = gradient_flow("y", layers)
    assert (flow.vanishing, flow.exploding) == ((), ("a", "b"))


@pytest.mark.parametrize("shape", [(3, 5), (2, 4096), (1, 7), (2, 3, 4)])
def test_the_norm_is_that_of_torch(shape):
    gradient = torch.randn(shape) + 3
    found = []
    facts = []
    summarise_rows(gradient, 0, found, facts)
    vectors = [vector.tolist() for vector in found]
    for units, part in [(range(shape[0]), gradient), (range(1), gradient[:1])]:
        own = merge_gradient(vectors, facts[1], units, None)
        assert math.isclose(own.norm, float(torch.linalg.vector_norm(part)), rel_tol=1e-5)
        assert own.elements == part.numel()
