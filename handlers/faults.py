"""What torch raises while a model runs, as errors that the client is told."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from handlers.errors import ModelError, RequestError

__all__ = ["differentiating", "guarded"]

_RAISED = (MemoryError, RuntimeError, IndexError, ValueError, torch.jit.Error)


@contextmanager
def guarded() -> Iterator[None]:
    """Run a model in this context.

    Raises:
        ModelError: the module raised; the message is the innermost line of its error.
        RequestError: there was not enough memory (status 507).
    """
    try:
        yield
    except _RAISED as error:
        raise _model_error(error) from error


@contextmanager
def differentiating() -> Iterator[None]:
    """Run a backward pass in this context.

    Raises:
        RequestError: an operation has no gradient, or there was not enough memory (status 507).
    """
    try:
        yield
    except _RAISED as error:
        if _is_out_of_memory(error):
            raise _model_error(error) from error
        raise RequestError(
            "not_differentiable",
            f"the model has no gradient for this input: {_last_line(error)}",
            expected="a model whose operations have gradients",
        ) from error


def _model_error(error: Exception) -> RequestError:
    if _is_out_of_memory(error):
        return RequestError("out_of_memory", "not enough memory for this request", status=507)
    last = _last_line(error)
    print(f"vitrine: the model raised: {last}", file=sys.stderr, flush=True)
    return ModelError(
        "model_refused",
        f"the model could not process this input: {last}",
        expected="an input that the model's own code accepts",
    )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def _last_line(error: Exception) -> str:
    """Return what an error says; TorchScript's end with it, above it stands the source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ascii(lines[-1] if lines else type(error).__name__)[1:-1][:500]
