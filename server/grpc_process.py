"""The process of the gRPC service: `python -m server.grpc_process FILE`, started as the status one.

A process of its own, so that tensors on their way do not delay probes.
"""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from server.grpc_service import InferenceService
from server.lookup import Lookup
from server.settings import Settings
from server.unix_http import Client
from server.watch import DefaultWatch, Watch

__all__ = ["main"]

_THREADS = 32
# More are told to come again.
_CALLS = 256


def main(settings: Settings) -> None:
    """Answer until told to end."""
    catalog = settings.catalog()
    service = InferenceService(
        catalog,
        Watch(Path(settings.condition)),
        Lookup(catalog, DefaultWatch(settings.management)),
        Client(settings.front),
        settings.patience,
    )
    largest = ("grpc.max_receive_message_length", settings.max_body)
    server = grpc.server(
        ThreadPoolExecutor(_THREADS),
        handlers=[service.handler()],
        options=[largest, ("grpc.max_send_message_length", -1)],
        maximum_concurrent_rpcs=_CALLS,
    )
    server.add_insecure_port(f"unix:{settings.grpc_socket}")
    server.start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(grace=1).wait()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(Settings.read(Path(sys.argv[1])))
