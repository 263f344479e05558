"""What an evaluator does not compute because it is known or never read: tested on the model at hand before it is used.

Three shortcuts, all exact up to rounding: the blocks below the lowest tuned one are entered with stored activations
(`frozen_prefix`), a last block of which the head reads one position computes that row only (`one_row`), and rows for a
decoder share sequences where that saves padding (`packing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from peftscout.backbone import Backbone
from peftscout.plan import Plan
from peftscout.tasks import Encoded
from peftscout.training.activation_cache import ActivationCache
from peftscout.training.activation_file import Entry
from peftscout.training.activation_key import activation_key, backbone_digest, rows_digest, sequence_lengths
from peftscout.training.batches import BatchMaker
from peftscout.training.device import Device
from peftscout.training.entrance_check import find_entrance
from peftscout.training.forward import Activations
from peftscout.training.frozen_prefix import Entrance, FrozenPrefix, frozen_prefix, prefix_activations
from peftscout.training.one_row import Position
from peftscout.training.one_row_check import Reading, find_one_row
from peftscout.training.packing_check import why_not_packed

Batch = Mapping[str, Tensor]
Note = Callable[[str], None]


class Shortcuts:
    """Finds out what may be skipped under a plan, once for each kind of plan, and says once what may not.

    Args:
        backbone: of the evaluator.
        make_batch: pads rows.
        device: with the arithmetic of training.
        batch_size: of the batches in which activations are computed.
        cache: holds activations; ``None``: none are stored.
        note: is told, in words, what must be computed after all.
    """

    def __init__(
        self,
        backbone: Backbone,
        make_batch: BatchMaker,
        device: Device,
        batch_size: int,
        cache: ActivationCache | None,
        note: Note,
    ) -> None:
        self._backbone, self._make_batch, self._device, self._cache = backbone, make_batch, device, cache
        self._batch_size = batch_size
        self._note = note
        self._noted: set[str] = set()
        self._readings: dict[frozenset[tuple[str, str]], Reading] = {}
        self._packs: dict[frozenset[tuple[str, str]], str] = {}
        self._entrances: dict[FrozenPrefix, Entrance | str] = {}
        self._subsets: dict[tuple[Encoded, bytes], tuple[Encoded, str]] = {}

    def position(self, model: Any, plan: Plan, batch: Batch) -> Position | None:
        """Return the one position for which the last block need be computed (see `one_row`); ``None``: all of them.

        Tested until each (kind of site, op) was in the last block when the test held. What holds for two sets of
        modules holds for both together: each of them treats rows apart, so what they are composed to does.

        Args:
            model: built for ``plan``.
            plan: what is tuned.
            batch: a few rows to test on.
        """
        model_map = self._backbone.model_map
        sites = [(model_map.sites[placement.site], placement.op) for placement in plan]
        last = {stack: len(paths) - 1 for stack, paths in model_map.blocks.items()}
        kind = frozenset((site.kind, op) for site, op in sites if site.layer == last[site.stack])
        if kind not in self._readings:
            held = {known: reading for known, reading in self._readings.items() if reading.position is not None}
            if held and kind <= frozenset().union(*held):
                return next(iter(held.values())).position
            reading = find_one_row(model, model_map, batch)
            self._readings[kind] = reading
            if reading.position is None:
                self._say(f"the last block computes every row: {reading.reason}")
        return self._readings[kind].position

    def packs(self, model: Any, plan: Plan, rows: Encoded) -> bool:
        """Return whether rows may share sequences under ``plan`` (see `packing`).

        As with `position`, on the longest of ``rows``: until each (kind of site, op) was there when the test held.
        """
        sites = self._backbone.model_map.sites
        kind = frozenset((sites[placement.site].kind, placement.op) for placement in plan)
        if kind not in self._packs:
            held = [known for known, reason in self._packs.items() if not reason]
            if held and kind <= frozenset().union(*held):
                return True
            self._packs[kind] = why_not_packed(model, rows.features[int(rows.lengths.argmax())]["input_ids"])
            if reason := self._packs[kind]:
                self._say(f"rows are padded, not packed: {reason}")
        return not self._packs[kind]

    def entrance(self, model: Any, plan: Plan, batch: Batch) -> Entrance | None:
        """Return where ``model`` may be entered above what ``plan`` leaves frozen; ``None``: nowhere. As `position`."""
        prefix = frozen_prefix(plan, self._backbone.model_map)
        if prefix is None:
            return None
        if prefix not in self._entrances:
            with self._device.autocast():
                self._entrances[prefix] = find_entrance(model, prefix, batch)
        found = self._entrances[prefix]
        if isinstance(found, str):
            self._say(f"activations are not stored: {found}")
            return None
        return found

    def activations(
        self, model: Any, entrance: Entrance | None, visited: Mapping[Encoded, np.ndarray]
    ) -> Activations | None:
        """Return the stored activations at ``entrance``, computed now where they are not there yet.

        Args:
            model: adapted or bare.
            entrance: as `entrance` returned it.
            visited: sets of rows -> the indices of those that will be asked for.

        Returns:
            ``None`` when they are not, or cannot be, stored.
        """
        if self._cache is None or entrance is None:
            return None
        entries = {}
        for rows, indices in visited.items():
            found = self._entry(self._cache, model, entrance.prefix, *self._subset(rows, indices))
            if isinstance(found, str):
                self._say(f"activations are not stored: {found}")
                return None
            places = np.full(len(rows), -1, dtype=np.int64)
            places[indices] = np.arange(len(indices))
            entries[rows] = (found, places)
        return Activations(entrance, entries, self._make_batch.left_padded)

    def _subset(self, rows: Encoded, indices: np.ndarray) -> tuple[Encoded, str]:
        """Return the rows at ``indices`` and their digest; trials with one seed visit the same ones."""
        known = (rows, indices.tobytes())
        if known not in self._subsets:
            subset = rows.subset(indices)
            self._subsets[known] = subset, rows_digest(subset)
        return self._subsets[known]

    def _entry(
        self, cache: ActivationCache, model: Any, prefix: FrozenPrefix, rows: Encoded, digest: str
    ) -> Entry | str:
        key = activation_key(
            self._digest,
            prefix,
            digest,
            self._device.arithmetic,
            attention=str(self._backbone.model.config._attn_implementation).removeprefix("peftscout_"),
            device=self._device.torch_device,
            batch_size=self._batch_size,
            stored=None,
        )
        if (entry := cache.entry(key)) is not None:
            return entry
        batches = prefix_activations(model, prefix, rows, self._make_batch, self._device, self._batch_size)
        lengths = sequence_lengths(rows)
        return cache.build(key, lengths, batches, left_padded=self._make_batch.left_padded)

    @cached_property
    def _digest(self) -> str:
        return backbone_digest(self._backbone.model, self._backbone.model_map.head)

    def _say(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)
