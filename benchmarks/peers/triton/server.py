"""Triton through PyTriton: Triton's own HTTP server and batcher, `workers` calls at a time."""

import json
import os
import sysconfig
from pathlib import Path

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

SETTINGS = json.loads(Path(os.environ["PEER_SETTINGS"]).read_text(encoding="utf-8"))


class Frozen:
    """The frozen model."""

    def __init__(self) -> None:
        """Load the model."""
        self.model = torch.jit.freeze(torch.jit.load(SETTINGS["model"]).eval())

    @batch
    def __call__(self, **inputs: np.ndarray) -> list[np.ndarray]:
        """Answer one batch."""
        torch.set_num_threads(1)
        with torch.inference_mode():
            return [self.model(torch.from_numpy(inputs[SETTINGS["input"]].copy())).numpy()]


def main() -> None:
    """Serve until stopped."""
    # Triton runs Python too, and has to find the libpython of this one, not another of the system.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    grpc, metrics = SETTINGS["spare_ports"][:2]
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=SETTINGS["port"],
        grpc_address="127.0.0.1",
        grpc_port=grpc,
        metrics_port=metrics,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config, workspace=str(Path("workspace").resolve())) as triton:
        triton.bind(
            model_name=SETTINGS["name"],
            infer_func=[Frozen() for _ in range(SETTINGS["workers"])],
            inputs=[Tensor(name=SETTINGS["input"], dtype=np.float32, shape=SETTINGS["shape"])],
            outputs=[
                Tensor(name=SETTINGS["output"], dtype=np.float32, shape=(SETTINGS["outputs"],))
            ],
            config=ModelConfig(
                max_batch_size=SETTINGS["batch"],
                batcher=DynamicBatcher(max_queue_delay_microseconds=0),
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
