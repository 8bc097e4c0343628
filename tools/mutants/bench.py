"""A place where mutants are tried: a copy of the tree, and a server that runs tests in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tools.mutants.copies import copy_tree
from tools.mutants.mirror import Mirror
from tools.mutants.server import Answer, Order

NO_TESTS = 5
"""pytest's exit status where every test of a file is deselected."""


class Outcome(NamedTuple):
    """What tests said.

    Attributes:
        passed: whether all of them passed; None if they took too long.
        by: the test, or the file, that failed; the last words of the output where none is named.
        loud: whether the code could not even be imported, or the process died.
        seconds: how long they took.
    """

    passed: bool | None
    by: str
    loud: bool
    seconds: float


class Bench:
    """Runs tests in copies of the tree, one after another.

    Args:
        mirror: the declaration.
        tree: what is copied.
        files: the files of it.
        folder: a folder for this bench alone.
    """

    def __init__(self, mirror: Mirror, tree: Path, files: Sequence[str], folder: Path) -> None:
        self._mirror, self._tree, self._files, self._folder = mirror, tree, files, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._errors = open(folder / "server.log", "wb")  # noqa: SIM115, held as long as the server
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tools.mutants.server", *mirror.preload],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.wait()
        self._errors.close()

    def run(
        self,
        tests: Sequence[str],
        seconds: float,
        fault: tuple[str, str] | None = None,
        left_out: Sequence[str] = (),
    ) -> Outcome:
        """Run test files in a fresh copy, up to the first failure.

        Args:
            tests: the files, in the order in which they are run.
            seconds: after these they are killed.
            fault: a file and what it holds in the copy, if something else than in the tree.
            left_out: tests that are not run.
        """
        tree, log = self._folder / "tree", self._folder / "log.txt"
        copy_tree(self._tree, self._files, tree)
        if fault is not None:
            (tree / fault[0]).write_text(fault[1], "utf-8")
        pairs = [(str(_at(self._mirror.root, root)), str(_at(tree, root))) for root in self._mirror.roots]
        arguments = ["-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", *self._mirror.arguments]
        arguments += [f"--deselect={test}" for test in left_out]
        scratch = str(self._folder / "scratch")
        answer = self._ask(Order(str(tree), pairs, scratch, [*arguments, *tests], seconds, str(log)))
        return _judge(answer, log.read_text("utf-8", errors="replace"))

    def _ask(self, order: Order) -> Answer:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asdict(order)) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the test server ended: see {self._errors.name}")
        return Answer(**json.loads(line))


def _at(root: Path, name: str) -> Path:
    return root if name == "." else root / name


def _judge(answer: Answer, output: str) -> Outcome:
    if answer.code is None:
        return Outcome(None, "", False, answer.seconds)
    if answer.code in (0, NO_TESTS):
        return Outcome(True, "", False, answer.seconds)
    named = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    lines = output.strip().splitlines()
    by = named.group(1) if named else (lines[-1] if lines else f"exit status {answer.code}")
    return Outcome(False, by, answer.code != 1 or "ERROR collecting" in output, answer.seconds)
