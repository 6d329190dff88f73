"""What the image says that it is, and what is in it."""

import json
import subprocess
import sys

import pytest

from tests.container.conftest import ROOT

pytestmark = pytest.mark.container

BILL = ROOT / ".run" / "sbom.cdx.json"


@pytest.fixture(scope="module")
def bill(image):
    done = subprocess.run(
        [sys.executable, "scripts/sbom.py", image],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # For whoever scans the image that was tested.
    BILL.parent.mkdir(exist_ok=True)
    BILL.write_text(done.stdout)
    return json.loads(done.stdout)


def locked(name):
    lines = (ROOT / "requirements" / "locked" / f"{name}.txt").read_text().splitlines()
    pins = [line.split()[0].split("==") for line in lines if "==" in line and "win32" not in line]
    return {name.replace("_", "-"): version for name, version in pins}


def test_the_bill_has_what_was_locked_and_nothing_else(bill):
    parts = [part for part in bill["components"] if part["purl"].startswith("pkg:pypi/")]
    found = {part["name"].lower().replace("_", "-"): part["version"] for part in parts}
    assert found.pop("torch").partition("+")[0] == locked("torch")["torch"]
    # Of what only compiling, installing and building need, nothing is left.
    gone = {"sympy", "mpmath", "networkx", "setuptools", "wheel"}
    expected = {name: version for name, version in locked("serve").items() if name not in gone}
    # A CUDA build would bring more.
    assert {name: found.get(name) for name in expected} == expected
    assert not gone & set(found)
    assert "pip" not in found


def test_the_bill_has_what_is_not_python(bill):
    urls = "\n".join(part["purl"] for part in bill["components"])
    for part in ("pkg:deb/debian/haproxy@2.6", "pkg:deb/debian/libssl3@", "pkg:generic/openjdk@25"):
        assert part in urls
    assert "pkg:maven/io.netty/netty-codec-http@4.1.53.Final" in urls
    assert bill["metadata"]["component"]["name"] == "Vitrine"


def test_the_labels_are_those_of_the_specification(engine, image):
    labels = engine.images.get(image).labels
    for name in ("title", "description", "version", "revision", "source", "licenses"):
        assert f"org.opencontainers.image.{name}" in labels
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_no_file_lends_the_privileges_of_its_owner(examples):
    code, found = examples.exec("find", "/", "-xdev", "-type", "f", "-perm", "/6000")
    # Folders of root's it may not enter: what it may not see it cannot run.
    files = [line for line in found.splitlines() if "Permission denied" not in line]
    assert (code in (0, 1), files) == (True, [])
