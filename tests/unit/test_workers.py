"""How many workers a model gets where its archive does not say."""

import json
import subprocess
import sys
import zipfile

import pytest
import yaml

from engine import keep_memory
from formats.workload import LARGE, OPERATIONS, is_large
from server.archives import Archive
from server.workers import Machine, machine, model_settings, workers_of

ROOMY = Machine(cores=4, memory=64_000_000_000)
HEAVY = {"batchSize": 4, "vitrine": {OPERATIONS: LARGE}}


@pytest.fixture
def archive(tmp_path):
    """A function that makes an archive with a model-config.yaml."""

    def make(name="net", config=HEAVY, version="1.0"):
        path = tmp_path / f"{name}-{version}.mar"
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("model.pt", b"x" * 1000)
            if config is not None:
                text = config if isinstance(config, str) else yaml.safe_dump(config)
                packed.writestr("model-config.yaml", text)
        return Archive(path, name, version)

    return make


def test_a_model_that_computes_much_gets_a_worker_for_each_core(archive):
    [found] = workers_of([archive()], ROOMY)
    assert found.count == 4
    assert str(found).startswith("net computes much: 4 workers.")
    own = model_settings([found])["net"]["1.0"]
    assert own == {"marName": "net-1.0.mar", "minWorkers": 4, "maxWorkers": 4}
    json.dumps(model_settings([found]))


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "[1, 2]",
        "a: [",
        {"batchSize": 4},
        {"vitrine": {OPERATIONS: LARGE - 1}},
        {"vitrine": {OPERATIONS: "much"}},
        {"vitrine": [1]},
        HEAVY | {"minWorkers": 1},
        HEAVY | {"maxWorkers": 3},
    ],
)
def test_others_are_left_to_the_configuration(archive, config):
    assert workers_of([archive(config=config)], ROOMY) == []


def test_workers_fit_into_half_of_the_memory_and_one_core_has_one(archive):
    [two] = workers_of([archive()], Machine(cores=8, memory=2_100_000_000))
    assert two.count == 2
    assert workers_of([archive()], Machine(cores=8, memory=1_900_000_000)) == []
    assert workers_of([archive()], Machine(cores=1, memory=64_000_000_000)) == []
    [most] = workers_of([archive()], Machine(cores=64, memory=640_000_000_000))
    assert most.count == 8
    both = [archive("one"), archive("two")]
    assert [one.count for one in workers_of(both, Machine(8, 4_100_000_000))] == [2, 2]


def test_two_versions_have_their_own(archive):
    found = workers_of([archive(), archive(version="2.0")], ROOMY)
    assert sorted(model_settings(found)["net"]) == ["1.0", "2.0"]


def test_this_machine_has_cores_and_memory():
    here = machine()
    assert here.cores >= 1
    assert 100_000_000 < here.memory < 1 << 50


_FAULTS = """
import resource, sys
import torch
from engine import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
def work():
    for _ in range(20):
        torch.ones(12_000_000)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how):
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_kept_memory_is_not_asked_for_again():
    # 48 MB tensors: 11,719 pages each time, where the system has to clear them anew.
    assert _faults("keep") * 20 < _faults("leave")


def test_thresholds_of_the_environment_stay():
    assert not keep_memory({"MALLOC_TRIM_THRESHOLD_": "1"})
    assert not keep_memory({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1"})
    assert is_large({"vitrine": {OPERATIONS: LARGE}})
