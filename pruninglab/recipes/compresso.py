"""Compresso: heads and neurons get gates that are learned together with LoRA (Guo et al. 2023).

The network's own weights stay as they are. Hard concrete gates say which structures go, low-rank adapters beside
queries and values make up for them, and Lagrange multipliers see to it that as much goes as was asked for. The paper's
third kind of gate, on the width of the stream, and its prompt that tells the model that it is pruned are left out.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruninglab.adapters import Adapted, training_only
from pruninglab.language.blocks import find_blocks
from pruninglab.language.gates import chance_open, fold, gated, sample, settled, share
from pruninglab.language.structures import Part, choose, cut_parts, find_parts
from pruninglab.layers import Exclude, entries, matches, prunable
from pruninglab.masks import Masks
from pruninglab.pruning import check_sparsity
from pruninglab.tasks import Task

OPEN = math.log(99)  # log α to begin with
WIDEST = math.log(100)  # log α stays within ± this, so that no gate closes or opens for good while it learns
PENALTY = 100.0  # λ₂ to begin with
ASCENT = (0.5, 100.0)  # learning rates of λ₁ and λ₂


def compresso(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    seed: int = 0,
    steps: int = 300,
    lr: float | None = None,
    rank: int = 8,
    alpha: float = 8.0,
    adapt: Exclude | Sequence[Exclude] = ("*.q_proj", "*.v_proj"),
    speed: float = 0.3,
    ramp: float = 0.7,
    settle: float = 0.8,
    blocks: str | None = None,
) -> Masks:
    """Learn which heads and neurons go, and adapters beside the attention of those that stay.

    The loss is cross-entropy + λ₁ (ŝ − s) + λ₂ (ŝ − s)², as `Budget` says. When gates settle, the structures of lowest
    log α go, whatever their block, as many as the budget asks for; the others keep gates that may be less than 1, and
    the adapters learn on with these. In the end adapters and gates are folded into the weights, which changes nothing.

    Args:
        model: a trained language model; changed in place. No parameter of its own is trained.
        task: what to train on.
        sparsity: the fraction of the parameters in heads and neurons to remove, in [0, 1).
        seed: of the adapters, of the gates' noise and of the order of the data.
        steps: how many.
        lr: the first learning rate of the adapters; the task's own if not given.
        rank: of the adapters.
        alpha: they count alpha / rank times.
        adapt: beside which linear layers of the blocks adapters stand: names or globs of modules or parameters.
        speed: learning rate of log α (Adam). The paper's 0.1 is for thousands of steps.
        ramp: the fraction of the gates' time in which s rises from 0 to the sparsity, in (0, 1].
        settle: the fraction of the steps at which gates settle, in (0, 1].
        blocks: as in `blocks.find_blocks`.

    Returns:
        The masks, applied. `slim` makes the model really smaller. If training is interrupted, the model is as before.

    Raises:
        ValueError: a number out of range, a model without blocks, or `adapt` matches no linear layer in them.
        GraphError: no head and no neuron can be removed.
        BudgetError: less would have to stay than a head and a neuron of each block.
    """
    for name, value in (("ramp", ramp), ("settle", settle)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is a fraction of the time, in (0, 1], not {value}")
    check_sparsity(sparsity)
    names = layers_named(model, adapt, blocks)
    device = next(model.parameters()).device
    graph, parts = find_parts(model, task.data["train"][0][:1].to(device), blocks=blocks)
    student = Adapted(model, "lora", layers=names, rank=rank, alpha=alpha, seed=seed)
    budget = Budget(parts, sparsity, speed=speed, seed=seed, device=device)
    choose(parts, budget.scores(), sparsity, "global")  # so that an impossible budget is an error at once
    stop, done = max(1, round(settle * steps)), 0
    final: list[Tensor] | None = None

    def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with gated(model, parts, budget.draw() if final is None else final):
            loss = task.loss(net(x), y)
        return loss if final is not None else loss + budget.excess(min(1.0, done / (ramp * stop)))

    def on_step(step: int, _optimizer: torch.optim.Optimizer) -> None:
        nonlocal done, final
        done = step
        if step <= stop:
            budget.step()
        if step == stop:
            final = budget.final()

    with training_only(model):
        task.train(student, seed=seed, steps=steps, lr=lr, objective=objective, on_step=on_step, label="Compresso")
    student.merge()
    fold(model, parts, budget.final() if final is None else final)
    return cut_parts(model, graph, parts, budget.scores(), sparsity, "global")


class Budget:
    """Hard concrete gates that learn, and the multipliers that hold them to a budget.

    ŝ is the fraction of parameters that closed gates are expected to remove, 1 − Σ cost · P(z > 0) / Σ cost. While the
    gates go down the gradient of loss + λ₁ (ŝ − s) + λ₂ (ŝ − s)², the multipliers go up it, so that only ŝ = s is a
    point of rest. Both could begin at 0, as in the paper; for hundreds of steps that is too slow.

    Args:
        parts: what `structures.find_parts` found.
        sparsity: s in the end.
        speed: learning rate of log α (Adam).
        seed: of the noise.
        device: where gates live.
    """

    def __init__(
        self, parts: Sequence[Part], sparsity: float, *, speed: float, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.parts, self.sparsity = parts, sparsity
        self.sizes = [len(part.cells) for part in parts]
        self.log_alpha = torch.full((sum(self.sizes),), OPEN, device=device, requires_grad=True)
        self.linear = torch.zeros((), device=device, requires_grad=True)
        self.square = torch.full((), PENALTY, device=device, requires_grad=True)
        self.noise = torch.Generator().manual_seed(seed)
        multipliers = [{"params": [p], "lr": by} for p, by in zip((self.linear, self.square), ASCENT, strict=True)]
        self.learners = [
            torch.optim.Adam([self.log_alpha], lr=speed),
            torch.optim.SGD(multipliers, maximize=True),
        ]

    def draw(self) -> list[Tensor]:
        """Random gates of each part, with gradients."""
        return list(sample(self.log_alpha, self.noise).split(self.sizes))

    def expected(self) -> Tensor:
        """ŝ."""
        return 1 - share(self.parts, chance_open(self.log_alpha).split(self.sizes))

    def excess(self, progress: float = 1.0) -> Tensor:
        """λ₁ (ŝ − s) + λ₂ (ŝ − s)², where s is `progress` times the sparsity."""
        off = self.expected() - progress * self.sparsity
        return self.linear * off + self.square * off.square()

    def step(self) -> None:
        """Gates down, multipliers up, by the gradients that are there; these are used up."""
        for learner in self.learners:
            learner.step()
            learner.zero_grad()
        with torch.no_grad():
            self.log_alpha.clamp_(-WIDEST, WIDEST)

    def scores(self) -> list[Tensor]:
        """The log α of each part, float64 on the CPU: the lowest go."""
        return list(self.log_alpha.detach().double().cpu().split(self.sizes))

    def final(self) -> list[Tensor]:
        """Gates of each part when all is decided: 0 for what goes, and for the others what `settled` says."""
        gone = choose(self.parts, self.scores(), self.sparsity, "global")
        soft = settled(self.log_alpha.detach()).split(self.sizes)
        return [own.masked_fill(out.to(own.device), 0.0) for own, out in zip(soft, gone, strict=True)]


def layers_named(model: nn.Module, which: Exclude | Sequence[Exclude], blocks: str | None = None) -> list[str]:
    """The names of the weights of linear layers inside the blocks that an entry matches, as `exclude` does in `prune`.

    Raises:
        ValueError: there are none; says which layers there are.
    """
    first, *_ = found = find_blocks(model, blocks)
    inside = tuple(f"{block}." for block in found)
    linear = {n: layer for n, layer in prunable(model).items() if isinstance(layer, nn.Linear) and n.startswith(inside)}
    chosen = [n for n, layer in linear.items() if any(matches(entry, n, layer) for entry in entries(which))]
    if not chosen:
        there = ", ".join(n for n in linear if n.startswith(f"{first}.")) or "none"
        raise ValueError(f"adapt={which!r} matches no linear layer of the blocks; those of the first one: {there}")
    return chosen
