"""A table in one test: every row is tried, and every row that fails is listed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch


def each_row(
    names: str | tuple[str, ...], rows: Iterable[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `pytest.mark.parametrize`, but one test: its fixtures are made once for all rows."""
    split = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    listed = [row if len(split) > 1 else (row,) for row in rows]

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        def whole(**fixtures: Any) -> None:
            assert listed, "the table is empty"
            failed = {}
            for row in listed:
                torch.manual_seed(0)
                try:
                    test(**fixtures, **dict(zip(split, row, strict=True)))
                except Exception as error:
                    failed[repr(row)[:200]] = f"{type(error).__name__}: {error}"
            report = "\n".join(f"{row}: {why}" for row, why in failed.items())
            assert not failed, f"{len(failed)} of {len(listed)} rows\n{report}"

        whole.__dict__.update(test.__dict__)
        signature = inspect.signature(test)
        others = [p for p in signature.parameters.values() if p.name not in split]
        whole.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in others]
        )
        for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(whole, attribute, getattr(test, attribute))
        return whole

    return decorated
