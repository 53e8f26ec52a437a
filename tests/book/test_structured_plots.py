"""The drawings of chapter 3: channel groups and widths."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from torch import nn

from pruninglab.graph import channel_groups
from pruninglab.notebook import draw_groups, draw_widths
from pruninglab.notebook.pictures import GREY
from pruninglab.tasks.models import ResNet


def squares(picture):
    """(left, row) → (label, colour) of every square that was drawn."""
    (ax,) = picture.figure.axes
    texts = {
        (round(t.get_position()[0] - 0.5, 2), round(t.get_position()[1] - 0.46, 2)): t.get_text() for t in ax.texts
    }
    found = {}
    for patch in ax.patches:
        assert isinstance(patch, Rectangle)
        place = (round(patch.get_x(), 2), round(patch.get_y(), 2))
        found[place] = (texts[place], to_hex(patch.get_facecolor()))
    return found


def small():
    torch.manual_seed(0)
    return ResNet(1, 1, (4, 8), classes=3).eval(), torch.zeros(1, 1, 8, 8)


def test_groups_are_drawn_with_one_label_wherever_they_lie():
    model, x = small()
    drawn = squares(draw_groups(model, channel_groups(model, x)))
    columns = {}
    for (left, row), (label, _) in sorted(drawn.items()):
        columns.setdefault(left, []).append((row, label))
    labels = [[label for _, label in sorted(column)] for _, column in sorted(columns.items())]
    a, b, d = ([f"{letter}{i}" for i in (1, 2, 3, 4)] for letter in "ABD")
    c = [f"C{i}" for i in range(1, 9)]
    last = [*d[:2], *a, *d[2:]]  # the way around is padded by two channels on either side
    assert labels == [
        *([""], a),  # conv1: the picture's one channel stays
        *(a, b),  # layer1.0.conv1
        *(b, a),  # layer1.0.conv2, added to the stem's
        *(a, c),  # layer2.0.conv1
        *(c, last),  # layer2.0.conv2
        *(last, ["", "", ""]),  # linear: the answers stay
    ]


def test_families_are_told_apart_by_colour_and_what_stays_is_grey():
    model, x = small()
    drawn = list(squares(draw_groups(model, channel_groups(model, x))).values())
    by_letter = {}
    for label, colour in drawn:
        by_letter.setdefault(label[:1], set()).add(colour)
    assert all(len(colours) == 1 for colours in by_letter.values())
    assert len({next(iter(colours)) for colours in by_letter.values()}) == len(by_letter) == 5
    assert next(iter(by_letter[""])) == GREY


def test_what_is_labelled_can_be_read_on_any_page():
    model, x = small()
    (ax,) = draw_groups(model, channel_groups(model, x)).figure.axes
    labelled = {t.get_position() for t in ax.texts if t.get_color() == "black"}
    under = [p for p in ax.patches if (p.get_x() + 0.5, p.get_y() + 0.46) in labelled]
    assert len(under) == len(labelled) > 0
    assert all(patch.get_facecolor()[3] == 1 and min(patch.get_facecolor()[:3]) >= 0.5 for patch in under)


def test_the_picture_of_groups_says_in_words_what_it_shows():
    model, x = small()
    alt = draw_groups(model, channel_groups(model, x)).alt
    assert "A, 4 groups through conv1, layer1.0.conv1, layer1.0.conv2, layer2.0.conv1, layer2.0.conv2, linear" in alt
    assert "C, 8 groups through layer2.0.conv1, layer2.0.conv2" in alt
    assert draw_groups(model, channel_groups(model, x), alt="a small network").alt == "a small network"


def test_groups_that_must_stay_are_not_named():
    model = nn.Sequential(nn.Linear(3, 2))
    picture = draw_groups(model, channel_groups(model, torch.zeros(1, 3)))
    assert {label for label, _ in squares(picture).values()} == {""}
    assert "none can be removed" in picture.alt


def test_a_network_that_is_too_large_to_read_is_refused():
    model = nn.Sequential(nn.Linear(3, 300), nn.ReLU(), nn.Linear(300, 2))
    with pytest.raises(ValueError, match="605 squares are too many"):
        draw_groups(model, channel_groups(model, torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="no prunable layer"):
        draw_groups(nn.ReLU(), [])


def test_widths_are_drawn_before_and_after():
    before = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3))
    after = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3))
    picture = draw_widths(before, after)
    (ax,) = picture.figure.axes
    assert [patch.get_height() for patch in ax.patches] == [8, 3, 6, 6]
    outline, bar = ax.patches[:2]
    assert outline.get_facecolor()[3] == 0
    assert outline.get_linestyle() == "--"
    assert bar.get_hatch()  # told apart without colour
    assert [text.get_text() for text in ax.texts] == ["3 of 8", "6 of 6"]
    assert "0 3 of 8, 2 6 of 6" in picture.alt


def test_widths_of_other_layers_are_refused():
    before, after = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"not the same layers: 0 against 1"):
        draw_widths(before, after)
