"""The digit classifier with a fault that somebody planted; VITRINE_TEST_FAULT says which."""

import os

import torch
from torch import nn

from models import digits

VERSION = digits.VERSION
INPUTS = digits.INPUTS
OUTPUTS = digits.OUTPUTS


def build() -> nn.Module:
    """Return the network with the fault in its second convolution."""
    model = digits.build()
    layer = model.features[2]
    fault = os.environ.get("VITRINE_TEST_FAULT", "none")
    with torch.no_grad():
        if fault == "killed_channel":
            layer.weight[5] = 0
            layer.bias[5] = 0
        elif fault == "killed_layer":
            layer.weight.zero_()
            layer.bias.fill_(-1.0)
        elif fault == "nan":
            layer.weight[7, 3, 1, 1] = float("nan")
        elif fault == "infinite":
            layer.bias[7] = float("inf")
        elif fault == "hundredfold":
            layer.weight.mul_(100)
            layer.bias.mul_(100)
        elif fault == "exploding":
            layer.weight.mul_(1e6)
        elif fault == "shrunk":
            layer.weight.mul_(1e-9)
            layer.bias.mul_(1e-9)
        elif fault != "none":
            raise ValueError(f"VITRINE_TEST_FAULT is {fault!r}")
    return model


calibration = digits.calibration
examples = digits.examples
