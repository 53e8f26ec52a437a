"""Drawings of chapter 7: a bowl with two weights, and what the weights of a block have to do with each other."""

import numpy as np
import torch
from torch import Tensor

from pruninglab.curvature import inverse_of, obs_step
from pruninglab.notebook.pictures import BLUE, GREEN, GREY, ORANGE, Picture, canvas, legend


def draw_bowl(weights: Tensor, hessian: Tensor) -> Picture:
    """½ δᵀHδ around two weights as contour lines, and three ways to lose one of them.

    Magnitude removes the smaller one, optimal brain damage the one that costs less alone, and the surgeon the same
    one, sliding down to the lowest point of the axis.

    Args:
        weights: w, (2,), at the minimum.
        hessian: H, (2, 2).
    """
    w, h = weights.double(), hessian.double()
    alone = 0.5 * h.diagonal() * w.square()
    small, cheap = int(w.abs().argmin()), int(alone.argmin())
    slid, cost = obs_step(w, inverse_of(h), cheap)
    ends = {}
    for name, q in (("magnitude: the smaller one", small), ("OBD: the cheaper one", cheap)):
        left = w.clone()
        left[q] = 0.0
        ends[name] = (left, float(alone[q]))
    ends["OBS: the other makes up for it"] = (w + slid, cost)
    figure, ax = canvas(width=5.2, height=5.0)
    low, high = -0.35 * w.abs().max(), 1.75 * w.abs().max()
    grid = torch.linspace(float(low), float(high), 201, dtype=torch.float64)
    across, up = torch.meshgrid(grid, grid, indexing="xy")
    change = torch.stack([across - w[0], up - w[1]], -1)
    energy = 0.5 * (change @ h * change).sum(-1).numpy()
    levels = sorted([cost / 4, cost, *alone.tolist(), 8 * cost])
    ax.contour(grid, grid, energy, levels, colors=GREY, alpha=0.6, linewidths=1)
    ax.axhline(0, color=GREY, linewidth=1)
    ax.axvline(0, color=GREY, linewidth=1)
    ax.plot(*w.tolist(), "o", color=GREY, markersize=8)
    ax.annotate("trained", w.tolist(), (6, 6), textcoords="offset points", color=GREY)
    styles = ((ORANGE, "--", "s"), (BLUE, "-.", "D"), (GREEN, "-", "^"))
    for (name, (left, loss)), (colour, line, mark) in zip(ends.items(), styles, strict=True):
        path = torch.stack([w, left]).T
        ax.plot(*path.tolist(), color=colour, linestyle=line, label=f"{name}, loss +{loss:.2f}")
        ax.plot(*left.tolist(), mark, color=colour, markersize=8)
    ax.set_xlabel("w₁", color=GREY)
    ax.set_ylabel("w₂", color=GREY)
    ax.set_aspect("equal")
    legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    told = " and ".join(f"{value:.3g}" for value in weights.tolist())
    words = "; ".join(f"{name}: the loss rises by {loss:.2f}" for name, (_, loss) in ends.items())
    return Picture(
        figure, f"Contour lines of a slanting valley around the weights {told}, and three ways out. {words}."
    )


def shares(weights: Tensor, hessian: Tensor) -> Tensor:
    """½ w_i H_ij w_j, (n, n): what a pair adds to the loss when both are gone (each pair stands there twice)."""
    return 0.5 * weights[:, None] * hessian * weights


def draw_block(weights: Tensor, hessian: Tensor, gone: Tensor) -> tuple[Picture, str]:
    """A block's matrix of shares ½ w_i H_ij w_j, in colour where both weights are gone: those count.

    Args:
        weights: w, (n,).
        hessian: H, (n, n).
        gone: (n,) bool.

    Returns:
        The picture, and what it shows in words and numbers.
    """
    matrix = shares(weights.double(), hessian.double())
    counts = gone[:, None] & gone
    together, alone = float(matrix[counts].sum()), float(matrix.diagonal()[gone].sum())
    figure, ax = canvas(width=4.9, height=4.6)
    reach = float(matrix.abs().max()) or 1.0
    shown = matrix.sign() * (matrix.abs() / reach).sqrt()  # small ones are to be seen too
    ax.imshow(np.ma.masked_where(~counts.numpy(), shown.numpy()), cmap="PuOr_r", vmin=-1.3, vmax=1.3)
    for i, j in (matrix.abs() > 0.01 * reach).nonzero().tolist():  # for those who do not tell the colours apart
        how = {"color": "black", "fontweight": "bold"} if counts[i, j] else {"color": GREY}
        ax.text(j, i, "+" if matrix[i, j] > 0 else "−", ha="center", va="center", fontsize=9, **how)
    places = range(len(weights))
    names = [f"✗ {i}" if out else f"{i}" for i, out in enumerate(gone.tolist())]
    ax.set_yticks(places, [f"{name} ({w:+.2f})" for name, w in zip(names, weights.tolist(), strict=True)], fontsize=8)
    ax.set_xticks(places, [str(i) for i in places], fontsize=8)
    ax.set_title("½ wᵢ Hᵢⱼ wⱼ: orange costs, violet gives back", fontsize=10, color=GREY)
    removed = ", ".join(str(i) for i in gone.nonzero().flatten().tolist()) or "none"
    text = f"{int(gone.sum())} of {len(weights)} are gone ({removed}): alone they would cost {_number(alone)} in sum, "
    text += f"together they cost {_number(together)}"
    return Picture(figure, f"A matrix of pairs of weights, positive shares and negative ones. {text}."), text


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
