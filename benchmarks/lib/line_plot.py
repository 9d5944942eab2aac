"""A line plot as SVG, without a plotting library."""

from html import escape
from math import log10
from typing import List, NamedTuple, Sequence, Tuple

# Colors that readers with a color vision deficiency can tell apart (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 250, 20, 50


class Line(NamedTuple):
    """A line of the plot.

    name (str): Its name in the legend.
    points (Sequence[Tuple[float, float]]): x above 0, and y between 0 and 100.
    """

    name: str
    points: Sequence[Tuple[float, float]]


def line_plot(lines: Sequence[Line], x_title: str, y_title: str) -> str:
    """Draw lines over a logarithmic x axis.

    RETURNS (str): The SVG.
    """
    xs = sorted({x for line in lines for x, _ in line.points})
    low, high = (log10(xs[0] * 0.85), log10(xs[-1] * 1.15)) if xs else (0.0, 1.0)

    def place(x: float, y: float) -> Tuple[float, float]:
        across = (log10(x) - low) / (high - low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y / 100 * (HEIGHT - TOP - BOTTOM),
        )

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for y in range(0, 101, 20):
        _, py = place(1.0, y)
        out.append(f'<path d="M{LEFT} {py:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{y}</text>')
    bottom = HEIGHT - BOTTOM
    for x in xs:
        px, _ = place(x, 0)
        out.append(f'<path d="M{px:.1f} {bottom}v5" stroke="black"/>')
        out.append(f'<text x="{px:.1f}" y="{bottom + 19}" text-anchor="middle">{x:.0f}</text>')
    out.append(f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="black"/>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    out += [
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_title)}</text>',
        f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {HEIGHT / 2})">{escape(y_title)}</text>',
    ]
    for k, line in enumerate(lines):
        out += _drawn(line, [place(*point) for point in line.points], k)
    return "\n".join([*out, "</svg>"]) + "\n"


def _drawn(line: Line, places: List[Tuple[float, float]], k: int) -> List[str]:
    color, y = COLORS[k % len(COLORS)], TOP + 12 + 20 * k
    path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    x = WIDTH - RIGHT + 16
    return [
        f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"/>',
        *(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>' for px, py in places),
        f'<path d="M{x} {y - 4}h18" stroke="{color}" stroke-width="2"/>',
        f'<text x="{x + 24}" y="{y}">{escape(line.name)}</text>',
    ]
