"""What compose.yaml starts is held as tight as it says: seen from inside and in the kernel."""

import json
import os
import uuid

import pytest
import requests

from tests.container.compose import Project, up

pytestmark = pytest.mark.container

PROBE = """\
import json, os
def read(path):
    with open(path) as file:
        return file.read()
def writable(folder):
    path = os.path.join(folder, "probe")
    try:
        with open(path, "w"):
            pass
        os.unlink(path)
    except OSError:
        return False
    return True
def runs(folder):
    path = os.path.join(folder, "probe.sh")
    with open(path, "w") as file:
        file.write("#!/bin/sh\\n")
    os.chmod(path, 0o755)
    try:
        return os.spawnv(os.P_WAIT, path, [path]) == 0
    finally:
        os.unlink(path)
found = {}
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        status = read(f"/proc/{name}/status")
    except OSError:
        continue
    lines = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
    for key in ("Uid", "Gid", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp"):
        found.setdefault(key, set()).add(lines[key].strip())
cgroup = {name: read(f"/sys/fs/cgroup/{name}").strip()
          for name in ("memory.max", "cpu.max", "pids.max", "pids.peak", "memory.peak")
          if os.path.exists(f"/sys/fs/cgroup/{name}")}
folders = ("/", "/etc", "/opt/venv", "/opt/vitrine", "/opt/vitrine/model_store", "/tmp",
           "/var/log/vitrine", "/var/tmp", "/run")
mounts = {line.split()[1]: line.split()[3] for line in read("/proc/mounts").splitlines()}
print(json.dumps({
    "processes": {key: sorted(values) for key, values in found.items()},
    "cgroup": cgroup,
    "writable": [folder for folder in folders if writable(folder)],
    "runs_in_tmp": runs("/tmp"),
    "tmp": mounts["/tmp"],
    "size": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize,
}))
"""


@pytest.fixture(scope="module")
def inside(examples):
    """What a process in the container sees; every one of the server's is among what it looks at."""
    code, output = examples.exec("python", "-c", PROBE)
    assert code == 0, output
    return json.loads(output)


def test_no_process_has_a_privilege_nor_can_get_one(inside):
    seen = inside["processes"]
    assert {part for line in seen["Uid"] for part in line.split()} == {"10001"}
    assert "0" not in {part for line in seen["Gid"] for part in line.split()}
    for capabilities in ("CapEff", "CapPrm", "CapBnd"):
        assert {int(value, 16) for value in seen[capabilities]} == {0}
    assert seen["NoNewPrivs"] == ["1"]


def test_only_tmp_and_the_log_can_be_written_and_nothing_there_is_run(inside):
    assert inside["writable"] == ["/tmp", "/var/log/vitrine"]
    assert not inside["runs_in_tmp"]
    assert {"noexec", "nosuid", "nodev"} <= set(inside["tmp"].split(","))
    assert inside["size"] == 1 << 30


def test_it_has_limits(examples, inside):
    host = examples.container.attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (4 << 30, 2 * 10**9, 512)
    limits = inside["cgroup"]
    # The kernel's own word for it, where its files are where the second version has them.
    if "memory.max" in limits:
        assert limits["memory.max"] == str(4 << 30)
        assert limits["pids.max"] == "512"
        quota, period = limits["cpu.max"].split()
        assert int(quota) == 2 * int(period)


def test_only_inference_is_published_and_only_to_this_machine(examples):
    published = {
        port: bindings
        for port, bindings in examples.container.attrs["NetworkSettings"]["Ports"].items()
        if bindings
    }
    assert set(published) == {"8080/tcp"}
    assert {binding["HostIp"] for binding in published["8080/tcp"]} == {"127.0.0.1"}


def test_it_has_more_time_to_stop_than_requests_in_flight_have(examples):
    assert examples.container.attrs["Config"]["StopTimeout"] > 30 + 2


def test_its_log_of_lines_is_bounded(examples):
    options = examples.container.attrs["HostConfig"]["LogConfig"]["Config"]
    assert set(options) == {"max-size", "max-file"}


def test_the_activation_log_outlives_the_container(engine, image):
    project = Project(
        engine,
        f"vitrine-log-{os.getpid()}",
        environment={"VITRINE_IMAGE": image, "VITRINE_ACTIVATION_LOG": "asked"},
    )
    mark = uuid.uuid4().hex
    with up(project) as running:
        [first] = running.containers()
        answer = requests.post(
            f"{first.url}/predictions/activation_mlp",
            json={"inputs": [0.5] * 16},
            headers={"X-Activations": "stats", "X-Correlation-Id": mark},
            timeout=30,
        )
        assert answer.ok, answer.text
        running.run("up", "--detach", "--wait", "--no-build", "--force-recreate")
        [second] = running.containers()
        assert second.container.id != first.container.id
        code, lines = second.exec("cat", "/var/log/vitrine/activation_mlp.jsonl")
        assert code == 0, lines
        assert [json.loads(line)["correlation_id"] for line in lines.splitlines()] == [mark]
