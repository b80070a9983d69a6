"""What guides one batch of requests: the rows that the U-Net reads as text, and what is made of its answers.

Shapes here: B requests, M terms of all requests together, C latent channels, h, w latent rows and columns.
A request with one term of weight 1 is ordinary classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from medisyn.diffusion.composition import compose, mean_condition, slerp
from medisyn.diffusion.guidance import rescale_guided
from medisyn.families.stable_diffusion.text import TextReader
from medisyn.seeding import generator_for
from medisyn.types import Request

Rows = Mapping[str, torch.Tensor]
CallUnet = Callable[[torch.Tensor, Rows], torch.Tensor]  # noisy latents and text rows, as many -> predictions


@dataclass(frozen=True)
class Conditions:
    """Text rows of one batch: `blank` (B rows) is what guidance leads away from, `terms` (M rows) what it leads to."""

    blank: Rows
    terms: Rows
    weights_M: torch.Tensor
    owners_M: torch.Tensor

    @property
    def composed(self) -> bool:
        """Whether any request is more than one term of weight 1."""
        return len(self.weights_M) != len(self.blank["text"]) or bool((self.weights_M != 1).any())

    def predict(
        self, call: CallUnet, noisy_BChw: torch.Tensor, guidance: float, guidance_rescale: float
    ) -> torch.Tensor:
        """u + guidance * sum_i w_i (c_i - u), rescaled towards the spread of the terms' mean (B, C, h, w).

        One U-Net call on 2B rows; with compositions as many calls of at most 2B rows as their terms need, so that they
        take no more memory than plain prompts. B rows where guidance is 1 and nothing is composed.
        """
        if guidance == 1 and not self.composed:
            return call(noisy_BChw, self.terms)
        num_requests = len(noisy_BChw)
        rows = {name: torch.cat([self.blank[name], self.terms[name]]) for name in self.terms}
        noisy = torch.cat([noisy_BChw, noisy_BChw[self.owners_M]])
        size = 2 * num_requests
        answers = torch.cat(
            [
                call(noisy[start : start + size], {name: row[start : start + size] for name, row in rows.items()})
                for start in range(0, len(noisy), size)
            ]
        )
        blank, asked = answers[:num_requests], answers[num_requests:]
        guided = compose(blank, asked, self.weights_M, self.owners_M, guidance)
        if guidance_rescale > 0:
            together = mean_condition(asked, self.weights_M, self.owners_M, num_requests)
            guided = rescale_guided(guided, together, guidance_rescale)
        return guided


def conditions_for(reader: TextReader, requests: Sequence[Request], sizes: Sequence[float] | None) -> Conditions:
    """Read the prompts, each term in a text window of its own. `sizes` are SDXL's six numbers.

    A term of weight 0 is left out: the ends of an interpolation are the plain prompts. Where a request leads to another
    prompt, its embedding is mixed in at its share.
    """
    terms = [
        (owner, text, weight)
        for owner, request in enumerate(requests)
        for text, weight in request.weighted_terms
        if weight != 0
    ]
    device = reader.networks.text_encoders[0].device
    asked = dict(reader.embed(reader.tokens([text for _, text, _ in terms])))
    led = [i for i, (owner, _, _) in enumerate(terms) if requests[owner].toward_prompt]
    if led:
        _lead(reader, asked, led, [requests[terms[i][0]] for i in led])
    blank = reader.negative([request.negative_prompt for request in requests])
    if sizes is not None:
        blank["time_ids"] = torch.tensor([list(sizes)] * len(requests), dtype=torch.float32, device=device)
        asked["time_ids"] = torch.tensor([list(sizes)] * len(terms), dtype=torch.float32, device=device)
    return Conditions(
        blank,
        asked,
        torch.tensor([weight for _, _, weight in terms], device=device),
        torch.tensor([owner for owner, _, _ in terms], device=device),
    )


def _lead(reader: TextReader, asked: dict[str, torch.Tensor], led: list[int], requests: Sequence[Request]) -> None:
    """(1 - share) * embedding + share * the other prompt's, for the rows `led` of `asked`."""
    goals = reader.embed(reader.tokens([request.toward_prompt for request in requests]))
    for name, goal in goals.items():
        shares = goal.new_tensor([request.toward_share for request in requests]).view(-1, *[1] * (goal.ndim - 1))
        rows = asked[name].clone()
        rows[led] = torch.lerp(rows[led], goal, shares)
        asked[name] = rows


def noise_of(request: Request, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Unit noise from the request's seed, or on the way from it to that of its other seed."""
    noise = torch.randn(shape, generator=generator)
    if request.toward_seed is None:
        return noise
    return slerp(noise, torch.randn(shape, generator=generator_for(request.toward_seed, "noise")), request.toward_share)
