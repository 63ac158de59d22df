"""Words as rows of character numbers, one file of words for each language."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["LENGTH", "Words", "encode"]

LENGTH = 20  # characters of a row; longer words are cut
ALPHABET = "abcdefghijklmnopqrstuvwxyzàáâäåąæçćèéêëęìíîïłñńòóôöøœśùúûüýźżß'-"
NUMBERS = {letter: number for number, letter in enumerate(ALPHABET, start=2)}
PADDING, OTHER = 0, 1


def encode(word: str) -> NDArray[np.int64]:
    """Return the numbers of a word's characters ``(LENGTH,)``, with zeros after its end."""
    row = np.full(LENGTH, PADDING, np.int64)
    numbers = [NUMBERS.get(letter, OTHER) for letter in word.lower()[:LENGTH]]
    row[: len(numbers)] = numbers
    return row


class Words:
    """Every line of every ``<language>.txt`` in ``root``."""

    def __init__(self, root: Path) -> None:
        files = sorted(Path(root).glob("*.txt"))
        self.classes = [file.stem for file in files]
        self.words = [(word, file.stem) for file in files for word in file.read_text(encoding="utf-8").split()]

    def __len__(self) -> int:
        """Count the words."""
        return len(self.words)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], str]:
        """Return a row of character numbers, and the language."""
        word, language = self.words[index]
        return encode(word), language
