"""Mutation testing: a sample of silent faults, one at a time, each against the tests that mirror its file.

A mutant is the source with one small fault in it. Tests that still pass do not guard what was changed. ``python -m
tools.mutants`` draws a sample by seed, runs it in copies of the working tree, and shows what survived; ``make mutants``
is the same.

Own code, because no kept library fits what is asked here (looked at in November 2026):

* mutmut 3 puts every mutant of a function behind a trampoline in one module. It leaves out decorated functions and
  dataclasses (https://github.com/boxed/mutmut/issues/480), which here are the kernels, the autograd functions and the
  records; a trampoline's source is also not what ``torch.compile``, Triton and the source identities of this project
  may read. Its operators are a fixed table, and it draws no sample.
* cosmic-ray takes operators from plugins and resumes, but writes each mutant into the tree in which it is started,
  runs one test command for every file, and has neither a sample nor a list of equivalent mutants.
* mutatest samples by seed, by writing into ``__pycache__``; its last release is of 2022 and for Python 3.8.

What is theirs here: operators as plugins and a session that resumes (cosmic-ray), LibCST for the changes (mutmut), a
sample by seed (mutatest).
"""
