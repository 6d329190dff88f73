"""What is asked of an index, in one place to import it from."""

from observe.heatmaps import GRADIENT_STATISTICS, Heatmap, gradient_heatmap, heatmap, heatmaps
from observe.layers import STATISTICS, LayerOverview, overview, rows_of
from observe.logged import (
    FLAGS,
    LayerValue,
    Request,
    Row,
    flag_counts,
    flagged,
    recent,
    records,
    request,
)
from observe.unit_reports import UnitReport, units
from observe.window import ModelSummary, Window, models

__all__ = [
    "FLAGS",
    "GRADIENT_STATISTICS",
    "STATISTICS",
    "Heatmap",
    "LayerOverview",
    "LayerValue",
    "ModelSummary",
    "Request",
    "Row",
    "UnitReport",
    "Window",
    "flag_counts",
    "flagged",
    "gradient_heatmap",
    "heatmap",
    "heatmaps",
    "models",
    "overview",
    "recent",
    "records",
    "request",
    "rows_of",
    "units",
]
