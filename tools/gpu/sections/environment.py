"""What is here: the device, its driver, packages and what they lack, settings that decide what is computed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import Any

from tools.gpu.cells import Cell, NotRun, Setting, Wrong
from tools.gpu.places import ROOT

BESIDE = ("bitsandbytes", "liger_kernel", "pytest", "hypothesis", "accelerate", "numpy", "matplotlib")
"""What tests and contenders use where it is there."""

_DEPENDENCIES = re.compile(r"^dependencies = \[\n(.*?)^\]", re.MULTILINE | re.DOTALL)


def cells(setting: Setting) -> Sequence[Cell]:
    """The machine, each package, and what torch and Triton can do."""
    return [
        Cell("machine", _machine),
        Cell("device", partial(_device, setting)),
        Cell("driver", _driver),
        *(Cell(f"package {name}", partial(_package, name, wanted)) for name, wanted in requirements().items()),
        *(Cell(f"package {name}", partial(_package, name, "")) for name in BESIDE),
        Cell("settings of torch", _settings),
        Cell("torch.mm(out_dtype=)", partial(_out_dtype, setting)),
        Cell("a Triton kernel runs", partial(_triton, setting)),
        Cell("patchkit.apply", partial(_apply, setting)),
    ]


def requirements() -> dict[str, str]:
    """What patchkit needs: distribution names, with the range of versions, as ``pyproject.toml`` says."""
    found = _DEPENDENCIES.search((ROOT / "pyproject.toml").read_text("utf-8"))
    assert found is not None
    lines = re.findall(r'"([A-Za-z0-9_.-]+)([^";]*)', found[1])
    return {name: wanted.strip() for name, wanted in lines}


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }


def _device(setting: Setting) -> dict[str, Any]:
    import torch

    torch.ones(1, device=setting.device).add(1).item()
    if setting.on_cpu:
        return {"name": "CPU"}
    module: Any = torch.get_device_module(setting.device)
    properties = module.get_device_properties(torch.device(setting.device))
    named = ("name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size")
    return {name: getattr(properties, name) for name in named if hasattr(properties, name)}


def _driver() -> dict[str, Any]:
    program = shutil.which("nvidia-smi")
    if program is None:
        raise NotRun("there is no nvidia-smi")
    asked = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
    command = [program, f"--query-gpu={asked}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    return dict(zip(asked.split(","), (one.strip() for one in said.splitlines()[0].split(",")), strict=False))


def _package(name: str, wanted: str) -> dict[str, Any]:
    distribution = name.replace("_", "-")
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        if importlib.util.find_spec(name) is None:
            if wanted:
                raise Wrong(f"it is not installed; patchkit needs {name}{wanted}") from None
            raise NotRun("it is not installed; tests or contenders use it where it is there") from None
        version = str(getattr(importlib.import_module(name), "__version__", "?"))
    if wanted and importlib.util.find_spec("packaging"):
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version

        if not SpecifierSet(wanted).contains(Version(version).public, prereleases=True):
            raise Wrong(f"{name} {version} is installed, patchkit needs {wanted}", {"version": version})
    return {"version": version, **({"needed": wanted} if wanted else {})}


def _settings() -> dict[str, Any]:
    import torch

    matmul = torch.backends.cuda.matmul
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "allow_tf32": matmul.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "bf16 reduced precision reduction": str(matmul.allow_bf16_reduced_precision_reduction),
        "fp16 reduced precision reduction": str(matmul.allow_fp16_reduced_precision_reduction),
        "threads": torch.get_num_threads(),
    }


def _out_dtype(setting: Setting) -> dict[str, Any]:
    import torch

    a, b = (torch.ones(16, 16, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    try:
        found = torch.mm(a, b, out_dtype=torch.float32)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise NotRun(
            f"not with torch {torch.__version__} on {setting.device}: {str(error).splitlines()[0][:80]}"
        ) from error
    return {"dtype": str(found.dtype)}


def _triton(setting: Setting) -> dict[str, Any]:
    if setting.on_cpu:
        raise NotRun("kernels run on an accelerator; on a CPU their references do")
    import torch

    from patchkit_kernels.ops.activations import GATED
    from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

    if not TRITON_AVAILABLE:
        raise NotRun("Triton is not installed: every device runs the references")
    gate, up = (torch.ones(7, device=setting.device) for _ in range(2))
    found = GATED["silu"].launch(gate, up)
    error = (found - torch.nn.functional.silu(gate)).abs().max().item()
    if error > 1e-6:
        raise Wrong("silu(1) is not what it is", {"error": error})
    return {"error": error}


def _apply(setting: Setting) -> dict[str, Any]:
    """Whether the whole flow runs: what is missing for it is named here, once, before all other sections need it."""
    import patchkit
    from patchkit.testing import add_lora, tiny_model

    report = patchkit.apply(add_lora(tiny_model("llama")).to(setting.device))
    return {"levels": dict(report.counts)}
