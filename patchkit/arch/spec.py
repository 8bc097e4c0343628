"""The words in which an architecture is described: names only, never code text.

An architecture file is data (see the other files of this folder). Names default to the field's usual ones,
so a file states only deviations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

Part = Literal["qkv", "o", "mlp", "linear", "experts", "embedding", "head", "loss", "norm"]
"""A part of a model that patchkit patches: an option of ``patchkit.apply``."""

PARTS: tuple[Part, ...] = get_args(Part)
"""Every part, in the order in which reports name them."""

BLOCK_PARTS: tuple[Part, ...] = ("qkv", "o", "mlp")
"""The parts of attentions and MLPs. The code that calls their projections is rewritten.

The other parts are layers that are patched by themselves, with three exceptions. Linear layers that read one variable
are rewritten too (:class:`SharedInput`). The loss is rewritten in a model's own forward, which no architecture file
describes. A norm has no adapter, and is patched to save memory.
"""

Tower = Literal["text", "vision"]
"""Which tower a block belongs to. Text blocks are always patched, vision blocks only if they have adapters."""


@dataclass(frozen=True)
class Attention:
    """An attention class that has separate query, key and value projections, and in most models the output projection.

    Attributes:
        class_name: the class in the architecture's ``module`` whose ``forward`` calls the projections.
        q: attribute name of the query projection; likewise ``k`` and ``v``.
        o: attribute name of the output projection; None where it belongs to another class, as in bert.
        tower: see :data:`Tower`.
    """

    class_name: str
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str | None = "o_proj"
    tower: Tower = "text"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it holds."""
        return ("qkv", "o") if self.o else ("qkv",)

    def projections(self, part: Part | None = None) -> tuple[str, ...]:
        """The attribute names of a part's projections, or of all; none for a part that it does not hold."""
        names: dict[Part, tuple[str, ...]] = {"qkv": (self.q, self.k, self.v), "o": (self.o,) if self.o else ()}
        return names.get(part, ()) if part else (*names["qkv"], *names["o"])

    @property
    def modules(self) -> tuple[str, ...]:
        """The attribute names of all that rewritten code looks up."""
        return self.projections()


@dataclass(frozen=True)
class GatedMLP:
    """A class that computes ``down(dropout(activation(gate(x)) * up(x)))``. Most drop nothing; some clamp gate and up.

    Attributes:
        class_name: the class in the architecture's ``module``.
        gate: attribute name of the gate projection; likewise ``up`` and ``down``.
        gate_up: attribute name of one projection that yields gate and up together, split in two along the last
            dimension (phi3, glm). If given, ``gate`` and ``up`` are not looked for.
        activation: attribute name of the activation module. Which function it is, is read from the module.
        activation_function: the activation as ``forward`` calls it, where that is a global function: ``F.silu``. If
            given, ``activation`` is not looked for.
        dropout: attribute name of the dropout module that the down projection's input goes through; None if there is
            none.
        dropout_function: that dropout as ``forward`` calls it, where it is a global function:
            ``nn.functional.dropout``.
        limit: attribute name of the number by which gate is clamped from above, and up from both sides:
            ``gate.clamp(max=self.limit)`` and ``up.clamp(min=-self.limit, max=self.limit)``; None if they are not.
        tower: see :data:`Tower`.
    """

    class_name: str
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    gate_up: str | None = None
    activation: str = "act_fn"
    activation_function: str | None = None
    dropout: str | None = None
    dropout_function: str | None = None
    limit: str | None = None
    tower: Tower = "text"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it holds."""
        return ("mlp",)

    def projections(self, part: Part | None = None) -> tuple[str, ...]:
        """The attribute names of a part's projections, or of all; none for a part that it does not hold."""
        return (*self.inputs, self.down) if part in ("mlp", None) else ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The projections that read the block's input: ``(gate, up)``, or ``(gate_up,)``."""
        return (self.gate_up,) if self.gate_up else (self.gate, self.up)

    @property
    def modules(self) -> tuple[str, ...]:
        """The attribute names of all that rewritten code looks up."""
        return self.projections() if self.activation_function else (*self.projections(), self.activation)


@dataclass(frozen=True)
class MLP:
    """A class that computes ``down(dropout(activation(up(x))))``. Most have no dropout.

    Attributes:
        class_name: the class in the architecture's ``module``.
        up: attribute name of the first projection; likewise ``down`` of the second.
        activation: attribute name of the activation module. Which function it is, is read from the module.
        activation_function: see :class:`GatedMLP`; likewise ``dropout`` and ``dropout_function``.
        tower: see :data:`Tower`.
    """

    class_name: str
    up: str = "fc1"
    down: str = "fc2"
    activation: str = "activation_fn"
    activation_function: str | None = None
    dropout: str | None = None
    dropout_function: str | None = None
    tower: Tower = "text"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it holds."""
        return ("mlp",)

    def projections(self, part: Part | None = None) -> tuple[str, ...]:
        """The attribute names of a part's projections, or of all; none for a part that it does not hold."""
        return (self.up, self.down) if part in ("mlp", None) else ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The projection that reads the block's input."""
        return (self.up,)

    @property
    def modules(self) -> tuple[str, ...]:
        """The attribute names of all that rewritten code looks up."""
        return self.projections() if self.activation_function else (*self.projections(), self.activation)


@dataclass(frozen=True)
class SharedInput:
    """A class that gives one variable to several linear layers: k and v of encoder states, ``in_proj_qkvz`` and others.

    Query, key and value of one variable are the case of :class:`Attention`.

    Attributes:
        class_name: the class in the architecture's ``module``.
        groups: attribute names of the layers, those of one variable together.
        tower: see :data:`Tower`.
    """

    class_name: str
    groups: tuple[tuple[str, ...], ...] = (("k_proj", "v_proj"),)
    tower: Tower = "text"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it holds."""
        return ("linear",)

    def projections(self, part: Part | None = None) -> tuple[str, ...]:
        """The attribute names of a part's projections, or of all; none for a part that it does not hold."""
        return tuple(name for group in self.groups for name in group) if part in ("linear", None) else ()

    @property
    def modules(self) -> tuple[str, ...]:
        """The attribute names of all that rewritten code looks up."""
        return self.projections()


@dataclass(frozen=True)
class LanguageModel:
    """A class whose ``forward`` makes logits with its head and hands them to its loss function.

    It stands in no architecture file: which attribute is the head follows from the source of the class.

    Attributes:
        class_name: the class.
        head: attribute name of the head.
        tower: see :data:`Tower`.
    """

    class_name: str
    head: str = "lm_head"
    tower: Tower = "text"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it holds."""
        return ("loss",)

    def projections(self, part: Part | None = None) -> tuple[str, ...]:
        """The attribute name of the head, for the loss or for all; none for a part that it does not hold."""
        return (self.head,) if part in ("loss", None) else ()

    @property
    def modules(self) -> tuple[str, ...]:
        """The attribute names of all that rewritten code looks up."""
        return self.projections()


Block = Attention | GatedMLP | MLP | SharedInput | LanguageModel
"""What is rewritten: a class and the names of its projections."""

BLOCKS: tuple[type[Block], ...] = (Attention, GatedMLP, MLP, SharedInput)
"""Every kind of block that an architecture file describes."""


def description(block: Block) -> str:
    """What a block's description says, but for which class it is and where that sits: ``GatedMLP(gate='w1')``."""
    words = ((one, getattr(block, one.name)) for one in fields(block) if one.name not in {"class_name", "tower"})
    said = ", ".join(f"{one.name}={value!r}" for one, value in words if value != one.default)
    return f"{type(block).__name__}({said})"


@dataclass(frozen=True)
class Architecture:
    """One architecture of transformers, or of a plugin.

    Attributes:
        name: what the user types: ``patchkit diff --arch NAME``.
        model_types: values of ``config.model_type`` that build it.
        module: the module that defines its classes.
        blocks: its attention and MLP classes; empty where every block comes from a text model of another architecture.
        text_models: for a multimodal architecture without blocks of its own: architectures that its ``text_config``
            commonly names, the default first. Blocks are found by class wherever they sit, so this is for people and
            for tests, not a limit.
        model: the class of a whole model, of which a tiny one is made to prove the blocks, where transformers builds no
            model of these model types: a ``PreTrainedModel`` with a ``config_class``, of ``module``, or of another
            module as ``package.module:Class``. For a model that is none of transformers a function takes its place: it
            returns a small one, and keyword arguments of its ``forward``.
    """

    name: str
    model_types: tuple[str, ...]
    module: str
    blocks: tuple[Block, ...] = ()
    text_models: tuple[str, ...] = ()
    model: str | None = None
