"""Keep the API page short.

The fields of a dataclass or a named tuple are its arguments: what a docstring lists under
"Attributes" becomes its list of parameters, and autodoc does not list each field again.
"""


def attributes_as_arguments(app, what, name, member, options, lines):
    """Rename the heading in place, before napoleon reads the docstring."""
    lines[:] = ["Args:" if line == "Attributes:" else line for line in lines]


def skip_field(app, what, name, member, skip, options):
    """Skip a field of a named tuple; have no opinion on anything else."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app):
    """Register with Sphinx; napoleon listens at the default priority of 500."""
    app.connect("autodoc-process-docstring", attributes_as_arguments, priority=400)
    app.connect("autodoc-skip-member", skip_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
