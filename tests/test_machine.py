"""How many CPUs a process may use: by its affinity, and by its control groups."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import airstreams
from airstreams.errors import InputError
from airstreams.machine import _quotas, computes_in_bfloat16, cpus, precision_on


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_a_process_bound_to_one_cpu_has_one_cpu():
    code = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
    code += "from airstreams.machine import cpus; print(cpus())"
    environment = {**os.environ, "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}
    assert int(subprocess.check_output([sys.executable, "-c", code], env=environment)) == 1
    assert 1 <= cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("card", "generation", "expected"), [("T4", 7, False), ("A100", 8, True), ("H100", 9, True)])
def test_cards_that_only_emulate_bfloat16_compute_in_float32(monkeypatch, card, generation, expected):
    """By torch's own check of the card's generation, which is faked here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name=card, major=generation)
    )
    assert computes_in_bfloat16(torch.device("cuda", 0)) is expected
    assert precision_on(torch.device("cuda", 0)) == ("bfloat16" if expected else "float32")


@pytest.mark.parametrize("instructions", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", "none"])
def test_a_cpu_takes_bfloat16_where_it_has_instructions_and_the_model_is_full_size(monkeypatch, instructions):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == instructions)
    cpu = torch.device("cpu")
    expected = "float32" if instructions == "none" else "bfloat16"
    assert precision_on(cpu, "auto", is_full_size=True) == expected
    assert precision_on(cpu, "auto", is_full_size=False) == "float32"
    assert precision_on(cpu, "bfloat16") == "bfloat16"  # emulated where it must be
    assert precision_on(cpu, "float32", is_full_size=True) == "float32"


def test_a_precision_that_a_device_lacks_is_rejected():
    with pytest.raises(InputError, match="precision"):
        precision_on(torch.device("mps"), "bfloat16")
    with pytest.raises(InputError, match="precision"):
        precision_on(torch.device("cpu"), "float16")


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/jobs/mine", {"jobs/mine/cpu.max": "150000 100000", "jobs/cpu.max": "max 100000"}, [1.5]),
        ("0::/jobs/mine", {"jobs/mine/cpu.max": "max 100000", "jobs/cpu.max": "50000 100000"}, [0.5]),
        ("0::/docker/3f", {"cpu.max": "200000 100000"}, [2.0]),  # as a container sees its own group
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, [3.0]),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, []),
        ("4:cpuset:/a", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, []),
    ],
    ids=str,
)
def test_quotas_are_read_from_control_groups_of_both_versions(tmp_path, line, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "groups").write_text(f"3:memory:/elsewhere\n{line}\n")
    assert list(_quotas(tmp_path / "groups", tmp_path)) == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert list(_quotas(tmp_path / "absent", tmp_path)) == []
