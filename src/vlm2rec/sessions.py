"""Users encoded event by event: what a model has read of a history is kept, so one more event costs one event.

A history's prompt grows at its end as long as it fits its window; only the closing words move on. Once the window
slides, its first item and all numbers change, so from then on a user is encoded anew each time and nothing is kept.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vlm2rec.backbones.packing import Prompt
from vlm2rec.backbones.resuming import Begun, read_on
from vlm2rec.data.dataset import Catalogue
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.indices import check_histories, check_indices
from vlm2rec.objectives import Views


class Sessions:
    """Vectors of users who keep buying: those of `Encoder.histories` over each one's last `window` items.

    States are kept of the `users` who came last and whose window is not full: at 3B about 37 KB a token, 28 MB a user
    just before it is. Item numbers are kept of everyone until `forget`, so who has lost its state is encoded anew, and
    who was never seen begins with nothing. Backbones that cannot read packed prompts (Gemma 3, sliding windows) have
    every history encoded anew. The encoder's weights must not change meanwhile; where a title or a picture in a user's
    window does, the user is encoded anew.
    """

    def __init__(self, encoder: Encoder, catalogue: Catalogue, window: int = 10, users: int = 256) -> None:
        if window < 1:
            raise InputError(f"window = {window}: a user's history keeps one item at least")
        self._encoder, self._catalogue = encoder.eval(), catalogue
        self._window = window
        self._users = users if encoder.unpacked is None else 0
        self._opening = self._read_opening() if self._users else None
        self._items: dict[Hashable, list[int]] = {}
        self._begun: OrderedDict[Hashable, list[Begun]] = OrderedDict()  # of each user, by pass; longest unused first
        self._marks: dict[Hashable, list[Hashable]] = {}  # of the items that these were read of

    def history(self, user: Hashable, items: Sequence[int]) -> Views:
        """Begin a user anew with these items, oldest first: Views of `(1, D)`.

        Raises:
            InputError: as `append_many`, or there are no items; the user is then as before.
        """
        check_histories([items], len(self._catalogue.titles))
        return self._advance({user: list(items)[-self._window :]}, anew=True)

    def append(self, user: Hashable, item: int) -> Views:
        """One more item: Views of `(1, D)`. Raises InputError, as `append_many`."""
        return self.append_many([(user, item)])

    def append_many(self, events: Sequence[tuple[Hashable, int]]) -> Views:
        """Some users' next items, in order of time: Views of `(n, D)`, each user's after that event.

        Different users are read together, which is where a GPU gains.

        Raises:
            InputError: an item is not in the catalogue, or a prompt is longer than the backbone's context. A user's
                events before that one stand.
        """
        check_indices([item for _, item in events], len(self._catalogue.titles), where="events")
        if not events:
            return self._encoder.histories(self._catalogue, [])
        found: list[tuple[list[int], Views]] = []
        for wave in _waves(events):
            histories = {events[i][0]: self._after(*events[i]) for i in wave}
            found.append((wave, self._advance(histories)))
        order = torch.tensor([i for wave, _ in found for i in wave], device=self._encoder.device).argsort()
        fused, text, image = (
            torch.cat([view for view in views if view is not None])[order] if views[0] is not None else None
            for views in zip(*(views for _, views in found), strict=True)
        )
        assert fused is not None
        return Views(fused, text, image)

    def forget(self, user: Hashable) -> None:
        """Forget a user's items and state, if there are any."""
        self._items.pop(user, None)
        self._begun.pop(user, None)
        self._marks.pop(user, None)

    @property
    def bytes(self) -> int:
        """Memory that the kept states take."""
        return sum(begun.states.nbytes for kept in self._begun.values() for begun in kept)

    @torch.no_grad()
    def _read_opening(self) -> Begun | None:
        """What every prompt of every pass opens with, read once; None where that is nothing."""
        encoder = self._encoder
        ids = encoder.rest([], encoder.passes[0]).ids
        ids = ids[: len(ids) - encoder.closing]
        return read_on(encoder.backbone, [None], [Prompt(ids, [])], [len(ids)])[1][0] if ids else None

    def _after(self, user: Hashable, item: int) -> list[int]:
        return [*self._items.get(user, ()), item][-self._window :]

    @torch.no_grad()
    def _advance(self, histories: Mapping[Hashable, list[int]], anew: bool = False) -> Views:
        """Views of different users' histories, in order; each is what is kept of the user and one item, or `anew`."""
        encoder, count = self._encoder, len(self._encoder.passes)
        marks = {user: [encoder.mark(self._catalogue, item) for item in items] for user, items in histories.items()}
        kept = [user for user in histories if user in self._begun and marks[user][:-1] == self._marks[user]]
        begun = {} if anew else {user: self._begun[user] for user in kept}
        # A full window slides with the next item, so nothing that is read of it could be used again.
        going = [user for user, items in histories.items() if user in begun or self._grows(items)]
        others = [user for user in histories if user not in set(going)]
        parts: list[Tensor] = []
        grown: dict[Hashable, list[Begun]] = {}
        if going:
            vectors, grown = self._go_on({user: histories[user] for user in going}, begun)
            parts.append(vectors)
        if others:
            prompts = encoder.prompts(self._catalogue, [histories[user] for user in others])
            states = encoder(prompts)
            parts.append(states.reshape(count, -1, states.shape[1]))
        rows = {user: row for row, user in enumerate([*going, *others])}
        vectors = torch.cat(parts, dim=1)[:, [rows[user] for user in histories]].flatten(0, 1)
        views = encoder.assemble(vectors, encoder.there(self._catalogue, list(histories.values())))
        for user, items in histories.items():
            self._items[user] = items
            self._begun.pop(user, None)
            self._marks.pop(user, None)
        self._begun.update(grown)
        self._marks.update({user: marks[user] for user in grown})
        while len(self._begun) > self._users:
            self._marks.pop(self._begun.popitem(last=False)[0])
        return views

    def _grows(self, items: Sequence[int]) -> bool:
        return self._users > 0 and 0 < len(items) < self._window

    def _go_on(
        self, histories: Mapping[Hashable, list[int]], begun: Mapping[Hashable, list[Begun]]
    ) -> tuple[Tensor, dict[Hashable, list[Begun]]]:
        """Vectors `(passes, n, D)` of histories that have all been read but their last item, or not at all."""
        encoder = self._encoder
        read = {user: len(items) - 1 if user in begun else 0 for user, items in histories.items()}
        encoder.look_at(self._catalogue, {item for user, items in histories.items() for item in items[read[user] :]})
        before: list[Begun | None] = []
        prompts: list[Prompt] = []
        keep: list[int] = []
        for number, modality in enumerate(encoder.passes):
            for user, items in histories.items():
                if user in begun:
                    before.append(begun[user][number])
                    prompts.append(encoder.rest(items, modality, read[user], begun[user][number].tokens))
                else:
                    before.append(self._opening)
                    prompts.append(self._behind_opening(encoder.rest(items, modality)))
                keep.append(len(prompts[-1].ids) - encoder.closing if self._grows(items) else 0)
        parts = [
            read_on(encoder.backbone, before[part], prompts[part], keep[part])
            for part in _slices([len(prompt.ids) for prompt in prompts], encoder.batch_tokens)
        ]
        vectors = torch.cat([states for states, _ in parts])
        kept = [state for _, states in parts for state in states]
        found = {}
        for row, user in enumerate(histories):
            own = [state for state in kept[row :: len(histories)] if state is not None]
            if own:
                found[user] = own
        return vectors.reshape(len(encoder.passes), len(histories), -1), found

    def _behind_opening(self, prompt: Prompt) -> Prompt:
        return Prompt(prompt.ids[self._opening.tokens if self._opening is not None else 0 :], prompt.visuals)


def _waves(events: Sequence[tuple[Hashable, int]]) -> list[list[int]]:
    """Numbers of the events in groups that hold each user once: all first ones, all second ones, and so on."""
    waves: list[list[int]] = []
    seen: dict[Hashable, int] = {}
    for i, (user, _) in enumerate(events):
        number = seen[user] = seen.get(user, -1) + 1
        if number == len(waves):
            waves.append([])
        waves[number].append(i)
    return waves


def _slices(lengths: Sequence[int], limit: int) -> list[slice]:
    """Runs of prompts that have `limit` tokens at most together, or are one."""
    starts, size = [0], 0
    for i, length in enumerate(lengths):
        if size and size + length > limit:
            starts.append(i)
            size = 0
        size += length
    return [slice(*ends) for ends in pairwise([*starts, len(lengths)])]
