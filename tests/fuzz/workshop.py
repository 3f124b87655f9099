"""The doors, each with whole files of its kind in a folder of its own: `Workshop(folder).doors()`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from doors import Door, inspected, show, show_json
from wholes import CARD, CONFIG, RECIPE, SHAPES, weights

import surgeon
from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.hashing import file_hash
from surgeon.checkpoint.weight_files import INDEX_NAME
from surgeon.diff.comparison import compare
from surgeon.errors import CheckpointError
from surgeon.freeze.bundle import Bundle, write_bundle
from surgeon.hub.parcel import pack
from surgeon.hub.rebuild import rebuild
from surgeon.plan.summary import summarize
from surgeon.progress import Progress
from surgeon.recipe.reading import load_recipe
from surgeon.region.patch import Patch
from surgeon.region.region import Region
from surgeon.regions.file import load_masks
from surgeon.regions.neurons import load_neurons
from surgeon.report.card import SourceCard
from surgeon.report.manifest import differences
from surgeon.text.corpora import Corpus, FileLocation
from surgeon.text.dataset_files import NoSuchFiles, split_files
from surgeon.views.differences import comparison_data, comparison_view
from surgeon.views.planned import plan_view
from surgeon.views.terminal import told
from surgeon.visible import visible
from surgeon.write.marker import MARKER, MarkedModel, Marker, check_written, is_output, outputs_of, read_own


class Workshop:
    """A folder with one whole thing of every kind, in which the doors' files are replaced, each alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "model.safetensors").write_bytes(weights(0))
        (self.model / "config.json").write_text(json.dumps(CONFIG))
        (folder / "de.txt").write_text("eins\nzwei\ndrei\n")
        self.checkpoint = Checkpoint.open(self.model)
        masks = {name: np.random.default_rng(1).random(shape) < 0.2 for name, shape in SHAPES.items()}
        masks["lm_head.weight"][:] = False
        masks["lm_head.weight"][0, 0] = True  # sparse: kept as gaps
        self.region = Region.from_masks(masks, {"model": "m", "fraction": 0.2, "languages": ["de"]})
        self.region.save(folder / "good.region.safetensors")
        self.other = folder / "other.safetensors"
        self.other.write_bytes(weights(0).replace(weights(0)[-64:], b"\x40" * 64))
        compare(self.model / "model.safetensors", self.other, save_patch=folder / "good.patch.safetensors")

    def _recipe_for(self, model: Path) -> str:
        return RECIPE.format(model=model, text=self.folder / "de.txt", output=self.folder / "out")

    def file(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def _replaced(self, path: Path, act: Callable[[], None]) -> Callable[[bytes], None]:
        path.parent.mkdir(parents=True, exist_ok=True)

        def enter(data: bytes) -> None:
            path.write_bytes(data)
            act()

        return enter

    def doors(self) -> dict[str, Door]:
        """All doors, each with a folder of its own."""
        made = [
            self._header(), self._plan(), self._difference(), self._index(), self._config(), self._region(),
            self._overlap(), self._patch(), self._bundle(), self._marker(), self._report(), self._manifest(),
            self._masks(), self._neurons(), self._saved(), self._lines(), self._parquet(), self._recipe(),
            self._override(), self._card(), self._model(),
            self._rebuild(), self._dataset(),
        ]  # fmt: skip
        return {door.name: door for door in made}

    def _header(self) -> Door:
        path = self.folder / "header" / "x.safetensors"
        return Door("header", "safetensors", (weights(0),), self._replaced(path, lambda: inspected(path)))

    def _folder(self, name: str) -> Path:
        """A copy of the model's folder."""
        folder = self.folder / name
        folder.mkdir()
        for path in filter(Path.is_file, self.model.iterdir()):
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    def _planned(self, model: Path) -> Callable[[], None]:
        recipe = model.parent / f"{model.name}.yaml"
        recipe.write_text(self._recipe_for(model))

        def act() -> None:
            plan = summarize(plan_recipe(recipe, output=self.folder / "out"))
            show(plan_view(plan))
            show_json(asdict(plan))

        return act

    def _plan(self) -> Door:
        folder = self._folder("plan")
        return Door(
            "plan", "safetensors", (weights(0),), self._replaced(folder / "model.safetensors", self._planned(folder))
        )

    def _difference(self) -> Door:
        path = self.folder / "difference" / "x.safetensors"

        def act() -> None:
            found = compare(self.model / "model.safetensors", path, regions=[self.folder / "good.region.safetensors"])
            assert found.checkpoints is not None
            show(comparison_view(found, details=True))
            show_json(comparison_data(found))

        return Door("difference", "safetensors", (weights(0), self.other.read_bytes()), self._replaced(path, act))

    def _index(self) -> Door:
        folder = self.folder / "index"
        folder.mkdir()
        names = list(SHAPES)
        files = {"model-00001-of-00002.safetensors": names[:6], "model-00002-of-00002.safetensors": names[6:]}
        for file, there in files.items():
            (folder / file).write_bytes(weights(0, there))
        index = {"metadata": {}, "weight_map": {name: file for file, there in files.items() for name in there}}
        seed = json.dumps(index).encode()
        return Door("index", "json", (seed,), self._replaced(folder / INDEX_NAME, lambda: inspected(folder)))

    def _config(self) -> Door:
        folder = self._folder("config")
        planned = self._planned(folder)

        def act() -> None:
            inspected(folder)
            planned()

        return Door("config", "json", (json.dumps(CONFIG).encode(),), self._replaced(folder / "config.json", act))

    def _region(self) -> Door:
        path = self.folder / "region" / "x.region.safetensors"
        recipe = self.folder / "region.yaml"
        chosen = "core: {select: {random: 0.1, seed: 0}, include: [mlp]}"
        recipe.write_text(self._recipe_for(self.model).replace(chosen, f"core: {{file: {path}}}"))

        def planned() -> None:
            show(plan_view(summarize(plan_recipe(recipe, output=self.folder / "out"))))

        def act() -> None:
            inspected(path)
            region = Region.load(path)
            assert sum(region.indices(name).size for name in region) == region.entries
            planned()

        return Door("region", "safetensors", (self.file("good.region.safetensors"),), self._replaced(path, act))

    def _overlap(self) -> Door:
        path = self.folder / "overlap" / "x.region.safetensors"

        def act() -> None:
            found = compare(self.folder / "good.region.safetensors", path)
            assert found.overlap is not None
            show(comparison_view(found, details=True))
            show_json(comparison_data(found))

        return Door("overlap", "safetensors", (self.file("good.region.safetensors"),), self._replaced(path, act))

    def _patch(self) -> Door:
        path = self.folder / "patch" / "x.patch.safetensors"

        def act() -> None:
            inspected(path)
            patch = Patch.load(path)
            for name in patch.tensors:
                assert patch.at(name, patch.region.indices(name)).size == patch.tensors[name].entries

        return Door("patch", "safetensors", (self.file("good.patch.safetensors"),), self._replaced(path, act))

    def _bundle(self) -> Door:
        seeds = []
        for train_only in (True, False):
            written = write_bundle(
                self.model, self.region, base={"name": "m", "revision": None}, ties=[["a", "b"]], train_only=train_only
            )
            seeds.append((written / "manifest.json").read_bytes())
        folder = self.folder / "bundle"
        folder.mkdir()
        (folder / "region.safetensors").write_bytes((written / "region.safetensors").read_bytes())

        def act() -> None:
            inspected(folder)
            assert Bundle.load(folder).entries >= 0

        return Door("bundle", "json", tuple(seeds), self._replaced(folder / "manifest.json", act))

    def _marker(self) -> Door:
        folder = self._folder("marker")
        marker = Marker(
            variant="cut", operations=[{"zero": "core"}], regions={"core": "0" * 64},
            model=MarkedModel(source="m", revision=None, content_sha256="0" * 64), recipe={"name": "r"},
            files={"config.json": file_hash(folder / "config.json")},
        )  # fmt: skip

        def act() -> None:
            inspected(folder)
            check_written(folder, 1)

        return Door("marker", "json", (marker.text().encode(),), self._replaced(folder / MARKER, act))

    def _report(self) -> Door:
        from reports import make_report

        path = self.folder / "report" / "report.json"
        path.parent.mkdir()
        make_report().save(path)
        seed = path.read_bytes()
        return Door("report", "json", (seed,), self._replaced(path, lambda: inspected(path.parent)))

    def _manifest(self) -> Door:
        folder = self.folder / "manifest"
        folder.mkdir()
        (folder / "x").write_bytes(b"x")
        good = {
            "name": "r", "environment": {"packages": {"torch": "2"}}, "seeds": {"core": 0}, "inputs": {"x": "0" * 64},
            "corpus": {"text_sha256": {}}, "outputs": {"x": file_hash(folder / "x")}, "report": {},
        }  # fmt: skip

        def act() -> None:
            found = read_own(folder / "manifest.json")
            outputs_of(found)
            for line in differences(found, good):
                show(told(line))
            if is_output(folder):
                check_written(folder, 1)

        return Door("manifest", "json", (json.dumps(good).encode(),), self._replaced(folder / "manifest.json", act))

    def _masks(self) -> Door:
        import torch

        name = "model.layers.0.mlp.up_proj.weight"
        path = self.folder / "masks" / f"{name}.pt"
        path.parent.mkdir()
        seeds = []
        for zipped in (True, False):
            torch.save(torch.ones(3, 4, dtype=torch.bool), path, _use_new_zipfile_serialization=zipped)
            seeds.append(path.read_bytes())
        torch.save(torch.ones(1, dtype=torch.bool).expand(1 << 33), path)
        seeds.append(path.read_bytes())

        def act() -> None:
            region = load_masks(path.parent)
            assert region.mask(name).size == region.numel

        return Door("masks", "bytes", tuple(seeds), self._replaced(path, act))

    def _neurons(self) -> Door:
        import torch

        path = self.folder / "neurons" / "x.pth"
        path.parent.mkdir()
        seeds = []
        for zipped in (True, False):
            layers = [torch.tensor([1, 2]), torch.tensor([3])]
            torch.save([layers, layers], path, _use_new_zipfile_serialization=zipped)
            seeds.append(path.read_bytes())
        enter = self._replaced(path, lambda: _nothing(load_neurons(path, 0, self.checkpoint)))
        return Door("neurons", "bytes", tuple(seeds), enter)

    def _saved(self) -> Door:
        import torch

        from surgeon.freeze.saved import verify_saved

        bundle = Bundle.load(self.model / "freeze")
        path = self.folder / "saved" / "pytorch_model.bin"
        path.parent.mkdir()
        state = {name: torch.from_numpy(self.checkpoint.array(name).copy()) for name in SHAPES}
        torch.save(state, path)
        enter = self._replaced(path, lambda: _nothing(verify_saved(path.parent, bundle)))
        return Door("saved", "bytes", (path.read_bytes(),), enter)

    def _read(self, path: Path) -> Callable[[], None]:
        def act() -> None:
            text = Corpus("c", {"de": FileLocation(path)}).text("de")
            assert len(text.score_hash) == len(text.evaluate_hash) == 64

        return act

    def _lines(self) -> Door:
        path = self.folder / "lines" / "x.jsonl"
        seed = b'{"text": "eins"}\n{"text": "zwei \\ud83d\\ude00"}\n\n{"text": null}\n{"text": "drei", "n": [1]}\n'
        return Door("lines", "text", (seed,), self._replaced(path, self._read(path)))

    def _parquet(self) -> Door:
        import pyarrow
        import pyarrow.parquet

        path = self.folder / "parquet" / "x.parquet"
        path.parent.mkdir()
        seeds = []
        for compression in ("none", "snappy"):
            table = pyarrow.table({"text": ["eins", "zwei", None, "drei"], "n": [1, 2, 3, 4]})
            pyarrow.parquet.write_table(table, path, compression=compression)
            seeds.append(path.read_bytes())
        return Door("parquet", "bytes", tuple(seeds), self._replaced(path, self._read(path)))

    def _recipe(self) -> Door:
        path = self.folder / "recipe" / "x.yaml"
        seed = self._recipe_for(self.model).encode()

        def act() -> None:
            show(plan_view(summarize(plan_recipe(path, output=self.folder / "out"))))

        return Door("recipe", "text", (seed,), self._replaced(path, act))

    def _override(self) -> Door:
        path = self.folder / "override.yaml"
        path.write_text(self._recipe_for(self.model))
        seeds = (b"regions.core.select.random=0.5", b"variants.cut.operations.0={zero: rest}", b"verify={tokens: 8}")
        # What the system hands over as an argument: bytes that are no text come as half characters.
        return Door(
            "override", "text", seeds, lambda data: _nothing(load_recipe(path, [data.decode(errors="surrogateescape")]))
        )

    def _card(self) -> Door:
        def act(data: bytes) -> None:
            found = SourceCard.parse(data.decode(errors="replace"))
            for key, value in found.fields.items():
                assert visible(value) == value
                assert key != "license_link" or ":" not in value.replace("://", "") or value.startswith("http")

        return Door("card", "text", (CARD.encode(),), act)

    def _model(self) -> Door:
        from surgeon.model.model import load_model, model_places

        folder = self._folder("built")

        def act() -> None:
            checkpoint = Checkpoint.open(folder)
            model_places(checkpoint)
            try:
                load_model(checkpoint, "float32")
            except CheckpointError:  # at the latest for want of a tokenizer
                return
            raise AssertionError("a model without all of its tensors was loaded")

        return Door("model", "json", (json.dumps(CONFIG).encode(),), self._replaced(folder / "config.json", act))

    def _dataset(self) -> Door:
        def act(data: bytes) -> None:
            for config in (None, "de", "fr"):
                try:
                    found = split_files(DATASET_FILES, data, config, "train")
                except NoSuchFiles:
                    continue
                assert set(found.names) <= set(DATASET_FILES)

        return Door("dataset", "text", (DATASET_CARD.encode(), b""), act)

    def _rebuild(self) -> Door:
        recipe, made = self.folder / "rebuild.yaml", self.folder / "made"
        recipe.write_text(RECIPE.format(model=self.model, text=self.folder / "de.txt", output=made))
        surgeon.apply(recipe, jobs=1)
        folder = self.folder / "published"
        for item in pack(made / "variants" / "cut", "hf://org/name").items:
            (folder / item.path).parent.mkdir(parents=True, exist_ok=True)
            content = item.content if isinstance(item.content, bytes) else item.content.read_bytes()
            (folder / item.path).write_bytes(content)

        def act() -> None:
            written = rebuild(
                str(folder), self.folder / "again", [f"model={self.model}"], 1, Progress(), overwrite=True
            )
            assert written.path.is_dir()

        seed = (folder / MARKER).read_bytes()
        return Door("rebuild", "json", (seed,), self._replaced(folder / MARKER, act))


DATASET_CARD = """---
configs:
- config_name: de
  default: true
  data_files:
  - {split: train, path: [de/*.jsonl, "de/x[12].csv"]}
  - {split: test, path: "**/y.parquet"}
  sep: ";"
- config_name: fr
  data_dir: fr
---
"""
DATASET_FILES = ("README.md", "de/a.jsonl", "de/x1.csv", "de/y.parquet", "fr/train.txt", "fr/.hidden/a.txt", "z.tar")


def _nothing(_: object) -> None:
    return None
