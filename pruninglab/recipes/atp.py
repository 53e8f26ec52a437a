"""ATP: heads and neurons go while LoRA tunes, as a small network says that is trained beside (Lu et al. 2024).

What is best to remove changes while the weights change, so that it is decided anew all the time. No code was published,
and how much weight each term of the losses has was not to be found: formulas are the paper's as far as they are known,
with the generator and the budget's term of the same group's DISP-LLM (Gao et al. 2024).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruninglab.adapters import Adapted, training_only
from pruninglab.language.gates import gated, share
from pruninglab.language.structures import Part, choose, cut_parts, find_parts
from pruninglab.masks import Masks
from pruninglab.naming import lookup
from pruninglab.pruning import check_sparsity
from pruninglab.recipes.compresso import layers_named
from pruninglab.recipes.loraprune import Members, members
from pruninglab.tasks import Task
from pruninglab.tasks.training import batch_at

OFFSET = 3.0  # b: with it all begins open
TEMPERATURE = 0.4  # τ
INPUTS, HIDDEN = 32, 64  # widths of the generator


def atp(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    steps: int = 300,
    lr: float | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    generator: str = "gru",
    speed: float | None = None,
    strength: float = 4.0,
    lasso: float = 1e-3,
    samples: int = 128,
    settle: float = 0.8,
    blocks: str | None = None,
) -> Masks:
    """Train adapters under masks that a generator makes, and the generator on what the masks do; one step each in turn.

    The generator's loss is cross-entropy on calibration text + `strength` · R, with R of `excess`. The adapters' loss
    is cross-entropy under the masks as they are + `lasso` · Σ over masked structures of their adapters' norms, as
    `remains` says. When masks settle, those structures stay that the generator likes best, whatever their block, as
    many as the budget allows, and the adapters learn on. What is removed then was closed while they learned, so cutting
    it out changes nothing.

    Args:
        model: a trained language model; changed in place. No parameter of its own is trained.
        task: what to train on.
        sparsity: the fraction of the parameters in heads and neurons to remove, in [0, 1).
        seed: of the adapters, the generator and its noise, the calibration text and the order of the data.
        steps: how many of the adapters; the generator does as many until masks settle.
        lr: the first learning rate of the adapters; the task's own if not given.
        rank: of the adapters, which stand beside all linear layers of the blocks.
        alpha: they count alpha / rank times.
        generator: "gru", a small recurrent network over the blocks; or "logits", a number for each structure.
        speed: learning rate of the generator (Adam); 0.003 for "gru" and 0.1 for "logits" if not given.
        strength: of the budget's term.
        lasso: of the adapters' group lasso, at least 0.
        samples: how many windows of text the generator learns from.
        settle: the fraction of the steps at which masks settle, in (0, 1].
        blocks: as in `blocks.find_blocks`.

    Returns:
        The masks, applied. `slim` makes the model really smaller. If training is interrupted, the model is as before.

    Raises:
        ValueError: a number out of range, an unknown generator, or a model without blocks.
        GraphError: no head and no neuron can be removed.
        BudgetError: less would have to stay than a head and a neuron of each block.
    """
    make, usual = lookup("generator", generator, GENERATORS)
    if not 0 < settle <= 1:
        raise ValueError(f"settle is a fraction of the steps, in (0, 1], not {settle}")
    if min(strength, lasso) < 0:
        raise ValueError(f"strength and lasso are weights of at least 0, not {strength} and {lasso}")
    kept = 1 - check_sparsity(sparsity)
    names, device = layers_named(model, "*", blocks), next(model.parameters()).device
    graph, parts = find_parts(model, task.data["train"][0][:1].to(device), blocks=blocks)
    student = Adapted(model, "lora", layers=names, rank=rank, alpha=alpha, seed=seed)
    groups = [members(graph, part, names) for part in parts]
    decider, noise = make(parts, seed).to(device), torch.Generator().manual_seed(seed)
    learner = torch.optim.Adam(decider.parameters(), lr=usual if speed is None else speed)
    text, stop = task.calibration(samples, seed), max(1, round(settle * steps))
    masks = [own.detach() for own in decided(decider())]
    scores = _scores(decider)
    choose(parts, scores, sparsity, "global")  # so that an impossible budget is an error at once

    def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with gated(model, parts, masks):
            loss = task.loss(net(x), y)
        return loss + lasso * remains(student, groups, masks) if lasso else loss

    def on_step(step: int, _optimizer: torch.optim.Optimizer) -> None:
        nonlocal masks, scores
        if step > stop:
            return
        x, y = (part.to(device) for part in batch_at(step, text, task.training, seed))
        drawn = decided(decider(), noise)
        with gated(model, parts, drawn):
            loss = task.loss(student(x), y) + strength * excess(share(parts, drawn), kept)
        own = list(decider.parameters())
        for parameter, grad in zip(own, torch.autograd.grad(loss, own), strict=True):
            parameter.grad = grad
        learner.step()
        masks, scores = [part.detach() for part in decided(decider())], _scores(decider)
        if step == stop:
            gone = choose(parts, scores, sparsity, "global")
            masks = [(~out).to(part) for out, part in zip(gone, masks, strict=True)]

    with training_only(model):
        task.train(student, seed=seed, steps=steps, lr=lr, objective=objective, on_step=on_step, label="ATP")
    student.merge()
    return cut_parts(model, graph, parts, scores, sparsity, "global")


# ── who decides ───────────────────────────────────────────────────────────────────────────────────────────────────


class Recurrent(nn.Module):
    """Logits of all structures, from a bidirectional GRU that reads the blocks one after the other.

    What it reads is noise that stays the same, one vector for each block; linear layers without a bias, one for each
    part, make logits of what it says of the block. So blocks know of each other.

    Args:
        parts: what `structures.find_parts` found.
        seed: of everything in it.
    """

    def __init__(self, parts: Sequence[Part], seed: int = 0) -> None:
        super().__init__()
        places = {block: i for i, block in enumerate(dict.fromkeys(part.block for part in parts))}
        self.places = [places[part.block] for part in parts]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.register_buffer("inputs", torch.randn(len(places), INPUTS))
            self.gru = nn.GRU(INPUTS, HIDDEN, bidirectional=True)
            self.norm = nn.LayerNorm(2 * HIDDEN)
            self.linear = nn.ModuleList(nn.Linear(2 * HIDDEN, len(part.cells), bias=False) for part in parts)

    def forward(self) -> list[Tensor]:
        """(structures,) for each part."""
        said = F.gelu(self.norm(self.gru(self.inputs)[0]))
        return [linear(said[place]) for linear, place in zip(self.linear, self.places, strict=True)]


class Logits(nn.Module):
    """A logit for each structure, and nothing else.

    Args:
        parts: what `structures.find_parts` found.
        seed: not needed; all begin at 0.
    """

    def __init__(self, parts: Sequence[Part], seed: int = 0) -> None:
        super().__init__()
        self.logits = nn.ParameterList(torch.zeros(len(part.cells)) for part in parts)

    def forward(self) -> list[Tensor]:
        """(structures,) for each part."""
        return list(self.logits)


GENERATORS = {"gru": (Recurrent, 3e-3), "logits": (Logits, 0.1)}  # and the usual learning rate


def decided(logits: Sequence[Tensor], noise: torch.Generator | None = None) -> list[Tensor]:
    """Masks of 0 and 1: is σ((logit + g + b) / τ) at least ½? Backwards as if it were the σ itself.

    Args:
        logits: of each part.
        noise: where g comes from, −log(−log u) with u uniform on (0, 1); g = 0 if not given.
    """
    masks = []
    for own in logits:
        total = own + OFFSET
        if noise is not None:
            u = torch.rand(own.shape, generator=noise, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
            total = total - (-u.log()).log().to(own)
        soft = torch.sigmoid(total / TEMPERATURE)
        masks.append((soft >= 0.5).to(soft) + (soft - soft.detach()))
    return masks


def _scores(decider: nn.Module) -> list[Tensor]:
    return [own.detach().double().cpu() for own in decider()]


# ── losses ────────────────────────────────────────────────────────────────────────────────────────────────────────


def excess(left: Tensor, kept: float) -> Tensor:
    """R(P, p) = log(max(P, p) / min(P, p)): how many times too much or too little is left.

    Args:
        left: P, the fraction of parameters that is left; one number.
        kept: p, the fraction that should be.
    """
    return (left.clamp(min=1e-6).log() - torch.tensor(kept).log()).abs()


def remains(student: Adapted, groups: Sequence[Members], masks: Sequence[Tensor]) -> Tensor:
    """Σ (1 − s_g) ‖adapters of g‖₂ over structures g and layers: the rows of B, or the columns of A, that are g's.

    It takes out of the adapters what they learned for structures that are closed.

    Args:
        student: the adapted model.
        groups: for each part where its structures lie, as `loraprune.members` says.
        masks: s, (structures,) for each part.
    """
    adapters, total = student.by_name(), torch.zeros((), device=masks[0].device)
    for group, mask in zip(groups, masks, strict=True):
        for name, dim, owner in group:
            lines = adapters[name].up if dim == 0 else adapters[name].down.mT
            squares = lines.new_zeros(len(mask) + 1).index_add(0, owner.to(lines.device), lines.square().sum(1))[:-1]
            closed = squares[(mask == 0) & (squares > 0)]  # at 0 a norm has no gradient
            total = total + closed.sqrt().sum()
    return total
