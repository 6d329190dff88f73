"""How far rounding alone may move an answer: measured, by moving weights and inputs by a last bit.

A tolerance that is a share of an answer's largest value lets one large value, as a mask of -1e9,
hide errors in all others. What rounding does to each value is the module's own: a sum in another
order moves it about as much as weights and inputs that are off by their last bit. The idea is that
of random perturbation, as in CADNA's stochastic arithmetic (Vignes, 1993).
"""

import copy
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor

from export.eager import answer
from export.inputs import Example

__all__ = ["Rounding"]

_COPIES: Final = 2


class Rounding:
    """Knows how an answer moves when nothing but last bits change.

    Args:
        module: eager or scripted; it is copied. Where it cannot be copied, only inputs are moved.
        dtype: what it computes in, where that is less precise than its inputs and outputs.
    """

    def __init__(self, module: Any, dtype: torch.dtype | None = None) -> None:
        self._module = module
        self._dtype = dtype
        self._copies: list[Any] | None = None

    def __call__(self, case: Example) -> list[Tensor]:
        """Return, for each of the module's flat outputs, how far each value moved, float64.

        Nothing is returned where the module raises.
        """
        # Its own answers, not those that it is compared with: what is to be found is no noise.
        try:
            answers = [tensor for _, tensor in answer(self._module, case)]
        except Exception:
            return []
        noise = [self._last_bit(tensor) for tensor in answers]
        for seed, module in enumerate(self._moved()):
            generator = torch.Generator().manual_seed(seed)
            moved = tuple(_jittered(tensor, generator, self._dtype) for tensor in case)
            # What raises now sits on an edge, and says nothing of rounding.
            with suppress(Exception):
                found = [tensor for _, tensor in answer(module, moved)]
                for place, (old, new) in enumerate(zip(answers, found, strict=True)):
                    noise[place] = torch.maximum(noise[place], _gap(old, new))
        return noise

    def _last_bit(self, answer: Tensor) -> Tensor:
        if self._dtype is None or not answer.is_floating_point():
            return torch.zeros(answer.shape, dtype=torch.float64)
        return answer.to(torch.float64).abs().nan_to_num(0.0, 0.0, 0.0) * _half_bit(self._dtype)

    def _moved(self) -> list[Any]:
        if self._copies is None:
            self._copies = [
                _with_jitter(self._module, seed, self._dtype) for seed in range(_COPIES)
            ]
        return self._copies


def _with_jitter(module: Any, seed: int, dtype: torch.dtype | None) -> Any:
    generator = torch.Generator().manual_seed(seed)
    try:
        own = copy.deepcopy(module)
        with torch.no_grad():
            for tensor in (*own.parameters(), *own.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(_jittered(tensor, generator, dtype))
    except Exception:
        return module
    return own


def _half_bit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _jittered(tensor: Tensor, generator: torch.Generator, dtype: torch.dtype | None) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    step = (signs * torch.finfo(dtype or tensor.dtype).eps).to(tensor.dtype)
    return tensor + tensor * step.to(tensor.device)


def _gap(old: Tensor, new: Tensor) -> Tensor:
    if old.is_complex():
        return _gap(torch.view_as_real(old), torch.view_as_real(new)).amax(-1)
    gap = (old.to(torch.float64) - new.to(torch.float64)).abs()
    return torch.nan_to_num(gap, 0.0, 0.0, 0.0)
