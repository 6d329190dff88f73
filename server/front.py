"""HAProxy before TorchServe: it listens on the public address, and its errors have our form.

`haproxy.cfg` is the whole of its configuration; what differs from run to run comes from the
environment, which HAProxy fills in itself.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.access import Access
from server.admin import Admin
from server.config import Addresses, Config
from server.errors import UsageError
from server.keys import Key, map_lines
from server.limits import ClientLimits, open_files
from server.refresh import Source
from server.versions import NO_SHARE, Share

__all__ = ["WITHOUT", "Front", "find_haproxy", "patience"]

#: What is said where there is none.
WITHOUT = (
    "No front (HAProxy): errors that TorchServe answers itself have its own form, /ping, /v2 and "
    "/v1/models say what it says, and there is no request log; see docs/endpoints.md."
)
_CONFIG = Path(__file__).resolve().parent / "haproxy.cfg"
# How long a request may wait for its turn, on top of the time that a model may take.
_WAITING_SECONDS = 30


def find_haproxy(wanted: bool | None) -> Path | None:
    """Find the program.

    Args:
        wanted: Whether there has to be a front; None for where HAProxy is installed.

    Raises:
        UsageError: It is wanted, and not installed.
    """
    found = shutil.which("haproxy") if wanted is not False else None
    if found is None and wanted:
        raise UsageError("No haproxy on the PATH; install HAProxy 2.6 or newer, or use --no-front.")
    return Path(found) if found else None


def patience(config: Config) -> int:
    """Seconds that a request may take, its turn in the queue included."""
    return config.model_seconds + _WAITING_SECONDS


@dataclass(frozen=True)
class Front:
    """One run of HAProxy.

    Attributes:
        executable: The program.
        scratch: The folder of the sockets behind it, which nobody else can enter.
        addresses: Where it listens, as the inference API.
        access: Who may ask.
        share: The part of a model's requests that goes to one version.
    """

    executable: Path
    scratch: Path
    addresses: Addresses
    access: Access = field(default_factory=Access)
    share: Share = NO_SHARE

    @property
    def status_socket(self) -> Path:
        """Where the status service listens."""
        return self.scratch / "status.sock"

    @property
    def grpc_socket(self) -> Path:
        """Where the gRPC service listens."""
        return self.scratch / "grpc.sock"

    @property
    def own_socket(self) -> Path:
        """Where the front listens for the gRPC service."""
        return self.scratch / "front.sock"

    @property
    def inference_socket(self) -> Path:
        """Where TorchServe's inference API listens."""
        return self.scratch / "inference.sock"

    @property
    def admin_socket(self) -> Path:
        """Where it takes commands while it runs."""
        return self.scratch / "admin.sock"

    @property
    def marks_file(self) -> Path:
        """The map of `server.marks`; has to exist when it starts."""
        return self.scratch / "marks.map"

    @property
    def key_map(self) -> Path:
        """The file that it reads digests of keys from at its start."""
        return self.scratch / "keys.map"

    def prepare(self) -> None:
        """Write what it reads at its start.

        Raises:
            UsageError: The keys cannot be used.
        """
        keys = self.access.read_keys()
        if keys is not None:
            self.key_map.write_text("".join(f"{line}\n" for line in map_lines(keys)), "ascii")

    def sources(self) -> list[Source]:
        """The files that may change while it runs."""
        admin = Admin(self.admin_socket)
        found = []
        if self.access.keys is not None:

            def use_keys(keys: list[Key]) -> None:
                admin.replace_map(self.key_map, map_lines(keys))

            found.append(Source("API keys", self.access.read_keys, use_keys))
        if self.access.tls is not None:
            name = self.access.tls

            def use_certificate(pem: str) -> None:
                admin.replace_certificate(name, pem)

            found.append(Source("TLS certificate", self.access.read_certificate, use_certificate))
        return found

    @property
    def metrics_socket(self) -> Path:
        """Where TorchServe's metrics are."""
        return self.scratch / "metrics.sock"

    def overrides(self) -> dict[str, str]:
        """TorchServe's settings: it gives the public address up, and that of the metrics."""
        return {
            "inference_address": f"unix:{self.inference_socket}",
            "metrics_address": f"unix:{self.metrics_socket}",
        }

    def command(self) -> list[str]:
        """The command line that runs it in the foreground."""
        return [str(self.executable), "-db", "-f", str(_CONFIG)]

    def environment(
        self,
        config: Config,
        drain_seconds: int,
        environ: Mapping[str, str] = os.environ,
        *,
        requests: int = 2,
    ) -> dict[str, str]:
        """What `haproxy.cfg` fills in.

        Args:
            config: TorchServe's configuration.
            drain_seconds: What requests in flight have, once a stop was asked for.
            environ: This process's own.
            requests: The file descriptor for a line about each request (2: standard error).

        Raises:
            UsageError: A limit in the configuration is none.
        """
        limits = ClientLimits.read(config.settings, open_files())
        chosen = {
            "VITRINE_CLIENT_RATE": limits.rate,
            "VITRINE_KEYS": self.access.keys and self.key_map,
            "VITRINE_CERTIFICATE": self.access.tls,
        }
        return {
            # The configuration asks whether there are the chosen ones at all.
            **{name: value for name, value in environ.items() if name not in chosen},
            **{name: str(value) for name, value in chosen.items() if value},
            "VITRINE_CONNECTIONS": str(limits.connections),
            "VITRINE_CLIENT_CONNECTIONS": str(limits.per_client),
            "VITRINE_ADMIN": f"unix@{self.admin_socket}",
            "VITRINE_BIND": f"{self.addresses.bind}:{self.addresses.inference}",
            "VITRINE_STATUS": f"unix@{self.status_socket}",
            "VITRINE_GRPC": f"unix@{self.grpc_socket}",
            "VITRINE_INSIDE": f"unix@{self.own_socket}",
            "VITRINE_TORCHSERVE": f"unix@{self.inference_socket}",
            "VITRINE_REQUEST_PIPE": f"fd@{requests}",
            "VITRINE_MAX_BODY": str(config.max_body),
            "VITRINE_MODEL_MS": str(1000 * config.model_seconds),
            "VITRINE_ANSWER_SECONDS": str(patience(config)),
            "VITRINE_DRAIN_SECONDS": str(drain_seconds),
            "VITRINE_MARKS": str(self.marks_file),
            "VITRINE_SHARE_MODEL": self.share.model,
            "VITRINE_SHARE_VERSION": self.share.version,
            "VITRINE_SHARE_PERCENT": str(self.share.percent),
        }
