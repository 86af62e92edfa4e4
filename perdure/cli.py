"""The command line: `perdure VERB`. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from . import cli_show, cli_tools, cli_work
from .console import emit, print_error
from .errors import PerdureError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors that a user can act on end with 2 and no traceback."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="perdure")
    except PerdureError as error:
        print_error(str(error))
        signal = getattr(error, "number", None)  # set where a training was interrupted and saved
        sys.exit(2 if signal is None else 128 + int(signal))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away, as `head` does; without this Python complains when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        # What no verb foresees: a name that is too long, a directory that may not be looked into.
        if error.filename is None:
            raise
        print_error(f"cannot use {error.filename} ({error.strerror}); name another path.")
        sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        from . import __version__

        emit(__version__)
        raise typer.Exit


@app.callback(epilog="Start with: perdure demo --quick")
def perdure(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fine-tune CLIP models and keep what they knew."""


def _examples(*lines: str) -> str:
    """Return commands as the last part of a help page, one per line."""
    # The backspace character tells typer to leave the line breaks alone.
    return "Examples:\n\n\b\n" + "\n".join(lines)


app.command(epilog=_examples("perdure demo", "perdure demo --quick --out /tmp/demo --json"))(
    cli_show.demo
)
app.command(
    epilog=_examples(
        "perdure train emojishift/tracer --out runs/tracer",
        "perdure train emojishift/flyp --out runs/flyp --set optim.lr=1e-4 --seeds 0,1,2",
        "perdure train my-recipe.yaml --out runs/mine --dry-run",
        "perdure train my-recipe.yaml --out runs/mine --resume",
    )
)(cli_work.train)
app.command(
    "eval",
    epilog=_examples(
        "perdure eval runs/tracer --suite emojishift",
        "perdure eval runs/tracer --suite emojishift --sweep",
        "perdure eval perdure-tiny --suite emojishift --json",
        "perdure eval perdure-tiny --suite emojishift --out runs/zero-shot",
    ),
)(cli_work.evaluate)
app.command(
    epilog=_examples(
        "perdure merge wise-ft perdure-tiny runs/flyp --alpha 0.5 --out runs/flyp-half",
        "perdure merge soup runs/flyp/seed-0 runs/flyp/seed-1 --out runs/soup",
        "perdure merge soup runs/a runs/b --shares 1,3 --out runs/mostly-b",
    )
)(cli_work.merge)
app.command(
    epilog=_examples(
        "perdure report runs/*",
        "perdure report runs/zero-shot runs/flyp runs/tracer --against flyp --at-id 65,70,75",
        "perdure report runs/* --format csv > table.csv",
    )
)(cli_show.report)
app.command(
    "list",
    epilog=_examples("perdure list recipes", "perdure list methods --json"),
)(cli_show.list_names)
app.command(epilog=_examples("perdure show emojishift", "perdure show emojishift --out world.png"))(
    cli_show.show
)
app.command(
    epilog=_examples(
        "perdure predict runs/mine holiday/ --classes names.txt --out holiday.csv",
        "perdure predict runs/ft one.jpg two.png --json",
        "perdure predict perdure-tiny pictures/ --classes names.txt --templates prompts.txt",
    )
)(cli_tools.predict)
app.command(
    epilog=_examples(
        "perdure calibrate runs/tracer",
        "perdure calibrate runs/tracer --suite emojishift --json",
    )
)(cli_tools.calibrate)
app.command(
    epilog=_examples(
        "perdure export runs/tracer --to open_clip --out tracer-clip",
        "perdure export runs/soup --out soup-clip --json",
        "perdure export runs/lora --to adapters --rank 4 --out lora-4",
        "perdure export runs/lora --to peft --out lora-peft",
    )
)(cli_tools.export)
app.command(epilog=_examples("perdure doctor", "perdure doctor --json"))(cli_tools.doctor)
