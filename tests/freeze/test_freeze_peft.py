"""PEFT beside `train_only`: a region as a sparse adapter and back; LoRA merged into a base of which little trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from freezing import batches, compare, load, random_region, saved_state, tiny_model

from surgeon.errors import FreezeError
from surgeon.freeze import Bundle, adapter_region, merge, shira, token_rows, verify_saved, write_bundle
from surgeon.region.region import Region

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.skipif(not hasattr(peft, "ShiraConfig"), reason="this PEFT has no SHiRA"),
    pytest.mark.filterwarnings("default"),  # PEFT's own
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 % of every linear layer but the output train; every eleventh entry is a negative zero."""
    folder, model = tmp_path_factory.mktemp("base"), tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[::11] = -0.0
    model.save_pretrained(folder)
    linear = {name: tensor for name, tensor in saved_state(folder).items() if "_proj" in name}
    write_bundle(folder, random_region(linear, 0.02), base={"name": "tiny"}, train_only=True)
    return folder


def train(model: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for batch in batches(4):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def test_a_region_trains_as_an_adapter_that_peft_alone_loads(base: Path, tmp_path: Path) -> None:
    trained = Region.load(base / "freeze" / "region.safetensors")
    model = shira(load(base), base)
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    alone = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    for each in (model, alone):
        found = adapter_region(each)
        assert {name: found.indices(name).tolist() for name in found} == {
            name: trained.indices(name).tolist() for name in trained if trained[name].entries
        }
    for number, merged in enumerate((alone.merge_and_unload(), merge(model, base))):
        changed, others = compare(base, merged.state_dict(), trained)
        assert others == 0 < changed
        assert changed > 0.9 * trained.entries
        merged.save_pretrained(tmp_path / str(number))
        assert verify_saved(tmp_path / str(number), base) == Bundle.load(base).entries
    states = [saved_state(tmp_path / str(number)) for number in (0, 1)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_an_adapter_trains_what_plain_training_of_the_region_does(base: Path) -> None:
    """Plain SGD without momentum takes the same steps on a sum of weight and change, but for their rounding."""
    trained, dense = Region.load(base / "freeze" / "region.safetensors"), load(base)
    sparse = shira(load(base), base)
    for model, masked in ((dense, True), (sparse, False)):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for batch in batches(3):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            for name, parameter in dense.named_parameters() if masked else ():
                mask = trained.mask(name) if name in trained else np.zeros(parameter.shape, dtype=np.bool_)
                parameter.grad.mul_(torch.from_numpy(mask))
            optimizer.step()
    merged = dict(sparse.merge_and_unload().named_parameters())
    for name, parameter in dense.named_parameters():
        assert torch.allclose(parameter, merged[name], rtol=1e-4, atol=1e-6), name


def test_what_is_no_linear_layer_is_refused(base: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(FreezeError, match=r"'model.embed_tokens.weight': SHiRA is for linear layers alone"):
        shira(model, token_rows(model, [3]))
    dense = {"model.layers.0.self_attn.k_proj.weight": torch.zeros(16, 32)}
    with pytest.raises(FreezeError, match="take a smaller region"):
        shira(model, random_region(dense, 0.99))
    with pytest.raises(FreezeError, match="has no SHiRA adapter"):
        adapter_region(peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"])))


def test_lora_is_merged_outside_of_what_is_frozen_where_few_entries_train(base: Path) -> None:
    """The base's weights are changed in place by the merge, so that they are no measure of themselves."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    merged = merge(peft.get_peft_model(load(base), config), base)
    changed, others = compare(base, merged.state_dict(), Region.load(base / "freeze" / "region.safetensors"))
    assert others == 0 < changed
