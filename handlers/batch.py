"""A batch is many people: who may share one run of the model, and whose rows are whose."""

from collections.abc import Iterator, Sequence

import numpy as np

from handlers.decode import Question
from handlers.errors import ModelError
from handlers.values import Array

__all__ = ["groups", "join", "split"]


def groups(questions: Sequence[Question], independent: bool, max_rows: int) -> Iterator[list[int]]:
    """Yield the positions of questions that may run together.

    Args:
        questions: the batch.
        independent: whether rows of different requests may share a run at all.
        max_rows: the most rows that were certified together.

    Yields:
        Lists of positions; every position once. Questions of one group agree in every shape
        but the row axis, and hold at most `max_rows` rows together (one question may hold
        more by itself).
    """
    if not independent:
        yield from ([position] for position in range(len(questions)))
        return
    open_groups: dict[tuple[tuple[int, ...], ...], tuple[list[int], int]] = {}
    for position, question in enumerate(questions):
        key = tuple(array.shape[1:] for array in question.arrays)
        members, rows = open_groups.get(key, ([], 0))
        if members and rows + question.rows > max_rows:
            yield members
            members, rows = [], 0
        open_groups[key] = ([*members, position], rows + question.rows)
    for members, _ in open_groups.values():
        yield members


def join(questions: Sequence[Question]) -> list[Array]:
    """Concatenate the rows of several questions, input by input."""
    if len(questions) == 1:
        return list(questions[0].arrays)
    return [
        np.concatenate(columns)
        for columns in zip(*(question.arrays for question in questions), strict=True)
    ]


def split(
    outputs: Sequence[Array], questions: Sequence[Question], row_axis: bool
) -> list[list[Array]]:
    """Give each question the rows of the outputs that are its own.

    Raises:
        ModelError: an output does not have as many rows as the questions.
    """
    rows = sum(question.rows for question in questions)
    for output in outputs if row_axis else ():
        if output.shape[:1] != (rows,):
            raise ModelError(
                "rows_changed",
                f"the model answered {rows} rows with an output of shape {list(output.shape)}",
                status=500,
                expected="an output row for each input row",
            )
    if len(questions) == 1:
        return [list(outputs)]
    ends = np.cumsum([question.rows for question in questions]).tolist()
    return [
        [output[end - question.rows : end] for output in outputs]
        for question, end in zip(questions, ends, strict=True)
    ]
