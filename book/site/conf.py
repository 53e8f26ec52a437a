"""Sphinx's settings for the HTML book. `python -m pruninglab site` prepares the pages, and then calls Sphinx."""

from pruninglab import __version__
from pruninglab.notebook.site_pages import docstring

project = "Pruning Lab"
author = "The Pruning Lab authors"
project_copyright = "The Pruning Lab authors, Apache-2.0"
version = release = __version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinxcontrib.bibtex",
    "sphinx_codeautolink",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

# The chapters come with their outputs. What the kernel said on standard error is not for readers.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_ipywidgets_js = {}  # these would come from the network; pictures stand in for what moves
nb_number_source_lines = False
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# Docstrings are written as Google has them, with Markdown's single backticks for code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
python_use_unqualified_type_names = True
add_module_names = False
python_maximum_signature_line_length = 100  # a longer one has a line for each argument
toc_object_entries_show_parents = "hide"

# A chapter's cells go on from one another.
codeautolink_concat_default = True
codeautolink_autodoc_inject = False

html_theme = "pydata_sphinx_theme"
html_title = "Pruning Lab"
html_static_path = ["static"]
html_extra_path = ["../extra"]
html_css_files = ["book.css"]
html_show_sourcelink = False
html_domain_indices = False  # the page of the library lists its modules, with what each is for
html_copy_source = False
html_show_search_summary = False  # a page that is opened from a disk may not read others for its summaries
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}  # dark or light as the reader's system is, until they choose
html_theme_options = {
    "logo": {"text": "Pruning Lab"},
    "navigation_depth": 2,
    "collapse_navigation": True,
    "show_nav_level": 1,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "search_bar_text": "Search the book",
    "footer_start": ["copyright"],
    "footer_end": [],
}


def _for_sphinx(_app, _what, _name, _thing, _options, lines):
    """Docstrings are read in the source as they are: bars and stars are mathematics, what is indented is code."""
    lines[:] = docstring("\n".join(lines)).splitlines()


def setup(app):
    app.connect("autodoc-process-docstring", _for_sphinx, priority=400)  # before napoleon
