"""Layers: every module imports only modules that stand before it in one fixed order.

Imports inside functions and under `TYPE_CHECKING` count too. A new file must be given a place.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "perdure"

ROWS = [
    "errors files documents signals extras rundir processes",
    "kernels",
    "weights mixing task_vectors batch contrastive losses reliability ranking barriers",
    "intervals metrics",
    "collective",
    "overlap",
    "surgery surgery.sites surgery.operations surgery.adapter surgery.residual",
    "surgery.factors surgery.low_rank",
    "surgery.side surgery.visual_prompts surgery.projector",
    "surgery.mask_prompts",
    "checkpoints hf_clip building",
    "towers inputs surgery.slots stored heads passes predictor zoo",
    "learner method teacher statistics",
    "distillation objective",
    "classifying",
    "path_loss repairing endpoints",
    "regions",
    "adapters peft_library peft_format compression foreign_contexts foreign_modules foreign",
    "data data.sprites data.captions data.paint data.render data.scenes data.sheet",
    "corruptions corruptions.filters corruptions.noise corruptions.blur corruptions.weather",
    "corruptions.digital corruptions.table",
    "data.tables data.class_names data.folders data.dividing data.layout data.decoding data.own",
    "data.protocols",
    "data.segmented data.scene_regions data.masks data.proposals data.results",
    "data.catalog data.imagenet_names data.imagenet data.coop data.wilds data.sentences",
    "data.published data.pictures data.shard_files data.shard_index data.shards",
    "data.hf_files data.hf_columns data.hf_datasets data.hf_pictures data.found",
    "data.label_layouts data.labelled data.region_pairs",
    "data.concepts",
    "data.splits data.damaged data.views data.emoji_domains data.emojishift data.prompts",
    "data.datasets data.sampling",
    "data.augment data.cache data.decoded data.caption_tokens data.loading",
    "data.paired data.questions data.vqa data.emoji_questions",
    "data.transfer data.shifts data.uses data.suites data.survey data.compact",
    "data.findings data.check_captions data.check_pixels data.check_regions",
    "data.check_questions data.check",
    "methods methods.ft methods.l2sp methods.flyp methods.carot methods.tracer methods.radapter",
    "methods.lora",
    "methods.mma methods.promptkd",
    "methods.maskprompts",
    "methods.coop methods.kgcoop",
    "methods.mergetune_learners methods.mergetune",
    "guard_spec optim_spec faults",
    "recipe optim runtime states run comparison words identities records samples moves",
    "prediction",
    "subjects",
    "embedding",
    "tasks tasks.classify",
    "tasks.retrieve tasks.answer",
    "tasks.segment",
    "opening",
    "diagnosis diagnosis.layers diagnosis.span diagnosis.update diagnosis.similarity",
    "diagnosis.drift diagnosis.pairs diagnosis.watching",
    "kept",
    "loop cached_views kept_pictures evaluation guard work training",
    "merges merges.rules interpolation merges.means merges.vectors merges.kinds merges.members",
    "merges.importance merges.evidence merging sweeping",
    "path ensembles",
    "scoring",
    "alpha alpha.rules alpha.weights alpha.report alpha.pairs alpha.asked",
    "alpha.hidden alpha.layers alpha.dynamic",
    "alpha.select",
    "grids video",
    "theory.arrays theory.linear theory.solutions theory.teachers theory.horizon",
    "theory.advice theory.published",
    "theory.phase theory",
    "preflight profiling calibration predicting exporting doctor",
    "proposing",
    "diagnosis.answers diagnosis.diagnose",
    "groups notes tables averaging reporting ablate figure_style figures",
    "looking sheets console demo cli_data cli_ensembles cli_merge cli_paths",
    "drift cli_drift",
    "theory_report theory_figures cli_theory",
    "cli_alpha",
    "diagnosis.pictures diagnosis.telling cli_diagnose",
    "cli_segment cli_show cli_tools cli_scores cli_train cli_eval cli_study cli __main__",
]
ORDER = [name for row in ROWS for name in row.split()]

LIGHT = (
    "data.suites", "data.transfer", "errors", "method", "metrics", "tasks", "reporting", "cli",
    "averaging",
)  # fmt: skip
"""Modules that help, version and lists need; they must not import torch."""

DISTRIBUTED = {"collective", "runtime"}
"""The only users of torch.distributed."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
del FILES[""]  # the package itself only hands out names


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the full name of what `from X import ...` imports from."""
    if node.level == 0:
        return node.module or ""
    package = ("perdure", *path.relative_to(ROOT).parts[:-1])
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, node.module) if node.module else base)


def imported(name: str) -> Iterator[tuple[int, str]]:
    """Yield line and target of every import in a module, with `import a.b` as "a.b"."""
    path = FILES[name]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def owner(target: str) -> str:
    """Return the perdure module that an imported name lives in; "" for the package itself."""
    parts = target.split(".")[1:]
    while parts and ".".join(parts) not in FILES:
        parts.pop()
    return ".".join(parts)


def test_the_order_lists_every_file_once():
    assert len(ORDER) == len(set(ORDER))
    missing, stale = set(FILES) - set(ORDER), set(ORDER) - set(FILES)
    assert not missing, f"give these files a place in ORDER: {sorted(missing)}"
    assert not stale, f"these entries of ORDER have no file: {sorted(stale)}"


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downwards(name):
    place = {module: index for index, module in enumerate(ORDER)}
    wrong = []
    for line, target in imported(name):
        if target.split(".")[0] != "perdure" or target == "perdure.__version__":
            continue
        home = owner(target)
        # The package's public names may come from any layer, so inside they are out of bounds.
        if not home or place[home] >= place[name]:
            wrong.append(f"{FILES[name].name}:{line} imports {target}")
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("name", FILES)
def test_processes_are_the_business_of_few(name):
    users = {"torch.distributed", "torch.multiprocessing"}
    found = [target for _, target in imported(name) if any(target.startswith(u) for u in users)]
    assert name in DISTRIBUTED or not found


def test_light_modules_do_not_import_torch():
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module('perdure.' + name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
