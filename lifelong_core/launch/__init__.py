"""From a fresh clone to a real ComfyUI with this pack: install, start, talk to it, stop it.

Every module here can be imported with nothing but the standard library; what needs more imports
it inside the function, after the environment is ready.
"""
