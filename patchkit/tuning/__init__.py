"""What only a device can decide, measured on the user's own: sizes of launches, and which way of computing is faster.

:func:`~patchkit.tuning.tune.tune` asks a small fixed grid of questions, :mod:`.record` keeps the answers in the cache
directory, and ``apply`` uses them on that device. Nothing is measured while a model trains: an answer that depends on
the moment would change the last bits of a run from one day to the next. Without a record everything runs as usual.

Every candidate has to give the results of the usual one before its time counts. What rounds in another way than the
contract with PEFT allows is no candidate.
"""
