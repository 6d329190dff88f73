"""What every suite shares: where things are, and archives exported once a session."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from playwright.sync_api import sync_playwright
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from export.definition import from_model_file
from export.pipeline import Exported, export_model

ROOT = Path(__file__).resolve().parent.parent
MODEL_FILES = ROOT / "tests" / "model_files"

# Small models gain nothing from more, and lose much as soon as another process wants a core.
torch.set_num_threads(1)

# Of tests/unit/test_fuzz.py. CI runs the same cases each time; `scripts/fuzz` runs new ones.
_ANY_SPEED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("short", max_examples=300, derandomize=True, **_ANY_SPEED)
settings.register_profile("long", max_examples=60_000, **_ANY_SPEED)
settings.load_profile("short")


def model_file(name: str) -> Path:
    """Return a model file of `tests/model_files`, or else of `models`."""
    own = MODEL_FILES / f"{name}.py"
    return own if own.exists() else ROOT / "models" / f"{name}.py"


class Together(LoadScopeScheduling):
    """Tests of one file run in one process, and so do suites with something costly to share."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        suite = path.rpartition("/")[0]
        return path if suite == "tests/unit" else suite


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together:
    """Say which tests share a process, where there are several."""
    return Together(config, log)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Export a model file of `tests/model_files` or `models`, once a session."""
    store = tmp_path_factory.mktemp("store")
    done: dict[str, Exported] = {}

    def export(name: str) -> Exported:
        if name not in done:
            done[name] = export_model(from_model_file(model_file(name)), store)
        return done[name]

    return export


@pytest.fixture(scope="module")
def browser():
    """A real Chromium, the system's; skipped without one, and failing in CI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium; what people see is tested in one")
        pytest.skip("no Chromium")
    # It has no sandbox for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()
