"""The rainbow memory bank of L2DM: features of the past, pictures for one lesson."""

from .bank import ShortTermMemory, drawer_hash

__all__ = ["ShortTermMemory", "drawer_hash"]
