"""TorchServe with a handler of the usual kind: in its stock settings, and tuned by hand."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Final

from benchmarks.serving.environments import PEERS
from benchmarks.serving.prepared import Prepared, write_settings
from benchmarks.serving.running import Launch, free_ports
from server.java import find_java

__all__ = ["stock", "tuned"]

_FOLDER: Final = PEERS / "torchserve"
_PORTS: Final = ("inference", "management", "metrics")


def stock(prepared: Prepared, workers: int) -> Launch:
    """Everything as TorchServe comes, ports apart: no batching, a worker a core, all its logs."""
    del workers  # its own default
    return _launch(prepared, "torchserve", "", {})


def tuned(prepared: Prepared, workers: int) -> Launch:
    """Batches of up to 16 after at most 1 ms, no log of requests, as many workers as do best."""
    model = f"batchSize: 16\nmaxBatchDelay: 1\nminWorkers: {workers}\nmaxWorkers: {workers}\n"
    logging = (_FOLDER / "log4j2.xml").as_uri()
    config = {"vmargs": f"-Dlog4j.configurationFile={logging}", "disable_system_metrics": "true"}
    return _launch(prepared, "torchserve-tuned", model, config)


def _launch(prepared: Prepared, name: str, model_config: str, config: dict[str, str]) -> Launch:
    folder, work = prepared.folder(name), prepared.work
    archive = f"{work.model}.mar"
    _write_archive(folder / archive, prepared, model_config)
    ports = free_ports(len(_PORTS) + 2)
    addresses = {
        f"{kind}_address": f"http://127.0.0.1:{port}"
        for kind, port in zip(_PORTS, ports, strict=False)
    }
    grpc = {"grpc_inference_port": str(ports[-2]), "grpc_management_port": str(ports[-1])}
    lines = [f"{key}={value}" for key, value in {**addresses, **grpc, **config}.items()]
    (folder / "config.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = write_settings(
        folder / "peer.json", {"binary": work.binary, "shape": list(work.shape)}
    )
    environment = {
        **settings,
        "JAVA_HOME": str(find_java().executable.resolve().parent.parent),
        "TMPDIR": str(folder),
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    command = [str(Path(sys.executable).with_name("torchserve")), "--start", "--foreground"]
    command += ["--ncs", "--disable-token-auth", "--model-store", str(folder)]
    command += ["--ts-config", str(folder / "config.properties"), "--models", archive]
    return Launch(command, folder, environment, lambda: f"127.0.0.1:{ports[0]}")


def _write_archive(path: Path, prepared: Prepared, model_config: str) -> None:
    model = {
        "modelName": prepared.work.model,
        "serializedFile": "model.pt",
        "handler": "handler.py",
        "modelVersion": "1.0",
    }
    if model_config:
        model["configFile"] = "model-config.yaml"
    manifest = {"runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.write(prepared.model, "model.pt")
        archive.write(_FOLDER / "handler.py", "handler.py")
        if model_config:
            archive.writestr("model-config.yaml", model_config)
