"""The picture of a state: a square for each head of each layer, darker where the state is larger."""

from collections.abc import Sequence

import numpy as np

from rwkv7_jax.state import State

CELL, GAP, LEFT, TOP = 22, 2, 56, 34
NARROWEST = 320
LIGHT, DARK = (232, 240, 250), (16, 62, 128)


def head_norms(state: State) -> list[list[float]]:
    """The Euclidean norm of each head's matrix, [layer][head]; of an upscaled state, of its plain matrices."""
    wkv = np.asarray(getattr(state.wkv, "s", state.wkv), np.float64)
    return np.sqrt(np.square(wkv).sum((-2, -1))).tolist()


def svg(norms: Sequence[Sequence[float]], title: str) -> str:
    """The picture, which needs nothing else; each square tells its number where a pointer rests.

    Args:
      norms: [layer][head].
      title: a name of letters, digits, '.', '_', ':' and '-'.
    """
    layers, heads = len(norms), len(norms[0])
    largest = max(map(max, norms)) or 1.0
    width, height = max(NARROWEST, LEFT + heads * (CELL + GAP) + 8), TOP + layers * (CELL + GAP) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="#333" role="img" aria-label="norms of the heads of {title}">',
        f'<text x="{LEFT}" y="12" font-weight="bold">{title}</text>',
    ]
    step = 1 if heads <= 16 else 4
    parts += [
        f'<text x="{LEFT + head * (CELL + GAP) + CELL / 2:g}" y="28" text-anchor="middle">{head}</text>'
        for head in range(0, heads, step)
    ]
    for layer, row in enumerate(norms):
        y = TOP + layer * (CELL + GAP)
        parts.append(f'<text x="{LEFT - 6}" y="{y + CELL * 0.7:g}" text-anchor="end">layer {layer}</text>')
        for head, norm in enumerate(row):
            x = LEFT + head * (CELL + GAP)
            place = f'x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="3" fill="{_colour(norm / largest)}"'
            parts.append(f"<rect {place}><title>layer {layer}, head {head}: {norm:.4g}</title></rect>")
    parts.append(f'<text x="{LEFT}" y="{height - 8}">norm of each head, darkest {largest:.3g}</text></svg>')
    return "\n".join(parts)


def _colour(part: float) -> str:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(LIGHT, DARK, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
