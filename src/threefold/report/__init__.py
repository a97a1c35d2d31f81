"""The report of a run, or of several side by side: reads run directories, writes one HTML file that needs
nothing but a browser.

Nothing here imports torch, TRL or transformers, so the report of a run can be written on any machine that its
directory was copied to, also after a crash.
"""

from threefold.report.compare_page import write_comparison
from threefold.report.page import write_report

__all__ = ["write_comparison", "write_report"]
