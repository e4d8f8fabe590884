"""The table of methods: read this page first.

A method is where the adapter starts, the terms of its loss, and the phases that follow the lesson.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..backbone import Backbone
from ..consolidation import Phase
from ..consolidation.composite import composite, switch
from ..consolidation.constrained import ConstrainedMerge
from ..consolidation.distill import DistillPhase
from ..consolidation.elastic_weights import elastic_state, released_state
from ..consolidation.fisher import UpdateFisher
from ..consolidation.shift_embeddings import ShiftEmbeddings
from ..errors import InputError
from ..lesson import LessonSettings
from ..memory import RAINBOW, RANDOM
from ..objectives import Term
from ..prompts import TextStack
from ..sampling import StepAdapters
from ..state import LifelongState
from ..training import Hook
from ..training.lesson import Lesson
from .elastic import hold_directions, hold_weights
from .keeping import (
    continue_to_distil,
    draw_stacked,
    leave_changed_weights,
    replay_earlier,
    retain_earlier,
    stack_adapter,
)
from .null_space import null_space_settings, pass_by_other_words
from .parts import (
    all_priors,
    as_given,
    as_it_is,
    continue_adapter,
    continue_with_identifier,
    custom_diffusion_settings,
    denoise_concept,
    draw_merged,
    draw_routed,
    dreambooth_settings,
    l2dm_settings,
    preserve_prior,
    start_afresh,
    svdiff_settings,
    textual_inversion_settings,
    without_ecd,
    without_tame,
)
from .subspaces import (
    keep_apart,
    keep_apart_as_printed,
    lora_only,
    pull_to_one,
    share_inputs,
    start_in_own_rows,
)


class Records(Enum):
    """What the adapter that a lesson leaves in its record holds."""

    WHOLE = "all concepts up to then"
    OWN = "its own concept, learned on the base model alone"
    ADDED = "its own concept, learned on top of all adapters before"
    ROWS = "its own concept, in rows of one orthogonal basis that are its own"


@dataclass(frozen=True)
class Method:
    """A method of lifelong learning.

    start: puts the lesson's fresh adapter into its starting position.
    terms: each makes one term of the loss, or None where the settings leave it out.
    after: the phases that consolidate the lesson, in their order.
    settings: what the method fixes, whatever is asked for; a second time changes nothing more.
    draw_with: a state, a prompt and the base model's text encoders -> the state whose adapter draws
        it, with all concepts; only for drawing and exporting where it is another one. See
        `drawing_state`.
    by_prompt: whether `draw_with` gives other prompts other adapters.
    sample_with: for methods that draw with several adapters, the state that `draw_with` gives ->
        the adapters of each step. See `step_adapters`.
    records: what lessons put into their records, as `start` has it; see `check_follows`.
    replays: how the pictures of earlier concepts that its lessons replay are chosen, a name of
        `memory.SELECTIONS`; None for methods that replay none.
    frozen: the parts of every layer's adapter that lessons leave as `start` has put them.
    hooks: what acts on the weights in every step of a lesson.
    """

    title: str
    reference: str
    start: Callable[[Lesson], None]
    terms: tuple[Callable[[Lesson], Term | None], ...]
    after: tuple[Phase, ...] = ()
    settings: Callable[[LessonSettings], LessonSettings] = as_given
    draw_with: Callable[[LifelongState, str, TextStack], LifelongState] = as_it_is
    by_prompt: bool = False
    sample_with: Callable[[LifelongState, Backbone], StepAdapters] | None = None
    records: Records = Records.WHOLE
    replays: str | None = None
    frozen: tuple[str, ...] = ()
    hooks: tuple[Callable[[Lesson], Hook], ...] = ()

    @property
    def one_adapter(self) -> bool:
        """Whether one adapter draws all prompts, at every step."""
        return not self.by_prompt and self.sample_with is None

    @property
    def needs_records(self) -> bool:
        """Whether it uses the adapters of earlier lessons, to draw with or as teachers."""
        distils = any(isinstance(phase, DistillPhase) for phase in self.after)
        return distils or self.records is not Records.WHOLE


METHODS: dict[str, Method] = {
    "lora": Method(
        title="Sequential LoRA",
        reference="Hu et al. 2021; Ruiz et al. 2023 (prior preservation)",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior),
    ),
    "dreambooth_lora": Method(
        title="DreamBooth-LoRA",
        reference="Ruiz et al. 2023; Sun et al. 2024 (L2DM), section 4.2",
        start=continue_with_identifier,
        terms=(denoise_concept, preserve_prior),
        settings=dreambooth_settings,
    ),
    "dreambooth_lora_ewc": Method(
        title="DreamBooth-LoRA + EWC",
        reference="Sun et al. 2024 (L2DM), Table 1",
        start=continue_with_identifier,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(UpdateFisher(),),
        settings=dreambooth_settings,
    ),
    "dreambooth_lora_lwf": Method(
        title="DreamBooth-LoRA + LwF",
        reference="Sun et al. 2024 (L2DM), Table 1",
        start=continue_with_identifier,
        terms=(denoise_concept, preserve_prior, retain_earlier),
        settings=dreambooth_settings,
    ),
    "custom_diffusion": Method(
        title="Custom Diffusion",
        reference="Kumari et al. 2023",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior),
        settings=custom_diffusion_settings,
    ),
    "custom_diffusion_merge": Method(
        title="Custom Diffusion, constrained merge",
        reference="Kumari et al. 2023, eq. 4 and 5",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        after=(ConstrainedMerge(),),
        settings=custom_diffusion_settings,
        records=Records.OWN,
    ),
    "textual_inversion": Method(
        title="Textual Inversion",
        reference="Gal et al. 2023",
        start=continue_adapter,
        terms=(denoise_concept,),
        settings=textual_inversion_settings,
    ),
    "lwf": Method(
        title="Learning without Forgetting",
        reference="Li & Hoiem 2016, on the lesson's own pictures",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, retain_earlier),
    ),
    "c_lora": Method(
        title="C-LoRA",
        reference="Smith et al. 2023, eq. 3",
        start=stack_adapter,
        terms=(denoise_concept, preserve_prior, leave_changed_weights),
        draw_with=draw_stacked,
        records=Records.ADDED,
    ),
    "null_space": Method(
        title="Null space of other words",
        reference="Saha et al. 2021; Fang et al. 2025; adapters summed as Smith et al. 2023 do",
        start=stack_adapter,
        terms=(denoise_concept,),
        settings=null_space_settings,
        draw_with=draw_stacked,
        records=Records.ADDED,
        hooks=(pass_by_other_words,),
    ),
    "ewc": Method(
        title="EWC",
        reference="Kirkpatrick et al. 2017; Jha et al. 2025, Alg 4 without DSC and DC",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(UpdateFisher(),),
    ),
    "ewc_dc": Method(
        title="EWC DC",
        reference="Jha et al. 2025 (Mining your own secrets), Eq 5, Alg 4 without DSC",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(UpdateFisher(dc=True),),
    ),
    "ewc_rank1": Method(
        title="EWC, rank-one Fisher",
        reference="Rank-1 Fisher EWC, ICLR 2026, without its distillation",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_directions),
        after=(UpdateFisher(rank_one=True),),
    ),
    "dsc": Method(
        title="DSC",
        reference="Jha et al. 2025, Eq 6 without its scores, Alg 4 without EWC",
        start=continue_to_distil,
        terms=(denoise_concept, preserve_prior),
        after=(DistillPhase(dc=False),),
    ),
    "dsc_ewc": Method(
        title="DSC EWC",
        reference="Jha et al. 2025, Alg 4 without the scores of Eq 5 and Eq 6",
        start=continue_to_distil,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(DistillPhase(dc=False), UpdateFisher()),
    ),
    "dsc_ewc_dc": Method(
        title="DSC EWC DC",
        reference="Jha et al. 2025, Alg 4: Eq 5 and Eq 6",
        start=continue_to_distil,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(DistillPhase(), UpdateFisher(dc=True)),
    ),
    "custom_diffusion_ewc": Method(
        title="Custom Diffusion + EWC",
        reference="Kumari et al. 2023 with Kirkpatrick et al. 2017",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(UpdateFisher(),),
        settings=custom_diffusion_settings,
    ),
    "custom_diffusion_lwf": Method(
        title="Custom Diffusion + LwF",
        reference="Sun et al. 2024 (L2DM), Table 1",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, retain_earlier),
        settings=custom_diffusion_settings,
    ),
    "svdiff": Method(
        title="SVDiff",
        reference="Han et al. 2023",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior),
        settings=svdiff_settings,
    ),
    "svdiff_ewc": Method(
        title="SVDiff + EWC",
        reference="Sun et al. 2024 (L2DM), Table 1",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(UpdateFisher(),),
        settings=svdiff_settings,
    ),
    "svdiff_lwf": Method(
        title="SVDiff + LwF",
        reference="Sun et al. 2024 (L2DM), Table 1",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, retain_earlier),
        settings=svdiff_settings,
    ),
    "l2dm": Method(
        title="L²DM",
        reference="Sun et al. 2024, eq. 7, Alg 1 and 2",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, replay_earlier),
        settings=l2dm_settings,
        replays=RAINBOW,
    ),
    "l2dm_without_tame": Method(
        title="L²DM without TAME",
        reference="Sun et al. 2024, eq. 7 without eq. 4, but for the new noun's own pictures",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, replay_earlier),
        settings=without_tame,
        replays=RAINBOW,
    ),
    "l2dm_without_ecd": Method(
        title="L²DM without ECD",
        reference="Sun et al. 2024, eq. 7 without eq. 6",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, replay_earlier),
        settings=without_ecd,
        replays=RAINBOW,
    ),
    "l2dm_random": Method(
        title="L²DM, random memory",
        reference="Sun et al. 2024, without the selection of eq. 5",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, replay_earlier),
        settings=l2dm_settings,
        replays=RANDOM,
    ),
    "l2dm_lora": Method(
        title="L²DM, LoRA",
        reference="Sun et al. 2024, with the adapter that the settings name",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, replay_earlier),
        settings=all_priors,
        replays=RAINBOW,
    ),
    "l2dm_ewc_dc": Method(
        title="L²DM + EWC DC",
        reference="Sun et al. 2024 with Jha et al. 2025, Eq 5",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, replay_earlier, hold_weights),
        after=(UpdateFisher(dc=True),),
        settings=l2dm_settings,
        replays=RAINBOW,
    ),
    "l2dm_lora_ewc_dc": Method(
        title="L²DM, LoRA + EWC DC",
        reference="as L²DM + EWC DC, with the adapter that the settings name",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, replay_earlier, hold_weights),
        after=(UpdateFisher(dc=True),),
        settings=all_priors,
        replays=RAINBOW,
    ),
    "l2dm_shift": Method(
        title="L²DM + shift embeddings",
        reference="Sun et al. 2024 with the shift embeddings of ConceptGuard (CVPR 2025)",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, replay_earlier),
        after=(ShiftEmbeddings(),),
        settings=l2dm_settings,
        replays=RAINBOW,
    ),
    "lora_merge": Method(
        title="LoRA merge",
        reference="Zhong et al. 2024 (equal weights)",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        draw_with=draw_merged,
        records=Records.OWN,
    ),
    "lora_elastic": Method(
        title="LoRA, elastic weights",
        reference="Dong et al. 2024, eq. 3, without eq. 2",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        draw_with=elastic_state,
        by_prompt=True,
        records=Records.OWN,
    ),
    "lora_composite": Method(
        title="LoRA-C",
        reference="Zhong et al. 2024 (LoRA composite)",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        sample_with=composite,
        records=Records.OWN,
    ),
    "lora_switch": Method(
        title="LoRA-S",
        reference="Zhong et al. 2024 (LoRA switch)",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        sample_with=switch,
        records=Records.OWN,
    ),
    "hard_routing": Method(
        title="Hard routing by token (upper bound)",
        reference="Dong et al. 2024, eq. 3, with weights 0 and 1",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        draw_with=draw_routed,
        by_prompt=True,
        records=Records.OWN,
    ),
    "cidm": Method(
        title="CIDM",
        reference="Dong et al. 2024, eq. 2 with R1 and R2 corrected, eq. 3",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior, keep_apart, share_inputs),
        settings=lora_only,
        draw_with=elastic_state,
        by_prompt=True,
        records=Records.OWN,
    ),
    "cidm_without_orthogonality": Method(
        title="CIDM without R1",
        reference="Dong et al. 2024, eq. 2 without R1, eq. 3",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior, share_inputs),
        settings=lora_only,
        draw_with=elastic_state,
        by_prompt=True,
        records=Records.OWN,
    ),
    "cidm_without_shared": Method(
        title="CIDM without R2",
        reference="Dong et al. 2024, eq. 2 without R2, eq. 3",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior, keep_apart),
        settings=lora_only,
        draw_with=elastic_state,
        by_prompt=True,
        records=Records.OWN,
    ),
    "cidm_merged": Method(
        title="CIDM, equal merge",
        reference="Dong et al. 2024, eq. 2, with equal weights for eq. 3",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior, keep_apart, share_inputs),
        settings=lora_only,
        draw_with=draw_merged,
        records=Records.OWN,
    ),
    "cidm_released": Method(
        title="CIDM as released",
        reference="Dong et al. 2024, released code: R1 as printed and a pull to 1, no R2",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior, keep_apart_as_printed, pull_to_one),
        settings=lora_only,
        draw_with=released_state,
        by_prompt=True,
        records=Records.OWN,
    ),
    "orthogonal_adaptation": Method(
        title="Orthogonal Adaptation",
        reference="Po et al. 2024, section 4.2",
        start=start_in_own_rows,
        terms=(denoise_concept, preserve_prior),
        settings=lora_only,
        draw_with=draw_stacked,
        records=Records.ROWS,
        frozen=("down",),
    ),
}


def drawing_state(state: LifelongState, prompt: str, text: TextStack) -> LifelongState:
    """The state to draw `prompt` with, as the method of the newest lesson says.

    text: the base model's. For most methods it is `state` itself. Raises what the method's
    `draw_with` raises, for example StateError when hard routing needs an adapter that was not kept.
    """
    method = newest_method(state)
    return state if method is None else method.draw_with(state, prompt, text)


def step_adapters(state: LifelongState, backbone: Backbone) -> StepAdapters | None:
    """The adapters to draw a state of `drawing_state` with, in place of its own; None for that one.

    Raises what the method's `sample_with` raises.
    """
    method = newest_method(state)
    if method is None or method.sample_with is None:
        return None
    return method.sample_with(state, backbone)


def any_prompt_state(state: LifelongState) -> LifelongState:
    """The state to draw every prompt with.

    Raises InputError when the method of the newest lesson draws with more than one adapter, and
    what the method's `draw_with` raises.
    """
    method = newest_method(state)
    if method is not None and not method.one_adapter:
        when = "prompt" if method.by_prompt else "step"
        raise InputError(
            f"This state was learned with {state.records[-1].settings['method']!r}: every {when} "
            "is drawn with another adapter, which one LoRA or MODEL cannot hold. Use a state that "
            "was learned with another method."
        )
    # No prompt is read, so no encoder is needed.
    return drawing_state(state, "", TextStack(()))


def newest_method(state: LifelongState) -> Method | None:
    """The method of the newest lesson; None without lessons, and for states that name no method."""
    name = state.records[-1].settings.get("method") if state.records else None
    return METHODS.get(name) if isinstance(name, str) else None
