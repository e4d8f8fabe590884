"""CLIP's byte-pair tokenizer, from the vocabulary file that open_clip carries. Offline."""

from __future__ import annotations

import gzip
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.models import BPE

from ..errors import ModelError

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
MERGES = 49152 - 256 - 2
_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokenizer:
    """Text to token ids, equal to the CLIPTokenizer that ComfyUI and diffusers use."""

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Piece of text -> id; a piece that ends a word carries `</w>`."""
        return self._bpe.get_vocab()

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Id -> piece of text, the inverse of `vocabulary`."""
        return {index: piece for piece, index in self.vocabulary.items()}

    @cached_property
    def _bpe(self) -> BpeTokenizer:
        merges = _read_merges()
        symbols = list(_byte_symbols())
        pieces = [*symbols, *(symbol + "</w>" for symbol in symbols)]
        pieces += ["".join(merge) for merge in merges]
        pieces += SPECIAL
        model = BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=SPECIAL[1],
        )
        bpe = BpeTokenizer(model)
        bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        bpe.add_special_tokens(list(SPECIAL))
        return bpe

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without begin and end tokens."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def has_word(self, word: str) -> bool:
        """Whether `word` (any case) is one entry of the vocabulary."""
        return word.lower() + "</w>" in self.vocabulary


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """The one tokenizer that all families share (building it takes half a second)."""
    return Tokenizer()


def _read_merges() -> list[tuple[str, str]]:
    spec = find_spec("open_clip")
    folders = list(spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / VOCABULARY_FILE for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ModelError(
            f"CLIP's vocabulary file {VOCABULARY_FILE} was not found in the package open_clip. "
            "Install open_clip_torch again."
        )
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    pairs = [line.split() for line in lines[1 : MERGES + 1]]
    return [(left, right) for left, right in pairs]


def _byte_symbols() -> list[str]:
    """One printable character per byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
