"""scripts/sbom: the bill of what an image says is in it."""

import importlib.util
import json

import pytest

from tests.conftest import ROOT

FOUND = {
    "system": {"ID": "debian", "VERSION_ID": "12"},
    "python": [["torch", "2.13.0+cpu", "BSD-3-Clause"], ["torchserve", "0.12.0", None]],
    "debian": [["haproxy", "2.6.12-1+deb12u4", "amd64"]],
    "java": "25.0.2",
    "netty": {"netty-codec-http": "4.1.53.Final"},
}
LABELS = {
    "org.opencontainers.image.title": "Vitrine",
    "org.opencontainers.image.version": "0.1.0",
}


@pytest.fixture(scope="module")
def sbom():
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_names_what_is_in_the_image_by_its_source(sbom):
    bill = json.loads(sbom.written(sbom.bill(FOUND, LABELS)))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    image = bill["metadata"]["component"]
    assert (image["type"], image["name"], image["version"]) == ("container", "Vitrine", "0.1.0")
    assert {part["purl"] for part in bill["components"]} == {
        "pkg:pypi/torch@2.13.0%2Bcpu",
        "pkg:pypi/torchserve@0.12.0",
        "pkg:deb/debian/haproxy@2.6.12-1%2Bdeb12u4?arch=amd64&distro=debian-12",
        "pkg:generic/openjdk@25.0.2",
        "pkg:maven/io.netty/netty-codec-http@4.1.53.Final",
    }
    [torch] = [part for part in bill["components"] if part["name"] == "torch"]
    assert torch["licenses"] == [{"expression": "BSD-3-Clause"}]
    [depends] = [one for one in bill["dependencies"] if one["ref"] == "image"]
    assert len(depends["dependsOn"]) == len(bill["components"])


def test_a_bill_that_is_none_is_refused(sbom, monkeypatch):
    class Refuses:
        def __init__(self, schema):
            pass

        def validate_str(self, text):
            return "no"

    monkeypatch.setattr(sbom, "JsonStrictValidator", Refuses)
    with pytest.raises(ValueError, match=r"no CycloneDX 1\.6: no"):
        sbom.written(sbom.bill(FOUND, LABELS))
