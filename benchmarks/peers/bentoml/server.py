"""BentoML: `workers` processes that share the port, each with adaptive batching."""

import base64
import json
import os
import sys
from pathlib import Path

import bentoml
import numpy as np
import torch

SETTINGS = json.loads(Path(os.environ["PEER_SETTINGS"]).read_text(encoding="utf-8"))
_OFF = {"enabled": False}


@bentoml.service(
    workers=SETTINGS["workers"],
    traffic={"timeout": 60},
    metrics=_OFF,
    logging={"access": _OFF},
)
class Frozen:
    """The frozen model; JSON in and out, an image as base64."""

    def __init__(self) -> None:
        """Load the model in a worker."""
        torch.set_num_threads(1)
        self.model = torch.jit.freeze(torch.jit.load(SETTINGS["model"]).eval())

    def _run(self, x: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.model(x).numpy()

    @bentoml.api(batchable=True, max_batch_size=SETTINGS["batch"], max_latency_ms=10_000)
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Answer a batch of rows."""
        return self._run(torch.from_numpy(inputs.astype(np.float32)))

    @bentoml.api
    def predict_one(self, inputs: np.ndarray) -> np.ndarray:
        """Answer a row."""
        return self._run(torch.from_numpy(inputs[None].astype(np.float32)))

    @bentoml.api(batchable=True, max_batch_size=SETTINGS["batch"], max_latency_ms=10_000)
    def predict_base64(self, inputs: list[str]) -> np.ndarray:
        """Answer a batch of rows, each the base64 of raw float32."""
        return self._run(_rows(inputs))

    @bentoml.api
    def predict_one_base64(self, inputs: str) -> np.ndarray:
        """Answer a row that comes as the base64 of raw float32."""
        return self._run(_rows([inputs]))


def _rows(texts: list[str]) -> torch.Tensor:
    rows = [np.frombuffer(base64.b64decode(text), np.float32) for text in texts]
    return torch.from_numpy(np.stack(rows).reshape(-1, *SETTINGS["shape"]))


def main() -> None:
    """Become `bentoml serve`."""
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": os.getcwd()}
    folder = str(Path(__file__).parent)
    address = ["--host", "127.0.0.1", "--port", str(SETTINGS["port"])]
    command = [sys.executable, "-m", "bentoml", "serve", "server:Frozen", "--working-dir", folder]
    os.execve(sys.executable, [*command, *address], environment)


if __name__ == "__main__":
    main()
