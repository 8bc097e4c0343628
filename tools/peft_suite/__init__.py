"""PEFT's own test suite, run plain and with ``patchkit.apply`` injected, compared test by test.

``python -m tools.peft_suite PATH`` (``make test-peft``), where ``PATH`` is a checkout of PEFT or an unpacked
source distribution. Needs pytest, and what PEFT's tests need (the extra ``peft-suite``).
"""
