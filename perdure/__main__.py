"""`python -m perdure` is the command `perdure`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line in a process of its own, which can be stopped from now on."""
    try:
        from .processes import Termination

        with Termination(last=True):
            from .cli import run

            run()
    except KeyboardInterrupt:  # it came before anybody listened
        exec("")  # as in `Termination`
        print("Stopped by SIGINT.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
