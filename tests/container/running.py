"""A container of the image, and how the host reaches it."""

import time
from dataclasses import dataclass

from docker.models.containers import Container

HEALTHY_SECONDS = 180


@dataclass(frozen=True)
class Running:
    """A container and how the host reaches it."""

    container: Container

    def port(self, inside: int = 8080) -> int:
        """The host's port for one of the container's."""
        self.container.reload()
        return int(self.container.ports[f"{inside}/tcp"][0]["HostPort"])

    @property
    def url(self) -> str:
        """Base URL of the inference API."""
        return f"http://127.0.0.1:{self.port()}"

    @property
    def health(self) -> str:
        """What the engine says: starting, healthy or unhealthy."""
        self.container.reload()
        return str(self.container.attrs["State"]["Health"]["Status"])

    @property
    def log(self) -> str:
        """What the container printed."""
        return self.container.logs().decode()

    def exec(self, *command: str) -> tuple[int, str]:
        """Run a command inside.

        Returns:
            Its exit code and output.
        """
        code, output = self.container.exec_run(list(command))
        return code, output.decode()

    def wait_healthy(self) -> None:
        """Wait until the engine says healthy; fail if the container ends or takes too long."""
        deadline = time.monotonic() + HEALTHY_SECONDS
        while self.health != "healthy":
            assert self.container.status == "running", self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.5)
