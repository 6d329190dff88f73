"""MLServer: adaptive batching; with `workers` 0 the model runs in the server's own process."""

import base64
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

SETTINGS = json.loads(Path(os.environ["PEER_SETTINGS"]).read_text(encoding="utf-8"))


class Frozen(MLModel):
    """The frozen model behind the Open Inference Protocol; an image as base64 (BYTES)."""

    async def load(self) -> bool:
        """Load the model in the process that runs it."""
        torch.set_num_threads(1)
        self.frozen = torch.jit.freeze(torch.jit.load(SETTINGS["model"]).eval())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one batch."""
        given = payload.inputs[0]
        if SETTINGS["binary"]:
            rows = [np.frombuffer(base64.b64decode(row), np.float32) for row in given.data]
            x = torch.from_numpy(np.stack(rows).reshape(-1, *SETTINGS["shape"]))
        else:
            x = torch.tensor(given.data.root, dtype=torch.float32).reshape(given.shape)
        with torch.inference_mode():
            output = self.frozen(x).numpy()
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(SETTINGS["output"], output)]
        )


def main() -> None:
    """Write MLServer's two files of settings into the working folder, and become MLServer."""
    Path("settings.json").write_text(
        json.dumps(
            {
                "debug": False,
                "host": "127.0.0.1",
                "http_port": SETTINGS["port"],
                "grpc_port": SETTINGS["spare_ports"][0],
                "metrics_endpoint": None,
                "parallel_workers": SETTINGS["workers"],
                "gzip_enabled": False,
                "logging_settings": {"version": 1, "root": {"level": "WARNING"}},
            }
        ),
        encoding="utf-8",
    )
    Path("model-settings.json").write_text(
        json.dumps(
            {
                "name": SETTINGS["name"],
                "implementation": "server.Frozen",
                "max_batch_size": SETTINGS["batch"],
                "max_batch_time": SETTINGS["delay_ms"] / 1000,
            }
        ),
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execve(program, [program, "start", "."], environment)


if __name__ == "__main__":
    main()
