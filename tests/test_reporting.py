"""What a report says of a model: its name, in a prompt, in a notebook, and as a page."""

from __future__ import annotations

import html.parser
import re

import pytest
import torch
from contrast import AA, contrast
from peft import LoraConfig, get_peft_model
from torch import nn

import patchkit
from patchkit import report_html
from patchkit.planning.row import Row
from patchkit.report_html import fragment
from patchkit.reporting import Report
from patchkit.testing import add_lora, tiny_model

ROWS = (
    Row("layers.0.attn", "Attention", "qkv", "fused"),
    Row("layers.1.attn", "Attention", "qkv", "alone", "q_proj: a hook"),
    Row("layers.0.mlp", "MLP", "mlp", "upstream", "switched off (mlp=False)", expected=True),
    Row("", "Head", "head", "upstream", "<b>&</b>\x1b[31m"),
)


def mixed(**changes):
    return Report(**{"model_class": "Acme", "rows": ROWS, "notes": ("a <note>",), "model_type": "acme", **changes})


def parallel(model):
    return nn.DataParallel(model)


def compiled(model):
    return torch.compile(model)


def named(model):
    return patchkit.report(model).title


@pytest.mark.parametrize(
    "wrap", [[], [compiled], [parallel], [parallel, compiled]], ids=["alone", "compiled", "parallel", "both"]
)
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")
def test_the_title_is_the_users_model(wrap, adapters):
    model = tiny_model("llama")
    model = add_lora(model) if adapters else model
    for one in wrap:
        model = one(model)
    assert named(model) == "LlamaForCausalLM (llama)"
    patchkit.apply(model)
    assert named(model) == "LlamaForCausalLM (llama)"


def test_the_title_of_what_has_no_configuration():
    class Net(nn.Module):
        pass

    assert named(Net()) == "Net"
    assert named(nn.Sequential(Net())) == "Sequential"
    assert named(nn.DataParallel(nn.Sequential(Net()))) == "Sequential"


def test_a_model_that_is_patched_itself_keeps_its_name(lora_model):
    _, model = lora_model()
    (mlp,) = {name: one for name, one in model.named_modules() if name.endswith("layers.0.mlp")}.values()
    patchkit.apply(mlp)
    assert named(mlp) == "LlamaMLP (llama)"


def test_one_line_in_a_prompt():
    assert repr(mixed()) == "<patchkit.Report Acme (acme): qkv 1 fused, 1 alone; mlp 1 upstream; head 1 upstream>"
    assert "\n" not in repr(mixed(model_class="A\nB", rows=()))


@pytest.mark.parametrize(
    ("rows", "share"), [(ROWS, 1 / 3), (ROWS[:1], 1.0), (ROWS[1:], 0.0), (ROWS[2:3], 0.0), ((), 0.0)]
)
def test_share_fused(rows, share):
    assert mixed(rows=rows).share_fused == share


class Page(html.parser.HTMLParser):
    """Its texts, its tags, and whether each is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.seen = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["embed_tokens"], False),  # an embedding is in no block of any model
        (["lm_head"], False),
        (["q_proj"], False),
        (["0"], True),  # of a model without blocks
    ],
    ids=str,
)
def test_layers_outside_of_blocks_have_a_note_where_there_are_no_others(targets, said):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()) if said else tiny_model("qwen2")
    report = patchkit.apply(get_peft_model(model, LoraConfig(target_modules=targets)))
    note = "no adapted layer of it is in a block that patchkit knows, so each is patched by itself"
    assert (note in report.notes) is said


def test_a_notebook_shows_bars_and_names_on_demand():
    page = Page(mixed()._repr_html_())
    assert page.texts[:2] == ["Acme (acme)", "1 of 3 parts that are to be fused run fused (33%)."]
    bars = [attributes["aria-label"] for _, attributes in page.seen if attributes.get("role") == "img"]
    assert bars == ["1 fused, 1 alone", "1 upstream, as expected", "1 upstream"]
    widths = [attributes["style"] for tag, attributes in page.seen if tag == "span" and "style" in attributes]
    assert widths == ["flex:1"] * 4
    assert {"layers.0.attn", "layers.1.attn", "layers.0.mlp", "(the model)"} <= set(page.texts)
    assert len([tag for tag, _ in page.seen if tag == "details"]) == 4
    colours = [attributes["class"] for tag, attributes in page.seen if "level" in attributes.get("class", "").split()]
    assert colours == ["level fused", "level alone", "level expected", "level upstream"]
    assert page.texts[-1] == "a <note>"


def test_text_of_others_is_shown_and_not_obeyed():
    page = Page(fragment(mixed()))
    assert "<b>&</b>\\x1b[31m" in page.texts
    assert "b" not in [tag for tag, _ in page.seen]


def test_equal_rows_are_one_line():
    rows = tuple(Row(f"layers.{index}.mlp", "MLP", "mlp", "fused") for index in range(400))
    page = Page(fragment(mixed(rows=rows)))
    assert len([tag for tag, _ in page.seen if tag == "details"]) == 1
    assert len([tag for tag, _ in page.seen if tag == "li"]) == 400
    assert "400" in page.texts


def test_without_rows_there_is_no_table():
    assert "table" not in [tag for tag, _ in Page(fragment(mixed(rows=()))).seen]


def test_the_page_needs_nothing_else(tmp_path):
    mixed(model_class="A</title>").save_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.texts[0] == "patchkit: A</title> (acme)"
    assert not {"script", "link", "img"} & {tag for tag, _ in page.seen}
    with pytest.raises(OSError, match="report"):
        mixed().save_html(tmp_path / "missing" / "report.html")


def test_the_page_has_one_heading_and_one_main_part(tmp_path):
    mixed().save_html(tmp_path / "report.html")
    tags = [tag for tag, _ in Page((tmp_path / "report.html").read_text("utf-8")).seen]
    assert [tags.count(tag) for tag in ("main", "h1", "h2", "style", "title")] == [1, 1, 0, 1, 1]
    inside = [tag for tag, _ in Page(fragment(mixed())).seen]
    assert [inside.count(tag) for tag in ("main", "h1", "h2")] == [0, 0, 1], "a notebook has its own"


def test_levels_can_be_read(tmp_path):
    """White or black on a level's own colour, as WCAG asks of text."""
    mixed().save_html(tmp_path / "report.html")
    style = (tmp_path / "report.html").read_text("utf-8")
    grounds = dict(re.findall(r"\.patchkit \.(\w+) \{ background: (#\w+); \}", style))
    own = dict(re.findall(r"\.patchkit \.level\.(\w+) \{[^}]*background: (#\w+);", style))
    text = {"alone": "#000"}
    for level in ("fused", "alone", "upstream", "expected"):
        assert contrast(text.get(level, "#fff"), own.get(level, grounds[level])) >= AA, level


@pytest.mark.parametrize(
    ("share", "said"), [(1.0, "100%"), (239 / 240, "99%"), (0.29, "29%"), (2 / 3, "66%"), (0.0, "0%")]
)
def test_a_share_that_is_not_all_is_not_called_100(share, said):
    assert report_html._percent(share) == said
