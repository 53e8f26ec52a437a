"""What chapters use: pictures, predictions, exercises, claims, widgets. The only room that knows Jupyter."""

from pruninglab.notebook.claims import claim
from pruninglab.notebook.curvature_plots import draw_block, draw_bowl
from pruninglab.notebook.exercises import check
from pruninglab.notebook.flipping import draw_choice, flip, unit_block
from pruninglab.notebook.llm_plots import draw_channels, draw_kept, draw_shares, draw_sizes, kept_of
from pruninglab.notebook.pictures import Picture, canvas, legend
from pruninglab.notebook.playground import playground, playground_twin
from pruninglab.notebook.plots import (
    draw_bars,
    draw_curves,
    draw_images,
    draw_lines,
    draw_masks,
    draw_numbers,
    draw_pruning,
    draw_scores,
    draw_weights,
    plot_tradeoff,
)
from pruninglab.notebook.predictions import predict
from pruninglab.notebook.rate_plots import draw_agreement, draw_distortions, draw_price
from pruninglab.notebook.reading import roadmap, source, start
from pruninglab.notebook.report import write_report
from pruninglab.notebook.structured_plots import draw_groups, draw_widths
from pruninglab.notebook.tables import by_seed, means
from pruninglab.notebook.texts import side_by_side
from pruninglab.notebook.widgets import explore, twin

__all__ = [
    "Picture",
    "by_seed",
    "canvas",
    "check",
    "claim",
    "draw_agreement",
    "draw_bars",
    "draw_block",
    "draw_bowl",
    "draw_channels",
    "draw_choice",
    "draw_curves",
    "draw_distortions",
    "draw_groups",
    "draw_images",
    "draw_kept",
    "draw_lines",
    "draw_masks",
    "draw_numbers",
    "draw_price",
    "draw_pruning",
    "draw_scores",
    "draw_shares",
    "draw_sizes",
    "draw_weights",
    "draw_widths",
    "explore",
    "flip",
    "kept_of",
    "legend",
    "means",
    "playground",
    "playground_twin",
    "plot_tradeoff",
    "predict",
    "roadmap",
    "side_by_side",
    "source",
    "start",
    "twin",
    "unit_block",
    "write_report",
]
