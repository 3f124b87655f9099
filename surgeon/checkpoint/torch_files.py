"""torch, imported only where it is asked for: numpy views as its tensors, and files of `torch.save` as plain data.

Such files are loaded with `weights_only=True`, so that no code in them runs, and what needs more is refused. What they
hold is no larger than they are: an archive that unpacks to more, and a tensor of which one byte stands for many, are
none.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from surgeon.checkpoint.plain_json import NotPlain
from surgeon.mapped import remember

if TYPE_CHECKING:
    import torch


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of a writable array, dtype for dtype."""
    import torch

    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    # torch has the dtypes of ml_dtypes under the same names; they cross as integers of their width.
    return torch.from_numpy(array.view(f"u{array.itemsize}")).view(getattr(torch, array.dtype.name))


def load_plain(path: Path) -> Any:
    """Load a file of `torch.save`; tensors of the zipped kind are views of the mapped file.

    Raises:
        NotPlain: it holds more than plain data, is damaged, or unpacks to more than it is; the message says which.
    """
    import torch

    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _refuse_packed(path)
        remember(path, path.stat().st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the library thinks of the file is not for our users
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except NotPlain:
        raise
    except pickle.UnpicklingError:
        raise NotPlain(
            "holds more than plain tensors and lists, so loading it could run code that it brings; load it where you "
            "trust it, and save the tensors alone with torch.save"
        ) from None
    except OSError as error:
        raise NotPlain(f"cannot be read as a torch file ({error.strerror or error})") from None
    except Exception as error:  # damaged bytes are read as any instructions: KeyError, IndexError, struct.error, ...
        said = next(iter(str(error).splitlines()), "")
        raise NotPlain(f"damaged, or no torch file ({type(error).__name__}: {said}); fetch the file again") from None


def refuse_repeated(tensor: torch.Tensor) -> None:
    """Refuse a tensor whose entries are not all in its file.

    Raises:
        NotPlain: they are not.
    """
    import torch

    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise NotPlain("holds a tensor whose entries are not all stored; save it with .clone()")


def _refuse_packed(path: Path) -> None:
    """Refuse an archive whose parts are larger together than it is: `torch.save` packs nothing."""
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
            raise NotPlain("an archive that unpacks to more than it is; torch.save writes none")
