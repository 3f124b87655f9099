"""Axolotl: `plugins: [surgeon.freeze.axolotl.FreezePlugin]` and `surgeon_freeze: BUNDLE` in its YAML."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field

from surgeon.errors import FreezeError
from surgeon.freeze.trainer import FreezeCallback


class FreezeArgs(BaseModel):
    """The key that the plugin adds to Axolotl's configuration."""

    surgeon_freeze: str | None = Field(None, description="a folder with `freeze/`, a region file, or a Hub id")


class FreezePlugin(BasePlugin):  # type: ignore[misc]
    """Freeze a bundle's entries while Axolotl trains; its Trainer gets a `FreezeCallback`."""

    def get_input_args(self) -> str:
        """Return where the added key is declared."""
        return f"{__name__}.{FreezeArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Return the callback, once the Trainer is there.

        Raises:
            FreezeError: the configuration names no bundle.
        """
        if not cfg.get("surgeon_freeze"):
            raise FreezeError("the plugin FreezePlugin needs `surgeon_freeze: BUNDLE` in Axolotl's configuration")
        return [FreezeCallback(cfg["surgeon_freeze"])]
