"""Freed memory stays with the process: it is the same memory that is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from patchkit.testing import freed_memory

PROGRAM = """
import os
import sys
import torch
from patchkit.testing.freed_memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

print(keep_freed_memory() if sys.argv[1] == "keep" else False)
before = resident()
tensor = torch.ones(2**26)
during = resident()
del tensor
print(during - before, resident() - before)
"""


def resident(mode: str) -> tuple[bool, int, int]:
    """Whether memory is kept, and by how many bytes a process is larger with a tensor of 256 MB, and after it."""
    usual = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
    }
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=usual)
    kept, during, after = done.stdout.split()
    return kept == "True", int(during), int(after)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such switch")
def test_what_is_freed_stays():
    usual, kept = resident("usual"), resident("keep")
    assert (usual[0], kept[0]) == (False, True)
    assert min(usual[1], kept[1]) > 2**27
    assert usual[2] < 2**26
    assert kept[2] > 2**27


class _Library:
    def __getattr__(self, name: str) -> object:
        raise AttributeError(name)


@pytest.mark.parametrize("error", [None, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def load(name: object) -> _Library:
        if error is not None:
            raise error
        return _Library()

    monkeypatch.setattr(freed_memory.ctypes, "CDLL", load)
    assert freed_memory.keep_freed_memory() is False


def test_a_refusal_is_said(monkeypatch):
    class Refusing:
        gnu_get_libc_version = mallopt = staticmethod(lambda *_: 0)

    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: Refusing())
    assert freed_memory.keep_freed_memory() is False
