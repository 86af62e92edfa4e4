"""Small copies of sets of questions about pictures, in the layouts that people have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import layouts

ASKED: dict[str, Any] = {
    "image": "a/1.png",
    "question": "What is this?",
    "candidates": ["cat", "dog"],
    "answer": "Dog",
}


def own(root: Path, *entries: Any) -> Path:
    for number in (1, 2):
        layouts.picture(root / "a" / f"{number}.png", number)
    (root / "vqa.json").write_text(json.dumps(list(entries)))
    return root


def vqa_v2(root: Path, choices: bool, version: str = "v2_") -> Path:
    """Three questions of two types about two pictures, of which one lacks its right answer."""
    answers = [("yes", "is the"), ("no", "is the"), ("red", "what color"), ("blue", "what color")]
    notes, asked = [], []
    for number, (answer, kind) in enumerate(answers):
        image = number % 2
        layouts.picture(root / "val2014" / f"COCO_val2014_{image:012d}.jpg", image)
        people = [{"answer": answer}] * 2 + [{"answer": "maybe"}] * 8
        notes.append(
            {
                "question_id": number,
                "image_id": image,
                "question_type": kind,
                "answer_type": "other" if number > 1 else "yes/no",
                "multiple_choice_answer": answer,
                "answers": people,
            }
        )
        entry: dict[str, Any] = {"question_id": number, "image_id": image, "question": f"{kind} x?"}
        if choices:
            entry["multiple_choices"] = ["yes", "no", "red", "maybe"]
        asked.append(entry)
    base = root / "vqa"
    base.mkdir()
    name = "MultipleChoice" if choices else "OpenEnded"
    file = base / f"{version}{name}_mscoco_val2014_questions.json"
    file.write_text(json.dumps({"questions": asked}))
    notes_file = base / f"{version}mscoco_val2014_annotations.json"
    notes_file.write_text(json.dumps({"annotations": notes}))
    return root


def scienceqa(root: Path, nested: bool, splits: bool) -> Path:
    base = root / "scienceqa"
    problems = {
        "1": {"split": "test", "image": "image.png", "choices": ["a cat", "a dog"], "answer": 1},
        "2": {"split": "test", "image": None, "choices": ["yes", "no"], "answer": 0},
        "3": {"split": "train", "image": "image.png", "choices": ["yes", "no"], "answer": 0},
        "4": {"split": "test", "image": "image.png", "choices": ["yes", "Yes"], "answer": 0},
    }
    for number, problem in problems.items():
        problem |= {"question": "Which animal is this?", "subject": "natural science"}
        place = f"{problem['split']}/{number}/image.png"
        layouts.picture(base / ("images" if nested else "") / place)
    (base / "problems.json").write_text(json.dumps(problems))
    if splits:
        (base / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "4"], "train": ["3"]}))
    return root
