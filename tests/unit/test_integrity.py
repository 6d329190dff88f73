"""Archives that were changed after the export: found, named, and kept from the others."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from export.cases import read_cases
from export.cli import main as export
from export.verify import verify
from formats import Batching, Certificate, FormatError
from formats.integrity import UNSEALED, check_archive, check_files, seal, sha256
from handlers.model import Model
from server.archives import examine
from tests.conftest import ROOT

FILES = {
    "MAR-INF/MANIFEST.json": b'{"model": {"modelName": "tiny", "modelVersion": "1.0"}}',
    "model.pt": b"weights" * 20,
    "handlers/service.py": b"pass\n" * 10,
}


def small(path: Path) -> Path:
    """Write a sealed archive that is small enough to damage each of its bytes."""
    certificate = Certificate(
        method="script",
        versions={},
        tolerance={},
        checks=(),
        batching=Batching(False, 1, ""),
        files={name: sha256(content) for name, content in FILES.items()},
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**FILES, "certificate.json": certificate.text().encode()}.items():
            method = zipfile.ZIP_STORED if name == "model.pt" else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name), content, method)
        archive.comment = UNSEALED
    seal(path)
    return path


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def damaged_file(path: Path, name: str) -> Path:
    """Flip one byte in the middle of a file of an archive."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    flip(path, info.header_offset + 30 + len(name) + info.compress_size // 2)
    return path


def test_each_single_flipped_byte_and_each_cut_is_refused(tmp_path):
    path = small(tmp_path / "tiny.mar")
    check_archive(path)
    written = path.read_bytes()
    for place in range(len(written)):
        path.write_bytes(written)
        flip(path, place)
        with pytest.raises(FormatError):
            check_archive(path)
    for length in range(0, len(written), 7):
        path.write_bytes(written[:length])
        with pytest.raises(FormatError):
            check_archive(path)


@pytest.mark.parametrize("name", [*FILES, "certificate.json"])
def test_the_damaged_file_is_named(tmp_path, name):
    path = damaged_file(small(tmp_path / "tiny.mar"), name)
    with pytest.raises(FormatError, match=name):
        check_archive(path)


def test_an_archive_of_somebody_else_or_of_an_older_version_is_let_through(tmp_path):
    path = tmp_path / "plain.mar"
    for files in (FILES, FILES | {"certificate.json": b'{"format": "vitrine.certificate", '
                                  b'"version": 1}'}):  # fmt: skip
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        check_archive(path)
    damaged_file(path, "model.pt")
    with pytest.raises(FormatError, match=r"model\.pt"):
        check_archive(path)


def test_an_unpacked_archive_is_checked_and_may_have_more_files(tmp_path):
    with zipfile.ZipFile(small(tmp_path / "tiny.mar")) as archive:
        archive.extractall(tmp_path / "tiny")
    (tmp_path / "tiny" / "__pycache__").mkdir()
    (tmp_path / "tiny" / "added.txt").write_text("by a server")
    check_archive(tmp_path / "tiny")
    (tmp_path / "tiny" / "model.pt").write_bytes(b"other")
    with pytest.raises(FormatError, match=r"model\.pt is not what was certified: sha256"):
        check_archive(tmp_path / "tiny")
    (tmp_path / "tiny" / "model.pt").unlink()
    with pytest.raises(FormatError, match=r"model\.pt is missing"):
        check_files(tmp_path / "tiny", {"model.pt": ""})


def test_the_server_leaves_a_damaged_archive_out_and_keeps_the_others(exported, tmp_path):
    for name in ("two_inputs", "branch"):
        shutil.copy(exported(name).archive, tmp_path)
    damaged_file(tmp_path / "branch.mar", "model.pt")
    selection = examine(tmp_path, None)
    assert [archive.name for archive in selection.archives] == ["two_inputs"]
    [line] = selection.left_out
    assert "branch.mar is damaged: model.pt" in line


@pytest.mark.parametrize("name", ["model.pt", "signature.json", "handlers/service.py"])
def test_the_handler_refuses_a_changed_file_and_names_it(exported, tmp_path, name):
    with zipfile.ZipFile(exported("two_inputs").archive) as archive:
        archive.extractall(tmp_path)
    flip(tmp_path / name, (tmp_path / name).stat().st_size // 2)
    with pytest.raises(FormatError, match=f"{name} is not what was certified: sha256 .*expected"):
        Model(tmp_path, torch.device("cpu"))


def test_verify_holds_without_the_models_code(exported, capsys):
    names = ("two_inputs", "half", "batch_softmax", "lstm_states", "dict_output")
    assert export(["verify", *(str(exported(name).archive) for name in names)]) == 0
    shown = capsys.readouterr().out
    assert "FELL" not in shown
    for words in ("digests", "parity, frozen", "statistics of", "'share' moved", torch.__version__):
        assert words in shown


def test_verify_says_what_fell_and_what_is_no_archive(exported, tmp_path, capsys):
    path = tmp_path / "branch.mar"
    shutil.copy(exported("branch").archive, path)
    damaged_file(path, "model.pt")
    assert export(["verify", str(path)]) == 1
    assert "FELL digests: model.pt" in capsys.readouterr().out
    assert export(["verify", str(ROOT / "README.md"), str(tmp_path / "none.mar")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_verify_finds_a_model_that_answers_otherwise(exported, tmp_path):
    folder, path = tmp_path / "unpacked", tmp_path / "other.mar"
    with zipfile.ZipFile(exported("two_inputs").archive) as archive:
        archive.extractall(folder)
    module = torch.jit.load(folder / "model.pt")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    module.save(str(folder / "model.pt"))
    document = json.loads((folder / "certificate.json").read_bytes())
    files = document["files"] | {"model.pt": sha256((folder / "model.pt").read_bytes())}
    certificate = Certificate("script", {}, {}, (), Batching(**document["batching"]), files=files)
    with zipfile.ZipFile(path, "w") as archive:
        for name in files:
            archive.write(folder / name, name)
        archive.writestr("certificate.json", certificate.text())
        archive.comment = UNSEALED
    seal(path)
    verdicts = {one.name: one for one in verify(path, tmp_path / "again")}
    assert verdicts["digests"].held
    assert not verdicts["parity, frozen"].held
    assert "moved by" in verdicts["parity, loaded"].detail


def test_the_cases_that_travel_are_few_and_come_back(exported, tmp_path):
    result = exported("half")
    with zipfile.ZipFile(result.archive) as archive:
        archive.extract("cases.npz", tmp_path)
    cases, answers = read_cases(tmp_path / "cases.npz", result.signature)
    assert 1 < len(cases) <= 16
    assert len(answers) == len(cases)
    assert str(cases[0][0].dtype) == f"torch.{result.signature.inputs[0].dtype}"


def test_two_processes_write_the_same_bytes(tmp_path):
    for seed in ("1", "2"):
        files = [str(ROOT / "models" / f"{name}.py") for name in ("digits", "dann")]
        subprocess.run(
            [sys.executable, "-m", "export", *files, "--model-store", str(tmp_path / seed)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            timeout=300,
            stdout=subprocess.DEVNULL,
        )
    for name in ("digits.mar", "dann.mar", "digits.report.md", "dann.sample.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
