"""LitServe: one API process, `workers` processes with the model, batches of up to 16."""

import base64
import json
import os
from pathlib import Path

import litserve
import numpy as np
import torch

SETTINGS = json.loads(Path(os.environ["PEER_SETTINGS"]).read_text(encoding="utf-8"))


class Frozen(litserve.LitAPI):
    """The frozen model; JSON in and out, an image as base64."""

    def setup(self, device):
        """Load the model in a worker."""
        torch.set_num_threads(1)
        self.model = torch.jit.freeze(torch.jit.load(SETTINGS["model"]).eval())

    def decode_request(self, request):
        """Read one row."""
        if SETTINGS["binary"]:
            row = np.frombuffer(base64.b64decode(request["inputs"]), np.float32)
            return torch.from_numpy(row.reshape(SETTINGS["shape"]))
        return torch.tensor(request["inputs"])

    def batch(self, inputs):
        """Stack rows."""
        return torch.stack(inputs)

    def predict(self, x):
        """Run the model on a batch."""
        with torch.inference_mode():
            return self.model(x)

    def unbatch(self, output):
        """Take the rows apart."""
        return output.tolist()

    def encode_response(self, output):
        """Answer one row."""
        return {"outputs": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        Frozen(max_batch_size=SETTINGS["batch"], batch_timeout=SETTINGS["delay_ms"] / 1000),
        accelerator="cpu",
        devices=1,
        workers_per_device=SETTINGS["workers"],
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=SETTINGS["port"],
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
