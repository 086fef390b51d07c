"""Settings of the documentation site: `make docs` builds it, every warning is an error.

The pages are Markdown (MyST). Notebooks, and pages with code cells, are executed by the build.
"""

import re

import lrnet_jax

project = "lrnet_jax"
release = lrnet_jax.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["study/*.md", "_build", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"lrnet_jax {release}"
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A notebook that fails ends the build. One that did not change is not executed again.
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# Names in docstrings stand in single backticks, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
# `>>> ` of shells and Python are not part of what is copied.
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields|Source):")
# Row of a table of named arrays, in the section of what a function returns.
ROW = re.compile(r"^    (\w+): ")


def plain_to_rest(app, what, name, obj, options, lines):
    """Makes reStructuredText of a docstring, whose text is plain.

    Names in backticks become literals, and marks of reStructuredText are escaped. Code is indented
    by four after an empty line, before the sections of arguments and results. A result of several
    named arrays becomes a list.
    """
    converted: list[str] = []
    in_code = in_sections = False
    for n, line in enumerate(lines):
        after_empty = n == 0 or not lines[n - 1].strip()
        in_sections = in_sections or bool(SECTION.match(line))
        if line.strip():
            indented = line.startswith("    ") and not in_sections
            if indented and not in_code and after_empty:
                converted += ["::", ""]
                in_code = True
            elif not indented:
                in_code = False
        if in_code:
            converted.append(line)
            continue
        if in_sections and ROW.match(line):
            if lines[n - 1].endswith(":"):  # napoleon takes what is before a colon for a type
                converted[-1:] = [f"{converted[-1].removesuffix(':')}.", ""]
            line = ROW.sub(r"    * `\1`: ", line)
        converted.append(escape(line))
    lines[:] = converted


def escape(line):
    """Escapes what is outside of backticks, and makes literals of what is inside."""
    parts = line.split("`")
    if len(parts) % 2 == 0:  # a name that goes on in the next line
        return line
    for n, part in enumerate(parts):
        if n % 2:
            parts[n] = f"``{part}``"
        elif n or part.strip() != "*":  # the star of a list stays
            escaped = re.sub(r"([*|])", r"\\\1", part)
            parts[n] = f"\\ {escaped}" if n and part[:1].isalnum() else escaped
    return "".join(parts)


def setup(app):
    """Registers the hook; Sphinx calls this. Its priority is before that of napoleon."""
    app.connect("autodoc-process-docstring", plain_to_rest, priority=400)
