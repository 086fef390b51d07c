"""What a person sees of the bytes that a program writes to a terminal."""

import re


def seen(printed, columns):
    """The lines of a terminal of a width, which wraps, and knows the codes that the bar needs."""
    lines, place = [""], 0
    for part in re.findall(r"\x1b\[K|.|\n|\r", printed):
        if part == "\r":
            place = 0
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:place]
        else:
            if part == "\n" or place == columns:
                lines.append("")
                place = 0
            if part != "\n":
                lines[-1] = lines[-1][:place] + part + lines[-1][place + 1 :]
                place += 1
    return lines
