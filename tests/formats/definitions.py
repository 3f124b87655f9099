"""Formats by their definitions: for each a plain encoder, and a decoder that goes entry by entry, one bit at a time.

Nothing here knows surgeon's codecs. Where a quantizer's library is installed, `test_libraries.py` holds both to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
# The published table of NF4, quantiles of a normal distribution (QLoRA, appendix E), and that of FP4.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
FP4 = [0.0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4, 0.0, -1 / 192, -2 / 3, -1, -1 / 3, -1 / 2, -1 / 6, -1 / 4]


@dataclass(frozen=True)
class Definition:
    """`encode` makes stored tensors, by the ends of their names, of a weight; `decode` says what an entry of it is."""

    encode: Callable[[torch.Tensor], Tensors]
    decode: Callable[[Tensors, int, int], float]
    settings: Mapping[str, Any]
    codes: str  # the end of the name of the codes
    scales: str
    zero: Callable[[Tensors, int, int], int]  # the code that stands for zero
    broken: Mapping[str, Any] = field(default_factory=dict)


def bits_at(row: np.ndarray, start: int, count: int) -> int:
    """Read bits of a row of 32-bit words, the lowest first."""
    words = [int(word) & 0xFFFFFFFF for word in row.tolist()]
    return sum((words[(start + i) // 32] >> (start + i) % 32 & 1) << i for i in range(count))


def packed(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Pack every row of codes into words, the lowest bits first."""
    rows, count = codes.shape
    made = np.zeros((rows, -(-count * bits // 32)), np.uint64)
    for i in range(count):
        for bit in range(bits):
            made[:, (i * bits + bit) // 32] |= (
                codes[:, i].astype(np.uint64) >> np.uint64(bit) & np.uint64(1)
            ) << np.uint64((i * bits + bit) % 32)
    return torch.from_numpy(made.astype(np.uint32).view(np.int32))


def grid(weight: torch.Tensor, bits: int, wide: int, symmetric: bool) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Return codes, scales in bfloat16 and zero points (codes) of groups of a row."""
    groups = weight.float().unflatten(1, (-1, wide))
    most = 2**bits - 1
    if symmetric:
        scales = (groups.abs().amax(2) / (2 ** (bits - 1) - 0.5)).to(torch.bfloat16)
        zeros = torch.full(scales.shape, 2.0 ** (bits - 1))
    else:
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        scales = ((high - low) / most).to(torch.bfloat16)
        zeros = (-low / scales.float()).round().clamp(1 if bits > 2 else 0, most - 1)
    codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, most)
    return codes.flatten(1).numpy().astype(np.int64), scales, zeros.numpy().astype(np.int64)


def fp8(per: str) -> Definition:
    def encode(weight: torch.Tensor) -> Tensors:
        largest = weight.float().abs().amax(1, keepdim=True) if per == "row" else weight.float().abs().max().reshape(1)
        scales = (largest / 448).to(torch.bfloat16 if per == "row" else torch.float32)
        codes = (weight.float() / scales.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scales, "input_scale": torch.tensor([0.5])}

    def decode(t: Tensors, i: int, j: int) -> float:
        return float(t["weight"][i, j]) * float(t["weight_scale"].reshape(-1)[i if per == "row" else 0])

    groups = {"g": {"weights": {"type": "float", "num_bits": 8}}}
    row = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    settings = row if per == "row" else {"quant_method": "modelopt", "quant_algo": "FP8"}
    return Definition(encode, decode, settings, "weight", "weight_scale", lambda t, i, j: 0)


def nvfp4(by: str) -> Definition:
    codes_at = "weight_packed" if by == "compressed-tensors" else "weight"
    whole_at = "weight_global_scale" if by == "compressed-tensors" else "weight_scale_2"

    def encode(weight: torch.Tensor) -> Tensors:
        groups = weight.float().unflatten(1, (-1, 16))
        whole = 448 * 6 / weight.float().abs().max().reshape(1)
        scales = (groups.abs().amax(2) / 6 * whole).clamp(max=448).to(torch.float8_e4m3fn)
        numbers = groups / (scales.float() / whole)[..., None]
        table = torch.tensor(E2M1)
        codes = (numbers[..., None] - table).abs().argmin(-1).flatten(1).to(torch.uint8)
        stored = whole if by == "compressed-tensors" else 1 / whole.squeeze()
        return {codes_at: codes[:, ::2] | codes[:, 1::2] << 4, "weight_scale": scales, whole_at: stored}

    def decode(t: Tensors, i: int, j: int) -> float:
        code = int(t[codes_at][i, j // 2]) >> 4 * (j % 2) & 15
        scale, whole = t["weight_scale"][i, j // 16].float(), t[whole_at].reshape(-1)[0].float()
        return float(E2M1[code] * (scale / whole if by == "compressed-tensors" else scale * whole))

    settings = {"quant_method": by, "format": "nvfp4-pack-quantized"}
    return Definition(encode, decode, settings, codes_at, "weight_scale", lambda t, i, j: 0)


def mxfp4() -> Definition:
    def encode(weight: torch.Tensor) -> Tensors:
        groups = weight.float().unflatten(1, (-1, 32))
        exponents = groups.abs().amax(2).log2().floor() - 2
        numbers = groups / (2**exponents)[..., None]
        codes = (numbers[..., None] - torch.tensor(E2M1)).abs().argmin(-1).flatten(1).to(torch.uint8)
        return {"weight_packed": codes[:, ::2] | codes[:, 1::2] << 4, "weight_scale": (exponents + 127).to(torch.uint8)}

    def decode(t: Tensors, i: int, j: int) -> float:
        code = int(t["weight_packed"][i, j // 2]) >> 4 * (j % 2) & 15
        return E2M1[code] * 2.0 ** (int(t["weight_scale"][i, j // 32]) - 127)

    settings = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    return Definition(encode, decode, settings, "weight_packed", "weight_scale", lambda t, i, j: 0)


def compressed(bits: int, symmetric: bool, packs: bool = True) -> Definition:
    wide, half = 16, 2 ** (bits - 1)
    codes_at = "weight_packed" if packs else "weight"

    def encode(weight: torch.Tensor) -> Tensors:
        codes, scales, zeros = grid(weight, bits, wide, symmetric)
        made = {"weight_scale": scales}
        if packs:
            made |= {codes_at: packed(codes, bits), "weight_shape": torch.tensor(weight.shape)}
        else:
            made[codes_at] = torch.from_numpy((codes - half).astype(np.int8))
        if not symmetric:
            plain = torch.from_numpy((zeros - half).astype(np.int8))
            made["weight_zero_point"] = packed(zeros.T, bits).T.contiguous() if packs else plain
        return made

    def zero(t: Tensors, i: int, j: int) -> int:
        if "weight_zero_point" not in t:
            return half
        if not packs:
            return int(t["weight_zero_point"][i, j // wide]) + half
        return bits_at(t["weight_zero_point"][:, j // wide].numpy(), i * bits, bits)

    def decode(t: Tensors, i: int, j: int) -> float:
        code = bits_at(t[codes_at][i].numpy(), j * bits, bits) if packs else int(t[codes_at][i, j]) + half
        return (code - zero(t, i, j)) * float(t["weight_scale"][i, j // wide])

    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": wide, "symmetric": symmetric}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}
    return Definition(encode, decode, settings, codes_at, "weight_scale", zero)


def gptq(bits: int, version: int = 1, act_order: bool = False) -> Definition:
    wide = 16

    def encode(weight: torch.Tensor) -> Tensors:
        inputs = weight.shape[1]
        order = torch.arange(inputs)
        if act_order:
            order = order[torch.randperm(inputs, generator=torch.Generator().manual_seed(1))]
        codes, scales, zeros = grid(weight[:, torch.argsort(order)], bits, wide, symmetric=False)
        stored = zeros - 1 if version == 1 else zeros
        return {
            "qweight": packed(codes[:, order.numpy()], bits).T.contiguous(),
            "qzeros": packed(stored.T, bits),
            "scales": scales.T.to(torch.float16).contiguous(),
            "g_idx": (order // wide).to(torch.int32),
        }

    def zero(t: Tensors, i: int, j: int) -> int:
        stored = bits_at(t["qzeros"][int(t["g_idx"][j])].numpy(), i * bits, bits)
        return stored + (version == 1)

    def decode(t: Tensors, i: int, j: int) -> float:
        code = bits_at(t["qweight"][:, i].numpy(), j * bits, bits)
        return (code - zero(t, i, j)) * float(t["scales"][int(t["g_idx"][j]), i])

    layout = {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    settings = {"quant_method": "gptq", "bits": bits, "group_size": wide, "desc_act": act_order, **layout}
    return Definition(encode, decode, settings, "qweight", "scales", zero)


def awq() -> Definition:
    wide = 16

    def packed_outputs(codes: np.ndarray) -> torch.Tensor:
        return packed(codes.reshape(codes.shape[0], -1, 8)[:, :, AWQ_ORDER].reshape(codes.shape), 4)

    def encode(weight: torch.Tensor) -> Tensors:
        codes, scales, zeros = grid(weight, 4, wide, symmetric=False)
        return {
            "qweight": packed_outputs(codes.T), "qzeros": packed_outputs(zeros.T),
            "scales": scales.T.to(torch.float16).contiguous(),
        }  # fmt: skip

    def at(words: torch.Tensor, i: int) -> int:
        return bits_at(words.numpy(), (i // 8 * 8 + AWQ_ORDER.index(i % 8)) * 4, 4)

    def zero(t: Tensors, i: int, j: int) -> int:
        return at(t["qzeros"][j // wide], i)

    def decode(t: Tensors, i: int, j: int) -> float:
        return (at(t["qweight"][j], i) - zero(t, i, j)) * float(t["scales"][j // wide, i])

    settings = {"quant_method": "awq", "bits": 4, "group_size": wide, "version": "gemm", "zero_point": True}
    return Definition(encode, decode, settings, "qweight", "scales", zero)


def bits_and_bytes(kind: str, nested: bool = False) -> Definition:
    size, outer = 32, 8
    table = NF4 if kind == "nf4" else FP4
    state_at = f"weight.quant_state.bitsandbytes__{kind}"
    nested_table = torch.linspace(-1, 1, 256)

    def encode(weight: torch.Tensor) -> Tensors:
        blocks = weight.float().reshape(-1, size)
        largest, state = blocks.abs().amax(1), {"quant_type": kind, "blocksize": size, "dtype": "bfloat16"}
        state |= {"shape": list(weight.shape)}
        made = {"weight.quant_map": torch.tensor(table), "weight.absmax": largest}
        if nested:
            offset = float(largest.mean())
            by = (largest - offset).reshape(-1, outer).abs().amax(1)
            parts = (largest - offset) / by.repeat_interleave(outer)
            index = (parts[:, None] - nested_table).abs().argmin(1).to(torch.uint8)
            made |= {"weight.absmax": index, "weight.nested_absmax": by, "weight.nested_quant_map": nested_table}
            largest = nested_table[index.long()] * by.repeat_interleave(outer) + torch.tensor(offset)
            state |= {"nested_blocksize": outer, "nested_dtype": "float32", "nested_offset": offset}
        codes = ((blocks / largest[:, None])[..., None] - torch.tensor(table)).abs().argmin(-1).reshape(-1)
        codes = codes.to(torch.uint8)
        said = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        return {**made, "weight": (codes[::2] << 4 | codes[1::2])[:, None], state_at: said}

    def decode(t: Tensors, i: int, j: int) -> float:
        state = json.loads(bytes(t[state_at].tolist()))
        flat = i * state["shape"][1] + j
        code = int(t["weight"][flat // 2, 0]) >> 4 * (1 - flat % 2) & 15
        scale = t["weight.absmax"][flat // size]
        if nested:
            by = t["weight.nested_absmax"][flat // size // outer]
            scale = t["weight.nested_quant_map"][int(scale)] * by + torch.tensor(state["nested_offset"])
        return float(t["weight.quant_map"][code] * scale)

    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return Definition(encode, decode, settings, "weight", "weight.absmax", lambda t, i, j: table.index(0))


def int8() -> Definition:
    def encode(weight: torch.Tensor) -> Tensors:
        largest = weight.float().abs().amax(1)
        return {"weight": (weight.float() * (127 / largest)[:, None]).round().to(torch.int8), "SCB": largest}

    def decode(t: Tensors, i: int, j: int) -> float:
        return float(t["weight"][i, j].float() * t["SCB"][i] * torch.tensor(7.874015718698502e-3))

    return Definition(
        encode, decode, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "weight", "SCB", lambda t, i, j: 0
    )


DEFINITIONS: dict[str, Definition] = {
    "fp8-tensor": fp8("tensor"),
    "fp8-row": fp8("row"),
    "nvfp4": nvfp4("compressed-tensors"),
    "nvfp4-modelopt": nvfp4("modelopt"),
    "mxfp4-packed": mxfp4(),
    "int4": compressed(4, True),
    "int4-zero-points": compressed(4, False),
    "int3": compressed(3, True),
    "int8-packed": compressed(8, False),
    "int8": compressed(8, True, packs=False),
    "gptq": gptq(4),
    "gptq-2": gptq(2, version=2),
    "gptq-3": gptq(3),
    "gptq-8": gptq(8),
    "gptq-act-order": gptq(4, version=2, act_order=True),
    "awq": awq(),
    "nf4": bits_and_bytes("nf4"),
    "nf4-nested": bits_and_bytes("nf4", nested=True),
    "fp4": bits_and_bytes("fp4"),
    "int8-bitsandbytes": int8(),
}
