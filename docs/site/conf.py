"""How Sphinx turns the staged pages into the site. `make site` runs it through build.py."""

from typing import Any

project = "hybridlib"
html_title = "hybridlib"
extensions = [
    "myst_nb",  # Markdown pages and the committed notebooks
    "sphinx.ext.autodoc",  # the reference, from signatures and docstrings
    "sphinx.ext.napoleon",  # docstrings with Args, Returns, Raises
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",  # cards and grids
]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "sidebar_hide_name": False,
    "light_css_variables": {"color-brand-primary": "#2b5a88", "color-brand-content": "#2b5a88"},
    "dark_css_variables": {"color-brand-primary": "#8ab8e6", "color-brand-content": "#8ab8e6"},
}
pygments_style, pygments_dark_style = "friendly", "monokai"

# Nothing is loaded from the network when a page is viewed: no MathJax, no require.js, no widget scripts.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
extensions += ["sphinx.ext.imgmath"]  # chosen so that MathJax is not; no page holds a formula
html_math_renderer = "imgmath"

nb_execution_mode = "off"  # notebooks are shown as committed
nb_merge_streams = True
nb_output_stderr = "remove"
nb_code_prompt_show, nb_code_prompt_hide = "code", "hide the code"
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
default_role = "code"  # docstrings write `name`
napoleon_use_rtype = False
napoleon_google_docstring, napoleon_numpy_docstring = True, False
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True
suppress_warnings = ["ref.python"]  # attributes of several classes share a name; such a name stays without a link


def tables_in_docstrings(app: object, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Docstrings hold tables as Markdown writes them; turn each into one that Sphinx knows."""
    out: list[str] = []
    inside = False
    for line in lines:
        is_row = line.strip().startswith("|")
        if is_row and not inside:
            out += ["", ".. list-table::", "   :header-rows: 1", ""]
        elif inside and not is_row:
            out.append("")
        inside = is_row
        if not is_row:
            out.append(line)
        elif set(line) - set("|-: "):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            out += [f"   {'-' if i else '* -':>3} {cell}" for i, cell in enumerate(cells)]
    lines[:] = [*out, ""]


def whole_properties(app: object, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in a property for its type, unless the first line is empty."""
    if what in {"property", "attribute"}:
        lines.insert(0, "")


def setup(app: Any) -> None:
    """Hook of Sphinx."""
    app.connect("autodoc-process-docstring", whole_properties, priority=400)  # before Napoleon
    app.connect("autodoc-process-docstring", tables_in_docstrings)
