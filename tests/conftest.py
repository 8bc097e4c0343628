"""Shared by every test: one thread per worker, and tiny patched pairs."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn

from patchkit.errors import DeviceError
from patchkit.testing import add_lora, tiny_model, usable_device

# Several workers share few cores: more threads than cores make small products slower, not faster.
# `make test-cpu-settings` asks for two.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))


# Every tiny model is in transformers since 4.50. What is missing later is a fault, and no reason to skip a test.
_MODELS_ARE_MISSING = Version(transformers.__version__) < Version("4.50")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default=os.environ.get("PATCHKIT_TEST_DEVICE", "cpu"),
        help="where the parity contract and the fused functions are tested: cpu, cuda, xpu (or PATCHKIT_TEST_DEVICE)",
    )


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """The device that was asked for, which is there."""
    name = pytestconfig.getoption("--device")
    try:
        usable_device(name)
    except DeviceError as error:
        pytest.exit(str(error), returncode=4)
    return str(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """A test of a model that an old release does not have is skipped there."""
    try:
        yield
    except ValueError as error:
        if _MODELS_ARE_MISSING and str(error).startswith(f"transformers {transformers.__version__} has no "):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True, scope="module")
def _lives_as_long_as_the_run() -> None:
    """What is there when a file begins (modules, the tests themselves, parsed sources) is not looked through again.

    A third of the run's time went into the garbage collector, which visits every object that it knows.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """The interpreter is to take everything down when it ends."""
    gc.unfreeze()


_USERS_CACHE = os.environ.get("PATCHKIT_CACHE")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the user's cache says about source is not read, and nothing is written to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _releases_of_the_user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of real releases share the user's cache: a release is fetched once, not once a run."""
    if "wheels" not in request.keywords:
        return
    if _USERS_CACHE is None:
        monkeypatch.delenv("PATCHKIT_CACHE")
    else:
        monkeypatch.setenv("PATCHKIT_CACHE", _USERS_CACHE)


@pytest.fixture
def lora_model():
    """Makes ``(unpatched copy, model to patch)`` of a tiny architecture with adapters."""

    def make(name: str = "llama", **lora_config: Any) -> tuple[nn.Module, nn.Module]:
        model = add_lora(tiny_model(name), **lora_config).train()
        return copy.deepcopy(model), model

    return make
