"""The command `jaxnn docs`: the API reference, by pdoc; returns the exit code.

We use pdoc because it needs only the docstrings, and follows re-exported names to their sources.
"""

import argparse

import jaxnn
from jaxnn._files import made_directory
from jaxnn.cli.output import print_json


def docs(args: argparse.Namespace) -> int:
    """Write the pages, and print the path of the first."""
    try:
        import pdoc  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("`docs` needs pdoc: pip install pdoc.") from None
    folder = made_directory("directory", args.out)
    pdoc.render.configure(docformat="google", footer_text=f"jaxnn {jaxnn.__version__}")
    modules = jaxnn, jaxnn.surfaces, jaxnn.plots, jaxnn.figures
    pdoc.pdoc(*(module.__name__ for module in modules), output_directory=folder)
    page = str(folder / f"{jaxnn.__name__}.html")
    if args.json:
        print_json(page, args.stdout)
    else:
        print(page)
    return 0
