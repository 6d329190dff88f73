"""The tour, as docs/tour.md has it: its figures, and what the page says.

With VITRINE_SCREENSHOTS=docs/images it draws the tour's pictures anew.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.conftest import ROOT
from tests.integration.conftest import export_all, running

TOUR = (ROOT / "docs" / "tour.md").read_text()
PAGE = {"width": 1100, "height": 1150}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour") / "store"
    export_all([ROOT / "models" / "digits.py", ROOT / "docs" / "tour" / "patient.py"], folder)
    return folder


def send(url, *arguments):
    command = [sys.executable, "docs/tour/send.py", *arguments, "--url", url]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def log(store, tmp_path_factory):
    """The activation log of the tour's requests; each answer as the tour shows it."""
    folder = tmp_path_factory.mktemp("served")
    logging = {
        "VITRINE_ACTIVATION_LOG": "sampled",
        "VITRINE_ACTIVATION_LOG_RATE": "1",
        "VITRINE_ACTIVATION_LOG_DIR": str(folder / "activations"),
    }
    with running(store, folder, **logging) as server:
        for arguments in (["digits"], ["patient"], ["patient", "--blank"]):
            assert send(server.url, *arguments) in TOUR
        assert send(server.url, "digits", "--shifted") in TOUR
        deadline = time.monotonic() + 30
        while lines(folder / "activations") < 1201 and time.monotonic() < deadline:
            time.sleep(0.1)
    return folder / "activations"


def lines(folder):
    return sum(b'"vitrine.activation"' in line for path in folder.glob("*.jsonl")
               for line in path.read_bytes().splitlines())  # fmt: skip


@pytest.fixture(scope="module")
def address(log, store):
    command = [sys.executable, "-m", "observe", "page", str(log), "--port", "0"]
    command += ["--model-store", str(store), "--baseline", f"patient={store / 'digits.mar'}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip().rstrip("/")
        process.terminate()


def drawn(page, name):
    """Draw what is seen, where that is asked for."""
    folder = os.environ.get("VITRINE_SCREENSHOTS")
    if folder:
        path = Path(folder) / f"tour-{name}.png"
        page.screenshot(path=path)
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(128).save(path, optimize=True)


def test_the_patient_is_diagnosed(browser, address, log):
    page = browser.new_page(viewport=PAGE)
    page.goto(f"{address}/m/patient")
    # What comes while the log is still being read is shown two seconds later.
    faults = page.locator("li.is-fault")
    expect(faults).to_have_count(2)
    first, second = faults.all()
    expect(first).to_contain_text("contrast made NaN or infinite values")
    expect(second).to_contain_text("Units 4, 11, 21 of features.3 never fired")
    drawn(page, "page")
    [strange] = [
        json.loads(line)
        for line in (log / "patient.jsonl").read_text().splitlines()
        if '"non_finite":"contrast"' in line
    ]
    first.get_by_role("link", name=strange["request_id"]).click()
    expect(page.locator("main")).to_contain_text(strange["request_id"])
    expect(page.locator("main")).to_contain_text("contrast")
    drawn(page, "request")
    page.close()


def test_changed_inputs_are_told_from_a_changed_model(browser, address):
    page = browser.new_page(viewport=PAGE)
    page.goto(f"{address}/m/digits")
    finding = page.locator(".findings li").first
    expect(finding).to_contain_text("Already the first observed layer differs")
    drawn(page, "drift")
    page.close()


def test_the_channels_are_those_of_the_file(store):
    silent = re.search(r"^(\[\d+, .*\])$", TOUR, re.MULTILINE)[1]
    import torch

    from export.definition import from_model_file

    module = from_model_file(ROOT / "docs" / "tour" / "patient.py").module
    with torch.no_grad():
        weights = module.get_parameter("features.2.weight")
        assert str([unit for unit, own in enumerate(weights) if not own.any()]) == silent
