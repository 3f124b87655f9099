"""What is refused before a variant is made of it, and what an edit counts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError, InputError, RegionError
from surgeon.operations import Restore, Scale, Zero
from surgeon.operations.edits import (
    Edit,
    EditCount,
    Surgery,
    check_donor,
    check_patch_base,
    check_regions_fit,
)
from surgeon.region.patch import Patch, write_patch
from surgeon.region.region import Region

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
ONES = np.ones((4, 4), np.float32)
Tensors = Mapping[str, np.ndarray]


def checkpoint(folder: Path, tensors: Tensors, **config: Any) -> Checkpoint:
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return Checkpoint.open(folder)


def region_of(**entries: list[int]) -> Region:
    names = {"up": UP, "down": DOWN, "embed": EMBED, "head": HEAD}
    chosen = {names[short]: np.array(indices) for short, indices in entries.items()}
    return Region.from_indices(chosen, dict.fromkeys(chosen, (4, 4)))


def patch_of(base: Checkpoint, path: Path, after: Tensors) -> Patch:
    pieces = [
        (base.tensors[name], [(base.array(name).reshape(-1), changed.reshape(-1))]) for name, changed in after.items()
    ]
    return write_patch(path, pieces, {})


def test_counts_add_up_and_the_norm_is_the_root_of_the_square() -> None:
    assert EditCount(1, 2, 9.0) + EditCount(10, 20, 16.0) == EditCount(11, 22, 25.0)
    assert (EditCount().entries, EditCount().changed, EditCount(1, 1, 25.0).norm) == (0, 0, 5.0)


def test_an_edit_counts_bits_and_squares() -> None:
    before = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    assert Edit(np.arange(4), np.array([-0.0, 1.0, 4.0, 0.0], np.float32), before).count() == EditCount(4, 3, 13.0)
    broken = np.array([np.inf, 1.0, 2.0, 3.0], np.float32)
    found = Edit(np.arange(4), broken, broken).count()  # without a warning, which would be an error here
    assert (found.entries, found.changed) == (4, 0)
    assert np.isnan(found.square)


def test_a_region_of_another_model_is_told_by_its_tensor(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "a", {UP: ONES, DOWN: ONES})
    check_regions_fit(base, {"one": region_of(up=[1]), "two": region_of(up=[2], down=[3])})
    with pytest.raises(RegionError, match=f"region 'two' has tensor '{EMBED}', which .*a has not"):
        check_regions_fit(base, {"one": region_of(up=[1]), "two": region_of(down=[1], embed=[1])})
    other = Region.from_indices({DOWN: np.array([1])}, {DOWN: (2, 8)})
    with pytest.raises(
        RegionError, match=rf"tensor '{DOWN}' of shape \[2, 8\]; in .* its shape is \[4, 4\]: .*another"
    ):
        check_regions_fit(base, {"one": other})


def test_a_donor_has_every_tensor_of_the_region_in_its_shape(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {UP: ONES, DOWN: ONES})
    narrow = checkpoint(tmp_path / "narrow", {UP: ONES.astype(np.float16), DOWN: ONES.reshape(2, 8)})
    check_donor(base, str(narrow.folder), region_of(up=[1]))  # another dtype is rounded, not refused
    with pytest.raises(
        CheckpointError, match=r"of shape \[4, 4\] cannot be taken from .*, which has it in shape \[2, 8\]"
    ):
        check_donor(base, str(narrow.folder), region_of(up=[1], down=[1]))
    with pytest.raises(
        CheckpointError, match=f"'{EMBED}' of shape .* cannot be taken from .*, which has no such tensor"
    ):
        check_donor(base, str(narrow.folder), region_of(embed=[1]))


def test_a_patch_has_the_dtype_of_what_it_is_put_into(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {UP: ONES, DOWN: ONES.astype(np.float16)})
    path = tmp_path / "x.patch.safetensors"
    patch_of(base, path, {UP: ONES * 2, DOWN: ONES.astype(np.float16) * 2})
    check_donor(base, str(path), region_of(up=[1], down=[1]))
    other = checkpoint(tmp_path / "other", {UP: ONES, DOWN: ONES})
    check_donor(other, str(path), region_of(up=[1]))
    with pytest.raises(
        CheckpointError, match=rf"'{DOWN}' is F16 in {re.escape(str(path))} and F32 in .*another checkpoint"
    ):
        check_donor(other, str(path), region_of(up=[1], down=[1]))
    with pytest.raises(CheckpointError, match="no such tensor"):
        check_donor(other, str(path), region_of(head=[1]))


def test_a_patch_is_for_the_very_bytes_that_it_names(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {UP: ONES, DOWN: ONES})
    patch = patch_of(base, tmp_path / "x.patch.safetensors", {UP: ONES * 2, DOWN: ONES * 3})
    hashes = {name: said.base_sha256 for name, said in patch.tensors.items()}
    check_patch_base(base, patch, patch.region, hashes)
    other = {**hashes, DOWN: "a" * 64}
    check_patch_base(base, patch, region_of(up=[1]), other)
    message = rf"tensor '{DOWN}' of .*base has SHA-256 {'a' * 12}\.\.\., the patch expects {hashes[DOWN][:12]}\.\.\.;"
    with pytest.raises(CheckpointError, match=message):
        check_patch_base(base, patch, patch.region, other)


@pytest.mark.parametrize(
    ("embed", "head"),
    [({3: 2.0}, None), ({3: 2.0}, {3: 2.0, 4: 2.0}), ({3: 2.0}, {3: 2.5}), ({3: 2.0}, {4: 2.0}), (None, {3: 2.0})],
    ids=["one only", "more entries", "other values", "other entries", "the other only"],
)
def test_a_patch_treats_stored_copies_of_a_tied_weight_alike(
    embed: dict[int, float] | None, head: dict[int, float] | None, tmp_path: Path
) -> None:
    def after(changes: dict[int, float]) -> np.ndarray:
        changed = ONES.copy()
        changed.reshape(-1)[list(changes)] = list(changes.values())
        return changed

    base = checkpoint(tmp_path / "base", {EMBED: ONES, HEAD: ONES, UP: ONES}, tie_word_embeddings=True)
    alike = patch_of(base, tmp_path / "alike.safetensors", {EMBED: after({3: 2.0}), HEAD: after({3: 2.0})})
    hashes = dict.fromkeys((EMBED, HEAD, UP), alike.tensors[EMBED].base_sha256)
    check_patch_base(base, alike, alike.region, hashes)
    given = {name: after(changes) for name, changes in ((EMBED, embed), (HEAD, head)) if changes is not None}
    patch = patch_of(base, tmp_path / "x.safetensors", {**given, UP: ONES * 2})
    with pytest.raises(CheckpointError, match=r"x.safetensors: changes '.*' and not '.*', which .*base ties to it"):
        check_patch_base(base, patch, patch.region, hashes)
    apart = checkpoint(tmp_path / "apart", {EMBED: ONES, HEAD: ONES, UP: ONES}, tie_word_embeddings=False)
    check_patch_base(apart, patch, patch.region, hashes)


def test_what_may_change_are_the_tensors_of_the_regions_that_are_used_and_their_copies(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {EMBED: ONES, HEAD: ONES, UP: ONES, DOWN: ONES}, tie_word_embeddings=True)
    regions = {"a": region_of(head=[1]), "b": region_of(down=[1]), "unused": region_of(up=[1])}
    operations = [Zero(zero="a"), Zero(zero="b")]
    assert Surgery(base, operations, regions).touched == [name for name in base.tensors if name != UP]
    assert Surgery(base, operations[1:], regions).touched == [DOWN]
    assert Surgery(base, [], regions).touched == []
    assert Surgery(base, operations, regions).indices(EMBED).tolist() == [1]
    assert Surgery(base, operations, regions).indices(UP).tolist() == []


def test_stored_copies_of_a_tied_weight_count_once(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {EMBED: ONES * 3, HEAD: ONES * 3, UP: ONES}, tie_word_embeddings=True)
    regions = {"a": region_of(head=[1, 2], up=[5])}
    assert Surgery(base, [Zero(zero="a")], regions).count() == EditCount(3, 3, 19.0)
    apart = checkpoint(tmp_path / "apart", {EMBED: ONES, HEAD: ONES, UP: ONES}, tie_word_embeddings=False)
    both = {"a": region_of(head=[1, 2], embed=[1, 2], up=[5])}
    assert Surgery(apart, [Zero(zero="a")], both).count() == EditCount(5, 5, 5.0)


def test_the_entries_of_several_operations_are_taken_once_each_and_in_order(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", {UP: np.arange(16, dtype=np.float32).reshape(4, 4)})
    regions = {"a": region_of(up=[2, 5, 9]), "b": region_of(up=[0, 5, 15]), "c": region_of(up=[9])}
    operations = [Scale(scale="a", by=2.0), Scale(scale="b", by=10.0), Zero(zero="c")]
    edit = Surgery(base, operations, regions).edit(UP)
    assert edit.indices.tolist() == [0, 2, 5, 9, 15]
    assert edit.before.tolist() == [0, 2, 5, 9, 15]
    assert edit.values.tolist() == [0, 4, 100, 0, 150]
    assert base.array(UP).reshape(-1).tolist() == list(range(16))


def test_only_what_an_operation_makes_infinite_is_refused(tmp_path: Path) -> None:
    """Infinities that the base has, or that a donor brings, are left as they are; the message counts the new ones."""
    tensor = np.full((4, 4), 1e38, np.float32)
    finite = checkpoint(tmp_path / "finite", {UP: tensor})
    regions = {"r": region_of(up=[1, 2, 3]), "s": region_of(up=[7])}
    with pytest.raises(InputError, match=f"'scale r' makes 3 entries of tensor '{UP}' too large for its dtype float32"):
        Surgery(finite, [Scale(scale="s", by=2.0), Scale(scale="r", by=10.0)], regions).edit(UP)
    has = tensor.copy()
    has[0, 1] = np.inf
    broken = checkpoint(tmp_path / "broken", {UP: has})
    assert Surgery(broken, [Scale(scale="r", by=2.0)], regions).edit(UP).values[0] == np.inf
    taken = Restore.model_validate({"restore": "r", "from": str(broken.folder)})
    assert Surgery(finite, [taken, Scale(scale="r", by=2.0)], regions).edit(UP).values[0] == np.inf
    healed = [Zero(zero="r"), Scale(scale="s", by=2.0)]
    assert np.isfinite(Surgery(broken, healed, regions).edit(UP).values).all()
