"""Everything that a machine with one GPU must answer, in at most ten minutes: ``python -m tools.gpu``.

Sections hold cells; a cell gives figures, or is recorded as failed with its traceback. Nothing but Python's own
library is imported here before a section runs, so that whatever a machine lacks is said and stops nothing else.
"""
