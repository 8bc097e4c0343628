"""What was found for a device: written, read, believed only where it is of the grid, and used."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from own_cache import own_cache as own_cache
from torch import nn

import patchkit
from patchkit.cache.contents import clear, entries
from patchkit.cache.storage import TUNED, cache_directory
from patchkit.errors import CacheError, PatchkitWarning
from patchkit.testing import add_lora, tiny_model
from patchkit.tuning import record
from patchkit.tuning.questions import TINY, Answer, Tried
from patchkit.tuning.record import Tuned, load, save, use, use_for
from patchkit_kernels.lora.choices import CHOICES, Choices
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES, LaunchSizes, Tile

H200 = {"device": "NVIDIA H200", "runtime": "12.8", "torch": "2.13.0", "triton": "3.7.1", "kernels": "ab"}
FOUND = Tuned(
    TINY,
    "2026-11-23",
    LaunchSizes(gated_low_rank=Tile(32, 64, 4)),
    {"bf16x3": True, "least_elements": 2**18, "one_pass_rank": 16, "in_activation_rank": 32},
    (Answer("which?", (Tried("usual", 2.5, 1.0), Tried("other", reason="does not run")), 0),),
)


@pytest.fixture(autouse=True)
def _as_before():
    before = LAUNCH_SIZES.value, CHOICES.value
    yield
    LAUNCH_SIZES.value, CHOICES.value = before
    record._found.cache_clear()


def test_what_is_saved_is_read():
    assert load(H200) is None
    path = save(FOUND, H200)
    assert path.parent == cache_directory() / TUNED
    assert json.loads(path.read_text("utf-8"))["device"] == "NVIDIA H200"
    assert load(H200) == FOUND


@pytest.mark.parametrize("name", H200)
def test_another_device_and_other_versions_are_others(name):
    save(FOUND, H200)
    assert load(H200 | {name: "other"}) is None
    save(FOUND, H200 | {name: "other"})
    assert (entries()[0].name, entries()[0].files) == (TUNED, 2)
    clear(TUNED)
    assert load(H200) is None


def changed(path: tuple[str, ...], value: object) -> dict:
    data = copy.deepcopy(FOUND.to_json())
    place = data
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.loads(json.dumps(data))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sizes", "elementwise"), [1024, 3]),
        (("sizes", "elementwise"), None),
        (("sizes",), []),
        (("choices", "one_pass_rank"), 15),
        (("choices", "in_activation_rank"), 64),
        (("choices", "least_elements"), 0),
        (("choices", "least_elements"), 1e6),
        (("choices", "bf16x3"), "yes"),
        (("choices", "low_rank_first"), True),
        (("choices", "emulated"), True),
        (("shape",), {"name": "x"}),
        (("answers",), 3),
        (("answers",), [{"title": "x"}]),
    ],
    ids=str,
)
def test_what_is_not_asked_about_is_not_believed(path, value):
    """What changes rounding (``low_rank_first``), or is for tests, is no answer of a device."""
    with pytest.raises(ValueError, match=r"."):
        Tuned.from_json(changed(path, value))


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"sizes": {}}'])
def test_a_damaged_file_is_said(content):
    path = save(FOUND, H200)
    path.write_text(content)
    with pytest.raises(CacheError, match=r"is damaged: .*; `patchkit tune` writes it again"):
        load(H200)


def test_it_is_used():
    use(FOUND)
    assert LAUNCH_SIZES.value == FOUND.sizes
    assert CHOICES.value == Choices(least_elements=2**18, one_pass_rank=16, in_activation_rank=32)


def test_it_is_said():
    tiles, ways = FOUND.lines()
    assert tiles == "tiles: gated_low_rank: 32 × 64, 4 warps"
    assert ways == "ways: bf16x3 = True, least_elements = 262144, one_pass_rank = 16, in_activation_rank = 32"
    assert Tuned(TINY, "", LaunchSizes(), {}).lines()[0] == "tiles: the usual ones"


class OnDevice(nn.Module):
    """A parameter that says it is on a device, and one before it on the CPU."""

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__()
        self.kind = kind

    def parameters(self, recurse=True):
        class Fake:
            device = torch.device(self.kind, 0)

        return iter([nn.Parameter(torch.ones(1)), Fake()])


@pytest.fixture
def a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(record, "described", lambda device: H200)


@pytest.mark.usefixtures("a_device")
def test_for_the_device_of_a_model():
    save(FOUND, H200)
    assert use_for(nn.Linear(2, 2)) is None
    assert LAUNCH_SIZES.value == LaunchSizes()
    assert use_for(OnDevice()) == FOUND
    assert LAUNCH_SIZES.value == FOUND.sizes


@pytest.mark.usefixtures("a_device")
def test_nothing_where_nothing_was_found():
    assert use_for(OnDevice()) is None
    assert (LAUNCH_SIZES.value, CHOICES.value) == (LaunchSizes(), Choices())
    save(FOUND, H200)  # from here on it is found, also in this process
    assert use_for(OnDevice()) == FOUND


@pytest.mark.usefixtures("a_device")
def test_a_damaged_file_is_warned_of_and_kernels_run_as_usual(monkeypatch):
    monkeypatch.setattr("patchkit.cache.storage._said", set())
    save(FOUND, H200).write_text("{")
    record._found.cache_clear()
    with pytest.warns(PatchkitWarning, match="kernels run as usual, not as `patchkit tune` found best: .* is damaged"):
        assert use_for(OnDevice()) is None
    assert LAUNCH_SIZES.value == LaunchSizes()


@pytest.mark.usefixtures("a_device")
def test_without_triton_nothing_is_asked(monkeypatch):
    def missing(device):
        raise ImportError("triton")

    monkeypatch.setattr(record, "described", missing)
    assert use_for(OnDevice()) is None


def test_a_cpu_has_nothing_to_use():
    assert use_for(nn.Linear(2, 2)) is None


def test_apply_uses_it(monkeypatch, caplog):
    monkeypatch.setattr("patchkit.api.use_for", lambda model: use(FOUND) or FOUND)
    model = add_lora(tiny_model("llama"))
    with caplog.at_level("INFO", "patchkit"):
        patchkit.apply(model)
    assert LAUNCH_SIZES.value == FOUND.sizes
    assert "kernels run as `patchkit tune` found best on 2026-11-23" in caplog.text


@pytest.mark.parametrize(("cuda", "hip"), [("12.8", None), (None, "6.4")])
def test_what_runs_the_device_is_one_of_the_versions(cuda, hip, monkeypatch):
    pytest.importorskip("triton", reason="its version is one of them")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert record.described(torch.device("cuda", 0))["runtime"] == (cuda or hip)


def test_what_answers_depend_on(monkeypatch):
    pytest.importorskip("triton", reason="its version is one of them")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = record.described(torch.device("cuda", 1))
    assert found.keys() == H200.keys()
    assert found["device"] == "GPU 1"
    assert found["torch"] == torch.__version__
    assert len(found["kernels"]) == 64


def test_every_value_of_the_grid_is_believed():
    for field, grid in GRID.items():
        for size in grid:
            tuned = Tuned(TINY, "", LaunchSizes()._replace(**{field: size}), {})
            assert Tuned.from_json(json.loads(json.dumps(tuned.to_json()))) == tuned
