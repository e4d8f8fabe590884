"""ComfyUI nodes: check inputs, call lifelong_core, wrap results. Imported inside ComfyUI only."""
