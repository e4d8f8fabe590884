"""What ours is compared with: the usual loop of PEFT and diffusers, without anything special.

As the DreamBooth LoRA training script of diffusers does it, and, where a token is trained, as its
textual inversion script does: the whole embedding table has a gradient and an optimiser state,
and all rows but the new one are put back after every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.speed_data import BATCH, PRIOR_BATCH, SpeedData
from lifelong_core.backbone import Backbone
from lifelong_core.prompts.clip import BOS, CONTEXT_LENGTH, EOS, VOCABULARY
from lifelong_core.prompts.tokenizer import tokenizer

LEARNING_RATE, TOKEN_LEARNING_RATE = 1e-3, 5e-3


class PlainPeft:
    """Trains a LoRA on `targets` of a UNet of its own, and with `token` a new word's vector."""

    def __init__(
        self, backbone: Backbone, data: SpeedData, targets: list[str], rank: int, *, token: bool
    ) -> None:
        self.data = data
        self.token = token
        self.unet = backbone.unet.train()
        config = LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets
        )
        self.unet.add_adapter(config)
        self.text = text_encoder(backbone)
        self.table = cast(Tensor, self.text.get_input_embeddings().weight)
        self.known = self.table[:VOCABULARY].detach().clone()
        self.lora = [p for p in self.unet.parameters() if p.requires_grad]
        groups = [{"params": self.lora, "lr": LEARNING_RATE}]
        if token:
            self.text.train()
            self.table.requires_grad_(True)
            groups.append({"params": [self.table], "lr": TOKEN_LEARNING_RATE})
        self.parameters = [*self.lora, self.table] if token else self.lora
        self.optimizer = torch.optim.AdamW(groups)
        self.scheduler = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=backbone.schedule.prediction_type,
        )
        self.ids = [token_ids(caption, data.token, data.noun) for caption in data.captions]
        self.prior_ids = token_ids(data.prior_prompt, data.token, data.noun)

    def trained(self) -> int:
        """Weights that really change: of the table only the new row."""
        return sum(p.numel() for p in self.lora) + self.token * self.table.shape[1]

    def run(self, steps: int, after_step: Callable[[], None]) -> None:
        """Train, and tell of every step."""
        for _ in range(steps):
            self._step()
            after_step()

    def _step(self) -> None:
        chosen = torch.randint(len(self.data.concept), (BATCH,))
        priors = torch.randint(len(self.data.prior), (PRIOR_BATCH,))
        latents = torch.cat([self.data.concept[chosen], self.data.prior[priors]])
        ids = torch.stack(
            [*(self.ids[n] for n in chosen.tolist()), *(self.prior_ids for _ in priors)]
        )
        noise = torch.randn_like(latents)
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        with torch.set_grad_enabled(self.token):
            context = self.text(ids, return_dict=False)[0]
        output = self.unet(noisy, timesteps, context, return_dict=False)[0]
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, noise, timesteps)
        else:
            target = noise
        parts = (BATCH, PRIOR_BATCH)
        losses = [
            F.mse_loss(answer.float(), wanted.float())
            for answer, wanted in zip(output.split(parts), target.split(parts), strict=True)
        ]
        loss = losses[0] + losses[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.token:
            with torch.no_grad():
                self.table[:VOCABULARY] = self.known
        loss.item()


def text_encoder(backbone: Backbone) -> CLIPTextModel:
    """The base model's text encoder as transformers' own, with one more row for a new word."""
    ((_, ours),) = backbone.text.modules.items()
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=ours.config.width,
        intermediate_size=ours.config.intermediate,
        num_hidden_layers=ours.config.layers,
        num_attention_heads=ours.config.heads,
        hidden_act=ours.config.activation,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = CLIPTextModel(config).eval()
    known = ours.state_dict()
    # transformers 5 leaves out the prefix that the published files have.
    names = {name: name if name in known else f"text_model.{name}" for name in model.state_dict()}
    model.load_state_dict({name: known[source] for name, source in names.items()})
    model.resize_token_embeddings(VOCABULARY + 1, mean_resizing=False)
    return model.requires_grad_(False)


def token_ids(prompt: str, token: str, noun: str) -> Tensor:
    """Token ids [77] of a prompt, the new word's being the row behind the vocabulary."""
    before, found, after = prompt.partition(f"embedding:{token} {noun}")
    words = [*tokenizer().encode(before)]
    if found:
        words += [VOCABULARY, *tokenizer().encode(noun + after)]
    ids = [BOS, *words[: CONTEXT_LENGTH - 2], EOS]
    return torch.tensor(ids + [EOS] * (CONTEXT_LENGTH - len(ids)))
