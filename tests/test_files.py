"""What is written is on the disk in one piece, with the right mode, or an OSError says why it is not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from affectlens import files
from affectlens.errors import PartFailed, as_os_error, is_out_of_memory, of_the_world, reason
from safetensors import SafetensorError, safe_open


def writers(path: Path) -> dict:
    return {
        "bytes": lambda: files.write_bytes(path, b"new"),
        "text": lambda: files.write_text(path, "new\n"),
        "json": lambda: files.write_json(path, {"new": [1.0]}),
        "numpy": lambda: files.write_safetensors(path, {"a": np.arange(3.0)}, {"unit": "nats"}),
        "torch": lambda: files.write_safetensors(path, {"a": torch.ones(3, dtype=torch.bfloat16)}),
        "hdf5": lambda: files.write_hdf5(path, lambda file: file.create_dataset("a", data=np.arange(9))),
    }


@pytest.mark.parametrize("name", ["bytes", "text", "json", "numpy", "torch", "hdf5"])
class TestWriters:
    def test_what_was_written_replaces_what_was_there(self, name, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"old")
        writers(path)[name]()
        assert path.read_bytes() != b"old"
        assert list(tmp_path.iterdir()) == [path]
        assert path.stat().st_mode & 0o777 == files.file_mode()

    def test_a_refused_write_is_an_os_error_and_leaves_what_was_there(self, name, tmp_path, monkeypatch):
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def refuse(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            writers(path)[name]()
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from affectlens import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
path, values = Path(sys.argv[1]), np.arange(100_000.0)
for write in (
    lambda: files.write_safetensors(path, {"a": values}),
    lambda: files.write_hdf5(path, lambda file: file.create_dataset("a", data=values)),
    lambda: files.write_json(path, values.tolist()),
):
    try:
        write()
    except OSError as error:
        print(error.errno)
"""


def test_every_library_reports_a_full_disk_as_the_system_does(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(errno.EFBIG)] * 3
    assert list(tmp_path.iterdir()) == []


def test_safetensors_and_hdf5_hold_what_they_were_given(tmp_path):
    files.write_safetensors(tmp_path / "a.safetensors", {"a": np.arange(6.0).reshape(2, 3)}, {"unit": "nats"})
    with safe_open(tmp_path / "a.safetensors", "np") as opened:
        assert opened.metadata() == {"unit": "nats"}
        assert opened.get_tensor("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    files.write_hdf5(tmp_path / "a.h5", lambda file: file.create_dataset("group/a", data=np.eye(2)))
    with h5py.File(tmp_path / "a.h5") as opened:
        written: Any = opened["group/a"]
        assert written[...].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(mask, tmp_path):
    script = (
        "import os, sys; from pathlib import Path; import numpy as np; os.umask(int(sys.argv[2]))\n"
        "from affectlens import files; files.write_safetensors(Path(sys.argv[1]), {'a': np.ones(1)})"
    )
    path = tmp_path / "a.safetensors"
    subprocess.run([sys.executable, "-c", script, str(path), str(mask)], check=True)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_hdf5_reports_a_write_that_was_refused_though_others_succeed(tmp_path, monkeypatch):
    """HDF5 drops the error of a late write; here each of all writes fails once, and none goes unnoticed."""
    path, values = tmp_path / "a.h5", np.arange(40.0)

    def build(file: h5py.File) -> None:
        for number in range(4):
            file[f"group/{number}"] = values  # released at once
        file["group"].attrs["n"] = 4

    writes = [0, 0]

    class Refusing:
        """The stream under the file: its n-th write fails."""

        def __init__(self, stream):
            self._stream = stream

        def __getattr__(self, name):
            return getattr(self._stream, name)

        def write(self, data):
            writes[0] += 1
            if writes[0] == writes[1]:
                raise OSError(errno.EIO, "planted")
            return self._stream.write(data)

    def make(checked, stream, _init=files.CheckedFile.__init__):
        _init(checked, Refusing(stream))

    files.write_hdf5(path, build)
    whole = path.read_bytes()
    monkeypatch.setattr(files.CheckedFile, "__init__", make)
    refused = 0
    for writes[1] in range(1, 100):
        writes[0] = 0
        try:
            files.write_hdf5(path, build)
            break
        except OSError:
            refused += 1
    assert refused >= 4
    assert path.read_bytes() == whole


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / "sub" / "a.json.7-1234.writing").mkdir(parents=True)
    (tmp_path / "sub" / "a.json.7-1234.writing" / "a.json").write_bytes(b"half")
    (tmp_path / "kept.json").write_bytes(b"{}")
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept.json", "sub"]


def test_what_a_killed_writer_of_digests_left_is_removed_once_it_is_old(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * files.LARGE)
    old, new = (tmp_path / f"digests.json.7-{name}{files.WRITING}" for name in ("old", "new"))
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    files.DigestMemory(tmp_path / "digests.json").file(tmp_path / "large")
    assert new.is_dir()
    assert not old.exists()


def test_faults_of_the_world_are_told_from_faults_of_the_work():
    world = [
        MemoryError(),
        OSError(errno.EDQUOT, "quota"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        ImportError("lib.so: failed to map segment from shared object"),
        SystemError("<built-in function x> returned NULL without setting an exception set"),
    ]
    work = [
        RuntimeError("the size of tensor a (3) must match"),
        SafetensorError("Error while deserializing header: HeaderTooLarge"),
        ValueError("out of memory of elephants"),
        KeyError("x"),
        ImportError("No module named 'x'"),
        PartFailed("x"),
    ]
    assert [of_the_world(error) for error in world + work] == [True] * len(world) + [False] * len(work)
    assert [is_out_of_memory(error) for error in world] == [True, False, False, False, True, True, True, False]
    assert reason(world[3]) == os.strerror(28)
    fault = as_os_error(world[2], "/here")
    assert (fault.errno, fault.filename) == (errno.ENOSPC, "/here")
    with pytest.raises(MemoryError) as real:
        np.zeros(1 << 60, dtype=np.int8)
    with pytest.raises(RuntimeError) as torch_real:
        torch.zeros(1 << 60, dtype=torch.int8)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(torch_real.value)


@pytest.mark.parametrize("text", ["", "[1]", "null", '{"a": 5}', "{", '{"a": [[1], 2]}', "[" * 100_000])
def test_digests_are_right_whatever_stands_in_their_memory(text, tmp_path):
    path, memory = tmp_path / "large", tmp_path / "cache" / "digests.json"
    path.write_bytes(b"x" * files.LARGE)
    memory.parent.mkdir()
    memory.write_text(text)
    assert files.DigestMemory(memory).file(path) == files.file_digest(path)
    assert json.loads(memory.read_text())[str(path)][1] == files.file_digest(path)


def test_a_digest_is_remembered_until_the_file_changes_even_under_the_same_size_and_time(tmp_path):
    path, memory = tmp_path / "large", tmp_path / "digests.json"
    path.write_bytes(b"x" * files.LARGE)
    first = files.DigestMemory(memory).file(path)
    rows = json.loads(memory.read_text())
    rows[str(path)][1] = "remembered"
    memory.write_text(json.dumps(rows))
    assert files.DigestMemory(memory).file(path) == "remembered"
    stat = path.stat()
    path.write_bytes(b"y" * files.LARGE)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files.DigestMemory(memory).file(path) not in ("remembered", first)
