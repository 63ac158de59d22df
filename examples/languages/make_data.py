"""Draw words of each word list in /usr/share/dict into data/raw/words, a file for each language.

The lists are those of Debian's packages wamerican, wdutch, wfrench, witalian, wngerman and wspanish.
"""

import random
import sys
from pathlib import Path

LISTS = {
    "dutch": "dutch",
    "english": "american-english",
    "french": "french",
    "german": "ngerman",
    "italian": "italian",
    "spanish": "spanish",
}
SOURCE, TARGET = Path("/usr/share/dict"), Path("data/raw/words")
COUNT = 2000


def main() -> None:
    """Write ``COUNT`` words of each language, the same every time; words of two languages are left out."""
    missing = [name for name in LISTS.values() if not (SOURCE / name).exists()]
    if missing:
        sys.exit(
            f"{SOURCE}: expected the lists {', '.join(missing)}; install Debian's packages of these names with a w before them"
        )
    words = {language: _read(SOURCE / name) for language, name in LISTS.items()}
    TARGET.mkdir(parents=True, exist_ok=True)
    for language, own in words.items():
        others = set().union(*(found for name, found in words.items() if name != language))
        drawn = random.Random(0).sample(sorted(own - others), COUNT)  # noqa: S311 # not for secrets
        (TARGET / f"{language}.txt").write_text("\n".join(drawn) + "\n", encoding="utf-8")


def _read(path: Path) -> set[str]:
    return {word.lower() for word in path.read_text(encoding="utf-8").split() if word.isalpha() and len(word) > 3}


if __name__ == "__main__":
    main()
