"""Draw ``docs/pictures/architecture.svg`` from the imports of the package: ``python docs/draw_imports.py``.

A box is a folder of ``zcomm/`` or a module beside them; its row follows from what it uses. Colours read on white and
on black.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "architecture.svg"

#: Modules that may be used from everywhere and use nothing but one another: one band, without arrows.
VOCABULARY = (
    "_version",
    "errors",
    "interfaces",
    "origin",
    "reading",
    "strictyaml",
    "text",
    "config",
    "wire.closecodes",
)

WIDTH, ROW, BOX, HEIGHT, MARGIN = 760, 92, 112, 46, 10
FILL, BAND, LINE, INK = "#3b5bdb", "#2b8a3e", "#868e96", "#ffffff"


def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``zcomm``; the package itself has the empty one."""
    package = ROOT / "zcomm"
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that ``path`` imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("zcomm.") in known else node.module for name in deeper]
        else:
            continue
        yield from (name.removeprefix("zcomm.") for name in names if name.removeprefix("zcomm.") in known)


def box_of(module: str) -> str:
    """The box that a module is drawn in; the empty name for the vocabulary and for the package itself."""
    if module in VOCABULARY or not module:
        return ""
    folder = module.partition(".")[0]
    return f"{folder}/" if (ROOT / "zcomm" / folder).is_dir() else folder


def uses() -> dict[str, set[str]]:
    """What each box uses directly, without what it uses through another box anyway."""
    known = modules()
    graph: dict[str, set[str]] = {box_of(module): set() for module in known if box_of(module)}
    for module, path in known.items():
        if box_of(module):
            graph[box_of(module)] |= {box_of(name) for name in imports(path, known)} - {"", box_of(module)}

    def reach(box: str) -> set[str]:
        return graph[box].union(*(reach(lower) for lower in graph[box]))

    return {box: lower - set().union(*(reach(other) for other in lower)) for box, lower in graph.items()}


def places(graph: dict[str, set[str]]) -> dict[str, tuple[float, int]]:
    """The middle of each box and its row, counted from below: one above the highest box that it uses."""

    def rank(box: str) -> int:
        return max((rank(lower) + 1 for lower in graph[box]), default=0)

    rows: dict[int, list[str]] = {}
    for box in sorted(graph):
        rows.setdefault(rank(box), []).append(box)
    found: dict[str, tuple[float, int]] = {}
    for row, boxes in sorted(rows.items()):
        # Above what they use, as far as there is room.
        def wish(box: str) -> float:
            below = [found[lower][0] for lower in graph[box]]
            return sum(below) / len(below) if below else WIDTH / 2

        order = sorted(boxes, key=lambda box: (wish(box), box))
        step = (WIDTH - 2 * MARGIN) / len(order)
        for number, box in enumerate(order):
            found[box] = (MARGIN + step * (number + 0.5), row)
    return found


def inner(box: str) -> str:
    """The folders within a folder, for the second line of its box."""
    if not box.endswith("/"):
        return ""
    folders = (path.parent.name for path in sorted((ROOT / "zcomm" / box).glob("*/__init__.py")))
    return ", ".join(folders)


def draw() -> str:
    """The picture as SVG."""
    graph = uses()
    where = places(graph)
    top = max(row for _, row in where.values())
    height = (top + 2) * ROW

    def y(row: int) -> float:
        return (top - row) * ROW + MARGIN

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="15" role="img" aria-label="The folders of zcomm and which uses which">',
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>',
    ]
    for box, lower in sorted(graph.items()):
        for other in sorted(lower):
            (x1, row1), (x2, row2) = where[box], where[other]
            start, end = y(row1) + HEIGHT, y(row2) - 2
            bend = (end - start) / 2
            curve = f"C{x1:.0f} {start + bend:.0f} {x2:.0f} {end - bend:.0f} {x2:.0f} {end:.0f}"
            parts.append(
                f'<path d="M{x1:.0f} {start:.0f}{curve}" '
                f'fill="none" stroke="{LINE}" stroke-width="1.5" marker-end="url(#end)"/>'
            )
    for box, (x, row) in sorted(where.items()):
        text = inner(box)
        middle = y(row) + (HEIGHT / 2 + 5 if not text else HEIGHT / 2 - 2)
        width = max(BOX, 5.8 * len(text) + 12)
        # A wide one at the side stays within the picture; its arrows end where they did.
        x = max(MARGIN + width / 2, min(x, WIDTH - MARGIN - width / 2))
        shape = f'width="{width:.0f}" height="{HEIGHT}" rx="6"'
        centred = f'text-anchor="middle" fill="{INK}"'
        parts += [
            f'<rect x="{x - width / 2:.0f}" y="{y(row):.0f}" {shape} fill="{FILL}"/>',
            f'<text x="{x:.0f}" y="{middle:.0f}" {centred}>{escape(box)}</text>',
        ]
        if text:
            parts.append(f'<text x="{x:.0f}" y="{middle + 16:.0f}" font-size="11" {centred}>{escape(text)}</text>')
    names = ", ".join(name for name in VOCABULARY if not name.startswith("_"))
    band = (top + 1) * ROW + MARGIN
    parts += [
        f'<rect x="{MARGIN}" y="{band}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT}" rx="6" fill="{BAND}"/>',
        f'<text x="{WIDTH / 2:.0f}" y="{band + 28}" text-anchor="middle" fill="{INK}">'
        f"used by all: {escape(names)}</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), "utf-8")
