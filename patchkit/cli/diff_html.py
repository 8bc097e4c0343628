"""A diff as a page: upstream's lines on the left, the rewritten ones on the right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from itertools import zip_longest

from patchkit.escaping import one_line

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>patchkit diff: {title}</title>
<style>
* {{ box-sizing: border-box; }}
:root {{
  color-scheme: light dark; --ground: #fff; --text: #1b1f24;
  --removed: #fbe3df; --added: #ddf5e3; --line: #d9dee4; --faint: #626b76;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ground: #14181d; --text: #e4e8ec;
    --removed: #45231d; --added: #173a25; --line: #323a43; --faint: #94a0ac;
  }}
}}
body {{ margin: 1.5rem; background: var(--ground); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.35rem; }}
h2 {{ font-size: 1.05rem; margin: 1.6rem 0 .3rem; overflow-wrap: anywhere; }}
p {{ margin: .1rem 0; color: var(--faint); overflow-wrap: anywhere; }}
.diff {{ overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin-top: .6rem; }}
table {{ border-collapse: collapse; width: 100%; font: 12.5px/1.5 ui-monospace, monospace; }}
th {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }}
td {{ white-space: pre; padding: 0 .6rem; width: 50%; height: 1.5em; vertical-align: top; }}
td + td {{ border-left: 1px solid var(--line); }}
.diff:focus-visible {{ outline: 2px solid var(--text); outline-offset: 1px; }}
.removed {{ background: var(--removed); }}
.added {{ background: var(--added); }}
.at {{ color: var(--faint); }}
@media (max-width: 40rem) {{ /* a line below the other: a line that stays is there once */
  body {{ margin: .6rem; }}
  table, thead, tbody, tr, th, td {{ display: block; width: auto; }}
  table {{ width: max-content; min-width: 100%; }}
  td + td {{ border-left: 0; }}
  .same td + td, .at td + td, tr:not(.same) td:not([class]):empty {{ display: none; }}
  td::before {{ content: "\\A0\\A0"; }}
  .removed::before {{ content: "\\2212\\A0"; }}
  .added::before {{ content: "+\\A0"; }}
}}
</style>
</head>
<body>
<main>
<h1>What patchkit rewrites</h1>
{body}
</main>
</body>
</html>
"""


def page(lines: Iterable[str], title: str) -> str:
    """The page.

    Args:
        lines: of unified diffs, with lines of ``#`` before each, as :func:`patchkit.cli.diff.diff_lines` gives them.
        title: of the window.
    """
    return _PAGE.format(title=_text(title), body="\n".join(_body(lines)))


def _body(lines: Iterable[str]) -> Iterator[str]:
    removed: list[str] = []
    added: list[str] = []
    inside, before = False, ""
    for line in lines:
        sign, text = line[:1], line[1:]
        if inside and sign in "-+" and not line.startswith(("--- ", "+++ ")):
            (removed if sign == "-" else added).append(text)
            continue
        yield from _pairs(removed, added)
        if line.startswith("--- "):
            yield from (["</tbody></table></div>"] if inside else [])
            inside, before = False, text[3:]
        elif line.startswith("+++ "):
            # It may be wider than the window, so that it takes the focus and arrow keys scroll it.
            yield f'<div class="diff" tabindex="0" role="group" aria-label="{_text(before.strip())}, rewritten">'
            heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in (before, text[3:]))
            yield f"<table><thead><tr>{heads}</tr></thead><tbody>"
            inside = True
        elif sign == "@":
            yield f'<tr class="at"><td>{_text(line)}</td><td></td></tr>'
        elif sign == "#":
            yield from (["</tbody></table></div>"] if inside else [])
            inside = False
            said = text.strip()
            yield f"<p>{_text(said)}</p>" if text.startswith("   ") else f"<h2>{_text(said)}</h2>"
        else:
            yield f'<tr class="same"><td>{_text(text)}</td><td>{_text(text)}</td></tr>'
    yield from _pairs(removed, added)
    yield from (["</tbody></table></div>"] if inside else [])


def _pairs(removed: list[str], added: list[str]) -> Iterator[str]:
    """What was removed beside what came in its place; both are empty afterwards."""
    for left, right in zip_longest(removed, added):
        yield f"<tr>{_cell('removed', left)}{_cell('added', right)}</tr>"
    removed.clear()
    added.clear()


def _cell(kind: str, text: str | None) -> str:
    return "<td></td>" if text is None else f'<td class="{kind}">{_text(text)}</td>'


def _text(text: str) -> str:
    return escape(one_line(text))
