"""Every error and warning that patchkit raises on purpose.

Each message says what was found, where, and what the user can do. Errors that have a natural built-in parent
inherit from it too, so ``except TypeError`` keeps working.
"""


class PatchkitError(Exception):
    """Base of every error of this package."""


class NotAModelError(PatchkitError, TypeError):
    """What was passed is not a ``torch.nn.Module``."""


class UnknownOptionError(PatchkitError, TypeError):
    """An option that does not exist, or that got a value of the wrong type."""


class MetaModelError(PatchkitError, ValueError):
    """Every block of the model still has its weights on the ``meta`` device: there is nothing to patch yet."""


class NotPatchedError(PatchkitError):
    """``strict=True`` and a block would stay at upstream level."""


class RevertError(PatchkitError):
    """A patched module cannot be given its class back, because something else changed its class since."""


class MergedInBetweenError(PatchkitError, RuntimeError):
    """Adapters of experts were merged into the weights, or out of them, between a forward and its backward."""


class UnknownArchitectureError(PatchkitError, LookupError):
    """No architecture of this name is registered."""


class ArchitectureError(PatchkitError, AssertionError):
    """An architecture is not what the source says, or its patched model is not equal; each fault is a line."""


class NewArchitectureError(PatchkitError, ValueError):
    """No package can be written for an architecture: of its name, of its source, or because files are there."""


class SourceNotFoundError(PatchkitError, LookupError):
    """The source of an architecture cannot be read: its package, or its file in that release, is not there."""


class RewriteError(PatchkitError):
    """Source text cannot be rewritten at all: it does not parse, or has no such class or method.

    A block that is merely not recognised is no error: it is a :class:`patchkit.rewrite.sites.Skip`.
    """


class UndecidedError(RewriteError):
    """Source text has several definitions of one name, and a condition decides which of them Python keeps."""


class CacheError(PatchkitError, OSError):
    """A file of the cache, or a ledger, cannot be read, written or locked."""


class ReleaseEnvironmentError(PatchkitError):
    """An environment with another transformers release cannot be made, or does not run."""


class WorkerLostError(PatchkitError):
    """A worker process ended, was stopped, or failed, and left a request without an answer."""


class ReleaseError(PatchkitError, LookupError):
    """A release of transformers is unknown, or cannot be fetched from where pip is configured to look."""


class WheelError(PatchkitError, ValueError):
    """A wheel is damaged, is not the one that the index describes, or holds something that is not safe to unpack."""


class ProposalError(PatchkitError, ValueError):
    """What another run found is not what patchkit would have written, so none of it is taken."""


class UnknownModelTypeError(PatchkitError, ValueError):
    """The release has no model type of this name."""


class TinyModelError(PatchkitError, ValueError):
    """No tiny model can be made of a configuration, or no inputs for a model.

    The message names each way that was tried, and why it did not lead there.
    """


class NoModelError(TinyModelError):
    """No class takes a configuration alone: it describes a part of other models."""


class EstimateError(PatchkitError, ValueError):
    """The memory of a step cannot be estimated: of this model, or with these numbers."""


class DeviceError(PatchkitError, ValueError):
    """A device that was named is not here, or cannot hold what is to be computed."""


class PatchkitWarning(UserWarning):
    """Something runs at upstream level, or nothing was done, and the user should know."""
