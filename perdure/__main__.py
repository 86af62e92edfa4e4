"""`python -m perdure` is the command `perdure`."""

from __future__ import annotations

from .processes import Termination


def main() -> None:
    """Run the command line in a process of its own, which can be stopped from now on."""
    with Termination(last=True):
        from .cli import run

        run()


if __name__ == "__main__":
    main()
