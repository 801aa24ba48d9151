"""Leave the fields of named tuples out of the API page.

Their classes describe them under "Attributes"; autodoc would list each again as "Alias for field
number 0".
"""


def skip_field(app, what, name, member, skip, options):
    """Skip a field of a named tuple; have no opinion on anything else."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app):
    """Register with Sphinx."""
    app.connect("autodoc-skip-member", skip_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
