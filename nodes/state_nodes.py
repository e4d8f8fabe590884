"""Saving and loading what was learned: the pack's own files, to go on learning from."""

from __future__ import annotations

import math
from pathlib import Path

from comfy_api.latest import io, ui

from ..lifelong_core.errors import FileError
from ..lifelong_core.files import file_hash
from ..lifelong_core.sharing.naming import check_file_name
from ..lifelong_core.state import LifelongState, load_state, save_state
from .bridge import learned_on
from .folders import new_state_path, saved_states, state_files, state_path
from .patching import apply_state, remove_state
from .types import LifelongStateType

CATEGORY = "lifelong/state"


class SaveLifelongState(io.ComfyNode):
    """Writes a state to output/lifelong."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveLifelongState",
            display_name="Save Lifelong State",
            category=CATEGORY,
            description="Saves everything learned so far into one file in output/lifelong, to go "
            "on teaching later. A state that is saved already is not written twice.",
            search_aliases=["save concepts", "save personalization", "save learned state"],
            is_output_node=True,
            inputs=[
                LifelongStateType.Input(
                    "state", tooltip="What was learned: the LIFELONG_STATE of a lesson."
                ),
                io.String.Input(
                    "name",
                    default="my_concepts",
                    tooltip="File name without ending: letters, digits, '_' and '-'. A number is "
                    "added, so earlier files are never overwritten.",
                ),
            ],
            outputs=[LifelongStateType.Output("state", tooltip="The same state, to link further.")],
        )

    @classmethod
    def execute(cls, state: LifelongState, name: str) -> io.NodeOutput:
        check_file_name(name, "Name")
        path = _newest_equal(name, state) or save_state(state, new_state_path(name))
        lines = [f"saved: {path.name}"]
        lines += [f"in prompts: {concept.phrase}" for concept in state.concepts]
        return io.NodeOutput(state, ui=ui.PreviewText("\n".join(lines)))


class LoadLifelongState(io.ComfyNode):
    """Reads a state that `SaveLifelongState` wrote."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadLifelongState",
            display_name="Load Lifelong State",
            category=CATEGORY,
            description="Loads a state saved by Save Lifelong State, to teach the next concept on "
            "top of it or to use its concepts.",
            search_aliases=["load concepts", "load personalization", "resume learning"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=state_files(),
                    tooltip="A file from output/lifelong or models/lifelong.",
                )
            ],
            outputs=[
                LifelongStateType.Output("state", tooltip="What was learned, as it was saved.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str | float:
        # None when the name is linked: NaN is unlike itself, so the file is read anew.
        return file_hash(state_path(file)) if file else math.nan

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load_state(state_path(file)))


class ApplyLifelongState(io.ComfyNode):
    """Puts a state's concepts on a MODEL and CLIP without a lesson."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyLifelongState",
            display_name="Apply Lifelong State",
            category=CATEGORY,
            description="Gives MODEL and CLIP the concepts of a loaded state, so that a prompt "
            "can name them as embedding:<token>.",
            search_aliases=["use concepts", "apply personalization"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL of the checkpoint that the concepts were learned on.",
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
                LifelongStateType.Input("state", tooltip="The state whose concepts to use."),
            ],
            outputs=[
                io.Model.Output("model", tooltip="Knows the concepts."),
                io.Clip.Output(
                    "clip",
                    tooltip="Knows the tokens: write embedding:<token> <noun> in a prompt.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: io.Model.Type, clip: io.Clip.Type, state: LifelongState
    ) -> io.NodeOutput:
        learned_on(remove_state(model), state)
        return io.NodeOutput(*apply_state(model, clip, state))


def _newest_equal(name: str, state: LifelongState) -> Path | None:
    """The newest file of this name when it holds the same knowledge."""
    for path in saved_states(name)[-1:]:
        try:
            return path if load_state(path).content_hash == state.content_hash else None
        except FileError:
            return None
    return None
