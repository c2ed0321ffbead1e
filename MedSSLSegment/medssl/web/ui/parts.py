"""Small widgets that several sections use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trame.widgets.html import Div
from trame.widgets.vuetify3 import VBtn, VSelect

__all__ = ["Button", "Choice", "Hint", "IconButton", "Select", "named"]


@dataclass
class Choice:
    """One row of a list to choose from."""

    title: str = ""
    value: str = ""


def named(name: str) -> dict[str, list[str]]:
    """Arguments that give a widget a name that tests, and whoever writes a script for the page, find it by."""
    return {"raw_attrs": [f'data-test="{name}"']}


class Button(VBtn):  # type: ignore[misc]
    """A button with a text, and a tip that says what it is for."""

    def __init__(self, text: str, tip: str, click: Callable[..., Any] | str, **kwargs: Any) -> None:
        options = {"size": "small", "variant": "tonal", "classes": "text-none", **kwargs}
        super().__init__(text=text, title=tip, click=click, **options)


class IconButton(VBtn):  # type: ignore[misc]
    """A button with an icon, and a tip that says what it is for."""

    def __init__(
        self, icon: Any, tip: Any, click: Callable[..., Any] | str | None = None, **kwargs: Any
    ) -> None:
        options = {"size": "small", "variant": "text", "density": "comfortable", **kwargs}
        super().__init__(icon=icon, title=tip, click=click, **options)


class Select(VSelect):  # type: ignore[misc]
    """A list to choose from.

    Args:
        label: what is chosen.
        value: name of the state that holds the choice.
        choices: name of the state that holds a list of `Choice`.
        tip: what it is for.
    """

    def __init__(self, label: str, value: str, choices: str, tip: str, **kwargs: Any) -> None:
        options = {"density": "compact", "variant": "outlined", "hide_details": True, **kwargs}
        super().__init__(
            label=label, v_model=(value,), items=(choices,), item_title="title", item_value="value", title=tip,
            **options,
        )  # fmt: skip


class Hint(Div):  # type: ignore[misc]
    """A sentence below a control.

    Args:
        text: a text, or a template with states in double braces.
    """

    def __init__(self, text: str, **kwargs: Any) -> None:
        classes = f"text-caption text-medium-emphasis {kwargs.pop('classes', '')}"
        super().__init__(text, classes=classes, **kwargs)
