"""The report as HTML: a bar for each part, a line for equal modules, and their names on demand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING

from patchkit.arch.spec import PARTS
from patchkit.escaping import one_line

if TYPE_CHECKING:
    from patchkit.planning.row import Row
    from patchkit.reporting import Report

_LEVELS = ("fused", "alone", "upstream")

# A notebook has colours of its own, so text takes those that are there, and only bars have theirs.
_STYLE = """
.patchkit { font: 14px/1.45 system-ui, sans-serif; max-width: 62rem; }
.patchkit h1, .patchkit h2 { font-size: 1.1rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
.patchkit p { margin: .2rem 0 .7rem; }
.patchkit table { border-collapse: collapse; margin: 0 0 .8rem; }
.patchkit th, .patchkit td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
.patchkit th { font-weight: 600; }
.patchkit td.count { text-align: right; font-variant-numeric: tabular-nums; }
.patchkit .bar { display: flex; width: min(22rem, 45vw); height: .95rem; margin-top: .2rem; }
.patchkit .bar { border-radius: 3px; overflow: hidden; }
.patchkit .fused { background: #2f9e55; }
.patchkit .alone { background: #d9a514; }
.patchkit .upstream { background: #d6412b; }
.patchkit .expected { background: #8b949e; }
.patchkit .level { border-radius: 3px; padding: 0 .4rem; color: #fff; }
.patchkit .level.fused { background: #1f7d41; }
.patchkit .level.alone { color: #000; }
.patchkit .level.expected { color: #fff; background: #656d76; }
.patchkit summary { cursor: pointer; }
.patchkit ul { margin: .2rem 0; padding-left: 1.2rem; font-family: ui-monospace, monospace; font-size: .85em; }
@media (max-width: 40rem) {
  .patchkit .modules, .patchkit .modules tbody, .patchkit .modules tr { display: block; }
  .patchkit .modules thead { display: none; }
  .patchkit .modules tr { padding: .3rem 0; }
  .patchkit .modules td { display: inline-block; }
  .patchkit .modules td:first-child, .patchkit .modules td:last-child { display: block; overflow-wrap: anywhere; }
  .patchkit .modules td.count::before { content: "\\D7\\A0"; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>patchkit: {title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 1.5rem; overflow-x: auto; background: Canvas; color: CanvasText; }}
{style}</style>
</head>
<body>
<main class="patchkit">
{body}
</main>
</body>
</html>
"""


def page(report: Report) -> str:
    """A whole page, which needs no other file."""
    return _PAGE.format(title=_text(report.title), style=_STYLE, body="\n".join(_lines(report, "h1")))


def fragment(report: Report) -> str:
    """The same for a page that exists, such as a notebook."""
    return "\n".join([f'<div class="patchkit"><style>{_STYLE}</style>', *_lines(report, "h2"), "</div>\n"])


def _lines(report: Report, heading: str) -> Iterator[str]:
    yield f"<{heading}>{_text(report.title)}</{heading}>"
    concerned = [row for row in report.rows if not row.expected]
    fused = sum(row.level == "fused" for row in concerned)
    yield f"<p>{fused} of {len(concerned)} parts that are to be fused run fused ({_percent(report.share_fused)}).</p>"
    if report.rows:
        yield from _bars(report.rows)
        yield from _modules(report.rows)
    yield from (f"<p>{_text(note)}</p>" for note in report.notes)


def _percent(share: float) -> str:
    """A share in whole percent; one that is not all of it is never called 100 %."""
    return f"{int(share * 100 + 1e-9)}%"


def _bars(rows: Iterable[Row]) -> Iterator[str]:
    """How many modules of each part run at which level."""
    by_part: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_part[row.part]["expected" if row.expected else row.level] += 1
    yield "<table><tbody>"
    for part in (part for part in PARTS if part in by_part):
        counts = {level: by_part[part][level] for level in (*_LEVELS, "expected") if by_part[part][level]}
        said = ", ".join(f"{count} {_shown(level)}" for level, count in counts.items())
        pieces = "".join(f'<span class="{level}" style="flex:{count}"></span>' for level, count in counts.items())
        bar = f'<div class="bar" role="img" aria-label="{said}">{pieces}</div>'
        yield f'<tr><th scope="row">{part}</th><td>{bar}</td><td>{said}</td></tr>'
    yield "</tbody></table>"


def _shown(level: str) -> str:
    return "upstream, as expected" if level == "expected" else level


def _modules(rows: Iterable[Row]) -> Iterator[str]:
    """A line for equal rows; who opens it sees the modules."""
    groups: dict[tuple[str, str, str, str, str, bool], list[str]] = defaultdict(list)
    for row in rows:
        groups[row.module_class, row.part, row.level, row.memory, row.reason, row.expected].append(row.name)
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("module class", "part", "count", "level", "reason"))
    yield f'<table class="modules"><thead><tr>{heads}</tr></thead><tbody>'
    for (module_class, part, level, memory, reason, expected), names in groups.items():
        listed = "".join(f"<li>{_text(name or '(the model)')}</li>" for name in names)
        colour = "expected" if expected else level
        why = "; ".join(text for text in (memory and f"memory: {memory}", reason) if text)
        yield (
            f"<tr><td><details><summary>{_text(module_class)}</summary><ul>{listed}</ul></details></td><td>{part}</td>"
            f'<td class="count">{len(names)}</td><td><span class="level {colour}">{level}</span></td>'
            f"<td>{_text(why)}</td></tr>"
        )
    yield "</tbody></table>"


def _text(text: str) -> str:
    return escape(one_line(text))
