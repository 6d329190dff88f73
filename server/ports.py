"""Which ports TorchServe gets, and whether they are free."""

import errno
import socket
from contextlib import ExitStack
from dataclasses import replace

from server.config import Addresses
from server.errors import UsageError

__all__ = ["check_free", "choose"]

_HIGHEST = 65534  # TorchServe refuses 65535.


def choose(addresses: Addresses, port: int | None, bind: str | None) -> Addresses:
    """Move the addresses of the configuration to what the command line asks for.

    Args:
        addresses: What the configuration says.
        port: None leaves the ports; 0 takes free ones from the operating system; N gives
            inference N, management N+1, metrics N+2 and gRPC N+3 and N+4.
        bind: Address of the inference API, or None to leave it.

    Raises:
        UsageError: The address or the port is not one that TorchServe accepts.
    """
    if bind is not None:
        if ":" in bind or not bind:
            raise UsageError(
                f"--bind {bind!r} is not an IPv4 address or a host name, all that TorchServe "
                "listens on; use for example 127.0.0.1 or 0.0.0.0."
            )
        addresses = replace(addresses, bind=bind)
    if port is None:
        return addresses
    if port == 0:
        numbers = _free(addresses)
    elif 1 <= port <= _HIGHEST - 4:
        numbers = [port + offset for offset in range(5)]
    else:
        raise UsageError(
            f"--port {port} is out of range: expected 0, or 1 to {_HIGHEST - 4}, because the "
            "four ports after it are used too."
        )
    inference, management, metrics, grpc_inference, grpc_management = numbers
    return replace(
        addresses,
        inference=inference,
        management=management,
        metrics=metrics,
        grpc_inference=grpc_inference,
        grpc_management=grpc_management,
    )


def check_free(addresses: Addresses) -> None:
    """Find out whether TorchServe will be able to listen.

    Raises:
        UsageError: A port is in use, needs privileges, or the address is not this machine's.
    """
    for purpose, (host, port) in addresses.ports.items():
        try:
            with _bound(host, port):
                pass
        except OSError as error:
            raise UsageError(_explain(error, purpose, host, port)) from None


def _explain(error: OSError, purpose: str, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host}, for {purpose}, is in use by another program; stop that "
            "program, or choose other ports with --port N (N to N+4), or --port 0 for any."
        )
    if error.errno == errno.EACCES:
        return f"Port {port}, for {purpose}, needs privileges; choose one from 1024 with --port."
    return (
        f"Cannot listen on {host}:{port}, for {purpose} ({error.strerror or error}); "
        "--bind takes an address of this machine."
    )


def _bound(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # As TorchServe does: without it, connections just closed make the port look taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _free(addresses: Addresses) -> list[int]:
    with ExitStack() as held:  # All at once, so that they differ.
        try:
            sockets = [held.enter_context(_bound(host, 0)) for host, _ in addresses.ports.values()]
        except OSError as error:
            raise UsageError(_explain(error, "inference", addresses.bind, 0)) from None
        return [int(listener.getsockname()[1]) for listener in sockets]
