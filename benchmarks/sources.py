"""The last lines of a table of RESULTS.md: on which machines it was made, and how."""

from typing import Any, Dict, List


def sources(rows: List[Dict[str, Any]]) -> List[str]:
    machines = {
        f"{r['device']}, {r['threads']} thread(s), {r['date']}, torch {r['torch']}" for r in rows
    }
    return ["", "; ".join(sorted(machines)), "", "```", *[r["command"] for r in rows], "```"]
