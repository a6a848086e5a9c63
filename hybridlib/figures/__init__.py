"""The house plot style and the recurring plots. Each function takes results and returns the figure."""

from .assignment import changes_by_arm, changes_over_steps, cost_shares
from .charts import cost_bars, interval_lines, interval_panels
from .compact import decoders, kept_shares, loss_curves, significance
from .full_size import memory_bars
from .images import filmstrip, image_grid
from .links import bytes_needed, parabola_fits, quality_lines, quality_surface, rate_distortion
from .prices import front, prices
from .quality import (
    collapse,
    fit_parameters,
    fitted_curves,
    public_candidates,
    quality_contours,
    schedule_curves,
    similarity_histogram,
    similarity_matrix,
)
from .scheduling import delay_spread, effects, learning_curves, over_load, script_curve, split_map, sweeps
from .sharing import calibration, planned_tree, quality_against_nfe, savings
from .splits import mixture_front, quality_against_compute
from .style import use_house_style

__all__ = [
    "bytes_needed",
    "calibration",
    "changes_by_arm",
    "changes_over_steps",
    "collapse",
    "cost_bars",
    "cost_shares",
    "decoders",
    "delay_spread",
    "effects",
    "filmstrip",
    "fit_parameters",
    "fitted_curves",
    "front",
    "image_grid",
    "interval_lines",
    "interval_panels",
    "kept_shares",
    "learning_curves",
    "loss_curves",
    "memory_bars",
    "mixture_front",
    "over_load",
    "parabola_fits",
    "planned_tree",
    "prices",
    "public_candidates",
    "quality_against_compute",
    "quality_against_nfe",
    "quality_contours",
    "quality_lines",
    "quality_surface",
    "rate_distortion",
    "savings",
    "schedule_curves",
    "script_curve",
    "significance",
    "similarity_histogram",
    "similarity_matrix",
    "split_map",
    "sweeps",
    "use_house_style",
]
