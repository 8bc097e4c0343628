"""Who is asked when, and what becomes of those that fail: with sessions that are made up, and one process."""

from __future__ import annotations

import pytest

from patchkit.testing.contenders.cell import Cell
from patchkit.testing.contenders.results import spread
from patchkit.testing.contenders.running import Budget, ProcessSession, Rounds
from patchkit.testing.contenders.worker import answer

CELLS = [Cell("tiny", 8, 4, "float32"), Cell("tiny", 16, 4, "float32")]
NAMES = ("peft", "cast", "patchkit")


class Made:
    """Sessions that write down what they are asked, and answer what they are told to."""

    def __init__(self, **failing):
        self.asked, self.stopped, self.failing = [], [], failing

    def __call__(self, name):
        made = self

        class Session:
            def ask(self, do, seconds, **asked):
                made.asked.append((name, do))
                number = made.asked.count((name, do))
                if made.failing.get(f"{name}_{do}") in (number, "always"):
                    return {"not_run": made.failing.get("reason", "it broke")}
                if do == "sample":
                    return {"sample": [number, 10 * number], "host_us": [7.0] * made.failing.get("host", False)}
                return {"levels": {"fused": 3}} if do == "prepare" else {}

            def stop(self):
                made.stopped.append(name)

        return Session()


def run(made, cells=CELLS[:1], **options):
    return list(Rounds(NAMES, start=made, **{"rounds": 3, **options}).run(cells))


def test_each_round_has_a_sample_of_everyone_and_another_first():
    made = Made()
    (found,) = run(made)
    samples = [name for name, do in made.asked if do == "sample"]
    assert samples == [*NAMES, *("cast", "patchkit", "peft"), *("patchkit", "peft", "cast")]
    assert [do for name, do in made.asked if name == "cast"] == ["prepare", *["sample"] * 3, "drop"]
    assert made.stopped == list(reversed(NAMES))
    assert found.rounds == 3
    for one in found.results:
        assert one.forward_ms == spread([1, 2, 3])
        assert one.backward_ms == spread([10, 20, 30])
        assert one.step_ms == spread([11, 22, 33])
        assert (one.levels, one.host_us) == ({"fused": 3}, None)


def test_the_hosts_time_comes_with_the_samples():
    (found,) = run(Made(host=True), host=True)
    assert [one.host_us for one in found.results] == [7.0] * 3


@pytest.mark.parametrize(("do", "when", "samples"), [("prepare", 1, 0), ("sample", 1, 1), ("sample", 2, 2)])
def test_one_that_fails_is_listed_and_the_others_go_on(do, when, samples):
    made = Made(**{f"cast_{do}": when})
    (found,) = run(made)
    assert {one.contender: one.not_run for one in found.results} == {"peft": "", "cast": "it broke", "patchkit": ""}
    assert [one.contender for one in found.results if one.step_ms] == ["peft", "patchkit"]
    assert made.asked.count(("cast", "sample")) == samples
    assert made.asked.count(("peft", "sample")) == 3


def test_one_that_failed_is_asked_again_in_the_next_cell():
    made = Made(cast_prepare=1)
    first, second = run(made, CELLS)
    assert (first.of("cast"), second.of("cast") is not None) == (None, True)


@pytest.mark.parametrize(
    ("reason", "jobs", "asked"), [("OutOfMemoryError: much", 2, 2), ("OutOfMemoryError", 1, 1), ("x", 2, 1)]
)
def test_one_that_was_too_large_beside_others_is_prepared_alone(reason, jobs, asked):
    made = Made(cast_prepare=1, reason=reason)
    (found,) = run(made, jobs=jobs)
    assert made.asked.count(("cast", "prepare")) == asked
    assert (found.of("cast") is not None) == (asked == 2)


def test_what_is_left_out_is_never_started():
    made = Made()
    (found,) = run(made, left_out={"cast": "it takes long"})
    assert {name for name, _ in made.asked} == {"peft", "patchkit"}
    assert [one.not_run for one in found.results] == ["", "it takes long", ""]


def test_cells_that_the_budget_does_not_reach_are_listed():
    made = Made()
    budget = Budget(5, lambda: [do for _, do in made.asked].count("sample"))  # a sample takes a second
    first, second = run(made, CELLS, budget=budget)
    assert [one.step_ms.samples for one in first.results] == [2, 2, 2]  # what is begun is not torn apart
    assert first.rounds == 2
    assert {one.not_run for one in second.results} == {"the budget of 5 s was spent before"}
    assert (second.rounds, made.asked.count(("peft", "prepare"))) == (0, 1)


def test_a_cell_that_is_begun_has_one_round_at_least():
    made = Made()
    (found,) = run(made, budget=Budget(5, lambda: 0 if len(made.asked) < 3 else 9))
    assert [one.step_ms.samples for one in found.results] == [1, 1, 1]


def test_without_rounds_things_are_only_counted():
    made = Made()
    (found,) = run(made, rounds=0)
    assert {do for _, do in made.asked} == {"prepare", "drop"}
    assert {one.not_run for one in found.results} == {"no rounds were asked for"}


def test_a_spread_has_its_quartiles():
    assert spread([3.0]) == (3, 3, 3, 3, 3, 1)
    assert spread([5, 1, 2, 4, 3]) == (3, 2, 4, 1, 5, 5)


def test_json_has_what_follows_from_the_times():
    (found,) = run(Made(cast_prepare=1))
    record = found.as_dict()
    assert Cell(**record["cell"]) == CELLS[0]
    assert record["sizes"]["hidden_size"] == 256
    peft, cast, ours = record["contenders"]
    assert peft["step_ms"] == {"median": 22, "lower": 16.5, "upper": 27.5, "least": 11, "most": 33, "samples": 3}
    assert (peft["step_over_peft"], ours["step_over_peft"]) == (1, 1)
    assert peft["tokens_per_s"] == pytest.approx(8 / 0.022)
    assert (cast["not_run"], cast["step_ms"]) == ("it broke", None)
    assert not {"tokens_per_s", "step_over_peft"} & cast.keys()


def asked(contender, do="prepare", **more):
    import json

    cell = Cell("host", 8, 4, "float32", **more.pop("cell", {}))
    rest = {"rates": None, "measure": True, "host": False, **more}
    return json.loads(answer(json.dumps({"do": do, "contender": contender, "cell": cell.as_dict(), **rest}).encode()))


def test_what_a_process_answers():
    rates = {"bf16": 1.0, "float32": 1.0, "pointwise": 1.0, "skinny": 1.0}
    found = asked("patchkit", rates=rates, host=True)
    assert found["levels"] == {"fused": 3}
    assert found["modelled_ms"] > 0
    assert found["counts"]["flops"] > 0
    assert (found["measured_peak_bytes"], found["launches"]) == (None, None)  # of a CPU
    sample = asked("patchkit", "sample")
    assert [len(sample["sample"]), len(sample["host_us"])] == [2, 1]
    assert asked("patchkit", "drop") == {}
    assert asked("patchkit", "sample")["not_run"].startswith("ValueError")


def test_what_a_process_answers_where_a_contender_cannot_run():
    assert asked("liger")["not_run"] in ("its kernels want a GPU", "liger-kernel is not installed")
    found = asked("cast", cell={"dora": True})
    assert found == {"not_run": "this reference is written for LoRA without dropout and DoRA"}
    found = asked("peft", cell={"device": "no such device"})
    assert "RuntimeError" in found["not_run"]


def test_a_process_that_is_lost_is_started_again():
    session = ProcessSession("peft")
    try:
        rest = {"cell": CELLS[0].as_dict(), "rates": None, "measure": True, "host": False}
        assert session.ask("sample", 60) == {"not_run": "its process has ended"}
        assert "not_run" not in session.ask("prepare", 120, **rest)
        session._worker.stop()
        assert session.ask("sample", 60) == {"not_run": "its process has ended"}
        assert "not_run" not in session.ask("prepare", 120, **rest)
        assert len(session.ask("sample", 60)["sample"]) == 2
    finally:
        session.stop()
    assert session.ask("prepare", 60, **rest) == {"not_run": "its process has ended"}
