"""Small copies of published data sets, in the layouts that people have them in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from perdure.data import imagenet_names
from perdure.data.coop import SETS, CoopSet


def _bytes(value: int, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 9), (value, 255 - value, 60)).save(stream, kind)
    return stream.getvalue()


JPEGS = [_bytes(value, "JPEG") for value in range(0, 256, 64)]
PNGS = [_bytes(value, "PNG") for value in range(0, 256, 64)]


def picture(file: Path, value: int = 0) -> Path:
    """Write a small picture of one of four colours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((PNGS if file.suffix == ".png" else JPEGS)[value % 4])
    return file


def class_folders(source: Path, folders: Iterable[str], ending: str = ".JPEG") -> Path:
    """Write one picture into every folder."""
    for number, folder in enumerate(folders):
        picture(source / folder / f"{folder}_0{ending}", number)
    return source


def imagenet(root: Path, train: str = "imagenet/train", val: str = "imagenet/val") -> Path:
    """Write ImageNet's training and validation pictures into folders of synsets."""
    class_folders(root / train, imagenet_names.synsets())
    for number, synset in enumerate(imagenet_names.synsets()):
        picture(root / val / synset / f"ILSVRC2012_val_{number + 1:08d}.JPEG", number)
    return root


def v2(root: Path, place: str = "imagenetv2-matched-frequency-format-val") -> Path:
    class_folders(root / place, map(str, range(1000)), ".jpeg")
    return root


def part(root: Path, variant: str, place: str) -> Path:
    synsets = imagenet_names.synsets()
    class_folders(root / place, [synsets[one] for one in imagenet_names.members(variant)], ".jpg")
    (root / place / "README.txt").write_text("as it comes")
    return root


def objectnet(root: Path, place: str = "objectnet-1.0") -> Path:
    """Write two of ObjectNet's classes that ImageNet knows, one of them twice, and one other."""
    base, names = root / place, imagenet_names.names()
    for folder in ("backpack", "banana", "air_freshener"):
        picture(base / "images" / folder / "a.png")
    mappings = base / "mappings"
    mappings.mkdir(parents=True)
    labels = {"backpack": "Backpack", "banana": "Banana", "air_freshener": "Air freshener"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    known = {"Backpack": "n_414; n_748", "Banana": "n_954"}
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(known))
    # The file of names counts ImageNet's labels in another order.
    turned = {str(label): 999 - label for label in range(1000)}
    (mappings / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps(turned))
    lines = [f"n_{999 - line}" for line in range(len(names))]
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    return root


def coop(root: Path, name: str, classes: Sequence[str] = ("red_cat", "dog", "bus", "cup")) -> Path:
    """Write one of CoOp's data sets, two pictures per class and split."""
    about: CoopSet = SETS[name]
    base = root / about.folder
    division: dict[str, list[list[object]]] = {}
    for split in ("train", "val", "test"):
        for label, text in enumerate(classes):
            for number in range(2):
                path = f"{split}-{text}-{number}.jpg"
                if about.lists and not about.images:
                    path = f"cars_{split}/{path}"
                picture(base / about.images / path, label)
                division.setdefault(split, []).append([path, label, text])
    if about.lists:
        (base / f"split_zhou_{about.lists}.json").write_text(json.dumps(division))
        return root
    (base / "variants.txt").write_text("\n".join(classes) + "\n")
    for split, rows in division.items():
        lines = [f"{str(path).removesuffix('.jpg')} {text}" for path, _, text in rows]
        (base / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def iwildcam(root: Path, place: str = "iwildcam_v2.0") -> Path:
    base = root / place
    rows = [",split,location_remapped,filename,y"]
    for split in ("train", "id_val", "id_test", "val", "test"):
        for label in range(3):
            name = f"{split}-{label}.jpg"
            picture(base / "train" / name, label)
            rows.append(f"{len(rows)},{split},7,{name},{label}")
    (base / "metadata.csv").write_text("\n".join(rows) + "\n")
    names = ["y,category_id,name", "0,0,empty", "1,2,tayassu pecari", "2,6,puma", "99999,9,start"]
    (base / "categories.csv").write_text("\n".join(names) + "\n")
    return root


def fmow(root: Path, place: str = "fmow_v1.1") -> Path:
    base = root / place
    base.mkdir(parents=True)
    codes = ["name,alpha-3,region", "Spain,ESP,Europe", "Chad,TCD,Africa", "Nowhere,QQQ,"]
    (base / "country_code_mapping.csv").write_text("\n".join(codes) + "\n")
    rows = ["split,img_filename,category,timestamp,country_code"]
    for split, year in (
        *(("train", 2005), ("seq", 2005), ("val", 2006), ("test", 2007), ("val", 2014)),
        *(("test", 2016), ("train", 2014), ("val", 2017)),
    ):
        for category, country in (("zoo", "ESP"), ("car_dealership", "TCD"), ("dam", "QQQ")):
            rows.append(f"{split},x.jpg,{category},{year}-01-02T10:00:00Z,{country}")
            if split != "seq":
                picture(base / "images" / f"rgb_img_{len(rows) - 2}.png", len(rows))
    (base / "rgb_metadata.csv").write_text("\n".join(rows) + "\n")
    return root


TEXTS = ("A cat, on a mat.", "a cat", "one cat", "that cat", "a mat", "a sixth text")


def _karpathy(place: Path, years: bool) -> list[dict[str, object]]:
    images: list[dict[str, object]] = []
    for number, split in enumerate(("train", "restval", "val", "test", "test")):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number}.jpg" if years else f"{number}.jpg"
        picture(place / (f"{folder}/{name}" if years else name), number)
        images.append(
            {
                "split": split,
                "filename": name,
                **({"filepath": folder} if years else {}),
                "sentences": [{"raw": f"{text} {number}"} for text in TEXTS],
            }
        )
    return images


def coco(root: Path, kind: str) -> Path:
    """Write COCO as "karpathy", "splits" or "ids" has it: one file, one per split, lists."""
    base = root / "coco"
    images = _karpathy(base if kind == "splits" else base / "images", years=True)
    numbers = [(place, index) for place in range(len(images)) for index in range(len(TEXTS))]
    if kind == "karpathy":
        (base / "dataset_coco.json").write_text(json.dumps({"images": images}))
        return root
    used = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
    files = [{"id": place, "file_name": image["filename"]} for place, image in enumerate(images)]
    notes = [
        {"id": 10 * place + index, "image_id": place, "caption": f"{TEXTS[index]} {place}"}
        for place, index in numbers
    ]
    if kind == "splits":
        for split, names in used.items():
            kept = [place for place, image in enumerate(images) if image["split"] in names]
            document = {
                "images": [files[place] for place in kept],
                "annotations": [note for note in notes if note["image_id"] in kept],
            }
            (base / f"coco_{split}_karpathy.json").write_text(json.dumps(document))
        return root
    folder = base / "annotations"
    folder.mkdir()
    for year in ("train2014", "val2014"):
        kept = [place for place, image in enumerate(images) if image["filepath"] == year]
        document = {
            "images": [files[place] for place in kept],
            "annotations": [note for note in notes if note["image_id"] in kept],
        }
        (folder / f"captions_{year}.json").write_text(json.dumps(document))
    for split, name in (("train", "train"), ("restval", "restval"), ("val", "dev"), ("test",) * 2):
        ids = [
            10 * place + index
            for place, index in numbers
            if images[place]["split"] == split and index < 5
        ]
        np.save(folder / f"coco_{name}_ids.npy", np.array(ids))
    return root


def flickr(root: Path, kind: str) -> Path:
    """Write Flickr30k as "karpathy" or "lines" has it."""
    base = root / "flickr30k"
    images = _karpathy(base / "images", years=False)
    if kind == "karpathy":
        (base / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
        return root
    for split in ("train", "val", "test"):
        lines = ["image,caption"]
        for place, image in enumerate(images):
            own = "train" if image["split"] == "restval" else image["split"]
            lines += [f"{image['filename']},{text} {place}" for text in TEXTS if own == split]
        (base / f"flickr30k_{split}_karpathy.txt").write_text("\n".join(lines) + "\n")
    return root


def shard(file: Path, samples: list[dict[str, bytes]], first: int = 0) -> Path:
    """Write a tar file of samples, from endings to contents."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for number, parts in enumerate(samples, start=first):
            for kind, content in parts.items():
                member = tarfile.TarInfo(f"{number:06d}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file
