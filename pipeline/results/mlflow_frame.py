"""A report's page as it is shown inside MLflow's: in a frame that may open nothing, and is empty after it has tried."""

import re

_HINT = "from here it does not open: see what it answers otherwise on its run, or download the folder report"
_TO_A_FILE = re.compile(r'<a(?=[^>]*\shref="(?!#|[a-z]+:)[^"]*")')


def for_frame(html: str) -> str:
    """Links to files beside the page with a tab of their own: where that is forbidden nothing happens, and where the
    whole folder lies they open.
    """
    return _TO_A_FILE.sub(f'<a target="_blank" title="{_HINT}"', html)
