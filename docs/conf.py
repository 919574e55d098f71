"""Sphinx settings; build with ``sphinx-build -W -b html docs docs/_build``."""

from __future__ import annotations

import fasttricks

project = "fasttricks"
author = "The fasttricks authors"
copyright = author  # the name that Sphinx reads
release = fasttricks.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"{project} {release}"

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_custom_sections = ["Reference", "Shape"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
