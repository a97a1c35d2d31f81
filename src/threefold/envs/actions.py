"""Reading an action out of what an agent said."""

from __future__ import annotations

import re


def parse(text: str) -> str:
    """The action in what the agent said: the last `<action>...</action>`, else the first line that is not
    empty; lower case, single spaces, without quotes and full stops. At most 100 characters."""
    tags = re.findall(r"<action>([^<]*)</action>", text[-2000:], re.IGNORECASE)
    lines = [line for line in text[:2000].splitlines() if line.strip()]
    said = tags[-1] if tags else (lines[0] if lines else "")
    said = " ".join(said.lower().split()).removeprefix("action:")
    return said.strip(" .!\"'`>*")[:100]
