"""How a notebook with widgets is committed: their pictures stay, their live parts do not."""

from __future__ import annotations

from typing import Any

from nbconvert.preprocessors import Preprocessor

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class StillsOnly(Preprocessor):
    """Takes live widgets out of executed outputs: without a kernel a page shows them as an error, their PNG as it is.

    For `jupyter nbconvert --execute --NotebookExporter.preprocessors=hybridlib.study.stills.StillsOnly`.
    """

    def preprocess(self, notebook: Any, resources: Any) -> tuple[Any, Any]:
        """The notebook without widget views and widget state."""
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                output.get("data", {}).pop(WIDGET_VIEW, None)
        return notebook, resources
