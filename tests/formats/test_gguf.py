"""GGUF beside the package that defines it: heads are read as it writes them, zero is a code where decoding says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from surgeon.errors import CheckpointError
from surgeon.formats.gguf import QUANTIZATIONS, read_gguf
from surgeon.views.inspection import inspection_view, look_at

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("sizes", [1, 2, 3])
    weights = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    kinds = {"blk.0.attn_q.weight": "Q4_0", "blk.0.attn_k.weight": "Q4_1", "blk.0.ffn_up.weight": "Q8_0"}
    for name, kind in kinds.items():
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(weights, type_), raw_dtype=type_)
    writer.add_tensor("output_norm.weight", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_head_is_read_as_the_package_reads_it(file: Path) -> None:
    found, expected = read_gguf(file), gguf.GGUFReader(file)
    assert [(one.name, one.shape, one.quantization.name, one.nbytes) for one in found.tensors] == [
        (one.name, tuple(int(n) for n in reversed(one.shape)), one.tensor_type.name, int(one.n_bytes))
        for one in expected.tensors
    ]
    assert found.metadata["general.name"] == "tiny"
    assert found.metadata["tokenizer.ggml.tokens"] == 3
    looked = look_at(str(file))
    assert looked["parameters"] == 3 * 8 * 64 + 64
    assert {name: row["zero"][:3] for name, row in looked["quantizations"].items()} == {
        "Q4_0": "yes", "Q4_1": "no:", "Q8_0": "yes", "F32": "pla",
    }  # fmt: skip
    inspection_view(looked)


def test_zero_is_a_code_where_decoding_says_so() -> None:
    """Random blocks of every type, decoded by the package: zeros that are no whole block of eight without a scale."""
    sizes = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    for one in QUANTIZATIONS.values():
        assert sizes[one.name] == (one.entries, one.size), one.name
        if one.entries == 1:
            continue
        data = np.random.default_rng(0).integers(0, 256, (4000 * 32 // one.entries, one.size), dtype=np.uint8)
        if one.name == "Q2_K":
            data[:, :16] |= 0x10  # minima of four bits, of which one in sixteen would be zero
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[one.name]).reshape(-1, 8)
        values = values[np.isfinite(values).all(axis=1)]
        held = values[(values != 0).any(axis=1)]
        share = np.count_nonzero(held == 0) / held.size
        assert (share > 0.002) == (one.zero == "yes"), (one.name, share)


@pytest.mark.parametrize("damage", ["magic", "version", "cut", "count", "type"])
def test_damaged_files_are_one_message(damage: str, file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes())
    if damage == "magic":
        data[:4] = b"GGML"
    elif damage == "version":
        data[4:8] = (1).to_bytes(4, "little")
    elif damage == "cut":
        data = data[: len(data) - 100]
    elif damage == "count":
        data[8:16] = (1 << 40).to_bytes(8, "little")
    else:
        at = data.index(b"output_norm.weight") + 18 + 4 + 8
        data[at : at + 4] = (999).to_bytes(4, "little")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data)
    with pytest.raises(CheckpointError, match="no GGUF file, or a damaged one"):
        look_at(str(broken))
    for end in range(0, 400, 7):  # wherever it is cut off
        broken.write_bytes(file.read_bytes()[:end])
        with pytest.raises(CheckpointError):
            read_gguf(broken)
