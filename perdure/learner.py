"""The base of every fine-tuning method at work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from .batch import Batch, Step
from .errors import TaskError
from .predictor import Predictor
from .surgery.operations import Surgery
from .surgery.sites import Tower as Tower

_SHARED = ("logit_scale", "logit_bias")
"""Of a CLIP: belong to neither tower"""


class Learner(nn.Module, ABC):
    """A method at work. Everything it must remember is a parameter or a buffer.

    `forward` is a function of (weights, batch, step) and the global random state. Data-parallel
    wrappers wrap the whole learner, so no loss may be computed outside `forward`.

    Args:
        student: What trains; the learner may keep and change it.
    """

    student: Predictor

    def __init__(self, student: Predictor) -> None:
        super().__init__()
        self.student = student

    @property
    def fixed_features(self) -> bool:
        """Whether `forward` takes `Batch.features` for what `student.encode_image` would return.

        So it may only where no weight that training changes takes part in embedding an image, and
        nothing else looks at pixels.
        """
        return False

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> Step:
        """Compute the loss terms of optimiser step `step`, which counts from 1."""

    def after_step(self, step: int) -> None:
        """Update averages after optimiser step `step`; no gradients, no communication."""

    def export(self) -> Predictor:
        """Return an independent predictor, which the rest of the run cannot change."""
        return self.student.copy()

    def restart(self) -> None:
        """Begin moving averages anew at the student's weights, which were set from outside."""

    def decays_to(self) -> Mapping[str, Tensor]:
        """Return where weight decay pulls, by names of parameters; all others go to zero."""
        return {}


def train_only(student: Predictor, *parts: nn.Module) -> None:
    """Let exactly the parameters of `parts` train, and nothing else of the student.

    What the architecture keeps fixed stays so, such as sine-cosine position embeddings.
    """
    student.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    for name in student.fixed:
        student.get_parameter(name).requires_grad_(False)


def train_added(student: Predictor, wanted: Sequence[Surgery], seed: int) -> Predictor:
    """Return the student with exactly some added modules, which alone train: its own, or new ones.

    What can be folded is folded first, and a head is dropped. So a run goes on with the modules of
    the run that it starts from.

    Args:
        student: May be changed.
        wanted: Surgeries in their order, at strength 1.
        seed: Of first weights of new modules.

    Raises:
        SurgeryError: If the towers have no place for the modules.
        TaskError: If the student has others that cannot be folded.
    """
    if student.surgeries:
        student = student.fold()
    student.drop_head()
    if not student.surgeries:
        for surgery in wanted:
            student.attach(surgery, seed)
    elif student.surgeries != tuple(wanted):
        raise TaskError(
            f"the model to start from has added modules ({_listed(student.surgeries)}) that are "
            f"not those of the recipe ({_listed(wanted)}). Give `method` the settings of the run "
            "in model.init, or start from a model without them."
        )
    train_only(student)
    for parameter in student.added().values():
        parameter.requires_grad_(True)
    return student


def _listed(surgeries: Sequence[Surgery]) -> str:
    return ", ".join(map(str, surgeries))


def train_towers(student: Predictor, towers: Collection[Tower]) -> None:
    """Let the towers named, the scale and a bias of the logits train, and nothing else.

    Raises:
        TaskError: If no tower is named.
    """
    if not towers:
        raise TaskError("towers is empty; name image, text or both: towers: [image].")
    train_only(student, student.clip)
    for name, parameter in student.clip.named_parameters():
        tower = "image" if name.startswith("visual.") else "text"
        if name not in _SHARED and tower not in towers:
            parameter.requires_grad_(False)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and all its parts into evaluation mode, and each back as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
