"""What the flow of ``patchkit check`` chooses: architectures, releases, environments, ledgers, and what is left to prove."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of

from patchkit.arch.registry import find
from patchkit.arch.spec import Architecture, Attention, GatedMLP
from patchkit.check import run
from patchkit.check.numeric.outcomes import ArchitectureOutcome, BlockOutcome
from patchkit.check.results.report import CheckReport, Entry
from patchkit.check.run import Numbers, check_numeric, check_static, ledger_to_write, run_check, with_text_models
from patchkit.check.static.findings import Finding, key_of_finding
from patchkit.check.static.records import Records
from patchkit.check.static.verdicts import PartOutcome
from patchkit.errors import CacheError, PatchkitWarning, ReleaseEnvironmentError, ReleaseError
from patchkit.trust.ledger import SHIPPED_LEDGER, USER_LIMIT, Key, Proof, read_proofs, user_ledger
from patchkit.upstream.release import INSTALLED, WHEEL, Release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

VERSIONS = {"transformers": "5.90.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
LLAMA, GEMMA, LLAVA = find("llama"), find("gemma"), find("llava")


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """With llama, and without gemma and llava."""
    return folder_release(tmp_path / "release", "5.90.0", {path_of("llama"): SMALL_LLAMA})


def proof_of(key: Key) -> Proof:
    return Proof(key, "numeric", {"mlp": "fused"}, {"eval": 1e-7}, VERSIONS, "2026-01-02")


# ---- which architectures


def test_one_without_blocks_stands_for_its_text_models() -> None:
    """Each once, in the order of first mention."""
    assert LLAVA.text_models
    assert [one.name for one in with_text_models([LLAVA])] == list(LLAVA.text_models)
    assert [one.name for one in with_text_models([GEMMA, LLAVA, GEMMA])] == list(
        dict.fromkeys(["gemma", *LLAVA.text_models])
    )
    assert with_text_models([]) == []


THERE = {
    # asked, files: the architectures that are looked for
    ("llama",): {"llama"},
    ("llama", "gemma"): {"llama", "gemma"},
    ("llava",): set(),
    ("llava", "gemma"): {"gemma"},
}


@pytest.mark.parametrize("asked", THERE, ids=" ".join)
def test_what_is_looked_for_in_a_release(asked: tuple[str, ...], release: Release, tmp_path: Path) -> None:
    """A multimodal model that it does not have is none of its text models."""
    assert run._there(release, [find(name) for name in asked]) == THERE[asked]
    folder_release(tmp_path / "release", "5.90.0", {path_of("llava"): ""})
    more = set(LLAVA.text_models) if "llava" in asked else set()
    assert run._there(release, [find(name) for name in asked]) == THERE[asked] | more


def test_each_release_is_asked_for_what_it_has(tmp_path: Path) -> None:
    """llava in one of two."""
    both = {path_of("llama"): SMALL_LLAMA, path_of("llava"): ""}
    one = folder_release(tmp_path / "one", "5.90.0", both)
    other = folder_release(tmp_path / "other", "5.91.0", {path_of("llama"): SMALL_LLAMA})
    report = check_static([one, other], [LLAVA], Records())
    assert report.releases == (one, other)
    assert {entry.release for entry in report.entries if entry.finding.architecture == "llama"} == {one}
    assert {entry.release for entry in check_static([one, other], [LLAMA], Records()).entries} == {one, other}


def test_a_plugin_is_checked_as_it_is_installed(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, whatever releases of transformers are asked for; and against no record of transformers."""
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "modeling.py").write_text(SMALL_LLAMA)
    installed = Release("1.0", tmp_path, INSTALLED, package="acme")
    monkeypatch.setattr(run, "installed_release", lambda package: {"acme": installed}[package])
    blocks = (Attention("LlamaAttention"), GatedMLP("LlamaMLP"))
    acme = Architecture("acme", ("acme",), "acme.modeling", blocks)
    known = {"acme": acme, "llama": LLAMA}
    for module in ("patchkit.check.results.report.find", "patchkit.check.static.findings.find"):
        monkeypatch.setattr(module, known.__getitem__)
    alone = check_static([release], [acme], Records())
    assert alone.releases == (installed,)
    assert {(entry.release, entry.finding.release, entry.verdict) for entry in alone.entries} == {
        (installed, "1.0", "rewritten")
    }
    both = check_static([release], [acme, LLAMA], Records())
    assert both.releases == (release, installed)
    assert [entry.release for entry in both.entries] == [release] * 3 + [installed] * 3


def test_a_plugin_whose_package_is_gone_harms_no_other(release: Release) -> None:
    gone = Architecture("gone", (), "acme_that_is_gone.modeling", (GatedMLP("AcmeMLP"),))
    with pytest.warns(PatchkitWarning, match="architecture 'gone' was not checked: acme_that_is_gone is not installed"):
        report = check_static([release], [gone, LLAMA], Records())
    assert {entry.finding.architecture for entry in report.entries} == {"llama"}
    with pytest.raises(ReleaseError, match="acme_that_is_gone is not installed"):
        check_static([release], [gone], Records())


# ---- the flow


def test_numbers_are_asked_for_or_not(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a ledger that cannot be written is said before anything is fetched."""
    asked: list[Any] = []

    def resolve(wanted: Sequence[str], **options: Any) -> list[Release]:
        assert callable(options.pop("progress"))
        asked.append((list(wanted), options))
        return [release]

    @contextlib.contextmanager
    def progress(text: str) -> Iterator[Any]:
        asked.append(text)
        yield lambda done, of, text=None: None

    monkeypatch.setattr(run, "resolve", resolve)
    monkeypatch.setattr(
        run, "check_numeric", lambda report, chosen, numbers, advance, **_: asked.append((chosen, numbers)) or report
    )
    monkeypatch.setattr(run, "SHIPPED_LEDGER", Path("/nowhere/patchkit/trust/ledger.jsonl"))
    report = run_check(["llama"], ["5.90.0"], Records(), wheels=Path("w"), require_hashes=True, progress=progress)
    assert len(report.entries) == 3
    assert asked == ["fetching releases", (["5.90.0"], {"wheels": Path("w"), "require_hashes": True}), "rewriting"]
    asked.clear()
    run_check(["llama"], [], Records(), Numbers(unproven=True), progress=progress)
    assert asked == [
        "fetching releases", ([], {"wheels": None, "require_hashes": False}), "rewriting", "", ([LLAMA], Numbers(unproven=True)),
    ]  # fmt: skip
    asked.clear()
    with pytest.raises(ReleaseEnvironmentError, match="--record enters proofs"):
        run_check(["llama"], [], Records(), Numbers(record=True), progress=progress)
    assert asked == []


@pytest.mark.parametrize("checkout", [True, False])
def test_where_proofs_go(checkout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "patchkit" / "trust" / "ledger.jsonl"
    monkeypatch.setattr(run, "SHIPPED_LEDGER", shipped)
    if checkout:
        (tmp_path / "pyproject.toml").touch()
    assert ledger_to_write(False) == user_ledger()
    if checkout:
        assert ledger_to_write(True) == shipped
    else:
        with pytest.raises(ReleaseEnvironmentError, match=f"{shipped.parents[1]} is none"):
            ledger_to_write(True)
    assert SHIPPED_LEDGER.name == "ledger.jsonl"


ENVIRONMENTS = {
    INSTALLED: ("running",),
    WHEEL: ("5.90.0", {"seconds": 7.0}),
    "/some/checkout": (Path("/some/checkout"), {"expected": "5.90.0", "seconds": 7.0}),
}


@pytest.mark.parametrize("origin", ENVIRONMENTS)
def test_the_environment_of_a_release(origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "running_environment", lambda: ("running",))
    monkeypatch.setattr(run, "environment_for", lambda release, **options: (release, options))
    assert run.environment_of(Release("5.90.0", Path("archive"), origin), 7.0) == ENVIRONMENTS[origin]


# ---- what is to be proven


def entry(release: Release, name: str = "llama", *, rules: bool = True, proven: bool = False) -> Entry:
    outcome = PartOutcome(("gated-mlp",) if rules else ())
    finding = Finding(release.version, name, "M", "M", f"m.{name}", "m.py", 3, "a" * 64, {"mlp": outcome})
    return Entry(release, finding, "mlp", "rewritten", "", proof_of(key_of_finding(finding)) if proven else None, None)


PROVE = {
    # (rewritten, proven) of each entry: whether anything is to be proven, and whether what is proven is left out
    (): (False, False),
    ((True, False),): (True, True),
    ((True, True),): (True, False),
    ((False, False),): (False, False),
    ((False, True),): (False, False),
    ((True, True), (True, False)): (True, True),
    ((True, True), (False, False)): (True, False),
}


@pytest.mark.parametrize("entries", PROVE, ids=str)
def test_whether_anything_is_to_be_proven(entries: tuple[tuple[bool, bool], ...], release: Release) -> None:
    given = [entry(release, rules=rules, proven=proven) for rules, proven in entries]
    assert (run._anything_to_prove(given, False), run._anything_to_prove(given, True)) == PROVE[entries]


CHECKED = {
    # architectures with entries, architectures asked for: those to check
    "it": (["llama"], ["llama"], ["llama"]),
    "not asked for": (["llama"], [], []),
    "nothing of it is rewritten": ([], ["llama"], []),
    "the release lacks its file": (["llama", "gemma"], ["llama", "gemma"], ["llama"]),
    "the multimodal one is not there": (["llama"], ["llava"], []),
}


@pytest.mark.parametrize("case", CHECKED)
def test_which_architectures_are_checked(case: str, release: Release, tmp_path: Path) -> None:
    there, asked, expected = CHECKED[case]
    other = replace(release, version="5.80.0")
    report = CheckReport((release, other), tuple(entry(release, name) for name in there))
    chosen = [find(name) for name in asked]
    assert run._to_check(release, report, chosen, False) == expected
    assert run._to_check(other, report, chosen, False) == []
    plugin = replace(release, package="acme", location=tmp_path / "gone")
    report = CheckReport((plugin,), tuple(entry(plugin, name) for name in there))
    found = run._to_check(plugin, report, chosen, False)
    assert found == ([name for name in asked if name in there] if "llava" not in asked else ["llava"]), (
        "its files lie elsewhere"
    )


def test_a_multimodal_model_that_is_there_is_checked_by_its_text_model(release: Release, tmp_path: Path) -> None:
    folder_release(tmp_path / "release", "5.90.0", {path_of("llava"): ""})
    assert run._to_check(release, CheckReport((release,), (entry(release),)), [LLAVA], False) == ["llava"]
    assert run._to_check(release, CheckReport((release,), ()), [LLAVA], False) == []


# ---- the numeric stage


class Fake:
    """An environment in which everything passes, or nothing is said."""

    versions = VERSIONS

    def __init__(self, report: CheckReport, silent: Sequence[str] = ()) -> None:
        self.report, self.silent, self.asked = report, silent, []  # type: ignore[var-annotated]

    def check(
        self, names: Sequence[str], *, jobs: int, seconds: float, **elsewhere: str
    ) -> Iterator[ArchitectureOutcome]:
        self.asked.append((list(names), seconds, *elsewhere.values()))
        for name in names:
            if name not in self.silent:
                keys = {
                    key_of_finding(one.finding)
                    for one in self.report.entries
                    if one.finding.architecture == name and one.finding.source
                }
                blocks = [
                    BlockOutcome(
                        key.class_name, key.source, name, "passed", {"mlp": "fused"}, {}, "", proof_of(key).to_line()
                    )
                    for key in sorted(keys)
                ]
                yield ArchitectureOutcome(name, VERSIONS, tuple(blocks))


@pytest.fixture
def both(tmp_path: Path) -> CheckReport:
    """The static report on llama and gemma in two releases, of which the second has llama alone."""
    files = {path_of("llama"): SMALL_LLAMA, path_of("gemma"): SMALL_LLAMA.replace("Llama", "Gemma")}
    one = folder_release(tmp_path / "one", "5.90.0", files)
    other = folder_release(tmp_path / "other", "5.91.0", {path_of("llama"): SMALL_LLAMA})
    return check_static([one, other], [LLAMA, GEMMA], Records())


@pytest.mark.parametrize("silent", [(), ("llama",), ("gemma",)], ids=str)
def test_every_architecture_has_an_outcome(
    silent: tuple[str, ...], both: CheckReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = {release.version: Fake(both, silent) for release in both.releases}
    monkeypatch.setattr(run, "environment_of", lambda release, seconds, beside: fakes[release.version])
    told: list[tuple[int, int, str | None]] = []
    numbers = Numbers(seconds=7.0)
    report = check_numeric(both, [LLAMA, GEMMA], numbers, lambda done, of, text=None: told.append((done, of, text)))
    assert [fake.asked for fake in fakes.values()] == [[(["llama", "gemma"], 7.0)], [(["llama"], 7.0)]]
    found = {(one.release.version, one.outcome.architecture): one.outcome for one in report.numeric}
    assert set(found) == {("5.90.0", "llama"), ("5.90.0", "gemma"), ("5.91.0", "llama")}
    for (_, name), outcome in found.items():
        assert outcome.status == ("inapplicable" if name in silent else "passed")
        assert outcome.problems == ({name: "no outcome came of it"} if name in silent else {})
        assert outcome.versions == VERSIONS
    for shown in report.entries:
        known = shown.finding.architecture not in silent and shown.finding.source
        assert (shown.proof.key if shown.proof else None) == (key_of_finding(shown.finding) if known else None)
    assert set(read_proofs(user_ledger())) == {shown.proof.key for shown in report.entries if shown.proof}
    assert told[:2] == [(0, 3, "environment for transformers 5.90.0"), (0, 3, "numbers of transformers 5.90.0")]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert {of for _, of, _ in told} == {3}
    if not silent:
        assert [done for done, _, _ in told] == [0, 0, 1, 2, 2, 2, 3]


def test_what_is_proven_is_left_out_and_keeps_its_proof(both: CheckReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of which nothing is to be checked needs no environment."""
    entries = tuple(replace(one, proof=proof_of(key_of_finding(one.finding))) for one in both.entries)
    monkeypatch.setattr(run, "environment_of", lambda *_: pytest.fail("nothing is to be run"))
    report = check_numeric(replace(both, entries=entries), [LLAMA, GEMMA], Numbers(unproven=True))
    assert (report.numeric, report.entries) == ((), entries)


def test_what_passes_on_another_device_is_shown_and_not_entered(
    both: CheckReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(both)
    monkeypatch.setattr(run, "environment_of", lambda release, seconds, beside: fake)
    report = check_numeric(both, [LLAMA], Numbers(seconds=7.0, device="cuda"))
    assert fake.asked == [(["llama"], 7.0, "cuda")] * 2
    assert any(shown.proof for shown in report.entries)
    assert read_proofs(user_ledger()) == {}


@pytest.mark.parametrize("required", [True, False])
def test_how_many_proofs_a_ledger_keeps(required: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's as many as it holds, the shipped one all; and nothing is written where nothing was proven."""
    entered: list[Any] = []
    monkeypatch.setattr(run, "add_proofs", lambda path, proofs, limit: entered.append((path, proofs, limit)))
    run._enter(tmp_path, [], required=required)
    assert entered == []
    proofs = [proof_of(Key("m.A", "a" * 64, 1))]
    run._enter(tmp_path, iter(proofs), required=required)
    assert entered == [(tmp_path, proofs, None if required else USER_LIMIT)]

    def fail(*_: object, **__: object) -> None:
        raise CacheError("it is full")

    monkeypatch.setattr(run, "add_proofs", fail)
    with (
        pytest.raises(CacheError) if required else pytest.warns(PatchkitWarning, match="is not remembered: it is full")
    ):
        run._enter(tmp_path, proofs, required=required)
