"""What ComfyUI gets from this pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .automatic_regions import AutomaticRegions
from .concept_attention_artist_sampler import ConceptAttentionArtistSampler
from .consolidate_ewc_dc import ConsolidateEWCDC
from .context_controllable_sampler import ContextControllableSampler
from .demo_model import register_demo_model
from .elastic_concept_weights import ElasticConceptWeights
from .export_lora import ExportLifelongLora
from .folders import register_state_folders
from .learn_concept_task import LearnConceptTask
from .lifelong_report import LifelongReport
from .load_concept_photos import LoadConceptPhotos
from .orthogonal_attention_guidance import OrthogonalAttentionGuidance
from .rainbow_memory_bank import RainbowMemoryBank
from .regional_concept import RegionalConcept
from .state_nodes import ApplyLifelongState, LoadLifelongState, SaveLifelongState

NODES: list[type[io.ComfyNode]] = [
    LoadConceptPhotos,
    LearnConceptTask,
    ConsolidateEWCDC,
    RainbowMemoryBank,
    ConceptAttentionArtistSampler,
    OrthogonalAttentionGuidance,
    RegionalConcept,
    AutomaticRegions,
    ContextControllableSampler,
    SaveLifelongState,
    LoadLifelongState,
    ApplyLifelongState,
    ElasticConceptWeights,
    ExportLifelongLora,
    LifelongReport,
]


class LifelongExtension(ComfyExtension):
    """The pack's nodes. Loading it also teaches the stock loaders the demo model."""

    async def on_load(self) -> None:
        register_demo_model()
        register_state_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
