"""The doctor: what it says of a healthy machine, and what it advises for each fault."""

import sys
import types
from importlib import metadata

import pytest
import torch

from pruninglab import doctor
from pruninglab.cli import main


def told():
    return {name: (found, advice) for name, found, advice in doctor.diagnose()}


def test_a_healthy_machine(data_folder, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("Python", f"torch {metadata.version('torch')}", "torchvision", "cores", "GB free", "million weights"):
        assert words in out
    assert str(data_folder) in out
    assert "→" not in out, "nothing to do"


def test_torchvision_of_another_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found, advice = told()["torchvision"]
    assert "cannot be imported" in found
    assert "--force-reinstall torch torchvision" in advice
    assert main(["doctor"]) == 1
    assert "→ torch and torchvision do not belong together" in capsys.readouterr().out


def test_a_missing_and_an_old_package(monkeypatch):
    def version(name):
        if name == "tqdm":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "pandas" else metadata.version(name)

    monkeypatch.setattr(doctor, "version", version)
    found, advice = told()["packages"]
    assert found == "pandas is 0.1, and >=2.2 is needed; tqdm is missing"
    assert "pip install" in advice


def test_extras_are_not_needed(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda _: ["torch>=2", "nonsense>=1; extra == 'dev'"])
    assert told()["packages"] == (f"torch {metadata.version('torch')}", "")


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert told()["processor"][0] == "2 cores, 8 threads"
    assert "OMP_NUM_THREADS=2" in told()["processor"][1]


def test_a_folder_that_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRUNINGLAB_DATA", str(tmp_path / "file"))
    assert "cannot be written to" in told()["data folder"][0]
    assert "PRUNINGLAB_DATA" in told()["data folder"][1]


def test_a_full_disk(monkeypatch, data_folder):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=3e8))
    assert "0.3 GB free" in told()["data folder"][0]
    assert "Make room for 1 GB" in told()["data folder"][1]


@pytest.mark.parametrize("text", [None, "not a model"])
def test_a_language_model_that_is_not_whole(monkeypatch, tmp_path, text):
    from pruninglab.tasks import language

    path = tmp_path / "tiny-llama.safetensors"
    if text:
        path.write_text(text)
    monkeypatch.setattr(language, "SHIPPED", path)
    assert "python -m pruninglab tiny-llama" in told()["tiny-llama"][1]


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert "3.11 or newer" in told()["Python"][1]
