"""deploy/compose/keys.yaml: only who has a key is answered, and a key can be changed."""

import os
import time

import pytest
import requests

from tests.container.compose import Project, up

pytestmark = pytest.mark.container

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"
BODY = {"inputs": [0.5] * 16}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"tester:{FIRST}\n")
    path.chmod(0o444)
    return path


@pytest.fixture(scope="module")
def url(engine, image, keys):
    project = Project(
        engine,
        f"vitrine-keys-{os.getpid()}",
        ("compose.yaml", "deploy/compose/keys.yaml"),
        {"VITRINE_IMAGE": image, "VITRINE_KEYS_FILE": str(keys)},
    )
    with up(project):
        [container] = project.containers()
        yield container.url


def status(url, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = requests.post(
        f"{url}/predictions/activation_mlp", json=BODY, headers=headers, timeout=30
    )
    return answer.status_code


def test_a_key_is_needed_and_probes_need_none(url):
    assert status(url) == 401
    assert status(url, SECOND) == 401
    assert status(url, FIRST) == 200
    assert requests.get(f"{url}/v2/health/ready", timeout=30).status_code == 200
    assert requests.get(f"{url}/v1/models", timeout=30).status_code == 401


def test_another_key_holds_without_a_restart(url, keys):
    # The same file: what is mounted is the file, not its name.
    keys.chmod(0o644)
    keys.write_text(f"tester:{SECOND}\n")
    deadline = time.monotonic() + 30
    while status(url, SECOND) != 200:
        assert time.monotonic() < deadline, "the new key does not hold"
        time.sleep(0.5)
    assert status(url, FIRST) == 401
