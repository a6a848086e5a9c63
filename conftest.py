"""What the notebook regression does not compare: progress bars, markup and vector pictures (pictures never are)."""


def pytest_collectstart(collector):
    """Hook of nbval."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "text/html", "image/svg+xml")
