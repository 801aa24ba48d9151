"""Keep Thebe's scripts off the pages.

jupyter-book always loads sphinx-thebe, although this book starts no kernels. It writes one script
with constants twice, which every browser reports as a syntax error, and offers to fetch Thebe from
outside. Both scripts and the style sheet are taken off each page here.
"""


def drop_thebe(app, pagename, templatename, context, doctree):
    """Remove Thebe's files from the lists of one page, in place: others hold the same lists."""
    for name in ("script_files", "css_files"):
        files = context.get(name, [])
        files[:] = [file for file in files if not mentions_thebe(file)]


def mentions_thebe(file):
    """Whether a script or style sheet, named or written inline, belongs to Thebe."""
    inline = getattr(file, "attributes", {}).get("body") or ""
    return "thebe" in f"{file} {inline}".lower()


def setup(app):
    """Register with Sphinx, after every extension that adds a script (priority 900)."""
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
