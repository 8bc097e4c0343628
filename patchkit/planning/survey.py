"""One look at every module of a model: what may be patched, and what is known of it before anything is planned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from patchkit.adapters.formula import name_of
from patchkit.adapters.peft_parameters import adapts_stack
from patchkit.adapters.protocol import Reason
from patchkit.adapters.registry import EMBEDDING_READERS, adapter_layers, carries_adapter, stands_for
from patchkit.arch.discovery import Found, registered
from patchkit.arch.registry import architectures
from patchkit.arch.spec import Architecture, Block, Part
from patchkit.binding.ownership import with_hint
from patchkit.binding.patch import patch_of
from patchkit.derivation.known import architecture_of, described
from patchkit.module_tree import children_of, named_modules, state_of

NOT_CALLED: Reason = (
    "torch.nn.MultiheadAttention reads its weight and does not call it: the adapter changes nothing, in PEFT neither"
)
_CONTAINERS = {nn.ModuleList, nn.ModuleDict, nn.Sequential}


class Candidate(NamedTuple):
    """A module of a model that may be patched: a block, or an adapted layer that is patched where it stands.

    Attributes:
        name: its qualified name in the model.
        module: the module.
        parts: the parts of the model that it is, or holds.
        block: the entry of the architecture file; None for a layer.
        architecture: the architecture of that file; None for a layer.
        fed: whether its input will require a gradient in training, as far as can be told without one.
        owner: the reason to leave a module alone from the start: of another library's class in the place of a block,
            or a layer that is never called.
        derived: whether its description was derived from its source, and no architecture file names its class.
        place: of a linear layer, where it stands, as the report calls it.
    """

    name: str
    module: nn.Module
    parts: tuple[Part, ...]
    block: Block | None = None
    architecture: Architecture | None = None
    fed: bool = True
    owner: Reason | None = None
    derived: bool = False
    place: str = ""

    @property
    def found(self) -> Found:
        """The same as the architecture's files know it; only of a block."""
        assert self.block is not None
        assert self.architecture is not None
        return Found(self.name, self.module, self.architecture, self.block)

    @classmethod
    def of(cls, found: Found, *, fed: bool = True, owner: Reason | None = None, derived: bool = False) -> Candidate:
        """A block that was found."""
        return cls(found.name, found.module, found.block.parts, found.block, found.architecture, fed, owner, derived)


class Place(NamedTuple):
    """Where an adapted layer stands in a block.

    Attributes:
        block: qualified name of the block.
        part: the part of the block that it belongs to.
        attribute: its name in the block.
    """

    block: str
    part: Part
    attribute: str


class Survey(NamedTuple):
    """What one look at a model shows.

    Attributes:
        modules: every module with its qualified name, from the outside in.
        blocks: those that are registered, then modules in the place of one, then those whose description is derived;
            each in the order of ``modules``.
        layers: adapted layers in the order of ``modules``, those in blocks included.
        places: of the layers that are projections of a block, by the layer's qualified name.
    """

    modules: Sequence[tuple[str, nn.Module]]
    blocks: tuple[Candidate, ...]
    layers: tuple[Candidate, ...]
    places: dict[str, Place]


def survey(model: nn.Module) -> Survey:
    """Look at every module of a model once. Nothing of it is called but ``get_input_embeddings`` and its like."""
    modules = tuple(named_modules(model))
    fed = _fed_with_gradient([module for _, module in modules])
    blocks = [Found(name, module, *entry) for name, module in modules if (entry := registered(type(module)))]
    wanted = [found for found in blocks if _is_wanted(found) or patch_of(found.module) is not None]
    candidates = [Candidate.of(found, fed=id(found.module) in fed) for found in wanted]
    candidates += _displaced(modules, {id(found.module) for found in blocks})
    layers = tuple(_layers(modules))
    others = _derived(modules, layers, {candidate.name for candidate in candidates} | {found.name for found in blocks})
    candidates += [Candidate.of(found, fed=id(found.module) in fed, derived=True) for found in others]
    return Survey(modules, tuple(candidates), layers, _places(candidates, layers))


def _derived(
    modules: Iterable[tuple[str, nn.Module]], layers: Iterable[Candidate], taken: Collection[str]
) -> Iterator[Found]:
    """Modules that hold adapted layers and whose source says what block they are."""
    holders = {layer.name.rpartition(".")[0] for layer in layers if layer.parts == ("linear",)}
    for name, module in modules:
        if name not in holders or name in taken:
            continue
        try:
            entry = described(type(module))
        except Exception:  # a class may answer anything to being looked at; its layers are patched without it
            continue
        patch = patch_of(module)
        if entry is None and patch is not None and patch.block is not None:  # its class got another forward since
            entry = architecture_of(patch.original, patch.block), patch.block
        if entry is not None and children_of(module).keys() >= set(entry[1].projections()):
            yield Found(name, module, *entry)


def _is_wanted(found: Found) -> bool:
    """Whether a block is to be patched: those of the text model are, of a vision tower those that carry adapters."""
    return found.block.tower == "text" or carries_adapter(found.module)


def _fed_with_gradient(modules: Sequence[nn.Module]) -> frozenset[int]:
    """Identities of the modules whose input will require a gradient in training, as far as can be told without one.

    What is trained comes before them: modules are registered in the order in which they run, with exceptions (norms)
    that only ever leave one out. ``enable_input_require_grads`` makes it all of them.
    """
    if any("_require_grads_hook" in name for module in modules for name in state_of(module)):
        return frozenset(map(id, modules))
    fed, trained = set(), False
    for module in modules:
        if trained:
            fed.add(id(module))
        parameters = state_of(module).get("_parameters", {}).values()
        trained = trained or any(parameter.requires_grad for parameter in parameters if parameter is not None)
    return frozenset(fed)


def _displaced(modules: Sequence[tuple[str, nn.Module]], blocks: Iterable[int]) -> Iterator[Candidate]:
    """Modules that stand where upstream has a registered block, but are of another library's class.

    Such a class has a block's projections and sits in a model of the block's architecture: Liger-Kernel's MLPs, where
    it was applied before the model was made, or the classes of ``transformers.register_patch_mapping``.
    """
    present = {cls.__module__ for _, module in modules for cls in type(module).__mro__}
    known = [
        (architecture, block)
        for architecture in architectures().values()
        if architecture.module in present
        for block in architecture.blocks
    ]
    for name, module in modules:
        cls = type(module)
        if id(module) in blocks or cls.__module__.startswith("transformers."):
            continue
        for architecture, block in known:
            if children_of(module).keys() >= set(block.projections()):
                found = Found(name, module, architecture, block)
                if _is_wanted(found):
                    reason = f"a {name_of(cls)} stands in place of {block.class_name} and owns the block"
                    yield Candidate.of(found, owner=with_hint(reason, cls))
                break


def _layers(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[Candidate]:
    """Every embedding, every head and every other layer with an adapter.

    An embedding or head that PEFT wraps in another way (another tuner, ``modules_to_save``) is found too. What stands
    inside a layer with an adapter is that layer's own concern.
    """
    embeddings = set(asked_for(modules, "get_input_embeddings"))
    heads = set(asked_for(modules, "get_output_embeddings"))
    kinds = adapter_layers()
    named, within = dict(modules), None
    for name, module in modules:
        cls = type(module)
        outermost = issubclass(cls, kinds) and not (within is not None and name.startswith(within))
        if outermost:
            within = f"{name}." if name else ""
        if stands_for(cls) in EMBEDDING_READERS or (id(module) in embeddings and _is_adapted(module)):
            yield Candidate(name, module, ("embedding",))
        elif id(module) in heads and _is_adapted(module):
            yield Candidate(name, module, ("head",))
        elif outermost:
            holder = type(named.get(name.rpartition(".")[0]))
            reads = issubclass(holder, nn.MultiheadAttention) and holder.forward is nn.MultiheadAttention.forward
            owner = NOT_CALLED if reads else None
            part: Part = "experts" if adapts_stack(module) else "linear"
            yield Candidate(name, module, (part,), place=_place_in_words(name, named), owner=owner)


def _place_in_words(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The class that holds a layer and the layer's name there: ``Phi3Attention.qkv_proj``. Containers hold nothing."""
    holder, _, inner = name.rpartition(".")
    while holder and type(modules.get(holder)) in _CONTAINERS:
        holder, _, outer = holder.rpartition(".")
        inner = f"{outer}.{inner}"
    cls = type(modules[holder]) if name and holder in modules else None
    return f"{cls.__name__}.{inner}" if cls is not None else type(modules[name]).__name__


def _places(blocks: Sequence[Candidate], layers: Iterable[Candidate]) -> dict[str, Place]:
    """Where the layers that are projections of a block stand in it."""
    names = {id(layer.module): layer.name for layer in layers}
    found: dict[str, Place] = {}
    for candidate in blocks:
        assert candidate.block is not None
        children = children_of(candidate.module)
        for part in candidate.parts:
            for attribute in candidate.block.projections(part):
                name = names.get(id(children.get(attribute)))
                if name is not None:
                    found[name] = Place(candidate.name, part, attribute)
    return found


def asked_for(modules: Sequence[tuple[str, nn.Module]], method: str) -> Iterator[int]:
    """Identities of what the models inside a model name as their input or output embeddings."""
    for _, module in modules:
        getter = getattr(type(module), method, None)
        if getter is None:
            continue
        try:
            found = getter(module)
        except Exception:  # a backbone has none and says so somehow; what is no model may want arguments, or fail
            continue
        # No isinstance, which would ask the answer for its class: it is only compared with the model's modules.
        yield id(found)


def _is_adapted(module: nn.Module) -> bool:
    return isinstance(module, AuxiliaryTrainingWrapper) or carries_adapter(module)
