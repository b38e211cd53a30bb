"""The command line: ``python -m irf_lib --help``."""

from .run.commands import app

if __name__ == "__main__":
    app(prog_name="python -m irf_lib")
