"""The one table of readers: which layer is read by whom, by exact type.

PEFT's readers are in it from the start. Those of another adapter library are added when a module is met that nobody
reads while that library is imported: a layer of it can only exist then. So patchkit never imports a library that the
program does not use, and a type that is in the table costs one dictionary lookup at each call.
"""

from __future__ import annotations

import importlib
import logging
import sys

import torch
from peft.import_utils import is_bnb_4bit_available
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from torch import nn

from patchkit.adapters.linear import read_linear
from patchkit.adapters.peft import peft_library
from patchkit.adapters.peft_embedding import read_lora_embedding
from patchkit.adapters.protocol import EmbeddingReader, Library, Reader, Reason
from patchkit.module_tree import named_modules
from patchkit_kernels.lora.embedding import EmbeddingTable
from patchkit_kernels.lora.projection import Projection

logger = logging.getLogger("patchkit")

STANDS_FOR = "__patchkit_stands_for__"
"""Class attribute of a class that patchkit put in place of a library's: that library's class, by which it is read."""

# The module that defines a library's layers, and the one here that reads them.
_NOT_MET = {
    "loralib.layers": "patchkit.adapters.loralib",
    "torchtune.modules.peft": "patchkit.adapters.torchtune",
}


def _first_readers() -> tuple[dict[type[nn.Module], Reader], Library]:
    """Those of plain layers, and PEFT's. bitsandbytes is imported where it is installed: PEFT has done so by then."""
    readers: dict[type[nn.Module], Reader] = {nn.Linear: read_linear}
    if not is_bnb_4bit_available():
        return readers, peft_library({})
    from patchkit.adapters.bitsandbytes import BITSANDBYTES, BITSANDBYTES_BASES, BITSANDBYTES_READERS

    return readers | BITSANDBYTES_READERS, peft_library(BITSANDBYTES_BASES, BITSANDBYTES)


_PLAIN, _PEFT = _first_readers()
_LIBRARIES = [_PEFT]

READERS: dict[type[nn.Module], Reader] = {**_PLAIN, **_PEFT.readers}
EMBEDDING_READERS: dict[type[nn.Module], EmbeddingReader] = {LoraEmbedding: read_lora_embedding}


def add_library(library: Library) -> None:
    """Have the layers of a library read from now on."""
    READERS.update(library.readers)
    EMBEDDING_READERS.update(library.embeddings)
    _LIBRARIES.append(library)
    _look_at_casts()


def read_projection(module: nn.Module) -> Projection | Reason:
    """The tensors of a projection module, or why it must be called instead."""
    cls = type(module)
    reader = READERS.get(cls) or READERS.get(stands_for(cls))
    if reader is not None:
        return reader(module)
    if _meet_libraries():
        return read_projection(module)
    return f"it is a {cls.__module__}.{cls.__qualname__}"


def read_embedding(module: nn.Module) -> EmbeddingTable | Reason:
    """The tensors of an adapted embedding, or why its own ``forward`` must run."""
    cls = type(module)
    reader = EMBEDDING_READERS.get(cls) or EMBEDDING_READERS.get(stands_for(cls))
    return f"it is a {cls.__module__}.{cls.__qualname__}" if reader is None else reader(module)


def stands_for(cls: type) -> type:
    """The library's class that a class of patchkit's stands for; any other class itself, and so one on top of it."""
    found: type = cls.__dict__.get(STANDS_FOR, cls)
    return found


def carries_adapter(module: nn.Module) -> bool:
    """Whether any part of this module was given an adapter by a library that is known, of whatever kind."""
    layers = adapter_layers()
    return any(issubclass(type(part), layers) for _, part in named_modules(module))


def adapter_layers() -> tuple[type[nn.Module], ...]:
    """The classes from which the layers of every library that is known derive, adapters of any kind."""
    _meet_libraries()
    return tuple(layer for library in _LIBRARIES for layer in library.layers)


def casts_input(cls: type[nn.Module]) -> bool:
    """Whether layers of a class that is read cast their input to their adapter's dtype before they draw dropout."""
    found = _CASTS_INPUT.get(cls)
    return _casts_input(cls) if found is None else found


def _casts_input(cls: type[nn.Module]) -> bool:
    return all(library.casts_input for library in _LIBRARIES if issubclass(cls, library.layers))


def _look_at_casts() -> None:
    """Once for each class in the table: it is asked for every projection at every call, also while compiling."""
    _CASTS_INPUT.update({cls: _casts_input(cls) for cls in READERS})


_CASTS_INPUT: dict[type[nn.Module], bool] = {}
_look_at_casts()


def _meet_libraries() -> bool:
    """Add the readers of libraries that were imported since, and say whether there was one."""
    if torch.compiler.is_compiling():  # an import cannot be traced; apply has met what the model had
        return False
    imported = [defining for defining in _NOT_MET if defining in sys.modules]
    for defining in imported:
        path = _NOT_MET.pop(defining)
        try:
            library: Library = importlib.import_module(path).LIBRARY
        except ImportError as error:
            logger.warning("the installed release of %s is not known, so its layers run upstream: %s", defining, error)
            continue
        add_library(library)
    return bool(imported)
