"""Where settings come from, and which source wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource


class LayeredSettings(BaseSettings):
    """Settings from flags, environment and a TOML file."""

    # `load` sets it on the subclass that it constructs.
    _toml: ClassVar[Path | None] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources in order: flags, environment, TOML; the first that names a setting wins."""
        sources = [init_settings, env_settings]
        if cls._toml is not None:
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=cls._toml))
        return tuple(sources)

    @classmethod
    def load(cls, config: Path | None = None, **flags: Any) -> Self:
        """Read the configuration.

        Args:
            config: a TOML file; None: the one that STREAMCELL_CONFIG names, if any.
            flags: the command line's; None: not given.

        Raises:
            FileNotFoundError: the TOML file is not there.
            pydantic.ValidationError: a value is missing or out of range; the text names it.
        """
        path = config or (Path(name) if (name := os.environ.get("STREAMCELL_CONFIG")) else None)
        if path is not None and not path.is_file():
            raise FileNotFoundError(
                f"no configuration file at {path}: --config or STREAMCELL_CONFIG names it"
            )
        configured = type(cls.__name__, (cls,), {"_toml": path, "__module__": cls.__module__})
        settings: Self = configured(**{key: value for key, value in flags.items() if value is not None})
        return settings
