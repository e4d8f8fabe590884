"""From pictures and prompts to the batch of step s: a function of the seed and s alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbone import Backbone, Conditioning
from ..backbone.schedule import TIMESTEPS
from ..objectives import Predictor, StepBatch
from ..prompts import ConceptVectors, PromptCache
from ..seeding import generator
from .localized import LocalizedWords


@dataclass(frozen=True)
class Pictures:
    """Pictures of one role in the loss, as latents.

    views: [N, V, 4, h, w]: N pictures in V views each (mirrored, cropped), in model scale.
    prompts: one per picture. batch_size: how many enter every batch.
    groups: one per picture where groups of them, however large, shall be seen equally often.
    """

    role: str
    views: Tensor
    prompts: tuple[str, ...]
    batch_size: int
    groups: tuple[int, ...] = ()

    def draw(self, seed: int, index: int) -> tuple[Tensor, list[str]]:
        """Latents [batch_size, 4, h, w] and prompts of batch `index`.

        Pictures come in shuffled rounds, so that all are seen equally often, with groups all of
        one group; then groups come in shuffled rounds too. Views at random.
        """
        views = self.views.shape[1]
        first = index * self.batch_size
        chosen = self._choose(seed, range(first, first + self.batch_size))
        view = torch.randint(
            views, (self.batch_size,), generator=generator(seed, self.role, "view", index)
        )
        device = self.views.device
        return (
            self.views[chosen.to(device), view.to(device)],
            [self.prompts[picture] for picture in chosen.tolist()],
        )

    def _choose(self, seed: int, places: range) -> Tensor:
        """The pictures at `places` of the endless sequence of all rounds."""
        if len(set(self.groups)) < 2:
            return _in_rounds(len(self.views), places, seed, self.role)
        groups = sorted(set(self.groups))
        order = _in_rounds(len(groups), places, seed, self.role, "group").tolist()
        chosen = []
        for place, number in zip(places, order, strict=True):
            members = [n for n, group in enumerate(self.groups) if group == groups[number]]
            # Every round has each group once, so this is the group's picture number `seen`.
            seen = place // len(groups)
            labels = (self.role, "group", groups[number])
            member = _in_rounds(len(members), range(seen, seen + 1), seed, *labels)
            chosen.append(members[int(member)])
        return torch.tensor(chosen)


def _in_rounds(count: int, places: range, seed: int, *labels: str | int) -> Tensor:
    """Numbers below `count` at `places` of a sequence of shuffled rounds, each with all of them."""
    rounds = {
        number: torch.randperm(count, generator=generator(seed, *labels, "round", number))
        for number in range(places[0] // count, places[-1] // count + 1)
    }
    return torch.stack([rounds[place // count][place % count] for place in places])


class Batches:
    """The batches of a lesson: one call per batch, one UNet row per picture of every role.

    vectors: token -> encoder -> vectors of all concepts that prompts may name; those that require
    a gradient are encoded anew for every batch, all other prompts once.
    noise_offset: share of noise that is the same all over a latent channel.
    localized: of concepts that prompts shall know in their own words alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        sources: Sequence[Pictures],
        vectors: Mapping[str, ConceptVectors],
        *,
        seed: int,
        noise_offset: float = 0.0,
        trains_text_encoder: bool = False,
        localized: LocalizedWords | None = None,
    ) -> None:
        self.predictor = Predictor(backbone)
        self.sources = tuple(sources)
        self.vectors = vectors
        self.seed = seed
        self.noise_offset = noise_offset
        self.localized = localized
        self._prompts = PromptCache(backbone.text, trains_encoder=trains_text_encoder)
        # All at once, so that no encoding depends on where a run was resumed.
        with torch.no_grad():
            self._prompts.encode([p for source in sources for p in source.prompts], vectors)
        ends = torch.tensor([source.batch_size for source in sources]).cumsum(0).tolist()
        self._roles = {
            source.role: slice(end - source.batch_size, end)
            for source, end in zip(sources, ends, strict=True)
        }

    def __call__(self, index: int) -> StepBatch:
        """Batch number `index`, always the same for the same weights."""
        drawn = [source.draw(self.seed, index) for source in self.sources]
        latents = torch.cat([part for part, _ in drawn])
        prompts = [prompt for _, part in drawn for prompt in part]
        unique = list(dict.fromkeys(prompts))
        place = {prompt: row for row, prompt in enumerate(unique)}
        noise, timesteps = self._noise(index, latents)
        schedule = self.predictor.backbone.schedule
        return StepBatch(
            predictor=self.predictor,
            roles=self._roles,
            latents=latents,
            noise=noise,
            timesteps=timesteps,
            noisy=schedule.add_noise(latents, noise, timesteps),
            target=schedule.target(latents, noise, timesteps),
            prompts=self._encode(unique, index),
            prompt_rows=torch.tensor([place[prompt] for prompt in prompts]),
            seed=self.seed,
            index=index,
            texts=tuple(unique),
        )

    def _encode(self, prompts: list[str], index: int) -> Conditioning:
        if self.localized is None:
            return self._prompts.encode(prompts, self.vectors)
        return self.localized.encode(self._prompts, prompts, self.vectors, index)

    def _noise(self, index: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        draw = generator(self.seed, "noise", index)
        timesteps = torch.randint(TIMESTEPS, (len(latents),), generator=draw)
        noise = torch.randn(latents.shape, generator=draw)
        if self.noise_offset:
            offset = torch.randn((*latents.shape[:2], 1, 1), generator=draw)
            noise = noise + self.noise_offset * offset
        return noise.to(latents.device), timesteps.to(latents.device)
