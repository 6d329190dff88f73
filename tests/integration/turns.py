"""Requests of two forms at once, which share batches."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor


def assert_both_are_right(
    server: Any, digits: Any, other: Callable[[Tensor], Any], threads: int
) -> None:
    """Ask for each of 16 digits alone, in plain JSON and in another form by turns.

    Args:
        server: the running one.
        digits: the definition of the model.
        other: asks in the other form; returns the probabilities of its rows.
        threads: how many ask at a time.
    """
    (x,) = digits.examples[3]
    with torch.no_grad():
        wanted = digits.module(x).numpy()

    def ask(row: int) -> Any:
        own = x[row : row + 1]
        if row % 2:
            return other(own)
        answer = server.post("/predictions/digits", {"inputs": own.tolist()})
        return np.array(answer.json()["outputs"]["probabilities"])

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(ask, range(len(x))))
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-5, atol=1e-5)
