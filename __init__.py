"""ComfyUI's entry point. Keep import-free: pytest imports this file outside ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """ComfyUI asks here for the pack's nodes (V3 node API)."""
    from .nodes.extension import LifelongExtension

    return LifelongExtension()
