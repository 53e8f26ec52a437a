"""The drawings of chapters 8 and 9, and texts side by side."""

import html.parser

import pytest
import torch
from networks import language

from pruninglab import Masks, prune, slim
from pruninglab.language.structures import find_parts
from pruninglab.notebook import draw_channels, draw_kept, draw_shares, draw_sizes, kept_of, side_by_side


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def texts(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


# ── channels ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_channels_are_drawn_in_medians_of_their_layer_and_planted_ones_apart():
    norms = {"model.layers.1.mlp.up_proj.weight": torch.tensor([[2.0, 4.0, 6.0, 4.0, 80.0]])}
    picture = draw_channels(norms, planted={"model.layers.1.mlp.up_proj.weight": [4]})
    (ax,) = picture.figure.axes
    drawn = lines(ax)
    assert drawn["channel"].get_xydata().tolist() == [[0, 0.5], [1, 1], [2, 1.5], [3, 1]]
    assert drawn["planted"].get_xydata().tolist() == [[4, 20]]
    assert drawn["planted"].get_marker() != drawn["channel"].get_marker()
    assert ax.get_yscale() == "log"
    assert ax.get_title() == "block 1, up_proj\nlargest 20 × median"
    assert "block 1, up_proj: the largest of 5, channel 4, is 20 times the median (planted: 4)" in picture.alt
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["channel", "planted"]


def test_channels_can_be_ordered_and_those_that_are_always_0_are_not_lost():
    (ax,) = draw_channels({"down": torch.tensor([1.0, 0.0, 3.0, 2.0])}, ordered=True).figure.axes
    drawn = lines(ax)
    assert dict(drawn["channel"].get_xydata().tolist()) == {0: 1.5, 1: 1, 2: 0.5}  # the median of those that speak is 2
    assert drawn["always 0"].get_xdata().tolist() == [3]
    assert "1 of them are always 0" in draw_channels({"down": torch.tensor([1.0, 0.0, 3.0, 2.0])}).alt


def test_a_picture_without_anything_planted_needs_no_legend():
    picture = draw_channels({str(i): torch.rand(8) + 0.1 for i in range(5)})
    assert len(picture.figure.axes) == 5
    assert not picture.figure.legends
    assert draw_channels({"a": torch.ones(3)}, alt="quiet").alt == "quiet"


@pytest.mark.parametrize(
    ("norms", "planted", "words"),
    [
        ({}, None, "no layer"),
        ({"a": torch.zeros(3)}, None, "a: norms are finite, not negative and not all 0"),
        ({"a": torch.tensor([1.0, float("nan")])}, None, "a: norms are finite"),
        ({"a": torch.tensor([1.0, -1.0])}, None, "a: norms are finite"),
        ({"a": torch.ones(3)}, {"a": [3]}, r"no channels \[3\] of 'a'"),
        ({"a": torch.ones(3)}, {"b": [0]}, "of 'b'"),
    ],
)
def test_norms_that_are_none_are_refused(norms, planted, words):
    with pytest.raises(ValueError, match=words):
        draw_channels(norms, planted=planted)


# ── shares ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_shares_stand_in_the_row_of_their_block_and_the_column_of_their_kind():
    own = {
        f"model.layers.{i}.{kind}.weight": s for i, kind, s in ((0, "mlp.up", 0.4), (1, "mlp.up", 0.5), (1, "q", 0.61))
    }
    picture = draw_shares({"OWL": own, "uniform": dict.fromkeys(own, 0.5)})
    first, second = picture.figure.axes
    assert first.get_title() == "OWL"
    assert [label.get_text() for label in first.get_xticklabels()] == ["up", "q"]
    assert {t.get_position(): t.get_text() for t in first.texts if t.get_text()} == {
        (0, 0): "40",
        (0, 1): "50",
        (1, 1): "61",
    }
    assert texts(second) == ["50", "50", "50"]
    shades = first.images[0].get_array(), second.images[0].get_array()
    assert first.images[0].get_clim() == second.images[0].get_clim()  # one scale for all
    assert shades[0][1, 1] == pytest.approx(0.61)
    assert "OWL: from 40 % of mlp.up in block 0 to 61 % of q in block 1; uniform: 50 % everywhere" in picture.alt


def test_shares_of_masks_are_counted():
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0] = False
    picture = draw_shares({"mine": Masks({"h.0.attn.c_proj.weight": mask, "h.0.mlp.c_proj.weight": ~mask})})
    (ax,) = picture.figure.axes
    assert texts(ax) == ["25", "75"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["attn.c_proj", "mlp.c_proj"]  # "c_proj" is both


def test_shares_of_whole_blocks_and_of_experts_have_their_place_too():
    (ax,) = draw_shares({"by block": {"model.layers.10": 0.2, "model.layers.9": 0.3}}).figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["9", "10"]
    assert texts(ax) == ["30", "20"]
    (ax,) = draw_shares(
        {"experts": {"layers.3.experts.0.w1.weight": 0.2, "layers.3.experts.1.w1.weight": 0.4}}
    ).figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["experts.0.w1", "experts.1.w1"]


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({}, "each method needs a layer"),
        ({"a": {}}, "each method needs a layer"),
        ({"a": {"lm_head.weight": 0.5}}, "'lm_head.weight' has no block's number"),
        ({"a": {"layers.0.q": 50}}, r"fraction removed, in \[0, 1\]; given \[50"),
        ({"a": {"layers.0.q": float("nan")}}, r"in \[0, 1\]"),
    ],
)
def test_shares_that_cannot_be_drawn_are_refused(shares, words):
    with pytest.raises(ValueError, match=words):
        draw_shares(shares)


# ── heads and neurons ─────────────────────────────────────────────────────────────────────────────────────────────


def test_kept_heads_are_those_that_are_left_after_slimming():
    model, x = language("llama")
    _, parts = find_parts(model, x)
    masks = prune(model, unit="head", sparsity=0.5, allocation="global", criterion="magnitude", example_inputs=x)
    small, kept = slim(model, masks, x), kept_of(parts, masks)
    size = model.config.hidden_size // model.config.num_attention_heads
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    for name, counts in kept.items():
        layer, block = model.get_submodule(name), small.get_submodule(name)
        assert counts["heads"] == tuple(b.self_attn.o_proj.in_features // (size * groups) for b in (block, layer))
        assert counts["neurons"] == (layer.mlp.down_proj.in_features,) * 2  # none of them went
    assert any(k < n for counts in kept.values() for k, n in counts.values())
    assert all(k == n for counts in kept_of(parts, {}).values() for k, n in counts.values())


def test_what_is_kept_is_drawn_inside_what_was_there():
    some = {"layers.0": {"heads": (2, 8), "neurons": (30, 40)}, "layers.1": {"heads": (0, 8), "neurons": (0, 40)}}
    full = {block: {"heads": (8, 8), "neurons": (40, 40)} for block in some}
    picture = draw_kept({"dense": full, "pruned": some})
    dense, pruned = picture.figure.axes
    assert [bar.get_width() for bar in dense.patches] == [1] * 8
    assert [bar.get_width() for bar in pruned.patches] == [1, 0.25, 1, 0.75, 1, 0, 1, 0]
    assert pruned.patches[0].get_facecolor()[3] == 0  # an outline
    assert pruned.patches[1].get_hatch() != pruned.patches[3].get_hatch()  # told apart without colour
    assert texts(pruned) == ["2 of 8", "30 of 40", "0 of 8: gone", "0 of 40: gone"]
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["heads", "neurons"]
    assert "dense: block 0 to block 1 with 8 of 8 heads and 40 of 40 neurons." in picture.alt
    assert "pruned: block 0 with 2 of 8 heads and 30 of 40 neurons; block 1 with 0 of 8 heads" in picture.alt


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({}, "variants of the same blocks"),
        ({"a": {"l.0": {"heads": (1, 2)}}, "b": {"l.1": {"heads": (1, 2)}}}, r"\['l.0'\], \['l.1'\]"),
        ({"a": {"l.0": {"heads": (3, 2)}}}, "a, l.0: 3 of 2 heads cannot be kept"),
    ],
)
def test_counts_that_cannot_be_drawn_are_refused(variants, words):
    with pytest.raises(ValueError, match=words):
        draw_kept(variants)


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_variants_are_compared_with_the_first():
    picture = draw_sizes(
        {
            "dense": {"parameters": 1_214_000, "perplexity": 3.0},
            "pruned": {"parameters": 607_000, "perplexity": [5.0, 7.0]},
            "dropped": {"parameters": 900},
        }
    )
    sizes, perplexity = picture.figure.axes
    assert [bar.get_width() for bar in sizes.patches] == [1_214_000, 607_000, 900]
    assert [bool(bar.get_hatch()) for bar in sizes.patches] == [False, True, True]
    assert texts(sizes) == ["1.21 M", "607 k (× 0.5)", "900 (× 0.000741)"]
    assert not perplexity.patches
    assert perplexity.get_xscale() == "log"
    assert [text.strip() for text in texts(perplexity)] == ["3", "6 (× 2)", "not measured"]
    assert [5.0, 7.0] in [list(line.get_xdata()) for line in perplexity.get_lines()]  # from the least to the largest
    assert [label.get_text() for label in sizes.get_yticklabels()] == ["dense", "pruned", "dropped"]
    assert "pruned: parameters 607 k, perplexity 6; dropped: parameters 900" in picture.alt


def test_which_measures_are_points_can_be_chosen():
    (ax,) = draw_sizes({"a": {"perplexity": 2.0}, "b": {"perplexity": 4.0}}, points=()).figure.axes
    assert [bar.get_width() for bar in ax.patches] == [2, 4]


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({}, "no variants"),
        ({"a": {}}, "no variants"),
        ({"a": {"bytes": 0}}, r"a: bytes must be positive numbers, not \[0\]"),
        ({"a": {"bytes": [1, float("inf")]}}, "must be positive"),
        ({"a": {"bytes": []}}, "must be positive"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused(variants, words):
    with pytest.raises(ValueError, match=words):
        draw_sizes(variants)


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Cells(html.parser.HTMLParser):
    """The tags of a table, and the text in each of its cells."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.cells = set(), []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        self.cells[-1] += data


def test_texts_stand_side_by_side_and_the_prompt_once():
    shown = side_by_side({"dense": "The list holds", "pruned": "The list  of\n  of"}, "The list")
    source = shown._repr_mimebundle_()["text/html"]
    assert Cells(source).cells == ["prompt", "The list", "", "dense", "pruned", "goes on", "… holds", "…  of\n  of"]
    assert "monospace" in source
    assert "pre-wrap" in source
    assert repr(shown) == "prompt: The list\n── dense ──\n… holds\n── pruned ──\n…  of\n  of"


def test_nothing_that_a_model_writes_is_taken_for_html_and_control_characters_are_seen():
    nasty = 'a<script>alert("x")</script>&amp;\x00\x1b[31m\t|\r\n</td>'
    found = Cells(side_by_side({"<b>one</b>": nasty})._repr_mimebundle_()["text/html"])
    assert found.tags == {"table", "colgroup", "col", "tr", "th", "td"}
    assert found.cells == ["<b>one</b>", 'a<script>alert("x")</script>&amp;\\x00\\x1b[31m\t|\\x0d\n</td>']


def test_a_text_that_does_not_hold_the_prompt_is_shown_whole():
    assert "── a ──\nelse" in repr(side_by_side({"a": "else"}, "The list"))
    assert repr(side_by_side({"a": "The list"})) == "── a ──\nThe list"
    with pytest.raises(ValueError, match="no text"):
        side_by_side({})
