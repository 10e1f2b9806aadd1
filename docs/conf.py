"""Settings of the site that `make docs` builds from this folder: Sphinx reads the Markdown pages, furo lays them out.

Nothing is fetched while it builds: no inventories of other projects, no remote fonts.
"""

project = "unlearn"
author = "the authors of unlearn"
copyright = "the authors of unlearn, Apache-2.0"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]

myst_heading_anchors = 4  # pages link to their own sections by heading, as GitHub does
nitpicky = True  # with -W, a link that leads nowhere ends the build

html_theme = "furo"
html_title = "unlearn"
html_show_sphinx = False
