"""The templates of HTML pages: escaped, and a name that is missing is an error."""

import pathlib

import jinja2


def environment_beside(module_file: str) -> jinja2.Environment:
    """Templates that lie beside a module (its `__file__`)."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(module_file).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
