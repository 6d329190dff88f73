"""TorchServe's configuration: `config.properties` and what the command line adds to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from server.errors import UsageError

__all__ = ["DEFAULT_CONFIG", "Addresses", "Config", "parse_properties"]

#: The configuration that is read where no other is named.
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "config.properties"


def parse_properties(text: str) -> dict[str, str]:
    """Read the `key=value` lines of a properties file; the last line of a key counts.

    Only what TorchServe's own launcher understands: no line continued on the next.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith(("#", "!")):
            found[key.strip()] = value.strip()
    return found


@dataclass(frozen=True)
class Addresses:
    """Where TorchServe listens.

    Attributes:
        bind: Address of the inference API; the others stay on `local`.
        inference, management, metrics, grpc_inference, grpc_management: Ports.
        local: Address of everything but inference.
        tls: Whether the inference API speaks TLS.
    """

    bind: str
    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int
    local: str = "127.0.0.1"
    tls: bool = False

    @property
    def ports(self) -> dict[str, tuple[str, int]]:
        """Host and port by the name of what listens there."""
        return {
            "inference": (self.bind, self.inference),
            "management": (self.local, self.management),
            "metrics": (self.local, self.metrics),
            "gRPC inference": (self.local, self.grpc_inference),
            "gRPC management": (self.local, self.grpc_management),
        }

    @property
    def inference_url(self) -> str:
        """Base URL of the inference API, as reached from this machine."""
        everywhere = self.bind == "0.0.0.0"  # noqa: S104 (compared, not bound)
        host = "127.0.0.1" if everywhere else self.bind
        return f"{'https' if self.tls else 'http'}://{host}:{self.inference}"

    @property
    def management_url(self) -> str:
        """Base URL of the management API."""
        return f"http://{self.local}:{self.management}"

    @property
    def metrics_url(self) -> str:
        """Base URL of the metrics API."""
        return f"http://{self.local}:{self.metrics}"

    def overrides(self) -> dict[str, str]:
        """These addresses as TorchServe's settings."""
        return {
            "inference_address": f"http://{self.bind}:{self.inference}",
            "management_address": self.management_url,
            "metrics_address": self.metrics_url,
            "grpc_inference_address": self.local,
            "grpc_inference_port": str(self.grpc_inference),
            "grpc_management_address": self.local,
            "grpc_management_port": str(self.grpc_management),
        }


@dataclass(frozen=True)
class Config:
    """A configuration file as read.

    Attributes:
        path: The file; relative paths in it are relative to its folder.
        text: Its text.
        settings: Its settings.
    """

    path: Path
    text: str
    settings: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read a configuration file.

        Raises:
            UsageError: It cannot be read.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"The configuration {path} cannot be read ({error.strerror}); "
                "name one with --config."
            ) from None
        return cls(path.resolve(), text, parse_properties(text))

    @property
    def model_store(self) -> Path:
        """The folder that `model_store` names."""
        return self.path.parent / self.settings.get("model_store", "model_store")

    @property
    def max_body(self) -> int:
        """Bytes that a request's body may have."""
        return int(self.settings.get("max_request_size", "6553500"))

    @property
    def model_seconds(self) -> int:
        """Seconds that a model may take for a batch."""
        return int(self.settings.get("default_response_timeout", "120"))

    def addresses(self) -> Addresses:
        """Where this configuration lets TorchServe listen.

        Raises:
            UsageError: An address or a port is not one.
        """
        bind, inference = self._address("inference_address", 8080)
        local, management = self._address("management_address", 8081)
        _, metrics = self._address("metrics_address", 8082)
        return Addresses(
            bind=bind,
            inference=inference,
            management=management,
            metrics=metrics,
            grpc_inference=self._port("grpc_inference_port", 7070),
            grpc_management=self._port("grpc_management_port", 7071),
            local=local,
        )

    def merged(self, overrides: Mapping[str, str]) -> str:
        """The text that TorchServe is given: this file, then the overrides, which win."""
        lines = [f"{key}={value.replace(chr(92), chr(92) * 2)}" for key, value in overrides.items()]
        return "\n".join([self.text.rstrip(), "", "# From the command line.", *lines, ""])

    def _address(self, key: str, port: int) -> tuple[str, int]:
        value = self.settings.get(key, f"http://127.0.0.1:{port}")
        try:
            parts = urlsplit(value)
            if parts.scheme != "http" or not parts.hostname or not parts.port:
                raise ValueError
            return parts.hostname, parts.port
        except ValueError:
            raise UsageError(
                f"{key} in {self.path} is {value!r}; expected http://ADDRESS:PORT."
            ) from None

    def _port(self, key: str, port: int) -> int:
        value = self.settings.get(key, str(port))
        if not value.isdigit():
            raise UsageError(f"{key} in {self.path} is {value!r}; expected a port number.")
        return int(value)
