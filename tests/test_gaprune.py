"""GAPrune: Fisher and gradients against a loop over windows, the scores by hand, and what they rank by."""

import importlib
import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from helpers import close, make_task, normal, same, snapshot
from hypothesis import given
from hypothesis import strategies as st
from language_tasks import tiny_text_task

from pruninglab import task as named_task
from pruninglab.recipes.gaprune import Evidence, evidence, gaprune, local_agreement, published, repaired, row_agreement

recipe_file = importlib.import_module("pruninglab.recipes.gaprune")  # the name in the package is the function's


@pytest.fixture(scope="module")
def t():
    return tiny_text_task()


def made(outputs=5, inputs=7, seed=0, **changed):
    """Evidence of one layer, all of it random."""
    tensors = [normal(outputs, inputs, seed=seed + i) for i in range(5)]
    names = ("weight", "domain_fisher", "general_fisher", "domain_grad", "general_grad")
    values = dict(zip(names, tensors, strict=True))
    values |= {name: values[name].square() for name in ("domain_fisher", "general_fisher")}
    return Evidence(**values | changed)


def only(scores):
    (tensor,) = scores.values()
    return tensor


def standard(table):
    """A table of numbers, standardised, with nothing but Python."""
    flat = [value for row in table for value in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat))
    return torch.tensor([[(value - mean) / deviation for value in row] for row in table], dtype=torch.float64)


# ── what two texts say ────────────────────────────────────────────────────────────────────────────────────────────


def test_evidence_is_the_loop_over_windows(t):
    model = t.model(0).double()
    before = snapshot(model)
    texts = {"domain": tuple(part[:11] for part in t.data["test"]), "general": t.calibration(9, 1)}
    found = evidence(model, texts["domain"], texts["general"], t.loss)
    assert same(snapshot(model), before)
    assert list(found) == [n for n, p in model.named_parameters() if n.startswith("model.layers") and p.ndim == 2]
    for which, (x, y) in texts.items():
        grads = {name: [] for name in found}
        for one, following in zip(x, y, strict=True):
            loss = F.cross_entropy(model(one[None]).logits[0], following)
            own = torch.autograd.grad(loss, [model.get_parameter(name) for name in found])
            for name, grad in zip(found, own, strict=True):
                grads[name].append(grad)
        for name, e in found.items():
            each = torch.stack(grads[name])
            close(getattr(e, f"{which}_fisher"), each.square().mean(0), rtol=1e-5, atol=1e-10)
            close(getattr(e, f"{which}_grad"), each.mean(0), rtol=1e-5, atol=1e-8)
            assert torch.equal(e.weight, model.get_parameter(name))


# ── the score as published ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.5), (0.3, 2.0)])
def test_the_published_score_by_hand(beta, gamma):
    e = made()
    rows, columns = e.weight.shape
    domain = [[float(e.domain_grad[i, j] / e.domain_grad.norm()) for j in range(columns)] for i in range(rows)]
    general = [[float(e.general_grad[i, j] / e.general_grad.norm()) for j in range(columns)] for i in range(rows)]
    table = []
    for i in range(rows):
        table.append([])
        for j in range(columns):
            near = [
                domain[k][m] * general[k][m]
                for k in range(max(0, i - 1), min(rows, i + 2))
                for m in range(max(0, j - 1), min(columns, j + 2))
            ]
            factor = min(1.2, max(0.8, 1 + 0.2 * sum(near) / 9))
            size = abs(float(e.weight[i, j]))
            difference = float(e.domain_fisher[i, j]) * size - beta * float(e.general_fisher[i, j]) * size
            table[-1].append(math.log1p(math.exp(difference * factor + gamma * math.sqrt(size + 1e-8))))
    close(only(published({"layer": e}, beta, gamma)), standard(table))


def test_agreement_of_neighbours_vanishes_in_a_large_layer():
    one = made(64, 64)
    close(local_agreement(one.domain_grad, one.domain_grad).sum(), torch.tensor(1.0).double(), rtol=0.1)
    assert float(local_agreement(one.domain_grad, one.domain_grad).max()) < 0.01


def test_on_a_trained_network_the_published_score_is_magnitude():
    """The finding: every layer is ranked like |w|, whatever the text; not so what this project makes of it."""
    llama = named_task("tiny-llama")
    domain = tuple(part[:8] for part in llama.data["validation"])
    known = evidence(llama.trained(0), domain, llama.calibration(8, 0), llama.loss)
    ours = repaired(known)
    for name, scores in published(known).items():
        size = known[name].weight.abs().flatten()
        assert scipy.stats.spearmanr(scores.flatten(), size).statistic > 0.999
        assert scipy.stats.spearmanr(ours[name].flatten(), size).statistic < 0.99
    heard = [
        float((e.domain_fisher * e.weight.abs()).max() / (0.5 * e.weight.abs().sqrt().mean())) for e in known.values()
    ]
    assert max(heard) < 0.01  # why: the largest Fisher term of all beside an ordinary weight's own


# ── the score of this project ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_repaired_score_by_hand(beta):
    e = made(seed=10)
    means = [float(fisher.sum()) / fisher.numel() for fisher in (e.domain_fisher, e.general_fisher)]
    table = []
    for i, weights in enumerate(e.weight.tolist()):
        ours, theirs = e.domain_grad[i].tolist(), e.general_grad[i].tolist()
        inner = sum(a * b for a, b in zip(ours, theirs, strict=True))
        cosine = inner / math.sqrt(sum(a * a for a in ours) * sum(b * b for b in theirs))
        table.append([
            abs(w) * math.sqrt(
                float(e.domain_fisher[i, j]) / means[0]
                + beta * (1 + cosine) / 2 * float(e.general_fisher[i, j]) / means[1]
            )
            for j, w in enumerate(weights)
        ])  # fmt: skip
    close(only(repaired({"layer": e}, beta)), standard(table))


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_the_sizes_of_the_losses_do_not_matter(a, b):
    """A loss times a has gradients times a and a Fisher information times a²."""
    e = made()
    scaled = made(
        domain_fisher=a**2 * e.domain_fisher,
        general_fisher=b**2 * e.general_fisher,
        domain_grad=a * e.domain_grad,
        general_grad=b * e.general_grad,
    )
    close(only(repaired({"layer": scaled})), only(repaired({"layer": e})))


def test_general_text_counts_as_far_as_it_agrees():
    e = made()
    against = made(general_grad=-3 * e.domain_grad)
    close(only(repaired({"layer": against})), only(repaired({"layer": e}, beta=0.0)))
    agreeing = made(general_fisher=e.domain_fisher, general_grad=2 * e.domain_grad)
    order = (e.weight.abs() * e.domain_fisher.sqrt()).flatten().argsort()
    assert torch.equal(only(repaired({"layer": agreeing})).flatten().argsort(), order)


def test_agreement_of_rows_is_the_cosine():
    e = made()
    close(row_agreement(e.domain_grad, e.general_grad)[:, 0], F.cosine_similarity(e.domain_grad, e.general_grad, dim=1))
    silent = torch.zeros(2, 3, dtype=torch.float64)
    assert not row_agreement(silent, normal(2, 3)).any()
    assert not repaired({"layer": made(domain_fisher=torch.zeros(5, 7), general_fisher=torch.zeros(5, 7))})[
        "layer"
    ].any()


# ── the recipe ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("score", ["repaired", "published"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_exactly_as_many_go_as_asked_and_they_are_the_lowest(t, score, sparsity):
    model, domain = t.model(0), t.data["test"]
    known = evidence(t.model(0), domain, t.calibration(16, 2), t.loss)
    masks = gaprune(model, t, sparsity=sparsity, domain=domain, score=score, samples=16, seed=2)
    scores = getattr(recipe_file, score)(known)
    assert masks.kept() == math.floor((1 - sparsity) * masks.total() + 0.5)
    assert set(masks) == set(known)
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in masks.items())
    if sparsity:
        highest_gone = max(float(scores[name][~mask].max()) for name, mask in masks.items() if not mask.all())
        assert highest_gone <= min(float(scores[name][mask].min()) for name, mask in masks.items() if mask.any())


def test_another_domain_keeps_other_weights(t):
    one, other, none = (
        gaprune(t.model(0), t, sparsity=0.5, domain=domain, samples=16)
        for domain in ("aaaaaaaaaaaabbbbbbbbbbbb" * 4, "xyzxyzxyzxyzzyxzyxzyx" * 4, None)
    )
    assert one != other
    assert one != none
    assert gaprune(t.model(0), t, sparsity=0.5, domain=t.calibration(16, 0), samples=16) == none


def test_a_string_is_cut_into_windows(t):
    text = "the quick brown fox jumps over the lazy dog"
    tokens = torch.tensor(t.encode(text))
    n = (len(tokens) - 1) // 12
    x, y = tokens[: 12 * n].view(n, 12), tokens[1 : 12 * n + 1].view(n, 12)
    by_hand = gaprune(t.model(0), t, sparsity=0.5, domain=(x, y), samples=8)
    assert gaprune(t.model(0), t, sparsity=0.5, domain=text, samples=8) == by_hand


def test_what_is_excluded_stays(t):
    model = t.model(0)
    masks = gaprune(model, t, sparsity=0.5, exclude="*.self_attn", samples=8)
    assert {name.split(".")[3] for name in masks} == {"mlp"}
    assert masks.sparsity() == pytest.approx(0.5, abs=1e-3)
    assert torch.equal(
        model.model.layers[0].self_attn.q_proj.weight, t.model(0).model.layers[0].self_attn.q_proj.weight
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"score": "dai"}, "unknown score 'dai'"),
        ({"domain": "short"}, "the domain's text has 5 tokens"),
        ({"domain": (torch.zeros(2, 12).long(), torch.zeros(3, 12).long())}, "domain's text must be alike"),
        ({"domain": (torch.zeros(0, 12).long(), torch.zeros(0, 12).long())}, "not empty"),
        ({"samples": 500}, "1 to 40 training samples, not 500"),
        ({"exclude": "*.attn"}, "matches no layer"),
    ],
)
def test_what_cannot_be(t, options, words):
    model = t.model(0)
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        gaprune(model, t, **{"sparsity": 0.5, "samples": 8} | options)
    assert same(snapshot(model), before)


def test_weights_that_are_no_numbers_are_refused(t):
    model = t.model(0)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="GAPrune gave NaN"):
        gaprune(model, t, sparsity=0.5, samples=8)


def test_a_task_without_text_is_refused():
    with pytest.raises(TypeError, match="prunes language models"):
        gaprune(make_task().model(0), make_task(), sparsity=0.5)
