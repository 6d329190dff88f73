"""A handler for TorchServe as its documentation writes one: a subclass of its BaseHandler."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler

SETTINGS = json.loads(Path(os.environ["PEER_SETTINGS"]).read_text(encoding="utf-8"))


class Handler(BaseHandler):
    """The frozen model: JSON to JSON, raw float32 to raw float32."""

    def initialize(self, context):
        """Load the model, and freeze it, which BaseHandler does not."""
        super().initialize(context)
        torch.set_num_threads(1)
        self.model = torch.jit.freeze(self.model)

    def preprocess(self, data):
        """Stack the rows of a batch."""
        bodies = [row.get("data") or row.get("body") for row in data]
        if SETTINGS["binary"]:
            rows = [np.frombuffer(body, np.float32) for body in bodies]
            return torch.from_numpy(np.stack(rows).reshape(-1, *SETTINGS["shape"]))
        return torch.tensor([body["inputs"] for body in bodies], dtype=torch.float32)

    def postprocess(self, output):
        """Take the rows apart."""
        if SETTINGS["binary"]:
            return [row.tobytes() for row in output.numpy()]
        return output.tolist()
