"""The command line: `perdure VERB`. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from . import (
    cli_alpha,
    cli_data,
    cli_diagnose,
    cli_drift,
    cli_eval,
    cli_merge,
    cli_paths,
    cli_segment,
    cli_show,
    cli_study,
    cli_theory,
    cli_tools,
    cli_train,
    processes,
)
from .console import emit, print_error, print_warning
from .errors import PerdureError
from .processes import Termination

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EIO)
"""Why standard output takes no more; errors of files bear their names"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors that a user can act on end with 2 and no traceback."""
    with Termination():
        run(arguments)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line where somebody else cares for signals."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may hold bytes that are no UTF-8; they are printed as they are.
        sys.stdout.reconfigure(errors="surrogateescape")
    with warnings.catch_warnings():
        warnings.showwarning = print_warning if processes.is_main() else _keep_quiet
        _run(None if arguments is None else list(arguments))


def _keep_quiet(message: Warning | str, *_where: object, **_more: object) -> None:
    """The main process says it."""


def _run(arguments: list[str] | None) -> None:
    try:
        if processes.is_main():
            app(args=arguments, prog_name="perdure")
        # Outside the mode that prints errors of usage; the main process prints the same ones.
        sys.exit(app(args=arguments, prog_name="perdure", standalone_mode=False))
    except PerdureError as error:
        signal = getattr(error, "number", None)  # set where a training was interrupted and saved
        if signal is None:
            _fail(str(error))
        if processes.is_main():
            print_error(str(error))
        sys.exit(128 + int(signal))
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as end:
        # typer has its own number for a reader that went away, as `head` does.
        if isinstance(end.__context__, BrokenPipeError):
            _end_quietly()
        raise
    except BrokenPipeError:
        _end_quietly()
    except OSError as error:
        # What no verb foresees: a name that is too long, a directory that may not be looked into.
        if error.filename is not None:
            _fail(f"cannot use {error.filename} ({error.strerror}); name another path.")
        if error.errno not in _FULL:
            raise
        _drop_output()
        _fail(f"cannot print ({error.strerror}); free some space or send the output elsewhere.")
    except RuntimeError as error:
        if not processes.has_lost_contact(error):
            raise
        _fail(
            "another process of this run has ended, so this one ends too; it or the launcher says "
            "why. Start all of them again, a training with --resume.",
            at_once=False,
        )
    except Exception as error:
        # Outside the standalone mode, which only the main process has; see above.
        if processes.is_main() or not hasattr(error, "format_message"):
            raise
        _fail(error.format_message())


def _drop_output() -> None:
    """Forget what cannot be printed; Python otherwise complains when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end_quietly() -> NoReturn:
    """End as a tool ends whose reader went away."""
    _drop_output()
    sys.exit(141)


def _fail(message: str, *, at_once: bool = True) -> NoReturn:
    """Print an error, once for all processes that meet it, and end with 2."""
    if processes.stopped_by() is None and processes.may_speak(at_once=at_once):
        print_error(message)
        processes.tell_launcher(message)
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
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="First import methods of your own."),
    ] = None,
) -> None:
    """Fine-tune CLIP models and keep what they knew."""
    if modules:
        from .method import import_methods

        for module in modules:
            import_methods(module)


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
        "perdure --import my_method train my-recipe.yaml --out runs/mine",
    )
)(cli_train.train)
app.command(
    "eval",
    epilog=_examples(
        "perdure eval runs/tracer --suite emojishift",
        "perdure eval runs/tracer --suite emojishift --sweep",
        "perdure eval perdure-tiny --suite emojishift --json",
        "perdure eval perdure-tiny --suite emojishift --out runs/zero-shot",
        "perdure eval perdure-tiny runs/flyp --ensemble mean --shares 1,3",
        "perdure eval perdure-tiny runs/flyp --ensemble vrf",
        "perdure eval runs/radapter-regions --suite segmentation --data DIRECTORY",
    ),
)(cli_eval.evaluate)
app.command(
    epilog=_examples(
        "perdure merge wise-ft perdure-tiny runs/flyp --alpha 0.5 --out runs/flyp-half",
        "perdure merge soup runs/flyp/seed-0 runs/flyp/seed-1 --out runs/soup",
        "perdure merge soup runs/a runs/b --shares 1,3 --out runs/mostly-b",
        "perdure merge soup runs/a runs/b runs/c --greedy --out runs/best",
        "perdure merge ties perdure-tiny runs/a runs/b --density 0.3 --out runs/ties",
        "perdure merge dare perdure-tiny runs/a runs/b --majority total --seed 1 --out runs/dare",
        "perdure merge fisher runs/a runs/b --examples 128 --out runs/fisher",
    )
)(cli_merge.merge)
app.command(
    epilog=_examples(
        "perdure path perdure-tiny runs/flyp",
        "perdure path perdure-tiny runs/repaired runs/flyp --suite emojishift --out path.png",
        "perdure path runs/a runs/b --points 21 --limit 200 --json",
    )
)(cli_paths.path)
app.command(
    epilog=_examples(
        "perdure drift perdure-tiny runs/flyp --images products/ --captions products.csv",
        "perdure drift ViT-B-32/openai runs/mine --images photos/ --queries searches.txt --json",
    )
)(cli_drift.drift)
app.command(
    epilog=_examples(
        "perdure report runs/*",
        "perdure report runs/zero-shot runs/flyp runs/tracer --against flyp --at-id 65,70,75",
        "perdure report runs/* --format csv > table.csv",
        "perdure report runs/coop runs/kgcoop --average",
    )
)(cli_show.report)
app.command(
    "list",
    epilog=_examples("perdure list recipes", "perdure list methods --json"),
)(cli_show.list_names)
app.command(
    epilog=_examples(
        "perdure show emojishift", "perdure show emojishift --out world.png", "perdure show runs/ft"
    )
)(cli_show.show)
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
        "perdure calibrate runs/mine --data elsewhere/pictures --json",
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
app.command(
    epilog=_examples(
        "perdure propose models/sam VOCdevkit/VOC2012/JPEGImages --out proposals/pas20",
        "perdure propose facebook/sam-vit-base pictures/ --out proposals --download",
    )
)(cli_segment.propose)
app.command(epilog=_examples("perdure doctor", "perdure doctor --json"))(cli_tools.doctor)
app.command(
    epilog=_examples(
        "perdure alpha runs/flyp",
        "perdure alpha runs/flyp --method leave_concepts_out --splits 3 --out runs/flyp-merged",
        "perdure alpha runs/flyp/seed-0 --method stock --with runs/flyp/seed-1 --json",
    )
)(cli_alpha.alpha)
app.command(
    epilog=_examples(
        "perdure ablate emojishift/tracer --grid method.beta=0.5,1 --seeds 0,1,2 --out runs/beta",
        "perdure ablate emojishift/flyp --grid optim.lr=1e-4,3e-4 --grid alpha=0.5,1 --out runs/x",
        "perdure ablate emojishift/tracer --preset tracer --out runs/terms --plan",
    )
)(cli_study.ablate)
app.command(
    epilog=_examples(
        "perdure profile emojishift/tracer",
        "perdure profile emojishift/tracer --grid optim.batch_size=32,64 --steps 20 --json",
    )
)(cli_study.profile)
app.command(
    epilog=_examples(
        "perdure theory --steps 2000",
        "perdure theory --steps 2000 --every 10 --strength 0.9 --json",
        "perdure theory --compare --out theory-pictures",
    )
)(cli_theory.theory)
app.command(
    epilog=_examples(
        "perdure diagnose runs/ft",
        "perdure diagnose runs/ft --suite emojishift --images 128 --limit 400 --json",
        "perdure diagnose runs/soup --against perdure-tiny --out soup-diagnosis",
    )
)(cli_diagnose.diagnose)
app.add_typer(
    cli_data.app,
    name="data",
    epilog=_examples("perdure data check ~/data", "perdure data sheet ~/data --out sheet.png"),
)
cli_data.app.command(
    epilog=_examples(
        "perdure data check ~/data",
        "perdure data check ~/data --suite imagenet-shift --decode --duplicates",
        "perdure data check pictures/ --model ViT-B-32/openai --json",
    )
)(cli_data.check)
cli_data.app.command(epilog=_examples("perdure data stats ~/data --set iwildcam --json"))(
    cli_data.stats
)
cli_data.app.command(epilog=_examples("perdure data sheet ~/data --out sheet.png"))(cli_data.sheet)
cli_data.app.command(
    epilog=_examples("perdure data compact imagenet.csv --out imagenet-compact.csv")
)(cli_data.compact)
