"""What torch raises while a model runs: errors that the client is told, or the worker's end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from handlers.errors import ModelError, RequestError

__all__ = ["DeviceLost", "check_device", "differentiating", "guarded", "is_device_lost"]

_RAISED = (MemoryError, RuntimeError, IndexError, ValueError, torch.jit.Error)
# What CUDA says of the errors after which "the process must be terminated and relaunched":
# https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html (cudaError).
_STICKY: Final = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "device-side assert triggered",
    "invalid program counter",
    "misaligned address",
    "operation not supported on global/shared address space",
    "hardware stack error",
    "the launch timed out and was terminated",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "context is destroyed",
)


class DeviceLost(BaseException):
    """Every later call on the GPU fails in this process: it has to end, and another to start.

    No `Exception`, so that nothing on its way takes it for the fault of one request.
    """


@contextmanager
def guarded() -> Iterator[None]:
    """Run a model in this context.

    Raises:
        ModelError: the module raised; the message is the innermost line of its error.
        RequestError: there was not enough memory (status 507).
        DeviceLost: the GPU cannot be used any more.
    """
    try:
        yield
    except _RAISED as error:
        check_device(error)
        raise _model_error(error) from error


@contextmanager
def differentiating() -> Iterator[None]:
    """Run a backward pass in this context.

    Raises:
        RequestError: an operation has no gradient, or there was not enough memory (status 507).
        DeviceLost: the GPU cannot be used any more.
    """
    try:
        yield
    except _RAISED as error:
        check_device(error)
        if _is_out_of_memory(error):
            raise _model_error(error) from error
        raise RequestError(
            "not_differentiable",
            f"the model has no gradient for this input: {_last_line(error)}",
            expected="a model whose operations have gradients",
        ) from error


def is_device_lost(error: BaseException) -> bool:
    """Whether an error, of `torch.AcceleratorError` or wrapped by TorchScript, stays for good.

    Not enough memory does not, nor does an argument that a kernel refuses.
    """
    text = str(error)
    if _is_out_of_memory(error) or not ("CUDA" in text or _is_accelerators(error)):
        return False
    return any(sticky in text for sticky in _STICKY) or _stays()


def check_device(error: Exception) -> None:
    """Look whether the GPU can still be used.

    Raises:
        DeviceLost: the error says that it cannot.
    """
    if is_device_lost(error):
        lines = [line.strip() for line in str(error).splitlines() if "CUDA" in line]
        raise DeviceLost(ascii(lines[0] if lines else type(error).__name__)[1:-1][:500]) from error


def _is_accelerators(error: BaseException) -> bool:
    # Newer than the oldest torch that an archive may meet.
    kind = getattr(torch, "AcceleratorError", None)
    return kind is not None and isinstance(error, kind)


def _stays() -> bool:
    """Whether a GPU that was used fails again where nothing is wrong."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


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


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def _last_line(error: Exception) -> str:
    """Return what an error says; TorchScript's end with it, above it stands the source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ascii(lines[-1] if lines else type(error).__name__)[1:-1][:500]
