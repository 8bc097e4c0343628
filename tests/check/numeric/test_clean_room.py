"""The clean room: work in it sees nothing that is switched on outside, and what is outside stays as it is."""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import sys
import threading
import time
import warnings

import numpy
import pytest
import torch
from edited_upstream import RENAMED, edited_llama, model_of
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import patchkit
from patchkit.check.numeric import clean_room
from patchkit.check.numeric import on_the_spot as spot
from patchkit.check.numeric.clean_room import in_clean_room
from patchkit.errors import PatchkitWarning
from patchkit.testing import CHECKS, add_lora, run, tiny_inputs, tiny_model

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")


class Functions(TorchFunctionMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **kwargs or {})


class Operations(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.seen.append(op)
        return op(*args, **kwargs or {})


@contextlib.contextmanager
def hooked(register, seen):
    """A hook on every module of the process."""

    def hook(*args):
        seen.append(args[0])

    with register(hook):
        yield


@contextlib.contextmanager
def logged(seen):
    """The user listens to what upstream has to say."""

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(record)

    logger, handler = logging.getLogger("transformers"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield
    logger.removeHandler(handler)
    logger.setLevel(level)


MODULE = torch.nn.modules.module
GLOBAL_HOOKS = [
    MODULE.register_module_forward_hook,
    MODULE.register_module_forward_pre_hook,
    MODULE.register_module_full_backward_hook,
    MODULE.register_module_full_backward_pre_hook,
    MODULE.register_module_module_registration_hook,
    MODULE.register_module_parameter_registration_hook,
    MODULE.register_module_buffer_registration_hook,
]
WATCHERS = {
    "saved tensors": lambda seen: torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t),
    "functions": Functions,
    "operations": Operations,
    "log": logged,
} | {register.__name__: lambda seen, register=register: hooked(register, seen) for register in GLOBAL_HOOKS}


def work():
    """Something of everything that verification does."""
    layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    torch.autograd.grad(layer(torch.randn(4, 3, requires_grad=True)).square().sum(), list(layer.parameters()))
    logging.getLogger("transformers.models.some").warning("of a model that the user does not have")
    random.random()
    numpy.random.rand()
    return layer


@pytest.mark.parametrize("name", WATCHERS)
def test_nothing_outside_sees_it(name):
    seen = []
    with WATCHERS[name](seen):
        work()
        assert seen, "the watcher watches nothing"
        seen.clear()
        in_clean_room(work)
        assert seen == []
        work()
    assert seen


@contextlib.contextmanager
def setting(set_value, value, before):
    set_value(value)
    yield
    set_value(before)


def grad_mode():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def products():
    return torch.get_float32_matmul_precision()


def deterministic():
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def anomaly():
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def autocast():
    states = [torch.is_autocast_enabled(device) for device in ("cpu", "cuda", "xpu")]
    return (*states, torch.is_autocast_cache_enabled())


STATES = {
    "no_grad": (torch.no_grad, grad_mode),
    "inference_mode": (torch.inference_mode, grad_mode),
    "autocast": (lambda: torch.autocast("cpu"), autocast),
    "autocast without cache": (lambda: torch.autocast("cpu", cache_enabled=False), autocast),
    "default dtype": (lambda: setting(torch.set_default_dtype, torch.float64, torch.float32), torch.get_default_dtype),
    "default device": (lambda: setting(torch.set_default_device, "meta", None), torch.get_default_device),
    "device": (lambda: torch.device("meta"), torch.get_default_device),
    "anomaly": (lambda: torch.autograd.detect_anomaly(check_nan=False), anomaly),
    "deterministic": (lambda: setting(torch.use_deterministic_algorithms, True, False), deterministic),
    "float32 products": (lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"), products),
    "one thread": (
        lambda: torch.autograd.set_multithreading_enabled(False),
        torch._C._is_multithreading_enabled,
    ),
    "forward mode": (torch.autograd.forward_ad.dual_level, lambda: torch.autograd.forward_ad._current_level),
    "no saved tensors": (
        lambda: torch.autograd.graph.disable_saved_tensors_hooks("not here"),
        torch._C._autograd._saved_tensors_hooks_is_enabled,
    ),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", STATES)
def test_states_are_the_usual_ones_inside_and_as_before_outside(name):
    switched, probe = STATES[name]
    usual = probe()
    with switched():
        before = probe()
        assert before != usual
        assert in_clean_room(probe) == usual
        assert probe() == before
        with pytest.raises(ZeroDivisionError):
            in_clean_room(lambda: 1 / 0)
        assert probe() == before
    assert probe() == usual


def test_warnings_and_what_is_logged_once():
    filters = list(warnings.filters)
    given = logging.Logger.warning_once
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        in_clean_room(lambda: warnings.warn("of the tiny model", stacklevel=1))
        in_clean_room(lambda: logging.getLogger("transformers.some").warning_once("only once"))
        assert caught == []
    assert warnings.filters == filters
    assert logging.Logger.warning_once is given
    seen = []
    with logged(seen):
        logging.getLogger("transformers.some").warning_once("only once")
    assert len(seen) == 1  # what was said in there does not count


def test_threads_stay():
    threads = torch.get_num_threads()
    in_clean_room(lambda: run(model := add_lora(tiny_model("llama")), tiny_inputs("llama", model)))
    assert torch.get_num_threads() == threads


def generators():
    """The state of every generator, and the seeds that wait for devices that are not initialised."""
    found = [torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in numpy.random.get_state()]]
    for name in ("cuda", "xpu", "mtia"):
        device = getattr(torch, name)
        found.append([id(call[0]) for call in getattr(device, "_queued_calls", ())])
        found.append(list(getattr(device, "_lazy_seed_tracker", None).call_order if name == "cuda" else ()))
        if device.is_available():
            found += [state.tolist() for state in device.get_rng_state_all()]
    return found


class TestGenerators:
    def test_of_the_probe(self):
        """It sees what ``torch.manual_seed`` does, devices or not."""
        before = generators()
        torch.manual_seed(torch.initial_seed() + 1)
        assert generators() != before
        if not torch.cuda.is_available():
            assert generators()[3:] != before[3:]

    @pytest.mark.parametrize("fails", [False, True])
    def test_in_the_clean_room(self, fails):
        def draw():
            work()
            torch.default_generator.manual_seed(3)
            if fails:
                raise RuntimeError

        before = generators()
        with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
            in_clean_room(draw)
        assert generators() == before

    def test_of_the_harness(self):
        before = generators()
        model = add_lora(tiny_model("llama"), lora_dropout=0.5)
        inputs = tiny_inputs("llama", model)
        run(model, inputs)
        for name in ("dropout", "repeated_backward", "checkpointing_non_reentrant", "mlp_input_shapes"):
            assert CHECKS[name](model, inputs).passed
        assert generators() == before

    @pytest.mark.parametrize("fails", [False, True])
    def test_of_apply(self, fails, tmp_path, monkeypatch):
        """Upstream's constructors draw from them all."""
        drawing = (
            "        self.layer_idx = layer_idx\n",
            "        self.layer_idx = layer_idx\n        import random, numpy; random.random(); numpy.random.rand()\n"
            + ("        assert not globals().get('finished')\n" if fails else ""),
        )
        monkeypatch.setattr(spot, "SPOT_CHECKS", ("forward_backward", "dropout"))
        monkeypatch.setattr("patchkit.check.numeric.tiny_instances.tiny_models_of", lambda _: ())
        module = edited_llama(tmp_path, monkeypatch, drawing)
        model = model_of(module)
        module.finished = True
        before = generators()
        with pytest.warns(PatchkitWarning) if fails else contextlib.nullcontext():
            counts = patchkit.apply(model).counts
        assert set(counts) == ({"fused", "alone"} if fails else {"fused"})
        assert generators() == before


def global_hooks():
    return {name: id(value) for name, value in vars(MODULE).items() if name.startswith("_global_")}


def test_apply_under_everything_at_once(tmp_path, monkeypatch):
    """Verified as if nothing was on, and nobody saw it."""
    model = model_of(edited_llama(tmp_path, monkeypatch, RENAMED))
    monkeypatch.setattr(spot, "SPOT_CHECKS", ("forward_backward", "checkpointing_non_reentrant"))
    seen = []
    with contextlib.ExitStack() as stack:
        for name, (switched, _) in STATES.items():
            if name not in ("no saved tensors", "forward mode", "deterministic"):
                stack.enter_context(switched())
        for name, watch in WATCHERS.items():
            if name not in ("functions", "operations"):  # apply itself makes an empty tensor
                stack.enter_context(watch(seen))
        before = [probe() for _, probe in STATES.values()]
        hooks = global_hooks()
        report = patchkit.apply(model)
        assert [probe() for _, probe in STATES.values()] == before
        assert global_hooks() == hooks
        assert seen == []
    assert {row.part for row in report.rows} == {"qkv", "o", "mlp"}
    assert len(patchkit.trust.policy._decided) == 1


class Interrupted(BaseException):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that interrupts on this system")
def test_an_interrupt_ends_the_work(monkeypatch):
    monkeypatch.setattr(clean_room, "_PATIENCE", 0.05)
    ended, started, before = [], threading.Event(), threading.active_count()

    def work_on():
        started.set()
        try:
            while True:
                with contextlib.suppress(Exception):
                    time.sleep(0.001)
        finally:
            ended.append(True)

    def interrupt(number, frame):
        if started.is_set():
            raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)  # again and again, while it is being ended
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(Interrupted):
            in_clean_room(work_on)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert torch.get_default_dtype() is torch.float64
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        torch.set_default_dtype(torch.float32)
    assert ended
    assert threading.active_count() == before


def test_what_it_raises_is_raised_here():
    with pytest.raises(SystemExit, match="7"):
        in_clean_room(lambda: sys.exit(7))
