"""The unrolled parts of a depthwise convolution, in C."""

from __future__ import annotations


def taps(height: int, width: int, stride: int, gap: int, *, bits4: bool, padding: bool) -> str:
    """The products of a depthwise kernel with four windows, row by row, in C."""
    lines = []
    for row in range(height):
        weights = []
        for column in range(width):
            at = row * width + column
            half = f"w[{at // 2}] >> 4" if at % 2 else f"w[{at // 2}] & 15"
            weights.append(f"w{column} = {f'({half}) - 8' if bits4 else f'w[{at}]'}")
        lines += [
            "        {",
            f"            const int32_t {', '.join(weights)};",
            "            int32_t x;",
            "",
            f"            from = inside ? lines[{row}] + at : window[{row}];"
            if padding
            else f"            from = lines[{row}] + at;",
        ]
        for column in range((width - 1) * gap + 3 * stride + 1):
            uses = [
                f"{sums} += x * w{(column - pixel * stride) // gap}"
                for pixel, sums in enumerate("stuv")
                if 0 <= column - pixel * stride <= (width - 1) * gap and (column - pixel * stride) % gap == 0
            ]
            if uses:
                lines.append(f"            x = from[{column}], {', '.join(uses)};")
        lines.append("        }")
    return "\n".join(lines)


def for_each(*statements: str, indent: int) -> str:
    """Statements of C for each of four sums and the place where it goes."""
    places = ("to[0]", "to[2]", "to[other]", "to[other + 2]")
    return "\n".join(
        " " * indent + statement.format(sums, place)
        for sums, place in zip("stuv", places, strict=True)
        for statement in statements
    )
