"""The house plot style and the recurring plots. Each function takes results and returns the figure."""

from .charts import cost_bars, interval_lines
from .images import filmstrip, image_grid
from .links import bytes_needed, parabola_fits, quality_lines, quality_surface, rate_distortion
from .quality import (
    fit_parameters,
    fitted_curves,
    public_candidates,
    quality_contours,
    similarity_histogram,
    similarity_matrix,
)
from .style import use_house_style

__all__ = [
    "bytes_needed",
    "cost_bars",
    "filmstrip",
    "fit_parameters",
    "fitted_curves",
    "image_grid",
    "interval_lines",
    "parabola_fits",
    "public_candidates",
    "quality_contours",
    "quality_lines",
    "quality_surface",
    "rate_distortion",
    "similarity_histogram",
    "similarity_matrix",
    "use_house_style",
]
